"""What is known of every tensor before any image comes: constants, and channels that are constant whatever goes in.

A known value is an array that broadcasts to the tensor, NaN where the image decides: (1, C, 1, 1) for the channels of
a convolution. A channel zeroed by surgery is 0 behind its layer, 0 behind a Relu, a half behind a Sigmoid; a layer that
reads such channels only is constant itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.slimming import known_layers, known_moves
from debride.slimming.compute import ELEMENTWISE, computed
from debride.slimming.heads import Merged, known_heads
from debride.slimming.observe import Observed

Array = npt.NDArray[Any]


class Known:
    """The known values of a graph's tensors. A tensor of which nothing is known has none."""

    def __init__(self, graph: Graph, observed: Observed, heads: Merged | None = None) -> None:
        self._observed, self._heads = observed, heads or {}
        self._constants = graph.constants
        self._values: dict[str, Array] = {}
        for node in graph.nodes:
            if node.domain or not observed.usual(node):
                continue
            for tensor, value in zip(node.outputs, self._outputs(node, graph.opset), strict=False):
                if tensor and value is not None:
                    self._store(tensor, value)

    def value(self, tensor: str) -> Array | None:
        """The known value of `tensor`, None where nothing is known."""
        return self._constants[tensor] if tensor in self._constants else self._values.get(tensor)

    def constant(self, tensor: str) -> bool:
        """Whether `tensor` is an initializer or a Constant node's."""
        return tensor in self._constants

    def _outputs(self, node: Node, opset: int) -> tuple[Array | None, ...]:
        if node.name in self._heads:
            merged = self._heads[node.name]
            return tuple(known_heads(merged, out, self.value, self._observed.shapes) for out in node.outputs)
        values = [self.value(t) if t else None for t in node.inputs]
        if all(v is None for v in values):
            return ()
        shapes = [self._observed.shapes.get(t, ()) for t in node.inputs]
        with np.errstate(all="ignore"):
            if node.op in known_layers.RULES:
                return (known_layers.RULES[node.op](node, values, shapes),)
            if node.op in known_moves.RULES:
                outputs = [self._observed.shapes.get(t, ()) for t in node.outputs]
                parameters = [self._observed.value(t) if t else None for t in node.inputs]
                return known_moves.RULES[node.op](node, values, shapes, outputs, parameters)
            if node.op in ELEMENTWISE:
                return (computed(node, values, shapes, opset),)
        return ()

    def _store(self, tensor: str, value: Array) -> None:
        """Keep `value` small: one entry along axes where it is the same throughout, and along the batch."""
        for axis in range(value.ndim):
            if value.shape[axis] > 1:
                first = value.take([0], axis=axis)
                same = (value == first) | (_unknown(value) & _unknown(first))
                if same.all():
                    value = first
                elif axis in self._observed.varying[tensor]:
                    if value.dtype.kind != "f":
                        return
                    value = np.where(same.all(axis=axis, keepdims=True), first, np.nan)
        if not _unknown(value).all():
            self._values[tensor] = value


def _unknown(value: Array) -> npt.NDArray[np.bool_]:
    return np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, np.bool_)
