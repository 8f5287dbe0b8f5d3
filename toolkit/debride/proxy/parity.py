"""Whether the proxy and onnxruntime agree: checked before anything computed with the proxy is trusted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from debride.errors import ParityError
from debride.proxy.interpreter import Proxy
from debride.types import FloatArray, Predict

TOLERANCE = 1e-3
ROUNDED_TOLERANCE = 2e-2
ROUNDED_MEAN = 3e-3
"""For quantised models: a value halfway between two integers is rounded to either, by the order of the arithmetic, and
a step of quantised scores is near 1/127 of their size. So a few scores may be a step or two away (by 1.3e-2, and by
1.6e-3 on average, in `benchmarks/bench_proxy.py --only quantised`), but not many, as with a wrong scale.
"""
_RANDOM = 8
_AT_ONCE = 16
"""Images in a pass: 64 of 224x224 pixels took 1.5 GiB together."""


def check_parity(
    proxy: Proxy, predict: Predict, images: FloatArray, *, tolerance: float | None = None, seed: int = 0
) -> float:
    """The largest relative difference max|a - b| / (max|b| + 1e-6) between the proxy's scores and `predict`'s.

    Compared on `images` (N, C, H, W) in 0..1 and on as many random ones, at most 8: scores against scores, before
    they become logits, and the class that either puts first. `tolerance` is 1e-3 unless given; for a quantised model it
    is 2e-2, and 3e-3 on average. For such a one, `predict` should run without graph optimisations: with them,
    onnxruntime itself was seen to be 2.5e-2 away from what the model says.

    Raises:
        ParityError: the difference exceeds the tolerance, a first class differs where the runner-up is further away
            than the tolerance, the shapes differ, or a score is not finite.
    """
    mean = ROUNDED_MEAN if tolerance is None and proxy.rounds else None
    if tolerance is None:
        tolerance = ROUNDED_TOLERANCE if proxy.rounds else TOLERANCE
    random = np.random.default_rng(seed).random((min(len(images), _RANDOM), *images.shape[1:]), np.float32)
    return max(
        _compare(proxy, predict, np.ascontiguousarray(batch), (tolerance, mean), kind)
        for kind, batch in (("clean", images), ("random", random))
    )


def difference(proxy: Proxy, predict: Predict, images: FloatArray) -> float:
    """max|a - b| / (max|b| + 1e-6) of the proxy's scores and `predict`'s on `images`; infinite where one is not finite.

    For a proxy that computes in half precision, whose first classes may differ where two are close.
    """
    expected = np.asarray(predict(images), np.float64).reshape(len(images), -1)
    actual = _told(proxy.scores, proxy, images)
    away = np.abs(actual - expected).max() / (np.abs(expected).max() + 1e-6)
    return float(away) if np.isfinite(away) else float("inf")


def _compare(
    proxy: Proxy, predict: Predict, images: FloatArray, limits: tuple[float, float | None], kind: str
) -> float:
    expected = np.asarray(predict(images), np.float64).reshape(len(images), -1)
    actual, logits = _told(proxy.scores, proxy, images), _told(proxy, proxy, images)
    _require_finite(expected, "onnxruntime's", kind)
    _require_finite(actual, "the proxy's", kind)
    _require_finite(logits, "the proxy's", kind)
    if actual.shape != expected.shape:
        raise ParityError(f"the proxy gives scores {actual.shape}, onnxruntime {expected.shape}, on {kind} images")
    size = float(np.abs(expected).max())
    away = np.abs(actual - expected) / (size + 1e-6)
    tolerance, mean = limits
    _require_close(float(away.max()), tolerance, "", kind)
    if mean is not None:
        _require_close(float(away.mean()), mean, " on average", kind)
    _require_same_class(logits, expected, tolerance * (size + 1e-6), kind)
    return float(away.max())


def _told(scores: Callable[[torch.Tensor], torch.Tensor], proxy: Proxy, images: FloatArray) -> npt.NDArray[np.float64]:
    """`scores` of `images`, in portions, without a way back."""
    portions = (np.array(images[i : i + _AT_ONCE]) for i in range(0, len(images), _AT_ONCE))
    with torch.no_grad():
        parts = [scores(torch.from_numpy(portion).to(proxy.device)).double().cpu().numpy() for portion in portions]
    return np.concatenate(parts)


def _require_close(difference: float, limit: float, how: str, kind: str) -> None:
    if difference > limit:
        raise ParityError(
            f"on {kind} images the proxy's scores differ from onnxruntime's by {difference:.2g} of their size{how} "
            f"(limit {limit:g}): the model uses an operator in a way that the proxy gets wrong; report it"
        )


def _require_finite(scores: npt.NDArray[np.float64], whose: str, kind: str) -> None:
    wrong = np.argwhere(~np.isfinite(scores))
    if len(wrong):
        row, column = wrong[0]
        raise ParityError(
            f"{whose} score of class {column} on {kind} image {row} is {scores[row, column]}: "
            "the model's weights hold NaN or overflow; export it again"
        )


def _require_same_class(
    logits: npt.NDArray[np.float64], expected: npt.NDArray[np.float64], tolerance: float, kind: str
) -> None:
    """The proxy's first class must be onnxruntime's, or within `tolerance` of it in onnxruntime's own scores."""
    chosen = np.take_along_axis(expected, logits.argmax(1)[:, None], axis=1)[:, 0]
    wrong = np.flatnonzero(expected.max(1) - chosen > tolerance)
    if len(wrong):
        raise ParityError(
            f"on {len(wrong)} of {len(expected)} {kind} images the proxy puts another class first than onnxruntime"
        )
