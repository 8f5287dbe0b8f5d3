"""A model, images, triggers and a report as the user names them -> what an export works on, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from debride.conversion.source import Source
from debride.export.attacks import Attack, named_attacks, report_beside, reported_attacks
from debride.export.prepare import check_size
from debride.export.types import ExportOptions
from debride.graph.read import Model, read_model
from debride.images import check_labels, draw_per_class, load_for, split
from debride.sessions import Runtime, Session, TensorInfo, predictor
from debride.spec import Declared, declare, resolve_spec, sidecar_of
from debride.specfile import SpecFlags
from debride.types import FileFacts, InputSpec, Samples

_FEW = 30
_FIT = 0.7
"""As in sanitize: with the same images, seed and --per-class, no trigger was fitted to what is graded here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The model as ONNX, what the user says of its input, and where images, triggers and a report lie."""

    source: Source
    flags: SpecFlags
    images: Path | None = None
    triggers: tuple[Path, ...] = ()
    report: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Clean images: `fit` to calibrate on, `held_out` to grade on."""

    fit: Samples
    held_out: Samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ready:
    """What was read. `spec` is None where there are no images and nobody states it, `facts` are of the user's file."""

    model: Model
    session: Session
    declared: Declared
    spec: InputSpec | None
    split: Split | None
    attacks: tuple[Attack, ...]
    facts: FileFacts
    notes: tuple[str, ...]

    @property
    def entry(self) -> TensorInfo:
        """The input that takes the images."""
        return next(entry for entry in self.session.inputs if entry.name == self.declared.name)

    @property
    def fixed(self) -> int | None:
        """The batch that the graph takes, None where that is open."""
        return self.entry.shape[0]


def read(sources: Sources, options: ExportOptions, runtime: Runtime) -> Ready:
    """Read, check and split; raises the errors of each stage."""
    path, origin = sources.source.path, sources.source.origin
    model = read_model(path, free=False)
    check_size(model)
    session, sidecar = Session(path, runtime, str(origin)), sidecar_of(path)
    declared = declare(session, flags=sources.flags, sidecar=sidecar)
    samples = _samples(sources.images, declared, options) if sources.images else None
    spec, notes = None, tuple[str, ...]()
    stated = declared.source != "measured" and declared.size is not None and declared.depth is not None
    if samples is not None or stated:
        resolved = resolve_spec(session, flags=sources.flags, sidecar=sidecar, samples=samples, seed=options.seed)
        spec, notes = resolved.spec, resolved.warnings
    facts = sources.source.facts or FileFacts(name=origin.name, sha256=model.sha256, size=model.size)
    parts, attacks, more = None, tuple[Attack, ...](), tuple[str, ...]()
    if samples is not None and spec is not None:
        n_classes = predictor(session, spec)(samples.images[:1]).shape[1]
        parts = _split(samples, n_classes, options)
        attacks, more = _attacks(sources, facts.sha256)
        more += _uncovered(parts.held_out, n_classes)
    return Ready(
        model=model,
        session=session,
        declared=declared,
        spec=spec,
        split=parts,
        attacks=attacks,
        facts=facts,
        notes=(*notes, *more),
    )


def _samples(path: Path, declared: Declared, options: ExportOptions) -> Samples:
    loaded = load_for(declared, path, resize=options.resize)
    if declared.n_classes is not None:
        check_labels(loaded, declared.n_classes, path)
    elif loaded.labels is not None:
        # How many classes there are shows when the model runs, and `evaluate` then holds the labels to it.
        check_labels(loaded, max(int(loaded.labels.max()) + 1, len(loaded.classes)), path)
    return loaded.samples()


def _split(samples: Samples, n_classes: int, options: ExportOptions) -> Split:
    if options.per_class is not None:
        samples = draw_per_class(samples, options.per_class, options.seed, n_classes)
    fit, held_out = split(samples, options.seed, _FIT)
    return Split(fit=fit, held_out=held_out)


def _uncovered(held_out: Samples, n_classes: int) -> tuple[str, ...]:
    """Remarks on what the held-out images cannot tell."""
    notes = []
    if len(held_out) < _FEW:
        notes.append(f"graded on {len(held_out)} images only: what so few say is little more than chance; give more")
    if held_out.labels is not None and (unseen := n_classes - len(np.unique(held_out.labels))):
        notes.append(
            f"{unseen} of {n_classes} classes have no image among those that grade: what the export does to them is "
            "not measured"
        )
    return tuple(notes)


def _attacks(sources: Sources, sha256: str) -> tuple[tuple[Attack, ...], tuple[str, ...]]:
    """The triggers to try, and remarks on where they come from, or that there are none."""
    named = named_attacks(sources.triggers)
    folder = sources.report or report_beside(sources.source.origin, sha256)
    reported = reported_attacks(folder) if folder else ()
    notes = []
    if folder and not reported:
        notes.append(f"the report in {folder} has no suspects, so no triggers")
    elif folder and not sources.report:
        notes.append(f"the report in {folder} is of this model: its triggers are tried")
    if not named and not reported:
        other = "--trigger" if folder else "--report, or --trigger,"
        notes.append(f"no trigger was tried: give {other} to see whether one works in the exported model")
    return (*named, *reported), tuple(notes)
