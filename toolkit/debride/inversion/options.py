"""What an inversion may spend, and what counts as a success."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionOptions:
    """`restarts` per class, `steps` of Adam at `rate`, `images` per arm and step.

    `success` is the rate that a trigger must keep while its mask shrinks. On images that it was not fitted to it is
    then made opaquer until it reaches `works`, and its class is suspected only where it reaches `transfer`. `drops`
    are the shares of the steps after which losing arms are dropped.
    """

    restarts: int = 2
    steps: int = 500
    images: int = 4
    rate: float = 0.2
    success: float = 0.99
    transfer: float = 0.8
    works: float = 0.9
    drops: tuple[float, ...] = (0.3,)
    max_classes: int = 64
