"""The report of a scan, sanitize or retrain run beside a served model: found, checked against the file, read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from debride.errors import ReportError
from debride.report.beside import REPORT_FILE, read_report, read_within, reports_beside
from debride.report.json import Summary
from debride.serve.http.report_shape import check_document

MAX_REPORT = 16 << 20
MAX_PICTURE = 4 << 20
MAX_PICTURES = 32 << 20
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedReport:
    """A report that speaks of the served file: `body` is JSON (UTF-8) as checked, `pictures` PNG files by name.

    All of it was read when the model was loaded: what changes on the disk later is not served.
    """

    path: Path
    verdict: str
    body: bytes = field(repr=False)
    pictures: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSearch:
    """What was found beside a model, and a line for the log about each report or picture that was passed over."""

    report: ServedReport | None
    passed_over: tuple[str, ...] = ()


def find_report(model: Path, sha256: str, given: Path | None = None) -> ReportSearch:
    """The report of the file `model`, whose SHA-256 (hex) is `sha256`.

    `given` is a report.json or the folder that holds one; raises `ReportError` where it cannot be read or is of another
    file. Without it, MODEL.report, MODEL-report (MODEL with or without its suffix), report and the model's own folder
    are tried in turn; what does not fit there is passed over.
    """
    if given is not None:
        found, notes = _read(_file_of(given), sha256)
        return ReportSearch(report=found, passed_over=tuple(notes))
    passed: list[str] = []
    for path in reports_beside(model):
        try:
            found, notes = _read(path, sha256)
        except ReportError as error:
            passed.append(str(error))
            continue
        return ReportSearch(report=found, passed_over=(*passed, *notes))
    return ReportSearch(report=None, passed_over=tuple(passed))


def _file_of(given: Path) -> Path:
    try:
        return given / REPORT_FILE if given.is_dir() else given
    except OSError as error:
        raise ReportError(
            f"{given}: cannot be read ({error}); give a report.json or the folder that holds it"
        ) from error


def _read(path: Path, sha256: str) -> tuple[ServedReport, list[str]]:
    """The report at `path` and notes on pictures left out. Raises `ReportError` where it is broken or does not fit."""
    summary = read_report(path, MAX_REPORT)
    misfit = _misfit(summary, sha256.lower())
    if misfit:
        raise ReportError(f"{path}: {misfit}")
    check_document(summary.document, path)
    try:
        # NaN and Infinity, which Python reads and writes, are no JSON: a browser would refuse the whole report.
        body = json.dumps(dict(summary.document), allow_nan=False, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not plain JSON ({error}); run the command again to write it anew") from error
    pictures, notes = _pictures(summary.document["files"], path.resolve().parent)
    return ServedReport(path=path, verdict=summary.verdict, body=body, pictures=pictures), notes


def _misfit(summary: Summary, sha256: str) -> str:
    """Why the report does not speak of the file with this hash; "" where it does."""
    model, output = summary.model.sha256.lower(), summary.output.sha256.lower() if summary.output else None
    retraining = summary.document.get("retraining")
    retrained = isinstance(retraining, dict) and retraining.get("kept") is not False
    if sha256 == output or (sha256 == model and (output is None or (summary.verdict == "clean" and not retrained))):
        return ""
    if sha256 == model and summary.output:
        return (
            f"the served file is the model as delivered ({summary.verdict}: {summary.reason}), not what came out; "
            f"serve {summary.output.name}, sha256 {output}"
        )
    return f"a report of another file (sha256 {output or model}), not of the served one (sha256 {sha256})"


def _pictures(files: list[str], folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Those of `files` that are PNG files in `folder`, by name, up to `MAX_PICTURES` bytes together."""
    pictures: dict[str, bytes] = {}
    notes, left = [], MAX_PICTURES
    for name in dict.fromkeys(name for name in files if name.endswith(".png")):
        if Path(name).name != name or "\\" in name or not name.isprintable():
            notes.append(f"{folder}: {name!r} is no plain file name; left out")
            continue
        try:
            data = read_within(folder / name, folder, min(MAX_PICTURE, left))
        except ReportError as error:
            notes.append(f"{error}; left out")
            continue
        if not data.startswith(_PNG):
            notes.append(f"{folder / name}: no PNG; left out")
            continue
        pictures[name] = data
        left -= len(data)
    return pictures, notes
