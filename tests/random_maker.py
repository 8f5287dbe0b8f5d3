"""What random graphs are built with: choices drawn by hypothesis, and each operator spelled as its opset demands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from onnx import helper

from graph_models import Builder


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A tensor and its shape without the batch: (C, H, W) for a map, (T, C) for tokens, (C,) for a vector."""

    name: str
    shape: tuple[int, ...]


class Maker(Builder):
    """A `Builder` whose choices hypothesis draws, and which spells each operator as its opset demands."""

    def __init__(self, draw: Callable, opset: int, ir: int) -> None:
        super().__init__(opset, ir, draw(st.integers(0, 9999)))
        self.draw, self.targets, self.tied = draw, {}, {}
        self.sharing = draw(st.booleans())  # whether equal Reshape targets, and now and then weights, are one tensor

    def pick(self, *options):
        return self.draw(st.sampled_from(options))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def rarely(self) -> bool:
        return self.pick(False, False, False, False, False, True)

    def whole(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def weight(self, *shape: int, spread: float | None = None, tie: bool = True) -> str:
        """Random numbers, stored in one of many ways; some slices are zero, some initializers have two readers."""
        if self.sharing and tie and shape in self.tied and self.flag():
            return self.tied[shape]
        fan_in = int(np.prod(shape[1:] if len(shape) != 2 else shape[:1]))
        array = self.rng.standard_normal(shape) * (spread or 1.2 / np.sqrt(max(1, fan_in)))
        if self.rarely():
            axis = self.whole(0, len(shape) - 1)
            np.moveaxis(array, axis, 0)[self.rng.integers(shape[axis])] = 0
        store = self.pick("initializer", "initializer", "constant", "identity", "transpose")
        name = self.stored(array.astype(np.float32), store)
        if store in ("initializer", "constant"):
            self.tied[shape] = name
        return name

    def stored(self, array: np.ndarray, store: str) -> str:
        if store != "transpose" or array.ndim not in (2, 4):
            return self.const(array, "initializer" if store == "transpose" else store)
        perm = [1, 0] if array.ndim == 2 else [3, 2, 0, 1]  # a kernel as TensorFlow stores it: HWIO
        inner = np.ascontiguousarray(array.transpose(np.argsort(perm)))
        return self.op("Transpose", self.const(inner, "initializer"), perm=perm)

    def ints(self, *values: int) -> str:
        """A whole-number constant; where the graph shares them, one for all who want the same."""
        if self.sharing and values in self.targets:
            return self.targets[values]
        self.targets[values] = self.const(np.array(values, np.int64), self.pick("initializer", "constant"))
        return self.targets[values]

    def ops(self, op: str, outputs: int, *inputs: str, **attributes) -> list[str]:
        """As `op`, with several outputs."""
        names = [self.name("t") for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, name=f"n_{names[0]}", **attributes))
        return names

    def axes_op(self, op: str, x: str, axes: Sequence[int], since: int, **attributes) -> str:
        """An operator whose `axes` became an input in opset `since`."""
        if self.opset < since:
            return self.op(op, x, axes=list(axes), **attributes)
        return self.op(op, x, self.ints(*axes), **attributes)

    def squeeze(self, x: str, *axes: int) -> str:
        return self.axes_op("Squeeze", x, axes, 13)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self.axes_op("Unsqueeze", x, axes, 13)

    def mean(self, x: str, *axes: int, keep: bool, op: str = "ReduceMean") -> str:
        return self.axes_op(op, x, axes, 18, keepdims=int(keep))

    def split(self, x: str, sizes: Sequence[int], axis: int) -> list[str]:
        equal = len(set(sizes)) == 1 and self.flag()
        if self.opset < 13:
            return self.ops("Split", len(sizes), x, axis=axis, **({} if equal else {"split": list(sizes)}))
        if equal:
            count = {"num_outputs": len(sizes)} if self.opset >= 18 else {}
            return self.ops("Split", len(sizes), x, axis=axis, **count)
        return self.ops("Split", len(sizes), x, self.ints(*sizes), axis=axis)

    def slice(self, x: str, start: int, end: int, axis: int, step: int = 1) -> str:
        if self.opset < 10:
            return self.op("Slice", x, starts=[start], ends=[end], axes=[axis])
        steps = [self.ints(step)] if step != 1 or self.flag() else []
        return self.op("Slice", x, self.ints(start), self.ints(end), self.ints(axis), *steps)

    def pad(self, x: str, pads: Sequence[int], value: float) -> str:
        if self.opset < 11:
            return self.op("Pad", x, pads=list(pads), value=value)
        return self.op("Pad", x, self.ints(*pads), self.const(np.float32(value), "initializer"))

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        return self.op("Clip", x, *(self.const(np.float32(v), "initializer") for v in (low, high)))

    def reshape(self, x: str, *rest: int, computed: bool = False) -> str:
        """`x` as (batch, *rest): the batch copied, inferred, counted, or read from the tensor's own shape."""
        first = [0] if -1 in rest else [0, -1]
        target = (self.pick(*first, *([1] if self.fixed else [])), *rest)
        if not computed:
            return self.op("Reshape", x, self.ints(*target))
        size = self.op("Gather", self.op("Shape", x), self.const(np.int64(0)), axis=0)
        return self.op("Reshape", x, self.op("Concat", self.unsqueeze(size, 0), self.ints(*rest), axis=0))
