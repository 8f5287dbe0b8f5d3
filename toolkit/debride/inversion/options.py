"""What an inversion may spend, and what counts as a success."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionOptions:
    """`restarts` per class, `steps` of Adam at `rate`, `images` per arm and step.

    `success` is the rate that a trigger must keep while its mask shrinks, `transfer` the rate demanded of it on
    images that it was not fitted to. `drops` are the shares of the steps after which losing arms are dropped.
    """

    restarts: int = 2
    steps: int = 200
    images: int = 8
    rate: float = 0.2
    success: float = 0.99
    transfer: float = 0.8
    drops: tuple[float, ...] = (0.5,)
    max_classes: int = 64
