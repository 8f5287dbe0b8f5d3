"""The only file that knows the order of the stages: load, invert, detect, prune, slim, verify, write."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from debride import __version__
from debride.conversion.request import Request
from debride.conversion.source import Source, facts_of, is_onnx, opened
from debride.detect import detect, with_suspects
from debride.errors import DebrideError
from debride.graph.read import model_of
from debride.graph.surgery import check_written, editable, write_model, zero
from debride.graph.write import check_free, write_copy
from debride.inversion.invert import invert
from debride.loading import Loaded, load
from debride.proxy.backend import configure
from debride.proxy.interpreter import Proxy
from debride.rounds import SPENT, State, answers, clean_all
from debride.sessions import Session, environment, predictor
from debride.settings import Settings
from debride.slimming import slim
from debride.specfile import METADATA_KEY, to_json
from debride.types import (
    Detection,
    Evaluation,
    FileFacts,
    Predict,
    Progress,
    Report,
    Slimming,
    Trigger,
    Verdict,
    no_progress,
)
from debride.verdict import compare, judged, shortfalls

_GOOD = "the trigger no longer works and no new one stands out"
_NOTHING_CUT = "nothing was cut, so nothing was slimmed; `debride slim` takes channels out that are zero already"
_EXAMPLES = 12


@dataclass(slots=True)
class _Clock:
    """Seconds per stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _End:
    """The graph to write, what it says of images, and what slimming and its failure left to tell."""

    proto: Any  # an onnx.ModelProto, a type that only graph and slimming may name
    predict: Predict
    slimming: Slimming | None = None
    warnings: tuple[str, ...] = ()


def scan(model: Path, images: Path, *, settings: Settings, progress: Progress = no_progress) -> Report:
    """Triggers for all classes and a verdict: clean, backdoored or inconclusive. Nothing is written.

    `model` is an ONNX file, or any file or folder that an adapter reads (`debride.plugins`). Raises a `DebrideError`
    for a model or images that cannot be used, and where the proxy cannot be trusted.
    """
    clock = _Clock()
    with _source(model, images, settings, progress, clock) as source:
        loaded, detection, _ = _find(source, images, settings, progress, clock)
    verdict: Verdict = "backdoored" if detection.suspects else "inconclusive" if detection.inconclusive else "clean"
    before = judged(loaded, loaded.predict, _worst_first(detection))
    return _report(
        "scan",
        loaded,
        settings,
        detection,
        clock,
        verdict=verdict,
        reason=_found(detection),
        before=before,
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
    """Find, cut and verify; write OUTPUT: the pruned model, or a byte-identical copy of a clean one (as ONNX).

    An inconclusive run writes nothing. Raises `UsageError` where OUTPUT exists (unless `force`), before any work,
    and a `DebrideError` as `scan`.
    """
    check_free(output, force)
    clock = _Clock()
    started = time.monotonic()
    with _source(model, images, settings, progress, clock) as source:
        loaded, detection, found = _find(source, images, settings, progress, clock)
        if not detection.suspects:
            return _unchanged(loaded, settings, detection, clock, output, force)
        deadline = None if settings.time_budget is None else started + settings.time_budget
        return _cleaned(loaded, settings, detection, found, clock, output, force, deadline, progress)


def _cleaned(
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    found: dict[int, tuple[Trigger, ...]],
    clock: _Clock,
    output: Path,
    force: bool,
    deadline: float | None,
    progress: Progress,
) -> Report:
    """Cut, verify and write."""
    state = State()
    with clock.stage("pruning"):
        checked = clean_all(loaded, settings, detection, found, state, deadline=deadline, progress=progress)
    end = _ended(loaded, state, settings, clock, progress)
    with clock.stage("verification"):
        progress("verification", 0, 1)
        acquitted = {target: found[target] for target in found if target not in state.triggers}
        before, after = compare(loaded, end.predict, state.triggers, acquitted)
        missed = shortfalls(settings, before, after, checked)
        progress("verification", 1, 1)
    with clock.stage("writing"):
        facts = _write(loaded, end.proto, output, force)
    return replace(
        _report(
            "sanitize",
            loaded,
            settings,
            with_suspects(detection, state.triggers),
            clock,
            verdict="not sanitized" if missed else "sanitized",
            reason="; ".join([*missed, *_stops(state)]) if missed else _GOOD,
            before=before,
            warnings=end.warnings,
        ),
        output=facts,
        after=after,
        slimming=end.slimming,
        pruned=tuple(state.pruned),
        rounds=tuple(state.rounds),
        recheck=checked,
        returned=len(state.kept),
    )


@contextmanager
def _source(model: Path, images: Path, settings: Settings, progress: Progress, clock: _Clock) -> Iterator[Source]:
    """`model` as ONNX, converted first where it is of another framework."""
    request = Request(
        model=model,
        options=settings.source,
        flags=settings.flags,
        images=images,
        resize=settings.resize,
        seed=settings.seed,
        threads=settings.threads,
    )
    with ExitStack() as stack:
        with nullcontext() if is_onnx(model) else clock.stage("conversion"):
            source = stack.enter_context(opened(request, progress))
        yield source


def _find(
    source: Source, images: Path, settings: Settings, progress: Progress, clock: _Clock
) -> tuple[Loaded, Detection, dict[int, tuple[Trigger, ...]]]:
    """Load, invert all classes and detect; more triggers for each suspect, best first."""
    configure(settings.threads)
    with clock.stage("loading"):
        progress("loading", 0, 1)
        loaded = load(source, images, settings)
        progress("loading", 1, 1, f"{len(loaded.groups)} channel groups")
    options = settings.inversion
    with clock.stage("inversion"):
        proxy = Proxy(loaded.model.graph, loaded.spec, precision="bfloat16")
        data = (proxy, loaded.predict, loaded.fit, loaded.held_out)
        every = range(loaded.n_classes)
        best = invert(*data, every, options=options, seed=settings.seed, progress=progress)
        detection = detect([best[c][0] for c in every], transfer=options.transfer)
        found = {}
        for target in detection.suspects:
            wide = replace(options, restarts=4, drops=())
            more = invert(*data, [target], options=wide, seed=settings.seed + 1 + target, progress=progress)[target]
            works = [t for t in more if t.success.value >= 0.5]
            found[target] = (best[target][0], *works)
    return loaded, detection, found


def _worst_first(detection: Detection) -> tuple[Trigger, ...]:
    """The suspects' triggers, the smallest first; an ordinary class's trigger is no attack to report."""
    return tuple(sorted((f.trigger for f in detection.findings if f.suspect), key=lambda t: t.l1))


def _found(detection: Detection) -> str:
    if detection.inconclusive:
        return detection.inconclusive
    if not detection.suspects:
        return "no class has an abnormally small trigger"
    found = _worst_first(detection)[0]
    return f"a trigger of {found.l1:.1f} pixels sends {found.success.value:.0%} to class {found.target}"


def _stops(state: State) -> list[str]:
    return [f"class {target}: {reason}" for target, reason in state.stopped.items() if reason != SPENT]


def _unchanged(
    loaded: Loaded, settings: Settings, detection: Detection, clock: _Clock, output: Path, force: bool
) -> Report:
    """Nobody is suspected: a copy of a clean model, or nothing where the data cannot tell."""
    facts = None
    if not detection.inconclusive:
        with clock.stage("writing"):
            write_copy(loaded.model.data, loaded.model.path, loaded.model.external, output, force=force)
        facts = FileFacts(name=output.name, sha256=loaded.model.sha256, size=loaded.model.size)
    evaluation = judged(loaded, loaded.predict, ())
    report = _report(
        "sanitize",
        loaded,
        settings,
        detection,
        clock,
        verdict="inconclusive" if detection.inconclusive else "clean",
        reason=_found(detection),
        before=evaluation,
        warnings=(_NOTHING_CUT,) if settings.slim else (),
    )
    return replace(report, output=facts, after=evaluation if facts else None)


def _ended(loaded: Loaded, state: State, settings: Settings, clock: _Clock, progress: Progress) -> _End:
    """The delivered graph with what was cut zeroed and, with `slim`, taken out of it."""
    groups = [loaded.groups[i] for i in state.gone]
    with clock.stage("writing"):
        cut = zero(loaded.model, groups)
        check_written(editable(loaded.model, groups), cut, groups)
    zeroed = _End(proto=cut, predict=answers(loaded, state))
    if not settings.slim or not groups:
        return zeroed
    with clock.stage("slimming"):
        try:
            return _slimmed(loaded, zeroed, settings, progress)
        except Exception as error:  # a model that is clean is not lost to what would only make it smaller
            known = isinstance(error, DebrideError)
            why = " ".join(f"{'' if known else type(error).__name__ + ': '}{error}".split())
            return replace(zeroed, warnings=(f"the cut channels are zeroed, not taken out of the graph: {why}",))


def _slimmed(loaded: Loaded, zeroed: _End, settings: Settings, progress: Progress) -> _End:
    # By way of its bytes: what is slimmed is then what a reader of the file would get.
    model = model_of(zeroed.proto.SerializeToString(), loaded.model.path, free=False)
    found = slim(
        model,
        spec=loaded.spec,
        images=loaded.held_out.images,
        runtime=loaded.runtime,
        align=settings.align,
        seed=settings.seed,
        progress=progress,
    )
    if found.facts.before == found.facts.after:
        return replace(zeroed, slimming=found.facts)
    # The rates in the report are then those of the graph that is written, not of the one that it equals.
    session = Session(found.proto.SerializeToString(), loaded.runtime, "the slimmed model")
    return _End(proto=found.proto, predict=predictor(session, loaded.spec), slimming=found.facts)


def _write(loaded: Loaded, proto: Any, output: Path, force: bool) -> FileFacts:
    write_model(proto, output, metadata={METADATA_KEY: to_json(loaded.spec)}, force=force)
    return facts_of(output)


def _report(
    command: Literal["scan", "sanitize"],
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    clock: _Clock,
    *,
    verdict: Verdict,
    reason: str,
    before: Evaluation,
    warnings: Sequence[str] = (),
) -> Report:
    return Report(
        command=command,
        verdict=verdict,
        reason=reason,
        model=loaded.facts,
        output=None,
        spec=loaded.spec,
        detection=detection,
        players=len(loaded.groups),
        seed=settings.seed,
        options=settings.as_report(),
        environment={
            "debride": __version__,
            "python": platform.python_version(),
            "provider": loaded.provider,
            **environment(),
        },
        parity=loaded.parity,
        samples={"fit": len(loaded.fit), "held_out": len(loaded.held_out)},
        seconds=clock.seconds,
        before=before,
        refused=loaded.refused,
        warnings=(*loaded.warnings, *warnings),
        conversion=loaded.conversion,
        examples=loaded.held_out.take(np.unique(np.linspace(0, len(loaded.held_out) - 1, _EXAMPLES).astype(np.int64))),
    )
