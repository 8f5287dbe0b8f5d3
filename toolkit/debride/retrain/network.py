"""A network whose weights can be trained: the proxy's constants, and masters of them in float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from debride.errors import ModelError
from debride.graph.ir import Graph
from debride.graph.read import Model
from debride.graph.walk import Index
from debride.graph.weights import silent, trainable
from debride.proxy.interpreter import Proxy
from debride.types import ChannelGroup, Compute, FloatArray, InputSpec, Refused

_LINEAR = ("Gemm", "MatMul", "Conv", "Einsum")
_NAMED = 3


class Network:
    """The graph of `model` with its weights as `masters` by name (float32, or float64); channels that are zero stay so.

    What computes are the proxy's own constants, in the types of the file (in float16, small steps would round to none);
    convolutions and products run as `compute` says. `fixed` are the layers' parameters that cannot be trained, with
    reasons; `silent` the entries of what is trained that stay zero.

    Raises:
        ModelError: nothing in it can be trained.
    """

    def __init__(
        self, model: Model, spec: InputSpec, groups: Sequence[ChannelGroup], compute: Compute | None = None
    ) -> None:
        self.proxy = Proxy(model.graph, spec, compute=compute)
        weights, self.fixed = trainable(model, self.proxy.output)
        if not weights:
            raise ModelError(f"{model.path.name}: no weight can be trained: {_reasons(self.fixed)}")
        self._constants = {weight.name: self.proxy.tensors[weight.name].requires_grad_(True) for weight in weights}
        self.silent = {name: m for name, m in silent(model.graph, groups).items() if name in self._constants}
        self._kept = {name: self.place(~mask) for name, mask in self.silent.items()}
        self.masters = {name: _wide(tensor.detach().clone()) for name, tensor in self._constants.items()}

    def check(self, images: FloatArray) -> None:
        """Raise `ModelError` where the scores of `images` (N, C, H, W) depend on no weight that can be trained."""
        if not self.logits(self.place(images)).requires_grad:
            raise ModelError("no weight can be trained: what the image becomes is rounded or cast behind all of them")

    def load(self, masters: Mapping[str, Tensor]) -> None:
        """Compute with `masters`, by name, from here on."""
        with torch.no_grad():
            for name, values in masters.items():
                if values is not self.masters[name]:
                    self.masters[name].copy_(values)
                self._constants[name].copy_(values)

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of all masters, by name."""
        return {name: values.clone() for name, values in self.masters.items()}

    def set_gradients(self, losses: Iterable[Tensor]) -> None:
        """Set the masters' gradients to those of the sum of `losses`, without the entries that stay zero.

        One loss is made, and what it holds in memory given up, after the other.
        """
        total = {name: torch.zeros_like(master) for name, master in self.masters.items()}
        for loss in losses:
            found = self.proxy.gradients(loss, list(self._constants.values()), allow_unused=True)
            for name, gradient in zip(total, found, strict=True):
                if gradient is not None:
                    total[name] += gradient.to(total[name].dtype)
        for name, master in self.masters.items():
            master.grad = total[name] * self._kept[name] if name in self._kept else total[name]

    def place(self, array: npt.NDArray[Any]) -> Tensor:
        """A copy of `array` as a tensor where the network computes."""
        return torch.from_numpy(np.array(array)).to(self.proxy.device)

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (N, K), float32, of images (N, C, H, W) in 0..1."""
        logits: Tensor = self.proxy(images)
        return logits.float()

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`logits`, and what the last linear layer makes them of, (N, F) float32.

        Raises:
            ModelError: the graph has no such layer, or takes a fixed number of images.
        """
        scores, features = self.proxy.logits, _features(self.proxy.graph, self.proxy.logits)
        found = self.proxy.edges(images, (scores, features))
        logits = found[scores].flatten(1).float()
        return self.proxy.as_logits(logits), found[features].flatten(1).float()

    def arrays(self) -> dict[str, FloatArray]:
        """The masters by name, to be written into the file."""
        return {name: values.cpu().numpy().copy() for name, values in self.masters.items()}


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _features(graph: Graph, logits: str) -> str:
    """The tensor that the last linear layer before `logits` reads, of its operands the one that the image decides."""
    index = Index(graph)
    way, images = index.ancestors([logits]), {value.name for value in graph.inputs}
    for node in reversed(graph.nodes):
        for tensor in node.inputs if node.name in way and node.op in _LINEAR else ():
            makers = index.ancestors([tensor]).values()
            if tensor in images or any(images.intersection(maker.inputs) for maker in makers):
                return tensor
    raise ModelError("the class scores come from no linear layer, whose features could be held; use another method")


def _reasons(fixed: Sequence[Refused]) -> str:
    """The reasons, each once, and the mend."""
    found = list(dict.fromkeys(refused.reason for refused in fixed))
    if not found:
        return "it has no layer with weights"
    return f"{'; '.join(found[:_NAMED])}; export it with its weights stored as floats"
