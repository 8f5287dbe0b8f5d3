"""What a step of retraining sees: varied clean images, some of them with triggers, and what is wanted of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from debride.jitter import jitter, mixed, patched
from debride.stakes import STRENGTHS
from debride.triggers import opaque
from debride.types import BoolArray, FloatArray, IntArray, Predict, Samples, Trigger

_MIXED = 0.5
"""Share of the images that another shines through; the rest show a rectangle of another."""
_VALUES = 32 * 3 * 64 * 64
"""Pixels of the clean images in one part of a batch."""
STAMPED = 0.5
"""Stamped images as a share of the clean ones, at most. Three retrainings of nets of two convolutions, 400 steps each,
lost 1.02 points on average and left 1.52 % of the attack by these; 1.29 and 1.68 % by half as many, 1.12 and 1.46 % by
twice."""
_LEAST = 1e-6
"""Added to what is wanted of a stamped image, so that something is left once the target is taken out."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """`clean` images float32 (N, C, H, W) in 0..1, and `stamped` ones (M, C, H, W): those at `rows` (M,) of them.

    `wanted` (N, K) and `wanted_stamped` (M, K) are probabilities, each row with the sum 1. `foreign` bool (N, K)
    marks, of the classes that triggers lead to, those that an image does not belong to.
    """

    clean: FloatArray
    wanted: FloatArray
    stamped: FloatArray
    rows: IntArray
    wanted_stamped: FloatArray
    foreign: BoolArray

    def parts(self) -> Iterator[Batch]:
        """The batch in parts of so many images that a pass over one, forth and back, fits into memory."""
        size = max(1, _VALUES // self.clean[0].size)
        for first in range(0, len(self.clean), size):
            last = first + size
            ours = (self.rows >= first) & (self.rows < last)
            yield Batch(
                clean=self.clean[first:last],
                wanted=self.wanted[first:last],
                stamped=self.stamped[ours],
                rows=self.rows[ours] - first,
                wanted_stamped=self.wanted_stamped[ours],
                foreign=self.foreign[first:last],
            )


class Draws:
    """Batches of `samples` (labelled), varied, and of the same with `triggers` as found and opaquer (`STRENGTHS`).

    Wanted of a clean image is what the `delivered` network says of it (probabilities) and, to the share `truth`, its
    label; of a stamped one the same without the trigger's target. All draws come from `seed`.
    """

    def __init__(
        self, samples: Samples, delivered: Predict, triggers: Sequence[Trigger], *, truth: float, seed: int
    ) -> None:
        assert samples.labels is not None  # `load` labels unlabelled images by the delivered model
        self._images, self._labels = samples.images, samples.labels
        self._delivered, self._truth = delivered, truth
        self._rng = np.random.default_rng(seed)
        stamps = [opaque(trigger, strength) for trigger in triggers for strength in STRENGTHS]
        self._targets = np.array([stamp.target for stamp in stamps], np.int64)
        shape = samples.images.shape[1:]
        self._masks = np.array([stamp.mask for stamp in stamps], np.float32).reshape(-1, 1, *shape[1:])
        self._patterns = np.array([stamp.pattern for stamp in stamps], np.float32).reshape(-1, *shape)

    def __call__(self, count: int) -> Batch:
        """The next `count` clean images, and a few of those that do not belong to a trigger drawn for each, stamped."""
        rng = self._rng
        drawn = rng.integers(len(self._images), size=count)
        labels = self._labels[drawn]
        moved = jitter(self._images[drawn], rng)
        whole = rng.random((count, 1, 1, 1)) < _MIXED
        clean = np.where(whole, mixed(moved, moved, rng), patched(moved, moved, rng))
        wanted = self._wanted(clean, labels)
        foreign = np.zeros(wanted.shape, np.bool_)
        foreign[:, self._targets] = labels[:, None] != self._targets
        chosen = rng.integers(len(self._targets), size=count) if len(self._targets) else np.zeros(0, np.int64)
        rows = np.flatnonzero(labels[: len(chosen)] != self._targets[chosen])[: ceil(STAMPED * count)]
        chosen = chosen[rows]
        masks = self._masks[chosen]
        return Batch(
            clean=clean,
            wanted=wanted,
            stamped=clean[rows] * (1 - masks) + masks * self._patterns[chosen],
            rows=rows,
            wanted_stamped=_without(wanted[rows], self._targets[chosen]),
            foreign=foreign,
        )

    def _wanted(self, images: FloatArray, labels: IntArray) -> FloatArray:
        said = self._delivered(images)
        truth = np.eye(said.shape[1], dtype=np.float32)[labels]
        return np.asarray((1 - self._truth) * said + self._truth * truth, np.float32)


def _without(wanted: FloatArray, targets: IntArray) -> FloatArray:
    """Rows of probabilities with nothing left for each row's target: none of these images is of that class."""
    left = wanted + np.float32(_LEAST)
    left[np.arange(len(left)), targets] = 0
    return np.asarray(left / left.sum(axis=1, keepdims=True), np.float32)
