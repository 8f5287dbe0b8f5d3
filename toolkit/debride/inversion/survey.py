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

from debride.inversion.invert import Draws, invert, planned_steps, preference
from debride.inversion.options import InversionOptions
from debride.proxy.interpreter import Proxy
from debride.types import Predict, Progress, Samples, Trigger, no_progress

_FIRST, _SECOND = 24, 40
"""Steps of the first look at every class, and of the second, from the start again, at those that it leaves."""
_LEFT = 0.125
"""Share of the classes that a first look leaves."""
_SAMPLED, _MOST_SAMPLED = 0.2, 256
"""Share of the classes in the random sample, and the most of them. In 95 % of draws the largest index of 1283 clean
norms stays below 5.20 where 32 of them give median and spread, 4.26 where 128 do, 4.13 with 256 and 3.97 with all."""
_SEEDS = 100_000
"""Between the seeds of two blocks of classes, whose triggers would begin alike otherwise."""
_BLOCK_VALUES = 1 << 24
"""Values of the masks and patterns learnt together: Adam and the best so far take five times that."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Searched:
    """Triggers by class, best first, of the classes that were inverted in full; others are held against `compared`."""

    triggers: Mapping[int, tuple[Trigger, ...]]
    compared: tuple[int, ...]


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
        return Searched(triggers=_inverted(*data, every, **how), compared=every)
    rng = np.random.default_rng(seed)
    sample = sorted(rng.permutation(n_classes)[: _sampled(n_classes, options)].tolist())
    promising = shortlist(proxy, fit, n_classes, **how)
    chosen = sorted({*sample, *promising})
    return Searched(triggers=settled(*data, _inverted(*data, chosen, **how), **how), compared=tuple(sample))


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
) -> dict[int, tuple[Trigger, ...]]:
    """`found`, triggers by class, where the few classes with the smallest that work stand by their median inversion.

    The smallest of hundreds is small by luck, too; inverted `options.again` times more, what is luck goes and what is
    planted stays. Where fewer than half of a class's inversions work, one that does not is its median.
    """

    def wanted(triggers: tuple[Trigger, ...]) -> tuple[bool, float]:
        return preference(triggers[0], options.transfer)

    finalists = sorted(found, key=lambda c: wanted(found[c]))[: options.finalists]
    drawn = [found]
    for number in range(options.again):
        told = _part(progress, number, options.again)
        data = (proxy, predict, fit, held_out, finalists)
        drawn.append(invert(*data, options=options, seed=seed + 1 + number, progress=told, stage=stage))
    middle = {c: sorted((one[c] for one in drawn), key=wanted)[(len(drawn) - 1) // 2] for c in finalists}
    return {**found, **middle}


def _inverted(
    proxy: Proxy,
    predict: Predict,
    fit: Samples,
    held_out: Samples,
    classes: Sequence[int],
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress,
) -> dict[int, tuple[Trigger, ...]]:
    """`invert`, in blocks of classes where their masks and patterns would take too much memory together."""
    size = max(1, _block(fit) // options.restarts)
    blocks = [classes[first : first + size] for first in range(0, len(classes), size)]
    found: dict[int, tuple[Trigger, ...]] = {}
    for number, block in enumerate(blocks):
        told = _part(progress, number, len(blocks))
        ours = seed + _SEEDS * number
        found |= invert(proxy, predict, fit, held_out, block, options=options, seed=ours, progress=told)
    return found


def _part(progress: Progress, number: int, parts: int) -> Progress:
    """Tells `progress` of a stage that is done in so many `parts` of the same length, of which this is `number`."""

    def told(stage: str, done: int, total: int, note: str = "") -> None:
        progress(stage, number * total + done, parts * total, note)

    return told


def _block(samples: Samples) -> int:
    """How many masks and patterns of such images are learnt together at most."""
    return max(1, _BLOCK_VALUES // int(samples.images[0].size + samples.images[0, 0].size))


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
    block = _block(fit)
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
