"""Class scores to ranked predictions."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelError
from ..types_input import FloatArray

_SUM_TOLERANCE = 1e-3
_FEW = 64


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image: its name (its index as text where the model names none) and its probability."""

    label: str
    index: int
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
    # A finite sum says so in one pass; a sum may also overflow, and then each is looked at.
    return isfinite(np.add.reduce(scores, axis=None)) or bool(np.isfinite(scores).all())


def checked(scores: npt.NDArray[Any], rows: int, name: str) -> FloatArray:
    """`shaped`, and `ModelError` where a score is not finite."""
    single = shaped(scores, rows, name)
    if not finite(single):
        raise ModelError(f"{name}: the class scores are not finite: the weights or the input range are broken")
    return single


def are_probabilities(scores: FloatArray) -> bool:
    """Whether every row of `scores` (N, K) is a distribution: not negative, and of sum 1 within 1e-3."""
    return bool(scores.min() >= -1e-6 and np.abs(scores.sum(axis=1) - 1).max() <= _SUM_TOLERANCE)


def softmax(scores: FloatArray) -> FloatArray:
    """Probabilities float32 (N, K) of scores or log-probabilities (N, K); each row depends on itself alone."""
    powers = np.exp(scores - np.maximum.reduce(scores, axis=1, keepdims=True))
    powers /= np.add.reduce(powers, axis=1, keepdims=True)
    return powers


def ranked(probabilities: FloatArray, top: int, labels: tuple[str, ...]) -> list[list[Prediction]]:
    """The `top` classes of every row of `probabilities` (N, K), most probable first (ties by index).

    Classes beyond `labels` are called by their index.
    """
    kept = min(max(top, 0), probabilities.shape[1])
    if not kept:
        return [[] for _ in probabilities]
    found = []
    for row in probabilities:
        order = _leaders(row, kept)
        named = zip(order.tolist(), row[order].tolist(), strict=True)
        found.append([Prediction(labels[i] if i < len(labels) else str(i), i, p) for i, p in named])
    return found


def _leaders(row: FloatArray, kept: int) -> npt.NDArray[np.intp]:
    falling = -row
    if len(row) <= _FEW or kept == len(row):
        order: npt.NDArray[np.intp] = falling.argsort(kind="stable")[:kept]
        return order
    # All that tie with the last place are sorted too, so that among equals the lowest index wins.
    near = np.flatnonzero(falling <= np.partition(falling, kept - 1)[kept - 1])
    leaders: npt.NDArray[np.intp] = near[falling[near].argsort(kind="stable")[:kept]]
    return leaders
