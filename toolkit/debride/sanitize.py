"""The only file that knows the order of the stages: load, invert, detect, prune, retrain, slim, verify, write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from debride.detect import with_suspects
from debride.ending import End, slimmed, write, write_unchanged, zeroed
from debride.graph.write import check_free
from debride.loading import Loaded
from debride.mending import Cleaned, given, joined, mended, retrained_or_not, working
from debride.overall import Overall, anew, cleaning, scanning
from debride.retraining import doubts
from debride.rounds import SPENT, State, clean_all
from debride.settings import Settings
from debride.stages import (
    Clock,
    Search,
    found_words,
    more_triggers,
    prepared,
    report,
    searched,
    source_of,
    worst_first,
)
from debride.types import Detection, Evaluation, Progress, Report, Trigger, Verdict, no_progress
from debride.verdict import compare, forgotten, judged, shortfalls

_GOOD = "the trigger no longer works and no new one stands out"
_NOTHING_CUT = "nothing was cut, so nothing was slimmed; `debride slim` takes channels out that are zero already"
_GIVEN = "a trigger for it was given"


def scan(model: Path, images: Path, *, settings: Settings, progress: Progress = no_progress) -> Report:
    """Triggers for all classes and a verdict: clean, backdoored or inconclusive. Nothing is written.

    `model` is an ONNX file, or any file or folder that an adapter reads (`debride.plugins`). Raises a `DebrideError`
    for a model or images that cannot be used, and where the proxy cannot be trusted.
    """
    clock = Clock()
    with source_of(model, images, settings, progress, clock) as source:
        loaded = prepared(source, images, settings, progress, clock)
        told = Overall(progress, scanning(loaded, settings))
        detection = searched(loaded, settings, told, clock).detection
        told.end()
    verdict: Verdict = "backdoored" if detection.suspects else "inconclusive" if detection.inconclusive else "clean"
    before = judged(loaded, loaded.predict, worst_first(detection))
    return report(
        "scan", loaded, settings, detection, clock, verdict=verdict, reason=found_words(detection), before=before
    )


def sanitize(
    model: Path,
    images: Path,
    output: Path,
    *,
    settings: Settings,
    force: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Find, cut, retrain and verify; write OUTPUT: the cleaned model, or a byte-identical copy of a clean one.

    An inconclusive run writes nothing. Raises `UsageError` where OUTPUT exists (unless `force`), before any work,
    and a `DebrideError` as `scan`.
    """
    check_free(output, force)
    clock = Clock()
    with source_of(model, images, settings, progress, clock) as source:
        loaded = prepared(source, images, settings, progress, clock)
        told = Overall(progress, {**scanning(loaded, settings), **cleaning(loaded, settings, pruning=True)})
        found = searched(loaded, settings, told, clock)
        if found.detection.suspects:
            made = _cleaned(found, settings, clock, output, force, told)
        else:
            made = _unchanged(found, settings, clock, output, force)
        told.end()
        return made


def retrain(
    model: Path,
    images: Path,
    output: Path,
    *,
    settings: Settings,
    triggers: Sequence[Path] = (),
    force: bool = False,
    progress: Progress = no_progress,
) -> Report:
    """Train the weights further and verify; write OUTPUT: the retrained model, or a copy where that was no better.

    Unlearnt are the triggers of suspects, found as by `scan`, and those of the files `triggers`. Nothing is pruned, and
    what is zero stays so. An inconclusive run without `triggers` writes nothing. Raises as `sanitize`, `ReportError`
    for a trigger that does not fit, `ImagesError` for labels that contradict the model nearly everywhere.
    """
    check_free(output, force)
    clock = Clock()
    with source_of(model, images, settings, progress, clock) as source:
        loaded = prepared(source, images, settings, progress, clock)
        # What is refused is refused before the search.
        known, warnings = given(loaded, triggers), doubts(loaded, settings)
        told = Overall(progress, {**scanning(loaded, settings), **cleaning(loaded, settings, pruning=False)})
        found = searched(loaded, settings, told, clock)
        detection = with_suspects(_filled(found.detection, known), working(loaded, settings, known), _GIVEN)
        if not detection.suspects and detection.inconclusive:
            told.end()
            return replace(_unchanged(found, settings, clock, output, force), command="retrain")
        if not detection.suspects:
            told.plan = {**told.plan, **anew(settings, len(detection.findings) - detection.surveyed)}
        end = End(proto=loaded.model.proto, predict=loaded.predict)
        suspected = more_triggers(found, settings, told, clock)
        whole = Cleaned(end=end, checked=found.detection, triggers=joined(known, suspected))
        with clock.stage("retraining"):
            deadline = clock.deadline(settings)
            cleaned = mended(loaded, settings, whole, {}, "it was asked for", deadline=deadline, progress=told)
        before, after, missed = _verified(loaded, settings, cleaned, {}, clock, told)
        kept = cleaned.retraining is not None and cleaned.retraining.kept
        with clock.stage("writing"):
            facts = write(loaded, cleaned.end, output, force) if kept else write_unchanged(loaded, output, force)
        told.end()
    made = report(
        "retrain",
        loaded,
        settings,
        detection,
        clock,
        verdict="not sanitized" if missed else "sanitized" if detection.suspects else "clean",
        reason="; ".join(missed) or (_GOOD if detection.suspects else found_words(detection)),
        before=before,
        warnings=(*warnings, *cleaned.end.warnings),
    )
    checked = cleaned.checked if kept or detection.suspects else None
    return replace(made, output=facts, after=after, recheck=checked, retraining=cleaned.retraining)


def _filled(detection: Detection, known: Mapping[int, Sequence[Trigger]]) -> Detection:
    """`detection` with the triggers `known`, by class, of classes that were never inverted."""
    findings = [
        replace(f, trigger=known[f.trigger.target][0]) if f.trigger.surveyed and f.trigger.target in known else f
        for f in detection.findings
    ]
    return replace(detection, findings=tuple(findings))


def _cleaned(found: Search, settings: Settings, clock: Clock, output: Path, force: bool, progress: Progress) -> Report:
    """Cut, retrain, slim, verify and write."""
    loaded, detection, deadline = found.loaded, found.detection, clock.deadline(settings)
    triggers, state = more_triggers(found, settings, progress, clock), State()
    with clock.stage("pruning"):
        checked = clean_all(loaded, settings, detection, triggers, state, deadline=deadline, progress=progress)
    with clock.stage("writing"):
        end = zeroed(loaded, state.gone)
    cleaned = Cleaned(end=end, checked=checked, triggers=state.triggers)
    acquitted = {target: known for target, known in triggers.items() if target not in state.triggers}
    if settings.retrain != "never":
        with clock.stage("retraining"):
            cleaned = retrained_or_not(
                loaded, settings, cleaned, acquitted, state, deadline=deadline, progress=progress
            )
    if settings.slim and state.gone:
        with clock.stage("slimming"):
            cleaned = replace(cleaned, end=slimmed(loaded, cleaned.end, settings, progress))
    before, after, missed = _verified(loaded, settings, cleaned, acquitted, clock, progress)
    with clock.stage("writing"):
        facts = write(loaded, cleaned.end, output, force)
    return replace(
        report(
            "sanitize",
            loaded,
            settings,
            with_suspects(detection, state.triggers, "it stood out once others were cleaned"),
            clock,
            verdict="not sanitized" if missed else "sanitized",
            reason="; ".join([*missed, *_stops(state)]) if missed else _GOOD,
            before=before,
            warnings=cleaned.end.warnings,
        ),
        output=facts,
        after=after,
        slimming=cleaned.end.slimming,
        retraining=cleaned.retraining,
        pruned=tuple(state.pruned),
        rounds=tuple(state.rounds),
        recheck=cleaned.checked,
        returned=len(state.kept),
    )


def _verified(
    loaded: Loaded,
    settings: Settings,
    cleaned: Cleaned,
    acquitted: Mapping[int, Sequence[Trigger]],
    clock: Clock,
    progress: Progress,
) -> tuple[Evaluation, Evaluation, list[str]]:
    """The delivered and the cleaned model on held-out images, and what of the goal was missed."""
    with clock.stage("verification"):
        progress("verification", 0, 1)
        before, after = compare(loaded, cleaned.end.predict, cleaned.triggers, acquitted)
        missed = shortfalls(settings, before, after, cleaned.checked)
        gone = forgotten(loaded, cleaned.end.predict, cleaned.triggers)
        missed += [f"no held-out image of class {target} is known any more" for target in gone]
        progress("verification", 1, 1)
    return before, after, missed


def _stops(state: State) -> list[str]:
    return [f"class {target}: {reason}" for target, reason in state.stopped.items() if reason != SPENT]


def _unchanged(found: Search, settings: Settings, clock: Clock, output: Path, force: bool) -> Report:
    """Nobody is suspected: a copy of a clean model, or nothing where the data cannot tell."""
    loaded, detection, facts = found.loaded, found.detection, None
    if not detection.inconclusive:
        with clock.stage("writing"):
            facts = write_unchanged(loaded, output, force)
    evaluation = judged(loaded, loaded.predict, ())
    made = report(
        "sanitize",
        loaded,
        settings,
        detection,
        clock,
        verdict="inconclusive" if detection.inconclusive else "clean",
        reason=found_words(detection),
        before=evaluation,
        warnings=(_NOTHING_CUT,) if settings.slim else (),
    )
    return replace(made, output=facts, after=evaluation if facts else None)
