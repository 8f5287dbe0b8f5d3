"""Delivered and cleaned model side by side on held-out images, and what of the goal was missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from debride.evaluate import evaluate
from debride.loading import Loaded
from debride.settings import Settings
from debride.stakes import STRENGTHS
from debride.triggers import opaque
from debride.types import Detection, Evaluation, Predict, Rate, Trigger, TriggerEvaluation

_EQUAL = 1e-9
"""Sums of rates that differ by less are the same, rounded otherwise."""
_CLOSE = 5e-4
"""Utilities that differ by less are the same."""
_KNOWN = 2
_RUINED = 0.8
"""At less than this share of the utility no attack that is gone makes up for it."""


def judged(loaded: Loaded, predict: Predict, triggers: Sequence[Trigger]) -> Evaluation:
    """`predict` on the held-out images, clean and with each trigger.

    Without given labels the truth is the delivered model's answer: agreement, not accuracy.
    """
    kind: Literal["accuracy", "agreement"] = "accuracy" if loaded.labelled else "agreement"
    return replace(evaluate(predict, loaded.held_out, tuple(triggers)), kind=kind)


def compare(
    loaded: Loaded,
    cleaned: Predict,
    triggers: Mapping[int, Sequence[Trigger]],
    acquitted: Mapping[int, Sequence[Trigger]],
) -> tuple[Evaluation, Evaluation]:
    """The delivered and the cleaned model on all triggers, by class."""
    tried = on_trial(triggers, acquitted)
    return judged(loaded, loaded.predict, tried), judged(loaded, cleaned, tried)


def on_trial(
    triggers: Mapping[int, Sequence[Trigger]], acquitted: Mapping[int, Sequence[Trigger]]
) -> tuple[Trigger, ...]:
    """What networks are compared on.

    Those that were cut for (`triggers`) are tried as found and as opaque as it goes; those of suspects that stood out
    no longer once others were cleaned (`acquitted`) as found.
    """
    tried = [opaque(t, s) for joined in triggers.values() for t in joined for s in (STRENGTHS[0], STRENGTHS[-1])]
    return (*tried, *(t for found in acquitted.values() for t in found))


def shortfalls(settings: Settings, before: Evaluation, after: Evaluation, checked: Detection) -> list[str]:
    """What of the goal was missed, in words; empty where the model is clean now."""
    missed = []
    over = [t for t, excess in _excesses(after, before) if excess > settings.target_asr]
    if over:
        worst = max(over, key=lambda t: t.asr.value)
        missed.append(f"a trigger still sends {worst.asr.value:.1%} of held-out images to class {worst.target}")
    if checked.suspects:
        classes = ", ".join(map(str, checked.suspects))
        missed.append(f"a newly inverted trigger still stands out (class {classes})")
    if checked.inconclusive:
        missed.append(f"the last inversions do not tell: {checked.inconclusive}")
    lost = _lost(before, after)
    # An image or two of few are no evidence of a loss beyond the budget.
    if lost.interval()[0] > settings.utility_budget:
        missed.append(f"{before.kind} fell by {lost.value:.1%}")
    return missed


def worse(
    settings: Settings,
    delivered: Evaluation,
    pruned: Evaluation,
    retrained: Evaluation,
    utilities: tuple[float, float],
    floor: float,
) -> str:
    """Why the retrained network is worse on held-out images than the pruned one; "" where it is not.

    First counts by how much attack and loss of accuracy are over target, as in `shortfalls`, and that less attack was
    not bought with more accuracy; then the utility payoffs (`debride.stakes.utility_stake`) of the pruned and of the
    retrained network on varied held-out images: of few images a rate tells too little. Down to `floor` it may fall
    where attack and accuracy are no worse: a network that is less sure of the target is lower in it. Five retrained
    networks of a WideResNet were 0.003 to 0.012 below the pruned ones, and better on 4,000 images by 0 to 0.8 points,
    with a third to a half of the attack's rest gone.
    """
    three = (delivered, pruned, retrained)
    attacks = [max((e for _, e in _excesses(found, *three)), default=0.0) for found in (pruned, retrained)]
    losses = [_lost(delivered, found) for found in (pruned, retrained)]
    over = [
        max(0.0, attack - settings.target_asr) + max(0.0, lost.interval()[0] - settings.utility_budget)
        for attack, lost in zip(attacks, losses, strict=True)
    ]
    harm = [max(0.0, attack) + lost.value for attack, lost in zip(attacks, losses, strict=True)]
    equal = abs(over[1] - over[0]) <= _EQUAL
    if over[1] > over[0] + _EQUAL or (not equal and harm[1] > harm[0] + _EQUAL):
        return (
            f"on held-out images it is further from the goal: attack success {retrained.worst_asr:.1%} against "
            f"{pruned.worst_asr:.1%}, {retrained.kind} {retrained.clean.value:.1%} against {pruned.clean.value:.1%}"
        )
    if utilities[1] < _RUINED * utilities[0]:
        return f"it is ruined: its utility on held-out images is {utilities[1]:.3f} against {utilities[0]:.3f}"
    least = utilities[0] if harm[1] > harm[0] + _EQUAL else min(utilities[0], floor)
    if equal and utilities[1] < least - _CLOSE:
        both = "both reach the goal" if over[1] <= _EQUAL else "it is no nearer to the goal"
        return f"{both}, and its utility on held-out images, {utilities[1]:.3f}, is below {least:.3f}"
    return ""


def _excesses(found: Evaluation, *others: Evaluation) -> list[tuple[TriggerEvaluation, float]]:
    """Each trigger's attack success beyond mistakes: images that go to the target without any trigger.

    Mistakes that one of the `others` (of the same triggers) does not make excuse no attack: a network that sends every
    image there makes the most.
    """
    fewest = [
        min((t.mistakes for t in same), key=lambda rate: rate.hits)
        for same in zip(found.triggers, *(other.triggers for other in others), strict=True)
    ]
    return [(t, replace(t, mistakes=rate).excess) for t, rate in zip(found.triggers, fewest, strict=True)]


def forgotten(loaded: Loaded, predict: Predict, targets: Iterable[int]) -> tuple[int, ...]:
    """The classes of `targets` whose held-out images `predict` knows no more: none, where two or more were known.

    A network that has learnt never to say a target's class has no attack left, and is no use.
    """
    gone = []
    for target in sorted(targets):
        images = loaded.held_out.images[loaded.held_out.labels == target]
        if len(images):
            known, still = ((p(images).argmax(axis=1) == target).sum() for p in (loaded.predict, predict))
            gone += [target] if known >= _KNOWN and not still else []
    return tuple(gone)


def _lost(before: Evaluation, after: Evaluation) -> Rate:
    return Rate(max(0, before.clean.hits - after.clean.hits), before.clean.n)
