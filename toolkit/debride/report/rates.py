"""Rates measured on held-out images: as JSON objects, and as a table with a column per model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from debride.report.words import class_label, rate, shorten
from debride.types import Evaluation, Rate, TriggerEvaluation


def rate_fields(name: str, value: Rate) -> dict[str, Any]:
    """`value` as the entries `name`, `name_interval` (95 % Wilson) and `name_n` of a JSON object."""
    return {name: value.value, f"{name}_interval": value.interval(), f"{name}_n": value.n}


def evaluation_fields(evaluation: Evaluation) -> dict[str, Any]:
    """`evaluation` as a JSON object."""
    clean = evaluation.clean
    return {
        evaluation.kind: clean.value,
        "worst_asr": evaluation.worst_asr,
        "clean": {"kind": evaluation.kind, "rate": clean.value, "interval": clean.interval(), "n": clean.n},
        "triggers": [
            {
                "target": t.target,
                **rate_fields("asr", t.asr),
                "mistakes": t.mistakes.value,
                **rate_fields("robust", t.robust),
            }
            for t in evaluation.triggers
        ],
    }


def rates_table(title: str, measured: Sequence[tuple[str, Evaluation]], names: Sequence[str] = ()) -> list[str]:
    """`title` with the number of images, and the rates of every evaluation (at least one) under its heading."""
    evaluations = [e for _, e in measured]
    n = ", ".join(sorted({str(e.clean.n) for e in evaluations}))
    lines = [f"{title} (n = {n}; 95 % Wilson intervals)", f"  {'':<42}{_cells(heading for heading, _ in measured)}"]
    kind = evaluations[-1].kind
    name = f"{kind} with the model" if kind == "agreement" else kind
    lines.append(f"  {name:<42}{_cells(rate(e.clean) for e in evaluations)}")
    for i in range(max(len(e.triggers) for e in evaluations)):
        row = [_nth(e, i) for e in evaluations]
        target = next(t.target for t in reversed(row) if t)
        label = shorten(class_label(target, names), 20)
        lines.append(f"  {f'attack success, {i + 1} -> {label}':<42}{_cells(rate(t.asr) if t else '-' for t in row)}")
        lines.append(f"  {f'robust {kind}, {i + 1}':<42}{_cells(rate(t.robust) if t else '-' for t in row)}")
    return [line.rstrip() for line in lines]


def _nth(evaluation: Evaluation, index: int) -> TriggerEvaluation | None:
    return evaluation.triggers[index] if index < len(evaluation.triggers) else None


def _cells(texts: Iterable[str]) -> str:
    return "".join(f"{text:<28}" for text in texts)
