"""Structured logs on stderr: one line per event, for people or as JSON."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from time import time
from typing import Any, Literal

import cv2
import orjson

LogFormat = Literal["text", "json"]
LOGGER = logging.getLogger("debride.serve")
_HELD = 0.05


def configure(kind: LogFormat) -> None:
    """Sends this server's events and uvicorn's warnings to stderr, in the format `kind`."""
    handler = _Handler(kind)
    LOGGER.setLevel(logging.INFO)
    # What OpenCV thinks of a broken image is in the answer, and would stand between lines of JSON. libjpeg and libpng
    # still write a line or two of fixed words for one: to close stderr to them would close it to what a crash says.
    (cv2.utils.logging if hasattr(cv2.utils, "logging") else cv2).setLogLevel(0)  # moved in OpenCV 4.13
    # uvicorn tells of starting and stopping itself; what it warns of is kept.
    uvicorn = logging.getLogger("uvicorn")
    uvicorn.setLevel(logging.WARNING)
    for logger in (LOGGER, uvicorn):
        logger.handlers = [handler]
        logger.propagate = False


def event(name: str, /, level: int = logging.INFO, **fields: Any) -> None:
    """Logs the event `name` with `fields`, whose values JSON can hold; parts of them may come from a client."""
    LOGGER.log(level, name, extra={"fields": fields})


def failure(name: str, error: BaseException, **fields: Any) -> None:
    """Logs an error that should not have been, with its traceback."""
    LOGGER.error(name, exc_info=error, extra={"fields": fields})


def request_done(**fields: Any) -> None:
    """Logs an answered request, on the event loop: the same line as of an event, written a moment later."""
    for handler in LOGGER.handlers:
        if isinstance(handler, _Handler):
            handler.hold(fields)
            return
    event("request", **fields)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """stderr. The lines of requests are written together, at most `_HELD` seconds later and before any other line.

    Writing each on its own, through a record of its own, took a quarter of all time with a small model: a system call
    hands the interpreter over to the models' threads.
    """

    def __init__(self, kind: LogFormat) -> None:
        super().__init__(sys.stderr)
        self._line = _json if kind == "json" else _text
        self._held: list[tuple[float, dict[str, Any]]] = []

    def hold(self, fields: dict[str, Any]) -> None:
        """Takes one request's line."""
        if not self._held:
            asyncio.get_running_loop().call_later(_HELD, self.flush)
        self._held.append((time(), fields))

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, with its traceback where it has one."""
        trace = self._trace(record)
        return self._line(record.created, record.levelname.lower(), record.getMessage(), _fields(record), trace)

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record, after the requests before it."""
        self.flush()
        super().emit(record)

    def flush(self) -> None:
        """Writes what is held."""
        with self.lock or nullcontext():
            held, self._held = self._held, []
            if held:
                lines = [self._line(seconds, "info", "request", fields, None) for seconds, fields in held]
                self.stream.write("\n".join([*lines, ""]))
            super().flush()

    @staticmethod
    def _trace(record: logging.LogRecord) -> str | None:
        """The traceback's text."""
        return logging.Formatter().formatException(record.exc_info) if record.exc_info else None


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = dict(getattr(record, "fields", {}))
    return fields


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _json(seconds: float, level: str, name: str, fields: dict[str, Any], trace: str | None) -> str:
    line = {"time": _time(seconds), "level": level, "event": name, **fields}
    if trace:
        line["traceback"] = trace
    return orjson.dumps(line, default=str).decode()


def _text(seconds: float, level: str, name: str, fields: dict[str, Any], trace: str | None) -> str:
    told = " ".join([f"{key}={_plain(value)}" for key, value in fields.items() if value is not None])
    line = f"{_time(seconds)} {level:<7} {name} {told}".rstrip()
    return f"{line}\n{trace}" if trace else line


def _plain(value: Any) -> str:
    """`value` without what a terminal would obey; quoted where it could be taken for more than one."""
    text = str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else "?" for c in text)
    # A client's text must not look like a field of its own.
    return orjson.dumps(text).decode() if set(text) & set(' "=') else text
