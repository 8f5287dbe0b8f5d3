"""What an export is told of: a table for people, and fields for machines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from debride.export.types import Exported, ExportOptions, Graded, Weight
from debride.report.conversion import conversion_fields
from debride.report.words import class_label, number, plain, rate, size
from debride.types import Evaluation, Rate

_NAME, _COLUMN = 32, 24
_SLOWER = 1.05


def export_table(found: Exported) -> list[str]:
    """Rates, size and speed of the model and of its export, side by side."""
    lines = [_row("", "before", "after")]
    if found.graded:
        lines += _rates(found.graded, found.spec.class_names if found.spec else ())
    before, after = found.before, found.after
    lines.append(_row("size", size(before.size), f"{size(after.size)} (x{after.size / before.size:.2f})"))
    if before.latency and after.latency:
        old, new = (f"{number(1000 * latency)} ms" for latency in (before.latency, after.latency))
        lines.append(_row("latency per image", old, f"{new} (x{after.latency / before.latency:.2f})"))
    return lines


def slower_sentence(found: Exported) -> str:
    """Why fewer bits took longer, where they did; else empty."""
    before, after = found.before.latency, found.after.latency
    if before is None or after is None or after <= _SLOWER * before:
        return ""
    why = {
        "ort": "blocks laid out for one kind of processor are left out, so that it runs on any; --native keeps them",
        "int8": "small graphs gain nothing from eight-bit products, and processors without VNNI gain less",
        "fp16": "most processors compute half precision in float32; it is meant for GPUs and accelerators",
    }[found.made["target"]]
    return f"Slower on this machine: {why}. Measure where it will run."


def export_fields(found: Exported, options: ExportOptions) -> dict[str, Any]:
    """`found` as a JSON object."""
    return {
        "model": asdict(found.model),
        "output": asdict(found.output) if found.output else None,
        "conversion": conversion_fields(found.conversion) if found.conversion else None,
        "input_spec": asdict(found.spec) if found.spec else None,
        "export": dict(found.made),
        "max_loss": options.max_loss,
        "target_asr": options.target_asr,
        "images": found.graded.images if found.graded else 0,
        "attacks": found.graded.attacks if found.graded else (),
        "before": _side(found.before, found.graded.before if found.graded else None),
        "after": _side(found.after, found.graded.after if found.graded else None),
        "missed": found.missed,
        "notes": found.notes,
    }


def _rates(graded: Graded, names: tuple[str, ...]) -> Iterator[str]:
    was, now = graded.before, graded.after
    yield _row(was.kind, rate(was.clean), rate(now.clean))
    for name, old, new in zip(graded.attacks, was.triggers, now.triggers, strict=True):
        yield f"{plain(name)} -> class {class_label(old.target, names)}"
        yield _row("  attack success", rate(old.asr), rate(new.asr))
        yield _row("  of them mistakes, unstamped", rate(old.mistakes), rate(new.mistakes))
        yield _row(f"  robust {was.kind}", rate(old.robust), rate(new.robust))


def _row(name: str, before: str, after: str) -> str:
    return f"{name:<{_NAME}}{before:<{_COLUMN}}{after}".rstrip()


def _side(weight: Weight, evaluation: Evaluation | None) -> dict[str, Any]:
    fields: dict[str, Any] = {"size": weight.size, "latency": weight.latency}
    if evaluation is None:
        return fields
    rows = [
        {"target": t.target, "asr": _rate(t.asr), "mistakes": _rate(t.mistakes), "robust": _rate(t.robust)}
        for t in evaluation.triggers
    ]
    return {**fields, "kind": evaluation.kind, "clean": _rate(evaluation.clean), "triggers": rows}


def _rate(value: Rate) -> dict[str, Any]:
    return {"hits": value.hits, "n": value.n, "rate": value.value if value.n else None, "interval": value.interval()}
