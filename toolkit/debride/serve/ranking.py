"""Class scores to ranked predictions."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..types_input import DoubleArray, FloatArray

_SUM_TOLERANCE = 1e-3
_FEW = 64


class Prediction(NamedTuple):
    """One class of one image: its name (its index as text where the model names none) and its probability."""

    label: str
    index: int  # type: ignore[assignment]  # of tuple, which has a method of that name
    probability: float


def shaped(scores: npt.NDArray[Any], rows: int, name: str) -> FloatArray:
    """`scores` as float32 (rows, K). Raises `ModelError` naming the model where they have another shape or K < 2."""
    if scores.ndim != 2 or len(scores) != rows or scores.shape[1] < 2:
        raise ModelError(
            f"{name}: gives scores of shape {scores.shape} for {rows} images, and no class scores (N, K): "
            "name the right output with --output-name, or export the model with a batch dimension"
        )
    single: FloatArray = scores if scores.dtype == np.float32 else scores.astype(np.float32)
    return single


def finite(scores: FloatArray) -> bool:
    """Whether all of `scores` are finite."""
    return bool(np.isfinite(scores).all())


def checked(scores: npt.NDArray[Any], rows: int, name: str) -> FloatArray:
    """`shaped`, and `ModelError` where a score is not finite."""
    single = shaped(scores, rows, name)
    if not finite(single):
        raise _broken(name)
    return single


def _broken(name: str) -> ModelError:
    return ModelError(f"{name}: the class scores are not finite: the weights or the input range are broken")


def are_probabilities(scores: FloatArray) -> bool:
    """Whether every row of `scores` (N, K) is a distribution: not negative, and of sum 1 within 1e-3."""
    return bool(scores.min() >= -1e-6 and np.abs(scores.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def softmax(scores: FloatArray) -> DoubleArray:
    """Probabilities float64 (N, K) of scores or log-probabilities (N, K); each row depends on itself alone."""
    powers: DoubleArray = np.subtract(scores, np.maximum.reduce(scores, axis=1, keepdims=True), dtype=np.float64)
    np.exp(powers, out=powers)
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return powers


def ranked(
    scores: FloatArray, top: int, labels: Sequence[str], *, by_softmax: bool, name: str
) -> list[list[Prediction]]:
    """The `top` classes of every row of `scores` (N, K), most probable first (ties by index); `labels` names all K.

    `by_softmax` says whether a softmax makes the probabilities. Raises `ModelError` naming the model where a score is
    not finite.
    """
    kept = min(max(top, 0), scores.shape[1])
    if len(scores) == 1 and scores.shape[1] <= _FEW:
        # In Python's own numbers: seven calls of numpy for ten of them take longer than a small model's last layers.
        return [_single(scores[0].tolist(), kept, labels, by_softmax, name)]
    checked(scores, len(scores), name)
    chances = softmax(scores) if by_softmax else np.maximum(scores, 0)
    order = _leaders(scores, kept)
    values = np.take_along_axis(chances, order, axis=1)
    return [
        [Prediction(labels[i], i, p) for i, p in zip(*row, strict=True)]
        for row in zip(order.tolist(), values.tolist(), strict=True)
    ]


def _single(row: list[float], kept: int, labels: Sequence[str], by_softmax: bool, name: str) -> list[Prediction]:
    if not isfinite(sum(row)):
        raise _broken(name)
    # Reversed sorting keeps equals in their order.
    order = sorted(range(len(row)), key=row.__getitem__, reverse=True)
    if by_softmax:
        peak = row[order[0]]
        powers = [exp(score - peak) for score in row]
        total = sum(powers)
        return [Prediction(labels[i], i, powers[i] / total) for i in order[:kept]]
    return [Prediction(labels[i], i, max(row[i], 0.0)) for i in order[:kept]]


def _leaders(scores: FloatArray, kept: int) -> npt.NDArray[np.intp]:
    """The columns (N, kept) of the largest of each row, largest first; among equals the lowest column."""
    falling = -scores
    if not kept or scores.shape[1] <= _FEW:
        return falling.argsort(axis=1, kind="stable")[:, :kept]
    order = np.empty((len(falling), kept), np.intp)
    for at, (row, last) in enumerate(zip(falling, np.partition(falling, kept - 1)[:, kept - 1], strict=True)):
        # All that tie with the last place are sorted too: the lowest of them may lie beyond it.
        near = np.flatnonzero(row <= last)
        order[at] = near[row[near].argsort(kind="stable")[:kept]]
    return order
