"""What scan, sanitize and retrain begin and end with: a model opened, loaded and searched; a report made of it all."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from debride import __version__
from debride.conversion.request import Request
from debride.conversion.source import Source, is_onnx, opened
from debride.detect import detect
from debride.inversion.invert import invert
from debride.inversion.survey import search as search_classes
from debride.loading import Loaded, load
from debride.memory import release
from debride.proxy.backend import configure
from debride.proxy.device import resolve_device
from debride.proxy.interpreter import Proxy
from debride.report.compute import compute_words
from debride.sessions import check_runtime, environment
from debride.settings import Settings
from debride.types import Detection, Evaluation, Meter, Progress, Report, Trigger, Verdict, surveyed_trigger

_EXAMPLES = 12
_MORE = 4
"""How many further triggers of a suspect are inverted, to be cleaned of them all."""
_WORKS = 0.5
"""A further trigger of a suspect takes part where it reaches so many unseen images."""


@dataclass(slots=True)
class Clock:
    """Seconds and image passes per stage, from when it was made; proxies count their passes on `meter`."""

    started: float = field(default_factory=time.monotonic)
    seconds: dict[str, float] = field(default_factory=dict)
    cost: dict[str, Meter] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds what runs within to the seconds and the cost of `name`; what is free then goes back to the system."""
        started, before = time.monotonic(), replace(self.meter)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
            spent = self.cost.setdefault(name, Meter())
            spent.passes += self.meter.passes - before.passes
            spent.forwards += self.meter.forwards - before.forwards
            release()

    def deadline(self, settings: Settings) -> float | None:
        """The monotonic time after which no new round begins; None without a time budget."""
        return None if settings.time_budget is None else self.started + settings.time_budget


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """What a model was found to be."""

    loaded: Loaded
    detection: Detection


@contextmanager
def source_of(model: Path, images: Path, settings: Settings, progress: Progress, clock: Clock) -> Iterator[Source]:
    """`model` as ONNX, converted first where it is of another framework.

    Raises `RuntimeMissingError`, before anything else is done, where torch or onnxruntime does not run on the device.
    """
    resolve_device(settings.device)
    check_runtime(settings.runtime())
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


def prepared(source: Source, images: Path, settings: Settings, progress: Progress, clock: Clock) -> Loaded:
    """The model and the images loaded, and torch told of the threads."""
    configure(settings.threads)
    with clock.stage("loading"):
        progress("loading", 0, 1)
        loaded = load(source, images, settings, clock.meter)
        progress("loading", 1, 1, f"{len(loaded.groups)} channel groups; {compute_words(loaded.compute)}")
    return loaded


def searched(loaded: Loaded, settings: Settings, progress: Progress, clock: Clock) -> Search:
    """Invert all classes, or those that count of many, and detect."""
    options = settings.inversion
    with clock.stage("inversion"):
        proxy = Proxy(loaded.model.graph, loaded.spec, compute=loaded.compute)
        data = (proxy, loaded.predict, loaded.fit, loaded.held_out)
        every = range(loaded.n_classes)
        made = search_classes(*data, loaded.n_classes, options=options, seed=settings.seed, progress=progress)
        shape = loaded.fit.images.shape[1:]
        best = [made.triggers[c][0] if c in made.triggers else surveyed_trigger(c, shape) for c in every]
        detection = detect(best, transfer=options.transfer, compared=made.compared, repeated=made.repeated)
    return Search(loaded=loaded, detection=detection)


def passes_of_suspect(settings: Settings) -> int:
    """Image passes of the further triggers of one suspect."""
    return _MORE * settings.inversion.steps * settings.inversion.images


def more_triggers(
    found: Search, settings: Settings, progress: Progress, clock: Clock
) -> dict[int, tuple[Trigger, ...]]:
    """By suspect, the trigger that was found, then further ones of the same class that work, best first."""
    loaded, options = found.loaded, replace(settings.inversion, restarts=_MORE, trial=None)
    triggers = {}
    with clock.stage("inversion of suspects"):
        proxy = Proxy(loaded.model.graph, loaded.spec, compute=loaded.compute)
        data = (proxy, loaded.predict, loaded.fit, loaded.held_out)
        for target in found.detection.suspects:
            more = invert(
                *data,
                [target],
                options=options,
                seed=settings.seed + 1 + target,
                progress=progress,
                stage=f"inversion of class {target}",
            )
            works = [t for t in more[target] if t.success.value >= _WORKS]
            triggers[target] = (found.detection.findings[target].trigger, *works)
    return triggers


def worst_first(detection: Detection) -> tuple[Trigger, ...]:
    """The suspects' triggers, the smallest first; an ordinary class's trigger is no attack to report."""
    return tuple(sorted((f.trigger for f in detection.findings if f.suspect), key=lambda t: t.l1))


def found_words(detection: Detection) -> str:
    """What the search found, in words."""
    if detection.inconclusive:
        return detection.inconclusive
    if not detection.suspects:
        return "no class has an abnormally small trigger"
    found = worst_first(detection)[0]
    return f"a trigger of {found.l1:.1f} pixels sends {found.success.value:.0%} to class {found.target}"


def report(
    command: Literal["scan", "sanitize", "retrain"],
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    clock: Clock,
    *,
    verdict: Verdict,
    reason: str,
    before: Evaluation,
    warnings: Sequence[str] = (),
) -> Report:
    """The report with all that every command tells."""
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
        cost=clock.cost,
        compute=loaded.compute,
        before=before,
        refused=loaded.refused,
        warnings=(*loaded.warnings, *warnings),
        conversion=loaded.conversion,
        examples=loaded.held_out.take(np.unique(np.linspace(0, len(loaded.held_out) - 1, _EXAMPLES).astype(np.int64))),
    )
