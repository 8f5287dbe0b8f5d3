"""The triggers to try on an exported model: files that the user names, and those of a report on the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from debride.errors import ReportError
from debride.report.beside import REPORT_FILE, read_report, reports_beside
from debride.report.json import trigger_names
from debride.stakes import STRENGTHS
from debride.triggers import load_trigger, opaque
from debride.types import Trigger


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
    summary = read_report(folder / REPORT_FILE)
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

    None where there is none (`reports_beside` tells where); a report of another file, or a broken one, is nobody's
    affair here. One that names suspects comes before one that names none, wherever it lies.
    """
    fitting = []
    for path in reports_beside(model):
        try:
            summary = read_report(path)
        except ReportError:
            continue
        if sha256 in (summary.model.sha256, summary.output.sha256 if summary.output else None):
            fitting.append((not summary.suspects, path.parent))
    return min(fitting, key=lambda found: found[0])[1] if fitting else None
