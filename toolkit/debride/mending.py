"""Whether to retrain, on what, and whether what came of it is delivered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from debride.detect import LARGEST
from debride.ending import End, told
from debride.errors import ReportError
from debride.evaluate import evaluate
from debride.loading import Loaded
from debride.retrain.options import METHODS
from debride.retraining import LIGHT, Retrained, doubts, retrained
from debride.rounds import MARGIN, State, utility_of
from debride.sessions import probabilities
from debride.settings import Settings
from debride.triggers import load_trigger
from debride.types import Detection, Predict, Progress, Retraining, Trigger
from debride.verdict import compare, forgotten, judged, on_trial, shortfalls, worse

_CHEAP = 0.002
"""Less utility than that is no price of pruning."""
_LATE = "the time budget was spent"
_NOTHING = "no step made it better on images that it did not learn from"

Triggers = Mapping[int, Sequence[Trigger]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cleaned:
    """A graph to write, the detection after it, and the triggers that it was cleaned of, by class."""

    end: End
    checked: Detection
    triggers: Triggers
    retraining: Retraining | None = None


def given(loaded: Loaded, files: Sequence[Path]) -> dict[int, tuple[Trigger, ...]]:
    """The triggers of `files` by class.

    Raises `ReportError` where a file is none of a trigger for this model.
    """
    known: dict[int, tuple[Trigger, ...]] = {}
    shape = loaded.fit.images.shape[1:]
    for path in files:
        trigger = load_trigger(path)
        if not trigger.target < loaded.n_classes:
            raise ReportError(
                f"{path}: a trigger for class {trigger.target}, and the model has {loaded.n_classes} classes; give one "
                "that was made for this model"
            )
        if trigger.pattern.shape != shape:
            raise ReportError(
                f"{path}: a trigger of shape {trigger.pattern.shape}, and the model takes images of {shape}; give one "
                "that was made for this model"
            )
        if trigger.l1 > LARGEST * trigger.mask.size:
            raise ReportError(
                f"{path}: a mask over {trigger.l1 / trigger.mask.size:.0%} of the image is another picture and no "
                f"trigger; give one of at most {LARGEST:.0%}"
            )
        known[trigger.target] = (*known.get(trigger.target, ()), trigger)
    return known


def working(loaded: Loaded, settings: Settings, known: Triggers) -> tuple[int, ...]:
    """The classes to which one of the triggers `known` sends the delivered model's held-out images."""
    before, _ = compare(loaded, loaded.predict, known, {})
    return tuple(sorted({t.target for t in before.triggers if t.excess > settings.target_asr}))


def joined(first: Triggers, then: Triggers) -> dict[int, tuple[Trigger, ...]]:
    """Both by class, those of `first` first."""
    return {target: (*first.get(target, ()), *then.get(target, ())) for target in dict.fromkeys((*first, *then))}


def retrained_or_not(
    loaded: Loaded,
    settings: Settings,
    pruned: Cleaned,
    acquitted: Triggers,
    state: State,
    *,
    deadline: float | None,
    progress: Progress,
) -> Cleaned:
    """The pruned network retrained, where that is called for and makes it better.

    Where it cannot be retrained it stays as it is, with a warning that tells why.
    """
    reason = "it was asked for" if settings.retrain == "always" else _price(loaded, settings, pruned, acquitted, state)
    if not reason:
        return pruned
    if deadline is not None and time.monotonic() > deadline:
        return _warned(pruned, f"the pruned network was not retrained: {_LATE}")
    try:
        warnings = doubts(loaded, settings)
        cleaned = mended(loaded, settings, pruned, acquitted, reason, deadline=deadline, progress=progress)
    except Exception as error:  # what pruning brought is not lost to what would only better it
        return _warned(pruned, f"the pruned network was not retrained: {told(error)}")
    return _warned(cleaned, *warnings)


def _price(loaded: Loaded, settings: Settings, pruned: Cleaned, acquitted: Triggers, state: State) -> str:
    """What pruning left or cost, in words; "" where there is nothing to better."""
    before, after = compare(loaded, pruned.end.predict, pruned.triggers, acquitted)
    missed = shortfalls(settings, before, after, pruned.checked)
    if missed:
        return "; ".join(missed)
    left = max((t.excess for t in after.triggers), default=0.0)
    if left > 0:
        return f"pruning left an attack success of {left:.1%} beyond mistakes"
    if after.clean.hits < before.clean.hits:
        return f"pruning lowered the {before.kind} from {before.clean.value:.1%} to {after.clean.value:.1%}"
    _, delivered = utility_of(loaded, loaded.fit, settings.seed)
    utility = state.rounds[-1].utility if state.rounds else delivered
    return f"pruning lowered the utility from {delivered:.3f} to {utility:.3f}" if delivered - utility > _CHEAP else ""


def mended(
    loaded: Loaded,
    settings: Settings,
    before: Cleaned,
    acquitted: Triggers,
    reason: str,
    *,
    deadline: float | None,
    progress: Progress,
) -> Cleaned:
    """The graph of `before` retrained or, where that is worse on held-out images, as it was; both with the facts.

    Raises as `debride.retraining.retrained`.
    """
    made = tried(loaded, settings, before, acquitted, reason, deadline=deadline, progress=progress)
    facts = made.retraining
    # What was found in the retrained network is tried on the one that is delivered, too.
    return made if facts is not None and facts.kept else replace(before, triggers=made.triggers, retraining=facts)


def tried(
    loaded: Loaded,
    settings: Settings,
    before: Cleaned,
    acquitted: Triggers,
    reason: str,
    *,
    deadline: float | None,
    progress: Progress,
) -> Cleaned:
    """The graph of `before` retrained, better or worse: the facts say which, as `kept`.

    Raises as `debride.retraining.retrained`.
    """
    settings = _enough(loaded, settings, before)
    made = retrained(
        loaded, settings, before.end.proto, before.checked, before.triggers, deadline=deadline, progress=progress
    )
    delivered, pruned = compare(loaded, before.end.predict, made.triggers, acquitted)
    after = judged(loaded, made.predict, on_trial(made.triggers, acquitted))
    rates, utilities = (delivered, pruned, after), _utilities(loaded, settings, before.end.predict, made.predict)
    against = _against(loaded, before, made) or worse(settings, *rates, *utilities)
    facts = Retraining(
        method=settings.retraining.method,
        kept=not against,
        reason=against or reason,
        labels="given" if loaded.labelled else "delivered",
        images=made.images,
        per_step=made.course.images,
        steps=made.course.steps,
        budget=made.budget,
        best=made.course.best,
        statistics=made.statistics,
        changes=made.changes,
        fixed=made.fixed,
        before=pruned,
        after=after,
        relearning=made.relearning,
    )
    end = End(proto=made.proto, predict=made.predict)
    return Cleaned(end=end, checked=made.checked, triggers=made.triggers, retraining=facts)


def _enough(loaded: Loaded, settings: Settings, before: Cleaned) -> Settings:
    """`settings` with the images that a step of retraining `before` needs: fewer where its triggers work no more."""
    options, triggers = settings.retraining, on_trial(before.triggers, {})
    if not METHODS[options.method].stamped or not triggers:
        return settings
    left = max(t.excess for t in evaluate(before.end.predict, loaded.fit, triggers).triggers)
    if left > settings.target_asr:
        return settings
    return replace(
        settings, retraining=replace(options, images=min(options.images, max(2, round(LIGHT * options.images))))
    )


def _against(loaded: Loaded, before: Cleaned, made: Retrained) -> str:
    """What speaks against a retrained network whatever its rates; "" where nothing does."""
    if not made.changes or (not made.course.best and made.statistics != "estimated"):
        return _NOTHING if made.course.steps else _LATE
    gone = set(forgotten(loaded, made.predict, made.triggers)) - set(
        forgotten(loaded, before.end.predict, made.triggers)
    )
    if gone:
        return f"it knows no held-out image of class {min(gone)} any more"
    if made.checked.inconclusive and not before.checked.inconclusive:
        return f"the last inversions do not tell of it: {made.checked.inconclusive}"
    fresh = sorted(set(made.checked.suspects) - set(before.checked.suspects))
    return f"a newly inverted trigger stands out in it (class {', '.join(map(str, fresh))})" if fresh else ""


def _utilities(
    loaded: Loaded, settings: Settings, pruned: Predict, retrained: Predict
) -> tuple[tuple[float, float], float]:
    """The utility payoffs of both on varied held-out images, and the floor under that of any cut."""
    stake, delivered = utility_of(loaded, loaded.held_out, settings.seed)
    one, other = (float(stake.payoff(probabilities(p(stake.images))[None])[0]) for p in (pruned, retrained))
    return (one, other), delivered - MARGIN * settings.utility_budget


def _warned(cleaned: Cleaned, *warnings: str) -> Cleaned:
    return replace(cleaned, end=cleaned.end.warned(*warnings))
