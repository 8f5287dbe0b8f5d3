"""Many classes: a short look at each, and full inversions for the few that promise most and for a random sample.

Every class gets one trigger with the same, fixed weight on its norm, so that cross entropy + weight * norm says of all
of them alike how easily they are reached; a planted trigger reaches its class within few steps. Most classes are
dropped after each of two looks (after successive halving, Karnin et al., ICML 2013). What the few are held against is
the random sample, which was chosen before anything was known of it: winners are no measure of what is ordinary. The
smallest triggers are inverted again, and stand by the median of their norms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debride.inversion.invert import Draws, invert, planned_steps, preference, together
from debride.inversion.options import InversionOptions
from debride.proxy.interpreter import Proxy
from debride.types import Predict, Progress, Repeated, Samples, Trigger, no_progress, part_of

_FIRST, _SECOND = 24, 40
"""Steps of the first look at every class, and of the second, from the start again, at those that it leaves."""
_LEFT = 0.125
"""Share of the classes that a first look leaves."""
_SAMPLED, _MOST_SAMPLED = 0.2, 256
"""Share of the classes in the random sample, and the most of them. In 95 % of draws the largest index of 1283 clean
norms stays below 5.20 where 32 of them give median and spread, 4.26 where 128 do, 4.13 with 256 and 3.97 with all."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Searched:
    """Triggers by class, best first, of the classes that were inverted in full; others are held against `compared`."""

    triggers: Mapping[int, tuple[Trigger, ...]]
    compared: tuple[int, ...]
    repeated: Repeated | None = None


def search(
    proxy: Proxy,
    predict: Predict,
    fit: Samples,
    held_out: Samples,
    n_classes: int,
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress = no_progress,
) -> Searched:
    """Invert all classes or, where they are more than `options.most_classes`, those that count; see `invert`."""
    data = (proxy, predict, fit, held_out)
    how: dict[str, Any] = {"options": options, "seed": seed, "progress": progress}
    if n_classes <= options.most_classes:
        every = tuple(range(n_classes))
        return Searched(triggers=invert(*data, every, **how), compared=every)
    rng = np.random.default_rng(seed)
    sample = sorted(rng.permutation(n_classes)[: _sampled(n_classes, options)].tolist())
    promising = shortlist(proxy, fit, n_classes, **how)
    chosen = sorted({*sample, *promising})
    triggers, repeated = settled(*data, invert(*data, chosen, **how), **how)
    return Searched(triggers=triggers, compared=tuple(sample), repeated=repeated)


def settled(
    proxy: Proxy,
    predict: Predict,
    fit: Samples,
    held_out: Samples,
    found: Mapping[int, tuple[Trigger, ...]],
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress = no_progress,
    stage: str = "inversion of the smallest",
) -> tuple[dict[int, tuple[Trigger, ...]], Repeated]:
    """`found`, triggers by class, where the few classes with the smallest that work stand by their median inversion.

    The smallest of hundreds is small by luck, too; inverted `options.again` times more, what is luck goes and what is
    planted stays. Where fewer than half of a class's inversions work, one that does not is its median. Beside them,
    which classes those are, and how much their norms scatter.
    """

    def wanted(triggers: tuple[Trigger, ...]) -> tuple[bool, float]:
        return preference(triggers[0], options.transfer)

    finalists = sorted(found, key=lambda c: wanted(found[c]))[: options.finalists]
    more = []
    for number in range(options.again):
        told = part_of(progress, number, options.again)
        data = (proxy, predict, fit, held_out, finalists)
        more.append(invert(*data, options=options, seed=seed + 1 + number, progress=told, stage=stage))
    drawn = [found, *more]
    middle = {c: sorted((one[c] for one in drawn), key=wanted)[(len(drawn) - 1) // 2] for c in finalists}
    return {**found, **middle}, _repeated({c: [one[c][0] for one in more] for c in finalists}, options)


def _repeated(drawn: Mapping[int, Sequence[Trigger]], options: InversionOptions) -> Repeated:
    """How much the log norms of triggers `drawn` independently of each other scatter within their classes.

    The first inversion of a class is none of these: it was among the smallest, and is smaller than others by that.
    """
    working = ([t.l1 for t in ours if not preference(t, options.transfer)[0]] for ours in drawn.values())
    logs = [np.log(np.maximum(norms, 1e-6)) for norms in working if len(norms) > 1]
    freedom = sum(len(ours) - 1 for ours in logs)
    squares = sum(float(np.var(ours)) * len(ours) for ours in logs)
    scatter = float(np.sqrt(squares / freedom)) if freedom else 0.0
    return Repeated(classes=tuple(drawn), times=options.again, scatter=scatter, freedom=freedom)


def planned_passes(n_classes: int, options: InversionOptions) -> dict[str, int]:
    """Image passes of each stage of `search`, where no trigger converges early."""
    fully = planned_steps(options) * options.images
    if n_classes <= options.most_classes:
        return {"inversion": n_classes * fully}
    return {
        "survey": _look_steps(n_classes, options) * options.images,
        "inversion": min(n_classes, _sampled(n_classes, options) + options.shortlist) * fully,
        "inversion of the smallest": options.finalists * options.again * fully,
    }


def _sampled(n_classes: int, options: InversionOptions) -> int:
    """How many classes the others are held against."""
    return max(options.sample, min(_MOST_SAMPLED, round(_SAMPLED * n_classes)))


def _left(n_classes: int, options: InversionOptions) -> int:
    """How many classes the first look leaves."""
    return min(n_classes, max(options.shortlist, round(_LEFT * n_classes)))


def _look_steps(n_classes: int, options: InversionOptions) -> int:
    return n_classes * _FIRST + _left(n_classes, options) * _SECOND


def shortlist(
    proxy: Proxy,
    fit: Samples,
    n_classes: int,
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[int, ...]:
    """The `options.shortlist` classes that one short-lived trigger each reaches most easily, the easiest first."""
    draws = Draws(fit, options.images, seed)
    block = together(fit)
    left, planned, spent = _left(n_classes, options), _look_steps(n_classes, options), 0

    def ranked(classes: Sequence[int], steps: int) -> list[int]:
        nonlocal spent
        costs: list[tuple[float, int]] = []
        for first in range(0, len(classes), block):
            arms = draws.arms(classes[first : first + block], options, proxy.device)
            for _ in range(steps):
                arms.learn(*draws.gradients(proxy, arms), adapt=False)
                spent += len(arms)
                progress("survey", spent, planned, f"{len(classes)} classes")
            costs += zip(arms.cost.tolist(), arms.targets.tolist(), strict=True)
        return [target for _, target in sorted(costs)]

    return tuple(ranked(ranked(range(n_classes), _FIRST)[:left], _SECOND)[: options.shortlist])
