"""What a model is tried for before it serves: that it runs, whether it holds a softmax, whether it splits batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..types_input import InputSpec
from .ranking import are_probabilities, checked, finite, shaped
from .rows import RowMaker

Run = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
"""A batch of rows to what the model gives for it, as it stands."""

_TOGETHER = 3
# At the same place in batches of the same shape only the neighbours differ: rounding does not.
_SAME = 1e-5
# In batches of another size products are summed in another order, and in 16 bits that shows.
_SIMILAR = 1e-2


def try_out(run: Run, rows: RowMaker, spec: InputSpec, padding: int, name: str) -> tuple[int, bool]:
    """The number of classes, and whether the scores are probabilities already: told by noise, black and white.

    Each picture fills a batch of its own, of `padding` rows. Raises `ModelError` where the model does not run, gives
    no class scores, or none that are finite for any of the three.
    """
    noise = next(_noise(spec))
    pictures = (noise, np.zeros_like(noise), np.full_like(noise, 255))
    found = [shaped(run(_repeated(rows.row(p, "probe"), padding)), padding, name)[:1] for p in pictures]
    # A model that normalises each image divides by 0 where all pixels are one colour: that is no reason to refuse it.
    usable = [scores for scores in found if finite(scores)]
    if not usable:
        checked(found[0], 1, name)
    return found[0].shape[1], are_probabilities(np.concatenate(usable))


def splits(run: Run, rows: RowMaker, spec: InputSpec, fixed: int, most: int = _TOGETHER) -> bool:
    """Whether a row of what `run` gives depends on its image alone, not on the batch's rest (`fixed` rows, 0: any).

    Not so where one scale is computed for a batch (dynamic quantisation) or its mean is subtracted (batch
    normalisation as in training), nor where a graph takes batches of one only though it says otherwise. Batches of
    three and of `most` are tried.
    """
    sizes = [fixed] if fixed else sorted({_TOGETHER, max(most, _TOGETHER)})
    return all(_splits(run, rows, spec, size, fixed or 1) for size in sizes)


def _splits(run: Run, rows: RowMaker, spec: InputSpec, size: int, alone: int) -> bool:
    mixed = np.stack([rows.row(picture, "probe") for _, picture in zip(range(size), _noise(spec), strict=False)])
    try:
        together = run(mixed)
        for at in range(min(size, _TOGETHER)):
            company, single = run(_repeated(mixed[at], size)), run(_repeated(mixed[at], alone))
            if not all(_has_rows(found, n) for found, n in ((together, size), (company, size), (single, alone))):
                return False
            if not _close(together[at], company[at], _SAME) or not _close(together[at], single[0], _SIMILAR):
                return False
    except ModelError:
        return False
    return True


def _has_rows(found: npt.NDArray[Any], rows: int) -> bool:
    return found.ndim > 0 and len(found) == rows and found.dtype.kind in "fiub"


def _close(one: npt.NDArray[Any], other: npt.NDArray[Any], share: float) -> bool:
    """Whether both are finite and differ by no more than `share` of their spread."""
    if one.shape != other.shape:
        return False
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    spread = float(np.ptp(b)) if b.size else 0.0
    return bool(np.isfinite(a).all() and np.abs(a - b).max(initial=0) <= share * (spread or 1.0))


def _repeated(row: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    return np.repeat(row[None], times, axis=0)


def _noise(spec: InputSpec) -> Iterator[npt.NDArray[np.uint8]]:
    """Random pictures without end, by turns of full contrast, dark and bright: what a batch shares then differs."""
    rng = np.random.default_rng(0)
    while True:
        for low, high in ((0, 256), (0, 64), (192, 256)):
            yield rng.integers(low, high, (*spec.size, spec.depth), np.uint8)
