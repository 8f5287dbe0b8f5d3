"""How the proxy computes: on which device, in which number format, and how that was decided."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""What convolutions and matrix products compute in; everything else stays float32."""
PrecisionChoice = Literal["auto", "float32", "bfloat16", "float16"]
ComputeReason = Literal["default", "asked", "measured", "inexact"]
"""Why a computation is as it is: nobody asked; it was asked for; it was the fastest by measuring; or a faster one was
measured and refused, since its scores were too far from onnxruntime's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds for one image, forward and backward, of one way to compute; `difference` from onnxruntime's scores, as a
    share of their size (NaN where it was not compared)."""

    precision: Precision
    channels_last: bool
    seconds: float
    difference: float = float("nan")


@dataclass(slots=True)
class Meter:
    """How many images went through proxies so far: there and back (`passes`), or there alone (`forwards`)."""

    passes: int = 0
    forwards: int = 0


_USUAL = 64
"""Images that a pass of a network for small images holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """`device` in torch's words ("cpu", "cuda:0"), `precision`, whether images lie in memory channels last, and the
    most images in one pass (`batch`).

    `timings` are the ways that were measured, the fastest first; empty where nothing was. `meter` counts what is
    computed in this way.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    channels_last: bool = True
    batch: int = 64
    reason: ComputeReason = "default"
    timings: tuple[Timing, ...] = ()
    meter: Meter = field(default_factory=Meter, compare=False, repr=False)

    def images(self, size: int) -> int:
        """`size`, or down to half of it where images are so large that a pass holds fewer than `_USUAL`."""
        return max(-(-size // 2), min(size, size * self.batch // _USUAL))
