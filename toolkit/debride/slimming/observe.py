"""What a graph's tensors look like when it runs: shapes, which axes follow the batch, and small whole-number values.

Shape inference loses track of computed Reshape targets, so the graph is run, on noise, at a few batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from debride.errors import ModelError
from debride.graph.ir import Graph, Value
from debride.graph.lend import lent
from debride.sessions import Runtime, Session
from debride.types import InputSpec

BATCHES = (3, 2, 1)
"""Sizes of the batch on which shapes are taken, where the graph leaves it open."""
_COUNTING = frozenset(("Shape", "Size"))
_OPEN = frozenset(("If", "Loop", "Scan", "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"))
_SMALL = 4096

Feeds = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """`shapes` and `dtypes` of all tensors, constants too, at a batch of `batch` images; which axes follow the batch.

    `smallest` is the smallest batch that the graph takes: 1 unless it is fixed.
    `values` are those of integer tensors of at most 4096 elements that follow from shapes and constants alone and are
    the same for every batch; `derived` are all that follow from these. `flexible` says that the graph leaves other
    dimensions of its input open than the batch, so that a shape seen is one of many.
    """

    batch: int
    smallest: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    varying: Mapping[str, frozenset[int]]
    values: Mapping[str, npt.NDArray[Any]]
    derived: frozenset[str]
    flexible: bool

    def open_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shapes, with None along the axes that follow the batch."""
        return {
            tensor: tuple(None if axis in self.varying[tensor] else size for axis, size in enumerate(shape))
            for tensor, shape in self.shapes.items()
        }

    def value(self, tensor: str) -> list[int] | None:
        """The whole numbers in `tensor`, flattened, where every batch gives the same."""
        found = self.values.get(tensor)
        return None if found is None else [int(v) for v in found.reshape(-1)]


def random_feeds(graph: Graph, spec: InputSpec | None, batch: int, seed: int) -> Feeds:
    """Noise in 0..1 for every input of `graph`, `batch` images where it leaves the batch open.

    Raises:
        ModelError: a dimension that is no batch is open and `spec` does not say it.
    """
    rng = np.random.default_rng(seed)
    feeds = {}
    for value in graph.inputs:
        noise = rng.random(_sizes(value, spec, batch))
        feeds[value.name] = noise.astype(value.dtype) if value.dtype.kind == "f" else (noise * 2).astype(value.dtype)
    return feeds


def _sizes(value: Value, spec: InputSpec | None, batch: int) -> list[int]:
    if value.shape is None:
        raise ModelError(f"input '{value.name}' has no shape; export the model with one")
    image: Sequence[int] = ()
    if spec is not None and value.name == spec.name and len(value.shape) == 4:
        channels_first = (spec.depth, *spec.size)
        image = (batch, *(channels_first if spec.layout == "NCHW" else (*spec.size, spec.depth)))
    sizes = []
    for axis, size in enumerate(value.shape):
        if size is None and axis and not image:
            raise ModelError(
                f"input '{value.name}' leaves its size open; give clean images, or --layout and a side-car"
            )
        sizes.append(size or (image[axis] if image else batch))
    return sizes


def observe(proto: onnx.ModelProto, graph: Graph, spec: InputSpec | None, runtime: Runtime, name: str) -> Observed:
    """Run `proto` (parsed: `graph`) on noise at a few batch sizes and note every tensor's shape.

    Raises:
        ModelError: onnxruntime cannot run it, or its input size is open (see `random_feeds`).
    """
    tensors = [tensor for node in graph.nodes for tensor in node.outputs if tensor]
    open_batch = any(v.shape and v.shape[0] is None for v in graph.inputs)
    batches = BATCHES if open_batch else BATCHES[:1]
    with lent(proto, tensors) as model:
        session = Session(model, runtime, name)
        (first, dtypes, numbers), *others = (
            _run(session, random_feeds(graph, spec, batch, batch), tensors, graph.constants) for batch in batches
        )
    derived = _derived(graph)
    batch = BATCHES[0] if open_batch else _fixed(graph)
    constants = {name: array for name, array in graph.constants.items() if _is_small(array)}
    return Observed(
        batch=batch,
        smallest=1 if open_batch else batch,
        shapes=first,
        dtypes=dtypes,
        varying={
            tensor: frozenset().union(*(_differing(shape, other[tensor]) for other, _, _ in others))
            for tensor, shape in first.items()
        },
        values={
            tensor: array
            for tensor, array in {**numbers, **constants}.items()
            if tensor in derived
            and (tensor in constants or all(np.array_equal(array, other[tensor]) for _, _, other in others))
        },
        derived=frozenset(derived),
        flexible=any(size is None for v in graph.inputs for size in (v.shape or ())[1:]),
    )


def _run(
    session: Session, feeds: Feeds, tensors: Sequence[str], constants: Feeds
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.dtype[Any]], dict[str, npt.NDArray[Any]]]:
    """Shapes and types of `tensors`, inputs and constants; the values of small whole-number `tensors` and inputs."""
    found = {**dict(zip(tensors, session.run(feeds, tensors), strict=True)), **feeds}
    arrays = {tensor: array for tensor, array in found.items() if isinstance(array, np.ndarray)}
    numbers = {tensor: array for tensor, array in arrays.items() if _is_small(array)}
    shapes = {tensor: array.shape for tensor, array in arrays.items()}
    dtypes = {tensor: array.dtype for tensor, array in arrays.items()}
    for name, array in constants.items():
        shapes[name], dtypes[name] = array.shape, array.dtype
    return shapes, dtypes, numbers


def _is_small(array: npt.NDArray[Any]) -> bool:
    return array.dtype.kind in "iu" and array.size <= _SMALL


def _derived(graph: Graph) -> set[str]:
    """Tensors that follow from shapes and constants: to be the same on a few draws of noise is not enough."""
    found = set(graph.constants) | {""}
    for node in graph.nodes:
        fixed = node.op in _COUNTING or (node.inputs and all(tensor in found for tensor in node.inputs))
        if fixed and not node.domain and node.op not in _OPEN:
            found.update(node.outputs)
    return found


def _fixed(graph: Graph) -> int:
    shapes = [v.shape for v in graph.inputs if v.shape and len(v.shape) == 4]
    return int(shapes[0][0] or 1) if shapes else 1


def _differing(one: tuple[int, ...], other: tuple[int, ...]) -> frozenset[int]:
    if len(one) != len(other):
        return frozenset(range(len(one)))
    return frozenset(axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
