"""What an inversion may spend, and what counts as a success."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class InversionOptions:
    """`restarts` per class, at most `steps` of Adam with `images` per trigger and step.

    Masks move at `mask_rate` and patterns at `pattern_rate`, both falling. `success` is the rate that a trigger must
    keep while its mask shrinks. On images that it was not fitted to it is then made opaquer until it reaches `works`,
    and its class is suspected only where it reaches `transfer`. After `trial` steps (None: never) every class keeps its
    best restart alone. A trigger has converged whose norm fell by less than the share `gain` for `patience` steps.

    Of more than `most_classes` classes, a random `sample` (a fifth of them where that is more) is inverted in full, for
    the others to be held against, and the `shortlist` that promises most; the `finalists` with the smallest triggers
    `again` so many times (`debride.inversion.survey`).
    """

    restarts: int = 2
    steps: int = 165
    images: int = 4
    mask_rate: float = 0.06
    pattern_rate: float = 0.15
    success: float = 0.95
    transfer: float = 0.8
    works: float = 0.9
    trial: int | None = 45
    patience: int = 40
    gain: float = 0.01
    most_classes: int = 64
    sample: int = 32
    shortlist: int = 16
    finalists: int = 3
    again: int = 4
