"""The proxy: an ONNX graph run by torch, differentiable in image, parameters and masks on any named edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from debride.errors import ModelError
from debride.graph.ir import Graph
from debride.proxy.convert import to_tensor
from debride.proxy.plan import logits_edge
from debride.proxy.runner import GraphRunner
from debride.types import Compute, InputSpec

_TINY = 1e-12
"""Added to a probability before its logarithm is taken."""


class Proxy(GraphRunner):
    """A classifier's graph as a torch module: `GraphRunner` with an image at its door and class logits at its end.

    A graph whose image input has a fixed batch dimension is run in portions of that size.

    Raises:
        UnsupportedOpError: an operator that the scores need is not in the table; names node, operator and opset.
        ModelError: the graph does not run, or needs more inputs than the image.
    """

    def __init__(self, graph: Graph, spec: InputSpec, *, compute: Compute | None = None) -> None:
        super().__init__(graph, compute=compute)
        self.spec = spec
        self.output = spec.output or graph.outputs[0].name
        self.logits = logits_edge(graph, self.output)
        self._input = next((v for v in graph.inputs if v.name == spec.name), graph.inputs[0])
        scale, shift = spec.affine()
        self.register_buffer("_scale", torch.from_numpy(scale))
        self.register_buffer("_shift", torch.from_numpy(shift))
        self.to(self.compute.device)
        self.eval()
        self.probabilities = self._gives_probabilities()

    @property
    def fixed_batch(self) -> int | None:
        """How many images the graph takes at a time; None where any number will do."""
        return self._input.shape[0] if self._input.shape else None

    def forward(
        self,
        images: Tensor,
        masks: Mapping[str, Tensor] | None = None,
        *,
        start: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Class logits (N, K) of images (N, C, H, W) in 0..1.

        `masks` multiply the tensors that they name (broadcast) the moment these are there; a mask's first axis is the
        batch's (one entry, or one per image), as in (1, C, 1, 1) or (N, C, 1, 1). `start` gives tensors of
        the graph that were computed before: what only they need is not run again; a mask on one of them still acts.

        Raises:
            ModelError: a node fails (named with its operator and shapes), or a name is no tensor of the graph.
        """
        scores = self._scores(images, masks or {}, start or {}, self.logits)
        if scores.requires_grad:
            self.compute.meter.passes += len(images)
        else:
            self.compute.meter.forwards += len(images)
        return self.as_logits(scores)

    def as_logits(self, scores: Tensor) -> Tensor:
        """The tensor `logits` as class logits: its logarithm, where it holds probabilities."""
        return torch.log(scores + _TINY) if self.probabilities else scores

    def scores(self, images: Tensor, masks: Mapping[str, Tensor] | None = None) -> Tensor:
        """The model's own class scores (N, K), before any turning into logits: what onnxruntime returns."""
        return self._scores(images, masks or {}, {}, self.output)

    def edges(self, images: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The tensors `names` of the graph, of images (N, C, H, W) in 0..1.

        Raises:
            ModelError: as `forward`, or the graph takes another number of images than N.
        """
        batch = self.fixed_batch
        if batch not in (None, len(images)):
            raise ModelError(f"the graph takes {batch} images at a time; export it with a dynamic batch")
        return self.run({self._input.name: self.encode(images)}, names)

    def encode(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in 0..1, RGB or grey, as the model's input: channel order, range, layout and type."""
        # The order in memory decides how fast convolutions are, whatever the layout says.
        scale = self.get_buffer("_scale")
        order = torch.channels_last if self.compute.channels_last else torch.contiguous_format
        x = images.to(scale.dtype).contiguous(memory_format=order)
        x = x.flip(1) if self.spec.channels == "BGR" else x
        x = x * scale + self.get_buffer("_shift")
        x = x.permute(0, 2, 3, 1) if self.spec.layout == "NHWC" else x
        wanted = to_tensor(self._input.dtype.type(0).reshape(1)).dtype
        # A whole-number input stays float, so that the gradient reaches the image; so does a proxy made double.
        return x.to(wanted) if wanted in (torch.float16, torch.bfloat16, torch.float64) else x

    def _scores(self, images: Tensor, masks: Mapping[str, Tensor], start: Mapping[str, Tensor], output: str) -> Tensor:
        batch = self.fixed_batch
        if batch is None or len(images) == batch:
            feeds = {self._input.name: self.encode(images), **start}
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

    def _gives_probabilities(self) -> bool:
        """Whether the scores are probabilities made by other means than a final Softmax: tried on random images."""
        noise = torch.Generator().manual_seed(0)
        shape = self.fixed_batch or 4
        images = torch.rand((shape, self.spec.depth, *self.spec.size), generator=noise).to(self.device)
        with torch.no_grad():
            scores = self.scores(images)
        if self.logits != self.output:
            return False
        return bool((scores.min() >= 0) & ((scores.sum(1) - 1).abs().max() < 1e-3)) and scores.shape[1] > 1
