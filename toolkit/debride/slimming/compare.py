"""Whether two graphs say the same: all outputs, on noise and on real images, in onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.graph.ir import Graph
from debride.images import encode
from debride.sessions import Session
from debride.slimming.noise import DRAWS, Feeds, random_feeds
from debride.slimming.observe import BATCHES
from debride.types import FloatArray, InputSpec

_TINY = 1e-9
_STEP = 32
_USUAL = 2
"""The first kinds of noise, as the model's convention wants images and in 0..1, tell how far outputs usually spread."""
_ULPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The largest difference of any output, as a share of its spread, and on how many real images.

    `beyond` is what exceeds `_ULPS` units in the last place of a row's largest value: a sum in another order differs
    by so much, however close the scores lie to each other.
    """

    difference: float
    beyond: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """What to run graphs on: noise from `seed`, and `images` (N, C, H, W in 0..1), encoded by `spec`, where given."""

    spec: InputSpec | None
    images: FloatArray | None
    seed: int

    def batches(self, graph: Graph, before: Session) -> Iterator[Feeds]:
        """Noise of every kind, then the images in portions."""
        for draw in range(DRAWS):
            yield random_feeds(graph, self.spec, BATCHES[0], self.seed, draw)
        if self.images is None or self.spec is None:
            return
        entry = next(info for info in before.inputs if info.name == self.spec.name)
        step = entry.shape[0] or _STEP
        for start in range(0, len(self.images), step):
            part = self.images[start : start + step]
            if entry.shape[0]:  # a fixed batch is filled up with the last image
                part = self.images[np.minimum(np.arange(start, start + step), len(self.images) - 1)]
            others = random_feeds(graph, self.spec, len(part), self.seed)
            yield {**others, self.spec.name: encode(part, self.spec).astype(entry.dtype)}


def compared(before: Session, after: Session, graph: Graph, feed: Feed) -> Comparison:
    """Run both on all batches of `feed`.

    Raises:
        ModelError: a run fails, or an output of `after` has another shape or is not finite where `before`'s is.
    """
    names = [output.name for output in before.outputs]
    differences, usual = [(0.0, 0.0)], dict.fromkeys(names, 0.0)
    for number, feeds in enumerate(feed.batches(graph, before)):
        for name, old, new in zip(names, before.run(feeds, names), after.run(feeds, names), strict=True):
            if number < _USUAL:
                usual[name] = max(usual[name], spread_of(old))
            differences.append(difference_of(name, old, new, usual[name]))
    difference, beyond = (max(column) for column in zip(*differences, strict=True))
    images = 0 if feed.images is None or feed.spec is None else len(feed.images)
    return Comparison(difference=difference, beyond=beyond, images=images)


def spread_of(output: npt.NDArray[Any]) -> float:
    """How far the values of `output` stray from each row's mean; 0 where they are no numbers."""
    if output.dtype.kind not in "fiub" or not output.size:
        return 0.0
    rows = output.astype(np.float64).reshape(len(output) if output.ndim > 1 else 1, -1)
    rows = np.where(np.isfinite(rows), rows, 0.0)
    # Not the values' size: what all classes have in common would hide any difference.
    return float(np.abs(rows - (rows.mean(axis=1, keepdims=True) if rows.shape[1] > 1 else 0.0)).max())


def difference_of(name: str, old: npt.NDArray[Any], new: npt.NDArray[Any], usual: float = 0.0) -> tuple[float, float]:
    """The largest |new - old|, and what of it is beyond rounding, as shares of the spread of `old`.

    That is at least `usual`: on wild noise a sigmoid at the end saturates, and its last digits are all that is left.
    """
    if old.shape != new.shape:
        raise ModelError(f"output '{name}' would have the shape {new.shape} instead of {old.shape}")
    if old.dtype.kind not in "fiub":
        if not np.array_equal(old, new):
            raise ModelError(f"output '{name}' would differ")
        return 0.0, 0.0
    exact, found = (array.astype(np.float64).reshape(len(array) if array.ndim > 1 else 1, -1) for array in (old, new))
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        raise ModelError(f"output '{name}' would not be finite")
    if not finite.any():
        return 0.0, 0.0
    exact, found = np.where(finite, exact, 0.0), np.where(finite, found, 0.0)
    spread = max(spread_of(old), usual) + _TINY
    off = np.abs(found - exact)
    digits = np.spacing(np.abs(exact).max(axis=1, keepdims=True).astype(old.dtype)) if old.dtype.kind == "f" else 0.0
    return float(off.max() / spread), float(np.maximum(0.0, off - _ULPS * digits).max() / spread)
