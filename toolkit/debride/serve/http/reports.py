"""The report of a scan or sanitize run beside a served model: found, checked against the file, read once."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from debride.errors import ReportError
from debride.report.json import Summary, from_json
from debride.serve.http.report_shape import check_document

FILE = "report.json"
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
    for path in _places(model):
        try:
            found, notes = _read(path, sha256)
        except ReportError as error:
            passed.append(str(error))
            continue
        return ReportSearch(report=found, passed_over=(*passed, *notes))
    return ReportSearch(report=None, passed_over=tuple(passed))


def _file_of(given: Path) -> Path:
    try:
        return given / FILE if given.is_dir() else given
    except OSError as error:
        raise ReportError(
            f"{given}: cannot be read ({error}); give a report.json or the folder that holds it"
        ) from error


def _places(model: Path) -> Iterator[Path]:
    """Report files that exist where a report of `model` is looked for, the most telling names first."""
    stems = dict.fromkeys((model.name, model.stem))
    folders = [model.with_name(stem + end) for stem in stems for end in (".report", "-report")]
    for folder in (*folders, model.with_name("report"), model.parent):
        if os.path.lexists(folder / FILE):
            yield folder / FILE


def _read(path: Path, sha256: str) -> tuple[ServedReport, list[str]]:
    """The report at `path` and notes on pictures left out. Raises `ReportError` where it is broken or does not fit."""
    try:
        folder = path.resolve().parent
        text = _bytes(path.resolve(), folder, MAX_REPORT).decode("utf-8")
    except RuntimeError as error:  # a loop of links, before Python 3.13
        raise ReportError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 ({error}); run the command again to write the report anew") from error
    summary = from_json(text, path)
    misfit = _misfit(summary, sha256.lower())
    if misfit:
        raise ReportError(f"{path}: {misfit}")
    check_document(summary.document, path)
    try:
        # NaN and Infinity, which Python reads and writes, are no JSON: a browser would refuse the whole report.
        body = json.dumps(dict(summary.document), allow_nan=False, separators=(",", ":")).encode("ascii")
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: not plain JSON ({error}); run the command again to write it anew") from error
    pictures, notes = _pictures(summary.document["files"], folder)
    return ServedReport(path=path, verdict=summary.verdict, body=body, pictures=pictures), notes


def _misfit(summary: Summary, sha256: str) -> str:
    """Why the report does not speak of the file with this hash; "" where it does."""
    model, output = summary.model.sha256.lower(), summary.output.sha256.lower() if summary.output else None
    if sha256 == output or (sha256 == model and (output is None or summary.verdict == "clean")):
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
            data = _bytes(folder / name, folder, min(MAX_PICTURE, left))
        except ReportError as error:
            notes.append(f"{error}; left out")
            continue
        if not data.startswith(_PNG):
            notes.append(f"{folder / name}: no PNG; left out")
            continue
        pictures[name] = data
        left -= len(data)
    return pictures, notes


def _bytes(path: Path, folder: Path, most: int) -> bytes:
    """The content of a regular file that really lies in `folder`; a symbolic link that leads out of it is refused.

    Raises `ReportError` where it is anything else, cannot be read or holds more than `most` bytes.
    """
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(folder):
            raise ReportError(f"{path}: a link that leads out of the report's folder")
        # Not blocking, so that a pipe in place of the file cannot hold up the start.
        handle = os.open(real, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ReportError(f"{path}: no regular file")
            data = file.read(most + 1)
    except (OSError, RuntimeError) as error:
        raise ReportError(f"{path}: cannot be read ({error})") from error
    if len(data) > most:
        raise ReportError(f"{path}: more than {most} bytes, the most that is served of it")
    return data
