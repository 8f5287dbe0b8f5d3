"""Structured logs on stderr: one line per event, for people or as JSON."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal

import cv2
import orjson

LogFormat = Literal["text", "json"]
LOGGER = logging.getLogger("debride.serve")


def configure(kind: LogFormat) -> None:
    """Sends this server's events and uvicorn's warnings to stderr, in the format `kind`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if kind == "json" else _Text())
    LOGGER.setLevel(logging.INFO)
    # What OpenCV thinks of a broken image is in the answer; on stderr it would break lines of JSON.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # uvicorn tells of starting and stopping itself; what it warns of is kept.
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.setLevel(logging.WARNING)
    for logger in (LOGGER, uvicorn):
        logger.handlers = [handler]
        logger.propagate = False


def event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Logs the event `name` with `fields`, whose values JSON can hold; parts of them may come from a client."""
    if LOGGER.isEnabledFor(level):
        _handle(level, name, fields)


def failure(name: str, error: BaseException, **fields: Any) -> None:
    """Logs an error that should not have been, with its traceback."""
    _handle(logging.ERROR, name, fields, (type(error), error, error.__traceback__))


def _handle(level: int, name: str, fields: dict[str, Any], exc_info: Any = None) -> None:
    # As Logger.log, without its search of the stack for the caller: each answer is an event.
    record = logging.LogRecord(LOGGER.name, level, "", 0, name, None, exc_info)
    record.fields = fields
    LOGGER.handle(record)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    return fields


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= _fields(record)
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=str).decode()


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{key}={_plain(value)}" for key, value in _fields(record).items() if value is not None)
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage()} {fields}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(value: Any) -> str:
    """`value` without what a terminal would obey; quoted where it holds blanks."""
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    return f'"{text}"' if " " in text else text
