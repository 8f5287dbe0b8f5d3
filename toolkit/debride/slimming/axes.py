"""What stays and what may leave, along every axis of every tensor, and why what stays does.

All of it may leave at first, but for what the graph's ends and the batch hold; each operator then takes back what it
needs, until nothing changes: the largest set of channels without which the outputs are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.slimming.observe import LONGEST, Observed
from debride.types import BoolArray

States = npt.NDArray[np.int32]
"""Per index along one axis: 0 while it may leave, else the number of the reason why it stays."""


class Axes:
    """The states of all tensors with a known shape. `touched` collects the tensors changed since it was cleared."""

    def __init__(self, observed: Observed) -> None:
        self._states: dict[str, tuple[States, ...]] = {
            tensor: tuple(np.zeros(size, np.int32) for size in shape)
            for tensor, shape in observed.shapes.items()
            if sum(shape) <= LONGEST
        }
        self._reasons: list[str] = [""]
        self._numbers: dict[str, int] = {"": 0}
        self.touched: set[str] = set()
        for tensor in observed.wild:
            self.pin(tensor, "of a size that the image decides")
        for tensor, states in self._states.items():
            for axis, state in enumerate(states):
                if axis in observed.varying[tensor]:
                    state[:] = self._number("mixed with the batch")
                elif len(state) <= 1:
                    state[:] = self._number("the only one of its layer")

    def knows(self, *tensors: str) -> bool:
        """Whether the shapes of all `tensors` are known."""
        return all(tensor in self._states for tensor in tensors)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of `tensor` as the graph is now."""
        return tuple(len(state) for state in self._states[tensor])

    def rank(self, tensor: str) -> int:
        """The number of axes of `tensor`."""
        return len(self._states[tensor])

    def state(self, tensor: str, axis: int) -> States:
        """The states along `axis`, not to be written to."""
        return self._states[tensor][axis]

    def leaves(self, tensor: str, axis: int) -> BoolArray:
        """Which indices along `axis` leave."""
        return np.asarray(self._states[tensor][axis] == 0)

    def kept(self, tensor: str) -> tuple[int, ...]:
        """The shape of `tensor` without what leaves."""
        return tuple(int(np.count_nonzero(state)) for state in self._states.get(tensor, ()))

    def changes(self, tensor: str) -> bool:
        """Whether anything of `tensor` leaves."""
        return any(not state.all() for state in self._states.get(tensor, ()))

    def reason(self, tensor: str, axis: int, index: int) -> str:
        """Why an index stays; "" where it leaves."""
        return self._reasons[int(self._states[tensor][axis][index])]

    def set(self, tensor: str, axis: int, states: npt.NDArray[Any]) -> None:
        """Take over `states` where they hold an index that may leave so far."""
        own = self._states[tensor][axis]
        new = (own == 0) & (states != 0)
        if new.any():
            own[new] = np.broadcast_to(states, own.shape)[new]
            self.touched.add(tensor)

    def keep(self, tensor: str, axis: int, why: str, where: npt.NDArray[Any] | None = None) -> None:
        """Hold all indices along `axis`, or those where `where` is true."""
        number = np.full(self._states[tensor][axis].shape, self._number(why), np.int32)
        self.set(tensor, axis, number if where is None else np.where(where, number, 0))

    def pin(self, tensor: str, why: str) -> None:
        """Hold all of `tensor`."""
        for axis in range(len(self._states.get(tensor, ()))):
            self.keep(tensor, axis, why)

    def tie(self, one: str, axis: int, other: str, other_axis: int) -> None:
        """Index i along the two axes leaves only in both. Axes of two sizes, which no rule expects, stay whole."""
        if self._states[one][axis].shape != self._states[other][other_axis].shape:
            self.keep(one, axis, "beside an axis of another size")
            self.keep(other, other_axis, "beside an axis of another size")
            return
        self.set(one, axis, self._states[other][other_axis])
        self.set(other, other_axis, self._states[one][axis])

    def _number(self, why: str) -> int:
        if why not in self._numbers:
            self._numbers[why] = len(self._reasons)
            self._reasons.append(why)
        return self._numbers[why]


def mixed(states: Sequence[States]) -> States:
    """The states of the elements of axes laid flat: an element leaves with any of its coordinates."""
    grid = np.ones(1, np.int32)
    for number, state in enumerate(states):
        one, other = grid[:, None], state[None, :]
        both = np.maximum(one, other) if number else np.broadcast_to(other, (1, len(state)))
        grid = np.where((one == 0) | (other == 0), 0, both).reshape(-1).astype(np.int32)
    return grid


def unmixed(grid: States, sizes: Sequence[int]) -> list[States]:
    """Per axis, what of it can leave: an index does only if all elements that it holds do."""
    block = grid.reshape(tuple(sizes))
    others = [tuple(a for a in range(len(sizes)) if a != axis) for axis in range(len(sizes))]
    return [np.asarray(block.max(axis=axes)).reshape(-1) for axes in others]
