"""The proxy: an ONNX graph run by torch, differentiable in image, parameters and masks on any named edge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from debride.errors import DebrideError, ModelError, UnsupportedOpError
from debride.graph.ir import Graph, Node
from debride.proxy.convert import to_tensor
from debride.proxy.op import Operator
from debride.proxy.plan import Step, logits_edge, make_plan
from debride.proxy.table import lookup
from debride.types import InputSpec

Precision = Literal["float32", "bfloat16"]
_TINY = 1e-12
"""Added to a probability before its logarithm is taken."""


class Proxy(nn.Module):
    """A classifier's graph as a torch module.

    Float constants are buffers (no gradient unless asked for by `requires_grad_`), by name in `tensors`; integer
    constants, and what only they decide, are computed once here. With `precision="bfloat16"` convolutions and matrix
    products run in bfloat16 under autocast, for speed. A graph whose image input has a fixed batch dimension is run
    in portions of that size.

    Raises:
        UnsupportedOpError: an operator that the scores need is not in the table; names node, operator and opset.
        ModelError: the graph does not run, or needs more inputs than the image.
    """

    def __init__(self, graph: Graph, spec: InputSpec, *, precision: Precision = "float32") -> None:
        super().__init__()
        self.graph, self.spec, self.precision = graph, spec, precision
        self.output = spec.output or graph.outputs[0].name
        self.logits = logits_edge(graph, self.output)
        self._input = next((v for v in graph.inputs if v.name == spec.name), graph.inputs[0])
        self._names: dict[str, str] = {}
        self._exact: dict[str, Tensor] = {}
        self._edges = {*(v.name for v in graph.inputs), *(name for n in graph.nodes for name in n.outputs)}
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], tuple[Step, ...]] = {}
        for name, tensor in _constants(graph):
            if tensor.dtype.is_floating_point:
                self._names[name] = f"constant{len(self._names)}"  # torch allows no dots in a buffer's name
                self.register_buffer(self._names[name], tensor)
            else:
                self._exact[name] = tensor
        self._exact.update(_folded(graph, self._exact))
        scale, shift = spec.affine()
        self.register_buffer("_scale", torch.from_numpy(scale))
        self.register_buffer("_shift", torch.from_numpy(shift))
        self.eval()
        self.probabilities = self._gives_probabilities()

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The float constants by their initializer's (or Constant node's output) name."""
        return {name: self.get_buffer(key) for name, key in self._names.items()}

    def forward(
        self,
        images: Tensor,
        masks: Mapping[str, Tensor] | None = None,
        *,
        start: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Class logits (N, K) of images (N, C, H, W) in 0..1.

        `masks` multiply the tensors that they name (broadcast) the moment these are there. `start` gives tensors of
        the graph that were computed before: what only they need is not run again; a mask on one of them still acts.

        Raises:
            ModelError: a node fails (named with its operator and shapes), or a name is no tensor of the graph.
        """
        scores = self._scores(images, masks or {}, start or {}, self.logits)
        return torch.log(scores + _TINY) if self.probabilities else scores

    def scores(self, images: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's own class scores (N, K), before any turning into logits: what onnxruntime returns."""
        return self._scores(images, masks or {}, {}, self.output)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in 0..1, RGB or grey, as the model's input: channel order, range, layout and type."""
        x = images.flip(1) if self.spec.channels == "BGR" else images
        x = x * self.get_buffer("_scale") + self.get_buffer("_shift")
        x = x.permute(0, 2, 3, 1) if self.spec.layout == "NHWC" else x
        wanted = to_tensor(self._input.dtype.type(0).reshape(1)).dtype
        # Whole-number inputs stay float, so that the gradient reaches the image.
        return x.to(wanted) if wanted.is_floating_point else x

    def run(
        self, feeds: Mapping[str, Tensor], outputs: Sequence[str], masks: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The tensors `outputs`, computed from `feeds` (inputs, edges or constants to replace) and the constants.

        Raises:
            ModelError: as `forward`. UnsupportedOpError: a needed operator is not in the table.
        """
        masks = masks or {}
        unknown = sorted(set(masks) - self._edges)
        if unknown:
            raise ModelError(f"a mask names {unknown[0]!r}, which is no tensor of the graph; name a node's output")
        values = {**self._exact, **self.tensors, **feeds}
        for name in set(feeds).intersection(masks):
            values[name] = values[name] * masks[name]
        with self._autocast():
            for step in self._plan(feeds.keys(), tuple(outputs)):
                made = _compute(step.operator, step.node, [values[n] if n else None for n in step.node.inputs])
                for name, value in zip(step.node.outputs, made, strict=False):
                    if name and name not in feeds:
                        values[name] = value * masks[name] if name in masks else value
                for name in step.frees:
                    values.pop(name, None)
        return {name: values[name] for name in outputs}

    def _plan(self, feeds: Collection[str], outputs: tuple[str, ...]) -> tuple[Step, ...]:
        key = (frozenset(feeds), outputs)
        if key not in self._plans:
            self._plans[key] = make_plan(self.graph, {*self._exact, *self._names}, feeds, outputs)
        return self._plans[key]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.get_buffer("_scale").device.type, torch.bfloat16)

    def _scores(self, images: Tensor, masks: Mapping[str, Tensor], start: Mapping[str, Tensor], output: str) -> Tensor:
        batch = self._input.shape[0] if self._input.shape else None
        if batch is None or len(images) == batch:
            feeds = {self._input.name: self._ordered(self.encode(images)), **start}
            return self.run(feeds, (output,), masks)[output].flatten(1).to(images.dtype)
        return torch.cat(list(self._portions(images, masks, start, output, batch)))[: len(images)]

    def _portions(
        self, images: Tensor, masks: Mapping[str, Tensor], start: Mapping[str, Tensor], output: str, batch: int
    ) -> Iterable[Tensor]:
        """The scores, `batch` images at a time; the last portion is filled up with its first image."""
        total = len(images)
        for first in range(0, total, batch):
            rows = torch.arange(first, first + batch, device=images.device)
            rows = torch.where(rows < total, rows, first)
            part = [{k: v[rows] if v.ndim and len(v) == total else v for k, v in m.items()} for m in (masks, start)]
            yield self._scores(images[rows], part[0], part[1], output)

    def _ordered(self, x: Tensor) -> Tensor:
        """`x` in the memory order that the convolutions are fastest with."""
        channels_last = self.precision == "bfloat16" and x.ndim == 4 and self.spec.layout == "NCHW"
        return x.contiguous(memory_format=torch.channels_last) if channels_last else x

    def _gives_probabilities(self) -> bool:
        """Whether the scores are probabilities made by other means than a final Softmax: tried on random images."""
        if self.logits != self.output:
            return False
        noise = torch.Generator().manual_seed(0)
        shape = (self._input.shape or (None,))[0] or 4
        images = torch.rand((shape, self.spec.depth, *self.spec.size), generator=noise)
        with torch.no_grad():
            scores = self.scores(images)
        return bool((scores.min() >= 0) & ((scores.sum(1) - 1).abs().max() < 1e-3)) and scores.shape[1] > 1


def _constants(graph: Graph) -> Iterable[tuple[str, Tensor]]:
    used = {name for node in graph.nodes for name in node.inputs} | {v.name for v in graph.outputs}
    for name, array in graph.constants.items():
        if name in used and array.dtype.kind not in "OSU":
            yield name, to_tensor(array)


def _folded(graph: Graph, exact: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What follows from integer constants alone: shape arithmetic, masks of attention and the like."""
    found = dict(exact)
    for node in graph.nodes:
        if node.inputs and all(name in found or not name for name in node.inputs):
            try:
                operator = lookup(node, graph.opset)
            except UnsupportedOpError:
                continue  # an error only if the scores need it
            made = _compute(operator, node, [found[n] if n else None for n in node.inputs])
            found.update((n, v) for n, v in zip(node.outputs, made, strict=False) if n)
    return found


def _compute(operator: Operator, node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of one node; whatever goes wrong inside is a `ModelError` that names node, operator and shapes."""
    extra = {"n_outputs": len(node.outputs)} if operator.counts_outputs else {}
    try:
        made = operator(*inputs, **node.attributes, **extra)
    except DebrideError as error:
        raise type(error)(f"node {node.name!r} ({node.op}): {error}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OverflowError, NotImplementedError) as error:
        shapes = ", ".join("none" if x is None else f"{tuple(x.shape)} {x.dtype}" for x in inputs)
        message = " ".join(str(error).split())
        raise ModelError(f"node {node.name!r} ({node.op}) fails on inputs {shapes}: {message}") from error
    return made if isinstance(made, tuple) else (made,)
