"""What a graph's tensors look like when it runs: shapes, which axes follow the batch, and small whole-number values.

Shape inference loses track of computed Reshape targets, so the graph is run, on noise, at a few batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from debride.errors import ModelError
from debride.graph.infer import value_infos
from debride.graph.ir import Graph, Node
from debride.graph.lend import counted, lent
from debride.graph.numbers import Known
from debride.sessions import Runtime, Session
from debride.slimming.noise import Feeds, random_feeds
from debride.slimming.sizes import sizes_of
from debride.types import InputSpec

BATCHES = (3, 2, 1)
"""Sizes of the batch on which shapes are taken, where the graph leaves it open."""
LONGEST = 1 << 19
"""A tensor with longer axes, which may cost onnxruntime nothing, is not looked at index by index."""
_NO_TENSORS = frozenset(("If", "Loop", "Scan", "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase"))
_NO_TENSORS |= {"SplitToSequence", "SequenceMap", "Optional", "OptionalGetElement", "StringSplit"}
"""Operators that may make something else than a tensor, which has no shape to ask for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Observed:
    """`shapes` and `dtypes` of all tensors, constants too, at a batch of `batch` images; which axes follow the batch.

    `smallest` is the smallest batch that the graph takes: 1 unless it is fixed.
    `numbers` follow from shapes and constants alone; the batch leaves entries of them unknown. The size of `wild`
    tensors follows from the image. `flexible` says that the graph leaves other dimensions of its input open than the
    batch, so that a shape seen is one of many.
    """

    batch: int
    smallest: int
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, np.dtype[Any]]
    varying: Mapping[str, frozenset[int]]
    numbers: Mapping[str, Known]
    wild: frozenset[str]
    flexible: bool

    def open_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The shapes, with None along the axes that follow the batch."""
        return {
            tensor: tuple(None if axis in self.varying[tensor] else size for axis, size in enumerate(shape))
            for tensor, shape in self.shapes.items()
        }

    def usual(self, node: Node) -> bool:
        """Whether all that `node` reads and makes has a known shape, elements, and no axis of more than `LONGEST`.

        A list of numbers may be empty: Resize's regions, or a Reshape's target where that is a single number.
        """
        ends = (*node.inputs[:1], *node.outputs)
        shapes = [(t in ends, self.shapes.get(t, (0, 0))) for t in (*node.inputs, *node.outputs) if t]
        return all(sum(shape) <= LONGEST and (0 not in shape or (shape == (0,) and not end)) for end, shape in shapes)

    def array(self, tensor: str) -> npt.NDArray[Any] | None:
        """The whole numbers in `tensor`, where no batch changes any."""
        found = self.numbers.get(tensor)
        return found.array if found is not None and found.whole and found.array.dtype.kind in "iu" else None

    def value(self, tensor: str) -> list[int] | None:
        """The whole numbers in `tensor`, flattened, where no batch changes any."""
        found = self.array(tensor)
        return None if found is None else [int(v) for v in found.reshape(-1)]


def observe(proto: onnx.ModelProto, graph: Graph, spec: InputSpec | None, runtime: Runtime, name: str) -> Observed:
    """Run `proto` (parsed: `graph`) on noise at a few batch sizes and note every tensor's shape.

    Raises:
        ModelError: onnxruntime cannot run it, or its input size is open (see `random_feeds`).
    """
    tensors = [tensor for node in graph.nodes if node.op not in _NO_TENSORS for tensor in node.outputs if tensor]
    open_batch = any(v.shape and v.shape[0] is None for v in graph.inputs)
    batches = BATCHES if open_batch else BATCHES[:1]
    try:
        feeds = [random_feeds(graph, spec, batch, seed=batch) for batch in batches]
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error
    with lent(proto, shapes_of=tensors) as model:
        session = Session(model, replace(runtime, thrifty=True), name)
        first, *others = (_shapes(session, feed, tensors, graph) for feed in feeds)
    varying = {
        tensor: frozenset().union(*(_differing(shape, other[tensor]) for other in others))
        for tensor, shape in first.items()
    }
    flexible = any(size is None for v in graph.inputs for size in (v.shape or ())[1:])
    sizes = sizes_of(proto, graph, first, varying, flexible)
    batch = BATCHES[0] if open_batch else _fixed(graph)
    return Observed(
        batch=batch,
        smallest=1 if open_batch else batch,
        shapes=first,
        dtypes=_dtypes(proto, graph, tensors),
        varying=varying,
        numbers=sizes.numbers,
        wild=sizes.wild,
        flexible=flexible,
    )


def _shapes(session: Session, feeds: Feeds, tensors: Sequence[str], graph: Graph) -> dict[str, tuple[int, ...]]:
    """The shapes of `tensors`, of the inputs and of the constants; the tensors themselves are never fetched."""
    found = session.run(feeds, [counted(tensor) for tensor in tensors])
    shapes = {tensor: tuple(int(n) for n in shape) for tensor, shape in zip(tensors, found, strict=True)}
    shapes.update((name, array.shape) for name, array in (*feeds.items(), *graph.constants.items()))
    return shapes


def _dtypes(proto: onnx.ModelProto, graph: Graph, tensors: Sequence[str]) -> dict[str, np.dtype[Any]]:
    """Types as inference finds them, which needs no shapes for it; float32 where it gives up."""
    infos = value_infos(proto)
    found = {name: array.dtype for name, array in graph.constants.items()}
    for tensor in (*tensors, *(value.name for value in graph.inputs)):
        info = infos.get(tensor)
        number = info.type.tensor_type.elem_type if info is not None else 0
        found[tensor] = onnx.helper.tensor_dtype_to_np_dtype(number) if number else np.dtype(np.float32)
    return found


def _fixed(graph: Graph) -> int:
    shapes = [v.shape for v in graph.inputs if v.shape and len(v.shape) == 4]
    return int(shapes[0][0] or 1) if shapes else 1


def _differing(one: tuple[int, ...], other: tuple[int, ...]) -> frozenset[int]:
    if len(one) != len(other):
        return frozenset(range(len(one)))
    return frozenset(axis for axis, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
