"""Triggers -> which classes are suspects: the MAD outlier index on log norms, calibrated, and two absolute tests.

Neural Cleanse (Wang et al., IEEE S&P 2019, section IV-C) calls a class infected when its trigger's L1 norm lies more
than 2 MAD below the median. On clean norms that fires by chance: in a third of 10-class and two thirds of 43-class
models. Here the threshold is the 95 % quantile of the largest index among as many clean norms, norms are compared as
logarithms (they spread by factors, not by pixels), and a suspect must besides be small and must work.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import floor, sqrt

import numpy as np

from debride.types import BoolArray, Detection, DoubleArray, Finding, Repeated, Trigger

_FEWEST = 5
"""Below so many classes the MAD says next to nothing; then only ratios of norms are compared."""
_RATIO = 1 / 3
"""A suspect's norm is at most this share of the median norm. Planted triggers came to 0.06 to 0.16 of it in five
models, up to three seeds each; a class without one came to 0.35 in the sample, beside the planted one."""
_STRONG_RATIO = 0.3
_STRONG_INDEX = 3.0
"""At this share of the median a lower index is enough: with few images, or in small nets, norms scatter, the MAD grows
and the index of a planted trigger stays at 3.6. A missed backdoor costs more than a false alarm, and these become more:
clean draws are flagged in 3.5 and 9.2 % (10 classes), 7.4 and 13.5 % (43 classes) at a log spread of 0.4 and 0.6. Clean
models spread by 0.2 to 0.4, and the smallest of their norms was 0.40 of the median. The smallest of hundreds of norms
reaches it by chance, so that it does not count where the median is that of a sample."""
_FEW_RATIO = 0.25
"""... and with few classes, of the median of the other classes."""
LARGEST = 0.2
"""A suspect's mask covers at most this share of the image: a trigger, not another picture."""
_TINY = 0.005
"""When the median trigger is below this share of the image, any class is reached so easily that none stands out."""
_FAILED = 0.1
"""Below this success on unseen images an optimisation reached nothing, and its mask may have any size."""
_WELL = 0.9
"""A success rate that is not ruled out by so few images is no reason to acquit: 7 of 9 are 78 %, or 45 to 94 %."""
_SURVEYED = "looked at briefly: others promised smaller triggers"
_CLEAN, _DOUBTED = 0.95, 0.8
"""A suspect's index is above the largest one of this share of clean models. Above that of the second share nothing is
called clean either, where the median is that of a sample: few images may not tell one of a thousand from luck."""
_SURELY = 1.2816
"""The variance of a class's inversions is taken at the end of its 90 % interval that makes the limit higher."""
_STEP = 0.05
"""To multiples of which the share of that variance is rounded down."""
_MAD_TO_SIGMA = 1.4826
_DRAWS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """The `finalists` smallest were inverted `times` times more; `noise` is the variance within classes as a share."""

    finalists: int
    times: int
    noise: float


def detect(
    triggers: Sequence[Trigger],
    *,
    transfer: float = 0.8,
    compared: Sequence[int] = (),
    repeated: Repeated | None = None,
    doubts: bool = True,
) -> Detection:
    """One `Finding` per trigger (one trigger per class, in class order); `transfer` is the success demanded.

    The anomaly index is positive for norms below the median. Median and spread are those of the classes `compared`, all
    that were inverted where none are given; classes that were not (`Trigger.surveyed`) have no index. Those `repeated`
    stand by the median of several inversions, which luck makes small less often: for them the limit is lower. The
    verdict is left open (`inconclusive` says why) when too few triggers work to compare with, or norms are too small or
    too few to tell; and, with `doubts`, where a class is nearly a suspect beside a sample.
    """
    known = np.array([not t.surveyed for t in triggers])
    yard = _yard(known, compared)
    norms = _norms(triggers, known, yard)
    area = triggers[0].mask.size
    anomalies = anomaly_indices(norms, yard)
    again = _again(repeated, norms, yard)
    once, threshold = _limits(len(norms), int(yard.sum()), again, _CLEAN)

    def judged(once: float, limit: float) -> list[str]:
        limits = [limit if repeated and i in repeated.classes else once for i in range(len(triggers))]
        return [
            _judge(t, norms, yard, i, float(anomalies[i]), limits[i], transfer) if known[i] else _SURVEYED
            for i, t in enumerate(triggers)
        ]

    findings = tuple(
        Finding(trigger=t, anomaly=float(a), suspect=not reason, reason=reason or _small(t, norms[yard]))
        for t, a, reason in zip(triggers, anomalies, judged(once, threshold), strict=True)
    )
    inconclusive = _undecided(triggers, norms[yard], area, findings)
    if doubts and not (inconclusive or yard.all() or any(f.suspect for f in findings)):
        looser = judged(*_limits(len(norms), int(yard.sum()), again, _DOUBTED))
        inconclusive = _nearly([f for f, reason in zip(findings, looser, strict=True) if not reason], len(norms))
    return Detection(
        findings=findings,
        threshold=threshold,
        inconclusive=inconclusive,
        compared=tuple(compared),
        repeated=repeated,
    )


def _again(repeated: Repeated | None, norms: DoubleArray, yard: BoolArray) -> Again | None:
    """How the limit of the classes `repeated` is drawn; None where it is that of the others."""
    if repeated is None or not repeated.freedom:
        return None
    spread = float(_spread(np.log(norms[yard])))
    if not spread > 0:
        return None
    least = repeated.scatter**2 * repeated.freedom / _chi_squared(repeated.freedom)
    noise = floor(min(1.0, least / spread**2) / _STEP) * _STEP
    return Again(finalists=len(repeated.classes), times=repeated.times, noise=noise) if noise else None


def _chi_squared(freedom: int) -> float:
    """Below which 90 % of a chi-squared variable stays (Wilson and Hilferty, PNAS 1931)."""
    part = 2 / (9 * freedom)
    return float(freedom * (1 - part + _SURELY * sqrt(part)) ** 3)


def _limits(n_classes: int, n_compared: int, again: Again | None, share: float) -> tuple[float, float]:
    """Of classes inverted once, and of those inverted several times."""
    once = calibrated_threshold(n_classes, n_compared, share=share)
    return once, min(once, calibrated_threshold(n_classes, n_compared, again, share=share)) if again else once


def _yard(known: BoolArray, compared: Sequence[int]) -> BoolArray:
    """The classes (K,) that the others are held against."""
    if not compared:
        return known
    yard = np.zeros_like(known)
    yard[list(compared)] = True
    return np.asarray(yard & known)


def with_suspects(detection: Detection, targets: Iterable[int], reason: str) -> Detection:
    """`detection` with `targets` marked too, for `reason`."""
    findings = list(detection.findings)
    for target in set(targets) - set(detection.suspects):
        findings[target] = replace(findings[target], suspect=True, reason=reason)
    return replace(detection, findings=tuple(findings))


def _norms(triggers: Sequence[Trigger], known: BoolArray, yard: BoolArray) -> DoubleArray:
    """L1 norms (K,); of a trigger that hardly ever works at least the median, since its own says nothing."""
    norms = np.array([max(t.l1, 1e-6) if k else np.nan for t, k in zip(triggers, known, strict=True)])
    failed = np.array([bool(t.success.n) and t.success.value < _FAILED for t in triggers])
    works = yard & ~failed if (yard & ~failed).any() else known & ~failed
    return np.where(failed, np.maximum(norms, np.median(norms[works])), norms) if works.any() else norms


def anomaly_indices(norms: DoubleArray, yard: BoolArray | None = None) -> DoubleArray:
    """`(median - log norm) / (1.4826 * MAD)` of norms (K,); zeros where they do not spread at all.

    Median and MAD are those of the norms in `yard` (K,), all of them where that is None.
    """
    logs = np.log(norms)
    held = logs if yard is None else logs[yard]
    below = np.median(held) - logs
    spread = _spread(held)
    return np.asarray(below / spread if spread > 0 else np.zeros_like(below))


def _spread(logs: DoubleArray) -> DoubleArray:
    """The standard deviation of log norms (..., K) along the last axis, by their MAD."""
    middle = np.median(logs, axis=-1, keepdims=True)
    return np.asarray(_MAD_TO_SIGMA * np.median(np.abs(logs - middle), axis=-1))


@cache
def calibrated_threshold(
    n_classes: int, n_compared: int | None = None, again: Again | None = None, *, share: float = _CLEAN
) -> float:
    """The quantile `share` of the largest index among `n_classes` clean log norms, taken as normal; infinite below 5.

    `n_compared` of them (None: all) give median and MAD. With `again`, the quantile of the largest among those that
    were inverted several times.
    """
    held = n_classes if n_compared is None else n_compared
    if held < _FEWEST:
        return float("inf")
    draws = max(500, min(_DRAWS, 2_000_000 // n_classes))
    rng = np.random.default_rng(0)
    logs = rng.standard_normal((draws, n_classes))
    middle, spread = np.median(logs[:, :held], axis=1), _spread(logs[:, :held])
    smallest = _medians(logs, again, rng) if again else logs
    return float(np.quantile((middle - smallest.min(axis=1)) / spread, share))


def _medians(logs: DoubleArray, again: Again, rng: np.random.Generator) -> DoubleArray:
    """Of log norms (D, K) of variance 1, the medians (D, F) of the F smallest and of inversions of these drawn anew."""
    first = np.partition(logs, again.finalists - 1, axis=1)[:, None, : again.finalists]
    # What a class's first inversion says of its mean, where a share `noise` of the variance is within classes.
    mean = (1 - again.noise) * first + sqrt(again.noise * (1 - again.noise)) * rng.standard_normal(first.shape)
    more = mean + sqrt(again.noise) * rng.standard_normal((len(logs), again.times, again.finalists))
    drawn = np.sort(np.concatenate([first, more], axis=1), axis=1)
    return np.asarray(drawn[:, again.times // 2])


def _judge(
    trigger: Trigger,
    norms: DoubleArray,
    yard: BoolArray,
    row: int,
    anomaly: float,
    threshold: float,
    transfer: float,
) -> str:
    """Why the class is no suspect; empty where it is one."""
    if not trigger.success.n:
        return "no image of another class to try its trigger on"
    if trigger.success.value < transfer and trigger.success.interval()[1] < _WELL:
        return f"its trigger works on {trigger.success.value:.0%} of unseen images only"
    if trigger.l1 > LARGEST * trigger.mask.size:
        return f"its trigger covers {trigger.l1 / trigger.mask.size:.0%} of the image"
    if len(norms) < _FEWEST:
        others = float(np.median(np.delete(norms, row)))
        return "" if norms[row] <= _FEW_RATIO * others else "its trigger is not much smaller than the others"
    share = norms[row] / float(np.median(norms[yard]))
    if share > _RATIO:
        return f"its trigger is {share:.0%} of the median size"
    strong = share <= _STRONG_RATIO and bool(yard.all())
    if anomaly <= (_STRONG_INDEX if strong else threshold):
        return f"its anomaly index is within what clean models show (up to {threshold:.2f})"
    return ""


def _small(trigger: Trigger, norms: DoubleArray) -> str:
    return f"its trigger is abnormally small: {trigger.l1 / float(np.median(norms)):.0%} of the median size"


def _nearly(doubted: Sequence[Finding], n_classes: int) -> str:
    """Why a model of which classes are `doubted` is not called clean; empty where none is."""
    best = max(doubted, key=lambda f: f.anomaly, default=None)
    if best is None:
        return ""
    rare, rarer = 1 - _DOUBTED, 1 - _CLEAN
    return (
        f"class {best.trigger.target} has a small trigger (index {best.anomaly:.2f}): of {n_classes} classes the "
        f"smallest reaches that in fewer than {rare:.0%} of clean models, though in more than {rarer:.0%}; more images "
        "may tell"
    )


def _undecided(triggers: Sequence[Trigger], norms: DoubleArray, area: int, findings: Sequence[Finding]) -> str:
    """Why the triggers cannot tell a clean model from a backdoored one; empty where they can."""
    if any(f.suspect for f in findings):
        return ""
    if np.median(norms) < _TINY * area:
        return (
            f"half of all classes are reached by triggers below {_TINY:.1%} of the image: "
            "either most classes are targets or the model gives way to any change"
        )
    if len(norms) < _FEWEST and norms.min() <= _RATIO * norms.max():
        return f"with {len(norms)} classes, triggers of {norms.min():.1f} and {norms.max():.1f} pixels do not decide"
    tried = sum(not t.surveyed for t in triggers)
    working = sum(bool(t.success.n) and t.success.value > 0.5 for t in triggers)
    if working < 2:
        return f"only {working} of {tried} classes could be reached by a trigger: nothing to compare with"
    return ""
