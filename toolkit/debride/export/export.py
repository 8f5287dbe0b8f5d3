"""The only file that knows the order of an export: read, convert, grade, write."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from debride.conversion.source import facts_of
from debride.errors import ModelError, UsageError
from debride.export.convert import Candidate, converted
from debride.export.grade import graded, shortfalls
from debride.export.reading import Ready, Sources, read
from debride.export.types import Exported, ExportOptions, Graded, Weight
from debride.graph.write import check_free, write_bytes
from debride.sessions import Runtime, Session, predictor
from debride.slimming.cost import latencies
from debride.slimming.noise import Feeds, random_feeds
from debride.types import Conversion, Progress, no_progress

_STEPS = 3
_UNGRADED = "nothing was graded: whether accuracy fell or a backdoor came back, nobody knows"


def export(
    sources: Sources,
    output: Path,
    *,
    options: ExportOptions,
    runtime: Runtime | None = None,
    force: bool = False,
    progress: Progress = no_progress,
) -> Exported:
    """Make `output` of the model, grade both on held-out images, and write it only where it is good.

    Images are split by the seed: eight-bit ranges, and what overflows in half precision, are found on one part (at most
    `CALIBRATION_IMAGES`), and the other part grades. Metadata stay; the input spec and `EXPORT_KEY` are added.

    Raises:
        UsageError: `output` exists (unless `force`), or there are no images and `unchecked` is not given.
        ModelError: the model cannot be read, run or converted; another `DebrideError` for images, spec or triggers.
    """
    check_free(output, force)
    _check_images(sources, options)
    runtime = runtime or Runtime()
    progress("export", 0, _STEPS, "reading")
    ready = read(sources, options, runtime)
    with TemporaryDirectory(prefix="debride-", ignore_cleanup_errors=True) as folder:
        progress("export", 1, _STEPS, "converting")
        candidate = converted(ready, options, runtime, Path(folder))
        progress("export", 2, _STEPS, "grading")
        found = _found(ready, candidate, sources.source.conversion, options, runtime)
        if not found.missed:
            write_bytes(candidate.path.read_bytes(), output, force=force)
    progress("export", _STEPS, _STEPS)
    return found if found.missed else replace(found, output=facts_of(output))


def _found(
    ready: Ready, candidate: Candidate, conversion: Conversion | None, options: ExportOptions, runtime: Runtime
) -> Exported:
    """What is to be told of the candidate, before it is written."""
    session = Session(candidate.path, runtime, f"{ready.facts.name} as {options.target}")
    rates, missed = _judged(ready, session, candidate, options, runtime)
    before, after = _weights(ready, session, candidate.path, options)
    return Exported(
        model=ready.facts,
        output=None,
        conversion=conversion,
        spec=ready.spec,
        made=candidate.made,
        before=before,
        after=after,
        graded=rates,
        missed=missed,
        notes=(*ready.notes, *candidate.notes, *(() if rates else (_UNGRADED,))),
    )


def _check_images(sources: Sources, options: ExportOptions) -> None:
    if sources.images is None and not options.unchecked:
        raise UsageError(
            "without clean images nothing can be calibrated or graded; give --images"
            + ("" if options.target == "int8" else ", or --unchecked to write what nobody has graded")
        )
    if options.unchecked and (sources.images or sources.triggers or sources.report):
        raise UsageError("--unchecked grades nothing: leave out --images, --trigger and --report, or --unchecked")
    if options.unchecked and options.target == "int8":
        raise UsageError("--target int8 finds its ranges on clean images; give --images, and not --unchecked")


def _judged(
    ready: Ready, session: Session, candidate: Candidate, options: ExportOptions, runtime: Runtime
) -> tuple[Graded | None, tuple[str, ...]]:
    """The rates to show, None without images, and what was missed: by the file as it runs here, else by its twin."""
    if ready.split is None or ready.spec is None:
        return None, ()
    tried = [session]
    if candidate.twin is not None:
        tried.append(Session(candidate.twin, runtime, f"{session.name}, rounded between operators"))
    before = predictor(ready.session, ready.spec)
    for one in tried:
        found = graded(before, predictor(one, ready.spec), ready.split.held_out, ready.attacks)
        missed = shortfalls(found, options)
        if missed:
            break
    return found, missed


def _weights(ready: Ready, session: Session, candidate: Path, options: ExportOptions) -> tuple[Weight, Weight]:
    """Size and speed of both; the speeds are measured in turns."""
    feeds = _feeds(ready, options)
    seconds = latencies((ready.session, session), feeds) if feeds else (None, None)
    sizes = (
        ready.model.size + sum(path.stat().st_size for path in ready.model.external),
        candidate.stat().st_size,
    )
    before, after = (
        Weight(size=size, latency=second and second / (ready.fixed or 1))
        for size, second in zip(sizes, seconds, strict=True)
    )
    return before, after


def _feeds(ready: Ready, options: ExportOptions) -> Feeds | None:
    """One batch of noise; None where nothing says how large an image is."""
    try:
        return random_feeds(ready.model.graph, ready.spec, 1, options.seed)
    except ModelError:
        return None
