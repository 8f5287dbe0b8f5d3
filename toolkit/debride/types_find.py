"""Samples, triggers and what detection and evaluation say of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Literal, Protocol

import numpy as np

from .types_input import BoolArray, FloatArray, IntArray, frozen_array

WHOLE = "in all"
"""The stage as which a whole run is told, where it is."""


class Progress(Protocol):
    """Told by a stage how far it is: `done` of `total` steps of `stage`, and a short remark."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Takes note; returns at once."""
        ...


def part_of(progress: Progress, number: int, parts: int) -> Progress:
    """Tells `progress` of a stage that is done in so many `parts` of the same length, of which this is `number`."""

    def told(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, number * total + done, parts * total, note)

    return told


def no_progress(stage: str, done: int, total: int, note: str = "") -> None:
    """The `Progress` that says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Clean images: `images` float32 (N, C, H, W) in 0..1, RGB or grey; `labels` int64 (N,) or None."""

    images: FloatArray
    labels: IntArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", frozen_array(self.images))
        if self.labels is not None:
            object.__setattr__(self, "labels", frozen_array(self.labels))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: IntArray | BoolArray) -> Samples:
        """The samples at `rows`, as a new value."""
        return Samples(images=self.images[rows], labels=None if self.labels is None else self.labels[rows])


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `n`, with its Wilson score interval (Wilson 1927); `n` may be 0, then nothing is known."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """hits / n, NaN where n is 0."""
        return self.hits / self.n if self.n else float("nan")

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """The Wilson score interval at `z` standard errors (default 95 %), within 0..1."""
        if not self.n:
            return (0.0, 1.0)
        p, n = self.hits / self.n, self.n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trigger:
    """A trigger that sends images to class `target`: `x -> (1 - mask) * x + mask * pattern`.

    `mask` float32 (1, H, W) in 0..1, `pattern` float32 (C, H, W) in 0..1, `l1` the mask's sum in pixels, `success`
    measured on images that the optimisation did not see (of other classes than `target`). Where the class was looked at
    briefly and never inverted (`surveyed`), the norm is NaN and the planes are empty.
    """

    target: int
    mask: FloatArray
    pattern: FloatArray
    l1: float
    success: Rate
    restarts: int = 1
    steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", frozen_array(self.mask))
        object.__setattr__(self, "pattern", frozen_array(self.pattern))

    @property
    def surveyed(self) -> bool:
        """Whether nothing was inverted."""
        return self.l1 != self.l1


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """`classes` that were inverted `times` times more, and stand by the median norm of all their inversions.

    `scatter` is the standard deviation of the log norms within a class, over `times` later inversions that worked, and
    `freedom` its degrees of freedom (0: not known).
    """

    classes: tuple[int, ...]
    times: int
    scatter: float = 0.0
    freedom: int = 0


def surveyed_trigger(target: int, shape: tuple[int, int, int]) -> Trigger:
    """What stands for the trigger of a class that was never inverted, for images of `shape` (C, H, W)."""
    empty = np.broadcast_to(np.float32(0), shape)
    return Trigger(target=target, mask=empty[:1], pattern=empty, l1=float("nan"), success=Rate(0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What detection says of one class: its smallest trigger, how far below the others it lies, and why (not)."""

    trigger: Trigger
    anomaly: float
    suspect: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One `Finding` per class, in class order; `inconclusive` holds the reason when the data cannot tell.

    `compared` are the classes whose norms the others are held against; empty: all that were inverted. `threshold` is
    that of the classes `repeated`, where there are any.
    """

    findings: tuple[Finding, ...]
    threshold: float
    inconclusive: str = ""
    compared: tuple[int, ...] = ()
    repeated: Repeated | None = None

    @property
    def surveyed(self) -> int:
        """How many classes were looked at briefly alone: others promised smaller triggers."""
        return sum(f.trigger.surveyed for f in self.findings)

    @property
    def suspects(self) -> tuple[int, ...]:
        """Indices of the suspected target classes."""
        return tuple(f.trigger.target for f in self.findings if f.suspect)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerEvaluation:
    """One trigger on held-out images of other classes: sent to the target, and still classified rightly.

    `mistakes` are those of the same images that go to the target without any trigger.
    """

    target: int
    asr: Rate
    robust: Rate
    mistakes: Rate = Rate(0, 0)

    @property
    def excess(self) -> float:
        """The attack success rate beyond the mistakes; 0 where there is no image to try."""
        natural = self.mistakes.value if self.mistakes.n else 0.0
        return self.asr.value - natural if self.asr.n else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What onnxruntime says of a model on held-out images.

    `kind` is "accuracy" where labels exist, else "agreement" (with the delivered model); robust accuracy likewise.
    """

    kind: Literal["accuracy", "agreement"]
    clean: Rate
    triggers: tuple[TriggerEvaluation, ...]

    @property
    def worst_asr(self) -> float:
        """The largest attack success rate over the triggers; 0 where there is none to try."""
        return max((t.asr.value for t in self.triggers if t.asr.n), default=0.0)
