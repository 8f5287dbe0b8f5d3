"""What the operators' rules work on: the graph, what is seen and known of it, and what may leave so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index
from debride.slimming.axes import Axes
from debride.slimming.heads import Merged
from debride.slimming.known import Known
from debride.slimming.observe import Observed
from debride.slimming.shuffles import Shuffles
from debride.types import BoolArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """One graph to be slimmed. `axes` changes while the rules are applied, all else is given."""

    graph: Graph
    observed: Observed
    known: Known
    axes: Axes
    index: Index
    shuffles: Shuffles
    heads: Merged

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of `tensor`, () for an omitted one."""
        return self.observed.shapes.get(tensor, ())

    def numbers(self, node: Node) -> list[list[int] | None]:
        """The whole numbers of each input of `node`, as far as they are the same for every batch."""
        return [self.observed.value(name) if name else None for name in node.inputs]

    def pin(self, node: Node, why: str, positions: slice = slice(None)) -> None:
        """Hold everything that `node` reads (or its inputs `positions`) and makes."""
        for tensor in (*node.inputs[positions], *(node.outputs if positions == slice(None) else ())):
            if tensor:
                self.axes.pin(tensor, f"{why} ('{node.name}')")

    def zero(self, tensor: str, axis: int) -> BoolArray:
        """Which indices along `axis` are known to be zero in all that stays of `tensor`."""
        kept = self._kept_values(tensor, axis)
        size = self.axes.shape(tensor)[axis]
        if kept is None:
            return np.zeros(size, np.bool_)
        others = tuple(a for a in range(kept.ndim) if a != axis)
        return np.broadcast_to((kept == 0).all(axis=others), (size,))

    def constant(self, tensor: str, axis: int) -> BoolArray:
        """Which indices along `axis` hold one known finite number throughout all that stays of `tensor`."""
        kept = self._kept_values(tensor, axis)
        size = self.axes.shape(tensor)[axis]
        if kept is None or not kept.size:
            return np.zeros(size, np.bool_)
        others = tuple(a for a in range(kept.ndim) if a != axis)
        first = kept[tuple(slice(None) if a == axis else slice(0, 1) for a in range(kept.ndim))]
        same = ((kept == first) & np.isfinite(kept)).all(axis=others)
        return np.broadcast_to(same, (size,))

    def entries(self, tensor: str, axis: int) -> npt.NDArray[Any]:
        """What is known along `axis` at the first place that stays along the other axes; needs a known value."""
        kept = self._kept_values(tensor, axis)
        if kept is None:
            return np.full(1, np.nan)
        return np.asarray(kept[tuple(slice(None) if a == axis else 0 for a in range(kept.ndim))])

    def _kept_values(self, tensor: str, axis: int) -> npt.NDArray[Any] | None:
        """What is known of `tensor`, but for what leaves along its other axes."""
        value = self.known.value(tensor)
        if value is None or not len(value.shape):
            return None
        for other in range(value.ndim):
            leaves = self.axes.leaves(tensor, other)
            if other != axis and value.shape[other] > 1 and leaves.any():
                value = value.compress(~leaves, axis=other)
        return value
