"""Arrays, and how images become a model's input: all of `types` that serving loads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR", "L"]
SpecSource = Literal["flags", "side-car", "metadata", "measured"]

Predict = Callable[[FloatArray], FloatArray]
"""Images (N, C, H, W) in 0..1 to class scores (N, K)."""


def frozen_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only view of `array` (the caller's own handle stays writable)."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How pixels in 0..1 become the model's input: `((x * (high - low) + low) - mean) / std`.

    `mean` and `std` are in the units of `range`, one value or one per channel in the model's channel order; empty
    means none. `size` is (height, width). `output` names the tensor of class scores; `class_names` may be empty.
    Images of another size are scaled straight to `size`; where `short_side` is given, their short side is scaled to it
    and `size` is cut from the centre.
    """

    name: str
    layout: Layout
    channels: Channels
    size: tuple[int, int]
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    output: str = ""
    class_names: tuple[str, ...] = ()
    source: SpecSource = "measured"
    short_side: int | None = None

    @property
    def depth(self) -> int:
        """Number of colour channels: 1 or 3."""
        return 1 if self.channels == "L" else 3

    def affine(self) -> tuple[FloatArray, FloatArray]:
        """`(scale, shift)`, each float32 (C, 1, 1) in the model's channel order: input = x * scale + shift."""
        low, high = self.range
        mean = np.broadcast_to(np.asarray(self.mean or 0.0, np.float64), (self.depth,))
        std = np.broadcast_to(np.asarray(self.std or 1.0, np.float64), (self.depth,))
        scale, shift = (high - low) / std, (low - mean) / std
        return (scale.astype(np.float32).reshape(-1, 1, 1), shift.astype(np.float32).reshape(-1, 1, 1))
