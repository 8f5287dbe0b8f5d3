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


def splits(run: Run, rows: RowMaker, spec: InputSpec, fixed: int, name: str) -> bool:
    """Whether an image's scores depend on that image alone, whatever else is in its batch (of `fixed` rows, 0: any).

    Not so where one scale is computed for a batch (dynamic quantisation) or its mean is subtracted (batch
    normalisation as in training), nor where a graph takes batches of one only though it says otherwise.
    """
    size, alone = fixed or _TOGETHER, fixed or 1
    mixed = np.stack([rows.row(picture, "probe") for _, picture in zip(range(size), _noise(spec), strict=False)])
    try:
        together = checked(run(mixed), size, name)
        for at in range(min(size, _TOGETHER)):
            company = checked(run(_repeated(mixed[at], size)), size, name)[at]
            single = checked(run(_repeated(mixed[at], alone)), alone, name)[0]
            spread = float(np.ptp(company)) or 1.0
            if np.abs(together[at] - company).max() > _SAME * spread:
                return False
            if np.abs(together[at] - single).max() > _SIMILAR * spread:
                return False
    except ModelError:
        return False
    return True


def _repeated(row: npt.NDArray[Any], times: int) -> npt.NDArray[Any]:
    return np.repeat(row[None], times, axis=0)


def _noise(spec: InputSpec) -> Iterator[npt.NDArray[np.uint8]]:
    """Random pictures without end, by turns of full contrast, dark and bright: what a batch shares then differs."""
    rng = np.random.default_rng(0)
    while True:
        for low, high in ((0, 256), (0, 64), (192, 256)):
            yield rng.integers(low, high, (*spec.size, spec.depth), np.uint8)
