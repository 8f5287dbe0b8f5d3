"""Where the report of a model is looked for, and how a stranger's report folder is read: bounded, and not left."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from debride.errors import ReportError
from debride.report.json import MAX_CHARACTERS, Summary, from_json

REPORT_FILE = "report.json"


def reports_beside(model: Path) -> Iterator[Path]:
    """The report files that exist where one of `model` is looked for, the most telling names first.

    These are MODEL.report, MODEL-report (MODEL with and without its suffix), report, and the model's own folder.
    """
    stems = dict.fromkeys((model.name, model.stem))
    folders = [model.with_name(stem + end) for stem in stems for end in (".report", "-report")]
    for folder in (*folders, model.with_name("report"), model.parent):
        if os.path.lexists(folder / REPORT_FILE):
            yield folder / REPORT_FILE


def read_report(path: Path, most: int = MAX_CHARACTERS) -> Summary:
    """The report in the file `path`. Raises `ReportError` where it is broken, or larger than `most` bytes."""
    try:
        real = path.resolve()
        if not real.exists():
            mend = "give the folder that a scan, sanitize or retrain run wrote"
            raise ReportError(f"{path}: cannot be read (not there); {mend}")
        text = read_within(real, real.parent, most).decode("utf-8")
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ReportError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        raise ReportError(f"{path}: not UTF-8 ({error}); run the command again to write the report anew") from error
    return from_json(text, path)


def read_within(path: Path, folder: Path, most: int) -> bytes:
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
        raise ReportError(f"{path}: more than {most} bytes, the most that is read of it")
    return data
