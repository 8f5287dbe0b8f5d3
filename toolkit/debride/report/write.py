"""The report folder: everything is written aside and moved in place at the end, or nothing is."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from debride.errors import ReportError, UsageError
from debride.report.canvas import Picture
from debride.report.chart import norms_chart
from debride.report.json import MAX_CHARACTERS, from_json, to_json, trigger_names
from debride.report.pictures import trigger_picture
from debride.report.text import to_text
from debride.triggers import save_trigger
from debride.types import Report

JSON, TEXT, CHART = "report.json", "report.txt", "norms.png"
OURS = re.compile(r"report\.(json|txt)|norms\.png|suspect-\d+\.png|trigger-\d+\.npz")


def check_folder(folder: Path, *, force: bool) -> None:
    """Raise `UsageError` where a report may not go to `folder`: a file, or a folder that holds something, unforced."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; give another --report folder")
    if folder.is_dir() and not force and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; give another --report folder, or --force to replace the report in it")
    taken = (
        next((p for p in folder.iterdir() if OURS.fullmatch(p.name) and p.is_dir()), None) if folder.is_dir() else None
    )
    if taken is not None:
        raise UsageError(f"{taken} is a folder where the report needs a file; give another --report folder")


def write_report(report: Report, folder: Path, *, force: bool) -> tuple[Path, ...]:
    """Write report.json, report.txt, norms.png and, per suspect, suspect-N.png and trigger-N.npz; returns their paths.

    An interruption leaves `folder` as it was. With `force`, the files of an earlier report are replaced or, where this
    one has none of that name, removed; files of other origin stay. Raises `UsageError` where `folder` is taken or
    cannot be written.
    """
    check_folder(folder, force=force)
    home = folder.resolve()
    # On the same file system as the goal: within it where it exists (it may be a mount), else in its nearest parent.
    aside = next(p for p in (home, *home.parents) if p.is_dir())
    try:
        with TemporaryDirectory(prefix=f".{home.name}-", dir=aside) as temporary:
            fresh, old = Path(temporary, "new"), Path(temporary, "old")
            fresh.mkdir()
            old.mkdir()
            names = _write_all(report, fresh)
            _move(fresh, home, old, names)
    except OSError as error:
        raise UsageError(f"{folder}: the report cannot be written ({error}); give another --report folder") from error
    return tuple(folder / name for name in names)


def _write_all(report: Report, folder: Path) -> list[str]:
    pairs = [trigger_names(target) for target in report.detection.suspects]
    names = [JSON, TEXT, CHART, *(name for pair in pairs for name in pair)]
    (folder / JSON).write_text(to_json(report, files=names), "utf-8")
    (folder / TEXT).write_text(to_text(report, files=names), "utf-8")
    _save(norms_chart(report.detection, report.spec.class_names), folder / CHART)
    for finding in report.detection.findings:
        if finding.suspect:
            arrays, picture = trigger_names(finding.trigger.target)
            save_trigger(path=folder / arrays, trigger=finding.trigger)
            image = trigger_picture(
                finding.trigger, report.examples, class_names=report.spec.class_names, anomaly=finding.anomaly
            )
            _save(image, folder / picture)
    return names


def _save(picture: Picture, path: Path) -> None:
    # imencode and not imwrite: OpenCV cannot open every path that Python can.
    good, data = cv2.imencode(".png", picture)
    if not good:
        raise OSError(f"{path.name} could not be encoded as PNG")
    path.write_bytes(data.tobytes())


def _move(fresh: Path, home: Path, old: Path, names: Sequence[str]) -> None:
    """Put the files in place: a folder that is new comes by one rename, else file by file, undone on any failure."""
    if not home.exists():
        home.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(home)
        return
    replaced = [name for name in dict.fromkeys([*_earlier(home), *names]) if os.path.lexists(home / name)]
    try:
        for name in replaced:
            (home / name).replace(old / name)
        for name in names:
            (fresh / name).replace(home / name)
    except BaseException:
        # What the disk says counts: an interruption can fall between a move and any note of it.
        for name in names:
            if not (fresh / name).exists():
                (home / name).unlink(missing_ok=True)
        for path in old.iterdir():
            path.replace(home / path.name)
        raise


def _earlier(folder: Path) -> list[str]:
    """The files that the report in `folder`, if there is one, says it wrote: only names that a report uses."""
    path = folder / JSON
    try:
        if not path.is_file() or path.stat().st_size > MAX_CHARACTERS:
            return []
        listed = from_json(path.read_text("utf-8"), path).document.get("files")
    except (OSError, UnicodeDecodeError, ReportError):
        return []
    return [n for n in listed if isinstance(n, str) and OURS.fullmatch(n)] if isinstance(listed, list) else []
