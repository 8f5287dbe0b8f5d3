"""Whether two graphs say the same: all outputs, on noise and on real images, in onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.graph.ir import Graph
from debride.images import encode
from debride.sessions import Session
from debride.slimming.observe import BATCHES, Feeds, random_feeds
from debride.types import FloatArray, InputSpec

_TINY = 1e-9
_DRAWS = 3
_ULPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The largest difference of any output, as a share of its spread, and on how many real images."""

    difference: float
    images: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Feed:
    """What to run graphs on: noise from `seed`, and `images` (N, C, H, W in 0..1), encoded by `spec`, where given."""

    spec: InputSpec | None
    images: FloatArray | None
    seed: int


def compared(before: Session, after: Session, graph: Graph, feed: Feed) -> Comparison:
    """Run both on three draws of noise and on the images of `feed`.

    Raises:
        ModelError: a run fails, or an output of `after` has another shape or is not finite where `before`'s is.
    """
    worst, spec, images, seed = 0.0, feed.spec, feed.images, feed.seed
    for draw in range(_DRAWS):
        worst = max(worst, _difference(before, after, random_feeds(graph, spec, BATCHES[0], seed + draw)))
    if images is None or spec is None:
        return Comparison(difference=worst, images=0)
    entry = next(info for info in before.inputs if info.name == spec.name)
    step = entry.shape[0] or 32
    for start in range(0, len(images), step):
        part = images[start : start + step]
        if entry.shape[0]:  # a fixed batch is filled up with the last image
            part = images[np.minimum(np.arange(start, start + step), len(images) - 1)]
        feeds = {**random_feeds(graph, spec, len(part), seed), spec.name: encode(part, spec).astype(entry.dtype)}
        worst = max(worst, _difference(before, after, feeds))
    return Comparison(difference=worst, images=len(images))


def _difference(before: Session, after: Session, feeds: Feeds) -> float:
    names = [output.name for output in before.outputs]
    pairs = zip(names, before.run(feeds, names), after.run(feeds, names), strict=True)
    return max(spread_difference(name, old, new) for name, old, new in pairs)


def spread_difference(name: str, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> float:
    """The largest |new - old|, 4 units in the last place aside, as a share of how far `old` strays from its mean."""
    if old.shape != new.shape:
        raise ModelError(f"output '{name}' would have the shape {new.shape} instead of {old.shape}")
    exact, found = old.astype(np.float64), new.astype(np.float64)
    finite = np.isfinite(exact)
    if not np.array_equal(exact[~finite], found[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        raise ModelError(f"output '{name}' would not be finite")
    if not finite.any():
        return 0.0
    rows = np.where(finite, exact, 0.0).reshape(len(exact) if exact.ndim > 1 else 1, -1)
    # Not the values' size: what all classes have in common would hide any difference.
    common = rows.mean(axis=1, keepdims=True) if rows.shape[1] > 1 else 0.0
    # A sum in another order differs by its last digits, however close the scores lie to each other.
    digits = _ULPS * float(np.spacing(np.abs(old[finite]).max())) if old.dtype.kind == "f" else 0.0
    most = max(0.0, float(np.abs(found - exact)[finite].max()) - digits)
    return float(most / (np.abs(rows - common).max() + _TINY))
