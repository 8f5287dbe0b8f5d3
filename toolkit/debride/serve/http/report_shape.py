"""The parts of a report that the page draws, as shapes: a report is a stranger's file, checked before it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from debride.errors import ReportError

_NUMBER = "a finite number or null"
_COUNT = "a whole number from 0"
_TEXT = "text"
_TEXT_OR_NULL = "text or null"
_YES_NO = "true or false"

_INTERVAL = [_NUMBER]
_TRIGGER = {
    "target": _COUNT,
    "l1": _NUMBER,
    "anomaly": _NUMBER,
    "success": _NUMBER,
    "success_interval": _INTERVAL,
    "success_n": _COUNT,
    "suspect": _YES_NO,
    "reason": _TEXT,
    "picture": _TEXT_OR_NULL,
}
_EVALUATION = {
    "clean": {"kind": _TEXT, "rate": _NUMBER, "interval": _INTERVAL, "n": _COUNT},
    "triggers": [
        {
            "target": _COUNT,
            "asr": _NUMBER,
            "asr_interval": _INTERVAL,
            "asr_n": _COUNT,
            "robust": _NUMBER,
            "robust_interval": _INTERVAL,
            "robust_n": _COUNT,
        }
    ],
}
_RETRAINING = {
    "method": _TEXT,
    "kept": _YES_NO,
    "reason": _TEXT,
    "labels": _TEXT,
    "images": _COUNT,
    "steps": _COUNT,
    "budget": _COUNT,
    "best": _COUNT,
    "changes": [{"name": _TEXT, "shape": [_COUNT], "changed": _COUNT, "largest": _NUMBER, "relative": _NUMBER}],
    "before": _EVALUATION,
    "after": _EVALUATION,
}
_SHAPE: dict[str, Any] = {
    "suspects": [_COUNT],
    "input_spec": {"class_names": [_TEXT]},
    "triggers": [_TRIGGER],
    "threshold": _NUMBER,
    "inconclusive": _TEXT_OR_NULL,
    "pruned": [{"layer": _TEXT, "channel": _COUNT, "attack": _NUMBER, "utility": _NUMBER}],
    "players": _COUNT,
    "before": (_EVALUATION,),
    "after": (_EVALUATION,),
    "recheck": ({"suspects": [_COUNT]},),
    "retraining": (_RETRAINING,),
    "environment": {},
    "warnings": [_TEXT],
    "files": [_TEXT],
}
# What may be missing: a report of an older version of the same schema does without.
_OPTIONAL = ("recheck", "retraining", "environment", "players", "warnings")


def check_document(document: Mapping[str, Any], source: str | Path) -> None:
    """Raise `ReportError` naming `source` and the first part of a report that is not as docs/report.schema.json says.

    Only parts that the page reads are looked at; of an object, unknown keys are left alone.
    """
    for key, shape in _SHAPE.items():
        if key in document or key not in _OPTIONAL:
            _check(document.get(key), shape, key, source)


def _check(value: Any, shape: Any, where: str, source: str | Path) -> None:
    """Against `shape`: a dict of fields, a list of one shape, a tuple of a shape (null will do), or a kind of value."""
    if isinstance(shape, tuple):
        if value is not None:
            _check(value, shape[0], where, source)
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _malformed(where, "a list", source)
        for row, item in enumerate(value):
            _check(item, shape[0], f"{where}[{row}]", source)
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _malformed(where, "an object", source)
        for key, inner in shape.items():
            _check(value.get(key), inner, f"{where}.{key}", source)
    elif not _is(value, shape):
        raise _malformed(where, shape, source)


def _is(value: Any, kind: str) -> bool:
    if kind == _YES_NO:
        return isinstance(value, bool)
    if kind in (_TEXT, _TEXT_OR_NULL):
        return isinstance(value, str) or (value is None and kind == _TEXT_OR_NULL)
    if kind == _COUNT:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 53
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value))


def _malformed(where: str, wanted: str, source: str | Path) -> ReportError:
    return ReportError(f"{source}: {where!r} is not {wanted}; run the command again to write the report anew")
