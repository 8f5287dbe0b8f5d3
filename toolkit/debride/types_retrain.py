"""What retraining changed in a network, and what it brought."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .types_cut import Refused
from .types_find import Evaluation, Rate

LabelSource = Literal["given", "delivered"]
Statistics = Literal["none", "kept", "estimated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightChange:
    """One initializer that differs: `changed` of its elements, by at most `largest`.

    `relative` is the Euclidean norm of the difference as a share of the initializer's own norm before (infinite where
    that was 0).
    """

    name: str
    shape: tuple[int, ...]
    changed: int
    largest: float
    relative: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Relearning:
    """How fast a few poisoned images bring the attack on class `target` back.

    After `steps[i]` updates on `images` images, stamped and labelled as the target, held-out images of other classes
    go there at the rate `planted[i]` with the reverse-engineered trigger and not without it, and at `fresh[i]` where
    triggers as large that nobody planted are taught and tried instead, each to the network as it was, and their rates
    taken together. `steps` begins with 0.
    """

    target: int
    images: int
    steps: tuple[int, ...]
    planted: tuple[Rate, ...]
    fresh: tuple[Rate, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Retraining:
    """How a network was retrained, and whether it is that one which is delivered (`kept`).

    `reason` says why it was retrained and, where it is not kept, why not. `labels`: the truth was given, or is the
    delivered model's own answers. `steps` of at most `budget` updates were taken on `images` clean images, `per_step`
    in each (0: not told); the weights are those of step `best`. `changes` lists the initializers that differ, `fixed`
    what could not be trained. `statistics` tells of the running mean and variance of batch normalisation ("none": the
    graph has none, or folded).
    `before` and `after` are the network before and after, on held-out images.
    """

    method: str
    kept: bool
    reason: str
    labels: LabelSource
    images: int
    steps: int
    budget: int
    best: int
    statistics: Statistics
    changes: tuple[WeightChange, ...]
    fixed: tuple[Refused, ...]
    before: Evaluation
    after: Evaluation
    relearning: tuple[Relearning, ...] = ()
    per_step: int = 0
