"""The triggers to try on an exported model: files that the user names, and those of a report on the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from debride.errors import ReportError
from debride.report.json import MAX_CHARACTERS, Summary, from_json, trigger_names
from debride.stakes import STRENGTHS
from debride.triggers import load_trigger, opaque
from debride.types import Trigger

_FILE = "report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """A trigger, and what it is called in a table."""

    name: str
    trigger: Trigger


def named_attacks(files: Sequence[Path]) -> tuple[Attack, ...]:
    """The trigger files that the user names, stamped as they are. Raises `ReportError` naming one that is broken."""
    return tuple(Attack(name=path.name, trigger=load_trigger(path)) for path in files)


def reported_attacks(folder: Path) -> tuple[Attack, ...]:
    """The suspects' triggers in the report of a scan or sanitize run, as found and as opaque as it goes.

    So sanitize tries them too. Raises `ReportError` where the report or one of its triggers cannot be read.
    """
    summary = _read(folder / _FILE)
    found = []
    for target in summary.suspects:
        path = folder / trigger_names(target)[0]
        if not path.is_file():
            raise ReportError(f"{path}: not there, and the report's suspect {target} needs it; give the whole folder")
        trigger = load_trigger(path)
        found += [
            Attack(name=path.name + (f", {s:g} times opaquer" if s > 1 else ""), trigger=opaque(trigger, s))
            for s in (STRENGTHS[0], STRENGTHS[-1])
        ]
    return tuple(found)


def report_beside(model: Path, sha256: str) -> Path | None:
    """The folder of a report that names the file `model` by its SHA-256 (hex), as what was judged or written.

    Looked for are MODEL.report, MODEL-report, report and the model's own folder. None where there is none; a report
    of another file, or a broken one, is nobody's affair here.
    """
    for folder in _places(model):
        try:
            summary = _read(folder / _FILE) if (folder / _FILE).is_file() else None
        except ReportError:
            continue
        if summary is not None and sha256 in (summary.model.sha256, summary.output.sha256 if summary.output else None):
            return folder
    return None


def _places(model: Path) -> Iterator[Path]:
    for stem in dict.fromkeys((model.name, model.stem)):
        for end in (".report", "-report"):
            yield model.with_name(stem + end)
    yield model.with_name("report")
    yield model.parent


def _read(path: Path) -> Summary:
    try:
        if path.stat().st_size > MAX_CHARACTERS:
            raise ReportError(f"{path}: larger than any report; give the folder that a scan or sanitize run wrote")
        return from_json(path.read_text("utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error}); give the folder that sanitize --report wrote") from error
