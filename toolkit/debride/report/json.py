"""report.json: every value and seed of a run, in a written order (docs/report.schema.json), and its reader."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np

from debride.errors import ReportError
from debride.report.channels import refused_fields
from debride.report.compute import compute_fields, cost_fields
from debride.report.conversion import conversion_fields
from debride.report.rates import evaluation_fields, rate_fields
from debride.report.retraining import retraining_fields
from debride.report.slimming import slimming_fields
from debride.types import Detection, FileFacts, Finding, Report, Verdict

SCHEMA = "debride.report/1"
MAX_CHARACTERS = 64 * 1024 * 1024
DIGITS = 6
WIDTH = 120


def to_json(report: Report, *, files: Sequence[str] = ()) -> str:
    """`report` as JSON text that ends in a newline; `files` are the names of the files written beside it.

    What is not finite becomes null; floats carry six significant digits.
    """
    document = {
        "schema": SCHEMA,
        "command": report.command,
        "verdict": report.verdict,
        "reason": report.reason,
        "model": _record(report.model),
        "output": _record(report.output) if report.output else None,
        "conversion": conversion_fields(report.conversion) if report.conversion else None,
        "input_spec": _record(report.spec),
        "suspects": report.detection.suspects,
        "triggers": [_finding(f, files) for f in report.detection.findings],
        "threshold": report.detection.threshold,
        "inconclusive": report.detection.inconclusive or None,
        "compared": report.detection.compared,
        "repeated": _repeated(report.detection),
        "pruned": [
            {"layer": p.group.layer, "channel": p.group.channel, "attack": p.attack, "utility": p.utility}
            for p in report.pruned
        ],
        "refused": refused_fields(report.refused),
        "players": report.players,
        "before": evaluation_fields(report.before) if report.before else None,
        "after": evaluation_fields(report.after) if report.after else None,
        "rounds": [_record(r) for r in report.rounds],
        "returned": report.returned,
        "recheck": _recheck(report.recheck) if report.recheck else None,
        "slimming": slimming_fields(report.slimming) if report.slimming else None,
        "retraining": retraining_fields(report.retraining) if report.retraining else None,
        "seconds": _seconds(report.seconds),
        "cost": cost_fields(report.cost),
        "compute": compute_fields(report.compute) if report.compute else None,
        "seed": report.seed,
        "options": report.options,
        "environment": report.environment,
        "parity": report.parity,
        "samples": report.samples,
        "warnings": report.warnings,
        "files": files,
    }
    return _pretty(_value(document)) + "\n"


def _record(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


def _finding(finding: Finding, files: Sequence[str] = ()) -> dict[str, Any]:
    trigger = finding.trigger
    arrays, picture = trigger_names(trigger.target)
    return {
        "target": trigger.target,
        "l1": trigger.l1,
        "anomaly": finding.anomaly,
        **rate_fields("success", trigger.success),
        "suspect": finding.suspect,
        "reason": finding.reason,
        "restarts": trigger.restarts,
        "steps": trigger.steps,
        "seed": trigger.seed,
        "file": arrays if arrays in files else None,
        "picture": picture if picture in files else None,
    }


def trigger_names(target: int) -> tuple[str, str]:
    """The names of the two files that hold the trigger of class `target`: its arrays and its picture."""
    return f"trigger-{target}.npz", f"suspect-{target}.png"


def _recheck(detection: Detection) -> dict[str, Any]:
    return {
        "suspects": detection.suspects,
        "threshold": detection.threshold,
        "inconclusive": detection.inconclusive or None,
        "compared": detection.compared,
        "repeated": _repeated(detection),
        "triggers": [_finding(f) for f in detection.findings],
    }


def _repeated(detection: Detection) -> dict[str, Any] | None:
    return _record(detection.repeated) if detection.repeated else None


def _seconds(seconds: Mapping[str, float]) -> dict[str, float]:
    stages = {stage: s for stage, s in seconds.items() if stage != "total"}
    return {**stages, "total": seconds.get("total", sum(stages.values()))}


def _value(value: Any) -> Any:
    """`value` as what JSON knows: floats rounded and finite, everything else unknown to it as a string."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return float(f"{value:.{DIGITS}g}") if isfinite(value) else None
        case np.generic() | np.ndarray():
            return _value(value.tolist())
        case Mapping():
            return {str(k): _value(v) for k, v in value.items()}
        case list() | tuple():
            return [_value(v) for v in value]
        case set() | frozenset():
            return [_value(v) for v in sorted(value, key=str)]
    if is_dataclass(value) and not isinstance(value, type):
        return _value(_record(value))
    return str(value)


def _pretty(value: Any, indent: str = "") -> str:
    """JSON text where what fits on one line stays on one line, so that a table of classes reads like one."""
    line = json.dumps(value, allow_nan=False)
    if len(indent) + len(line) <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        rows, ends = [f"{json.dumps(k)}: {_pretty(v, deeper)}" for k, v in value.items()], "{}"
    elif not any(isinstance(v, dict | list) for v in value):
        return line
    else:
        # A record without records in it is a row of a table: one line, however long.
        rows, ends = [json.dumps(v) if _flat(v) else _pretty(v, deeper) for v in value], "[]"
    return ends[0] + "".join(f"\n{deeper}{row}," for row in rows)[:-1] + f"\n{indent}{ends[1]}"


def _flat(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    lists = [v if isinstance(v, list) else [v] for v in value.values()]
    return not any(isinstance(item, dict) for items in lists for item in items)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Summary:
    """A report read back: its head as typed values, and the whole `document` as parsed (read-only at the top)."""

    command: str
    verdict: Verdict
    reason: str
    model: FileFacts
    output: FileFacts | None
    suspects: tuple[int, ...]
    document: Mapping[str, Any]


def from_json(text: str, source: str | Path) -> Summary:
    """The report in `text`; `source` is the file it came from, for messages.

    Raises `ReportError` where `text` is no JSON, too long, of another schema version, or lacks a part of the head.
    """
    document = _parse(text, source)
    schema = document.get("schema")
    if schema != SCHEMA:
        raise ReportError(
            f"{source}: the report's schema is {schema!r}, this version reads {SCHEMA!r}; "
            "read it with the version of debride that wrote it, or run the command again"
        )
    return Summary(
        command=_part(document, "command", source, lambda v: v in ("scan", "sanitize", "retrain")),
        verdict=_part(document, "verdict", source, lambda v: v in get_args(Verdict)),
        reason=_part(document, "reason", source, lambda v: isinstance(v, str)),
        model=_facts(_part(document, "model", source, _is_facts)),
        output=_facts(output) if (output := _part(document, "output", source, _is_facts_or_null)) else None,
        suspects=tuple(_part(document, "suspects", source, _is_indices)),
        document=MappingProxyType(document),
    )


def _parse(text: str, source: str | Path) -> dict[str, Any]:
    mend = "give the report.json that a scan, sanitize or retrain run wrote"
    if len(text) > MAX_CHARACTERS:
        raise ReportError(f"{source}: {len(text)} characters are more than the {MAX_CHARACTERS} of any report; {mend}")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{source}: not JSON ({error}); {mend}") from error
    if not isinstance(document, dict):
        raise ReportError(f"{source}: holds no JSON object; {mend}")
    return document


def _part(document: Mapping[str, Any], key: str, source: str | Path, good: Callable[[Any], bool]) -> Any:
    if key not in document or not good(document[key]):
        raise ReportError(f"{source}: {key!r} is missing or malformed; run the command again to write the report anew")
    return document[key]


def _is_facts(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and isinstance(value.get("sha256"), str)
        and isinstance(value.get("size"), int)
    )


def _is_facts_or_null(value: Any) -> bool:
    return value is None or _is_facts(value)


def _is_indices(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value)


def _facts(value: Mapping[str, Any]) -> FileFacts:
    return FileFacts(name=value["name"], sha256=value["sha256"], size=value["size"])
