"""What a report says of retraining: how it was done, what it brought and changed, how fast an attack relearns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite, isnan, prod
from types import MappingProxyType
from typing import Any

from debride.report.channels import refused_fields
from debride.report.rates import evaluation_fields, rate_fields, rates_table
from debride.report.words import MOST_ROWS, class_label, field, fill, percent, plain, plural, rate, shorten
from debride.types import Refused, Relearning, Retraining, WeightChange

MOST_TARGETS = 5
MOST_LAYERS = 3
MOST_LETTERS = 400
_NAME = 38
_LABELS = MappingProxyType({"given": "given", "delivered": "the delivered model's own answers"})
_STATISTICS = MappingProxyType(
    {
        "none": "no running statistics in the graph",
        "kept": "running mean and variance kept as they were",
        "estimated": "running mean and variance estimated anew",
    }
)


def retraining_fields(retraining: Retraining) -> dict[str, Any]:
    """`retraining` as a JSON object."""
    return {
        "method": retraining.method,
        "kept": retraining.kept,
        "reason": retraining.reason,
        "labels": retraining.labels,
        "images": retraining.images,
        "per_step": retraining.per_step,
        "steps": retraining.steps,
        "budget": retraining.budget,
        "best": retraining.best,
        "statistics": retraining.statistics,
        "changes": [
            {"name": c.name, "shape": c.shape, "changed": c.changed, "largest": c.largest, "relative": c.relative}
            for c in retraining.changes
        ],
        "fixed": refused_fields(retraining.fixed),
        "before": evaluation_fields(retraining.before),
        "after": evaluation_fields(retraining.after),
        "relearning": [
            {
                "target": r.target,
                "images": r.images,
                "rates": [
                    {"step": step, **rate_fields("planted", planted), **rate_fields("fresh", fresh)}
                    for step, planted, fresh in zip(r.steps, r.planted, r.fresh, strict=True)
                ],
            }
            for r in retraining.relearning
        ],
    }


def retraining_section(retraining: Retraining, names: Sequence[str] = (), *, pruned: bool) -> list[str]:
    """The section of a report on retraining; `pruned`: channels had been cut from the network that was retrained."""
    columns = (("before", retraining.before), ("after", retraining.after))
    return [
        "Retrained" if retraining.kept else "Retrained, and not delivered",
        *_delivery(retraining, pruned),
        *_facts(retraining),
        *(f"  {line}" for line in rates_table("Retraining, on held-out images", columns, names)),
        *_changes(retraining.changes),
        *_fixed(retraining.fixed),
        *_relearning(retraining.relearning, names),
    ]


def _delivery(retraining: Retraining, pruned: bool) -> Iterator[str]:
    reason = _short(retraining.reason)
    if retraining.kept:
        yield from fill("The retrained network is delivered.", "  ")
        yield from fill(reason and f"Why: {reason}", "  ")
    else:
        stays = "The pruned network is delivered" if pruned else "The network is delivered as it was"
        yield from fill(f"{stays}, not the retrained one: {reason or 'no reason was given'}", "  ")
    still = ", and channels that were cut stayed zero" if pruned else ""
    yield from fill(f"Its weights were trained further; the graph around them stayed as it was{still}.", "  ")


def _facts(retraining: Retraining) -> Iterator[str]:
    steps = f"{retraining.steps} taken, of at most {retraining.budget}; the best weights are those of step"
    start = " (before training)" if retraining.best == 0 else ""
    yield from field("Method", _short(retraining.method), "  ")
    yield from field("Labels", _LABELS[retraining.labels], "  ")
    each = f", {retraining.per_step} a step" if retraining.per_step else ""
    yield from field("Images", plural(retraining.images, "clean image") + each, "  ")
    yield from field("Steps", f"{steps} {retraining.best}{start}", "  ")
    yield from field("Batch norm", _STATISTICS[retraining.statistics], "  ")


def _changes(changes: Sequence[WeightChange]) -> Iterator[str]:
    if not changes:
        yield "  No initializer differs in the retrained network"
        return
    yield f"  Initializers that differ in the retrained network: {len(changes)} (relative: change / before, as norms)"
    yield f"    {'name':<{_NAME}} {'shape':<15} {'elements changed':>21} {'largest':>8} {'relative':>9}"
    for c in sorted(changes, key=lambda c: (isnan(c.relative), -c.relative))[:MOST_ROWS]:
        shape = shorten("x".join(map(str, c.shape)) or "scalar", 15)
        size = prod(c.shape)
        elements = f"{c.changed} ({percent(c.changed / size if size else float('nan'))})"
        row = f"{shorten(plain(c.name), _NAME):<{_NAME}} {shape:<15} {elements:>21}"
        yield f"    {row} {_small(c.largest):>8} {relative_change(c.relative):>9}"
    if len(changes) > MOST_ROWS:
        yield f"    and {len(changes) - MOST_ROWS} more; report.json lists all"


def relative_change(relative: float) -> str:
    """A relative change in a few letters; it is infinite where there was nothing but zeros before."""
    return "from zero" if relative == float("inf") else _small(relative)


def _small(value: float) -> str:
    return f"{value:.2g}" if isfinite(value) else "n/a"


def _fixed(fixed: Iterable[Refused]) -> Iterator[str]:
    """One paragraph per reason, with a few of the layers that it holds for."""
    layers: dict[str, dict[str, None]] = {}
    for item in fixed:
        layers.setdefault(item.reason, {})[item.layer] = None
    for reason, named in list(layers.items())[:MOST_ROWS]:
        shown = ", ".join(shorten(plain(layer), _NAME) for layer in list(named)[:MOST_LAYERS])
        more = f" and {len(named) - MOST_LAYERS} more" if len(named) > MOST_LAYERS else ""
        yield from fill(f"not trained, {len(named)}: {_short(reason)} ({shown}{more})", "  ")
    if len(layers) > MOST_ROWS:
        yield f"  and {plural(len(layers) - MOST_ROWS, 'reason')} more; report.json lists all"


def _relearning(tests: Sequence[Relearning], names: Sequence[str]) -> Iterator[str]:
    if not tests:
        return
    yield "  Relearning: how fast images stamped and labelled as the target bring the attack back"
    yield from fill(
        "Fresh: three triggers as large that nobody planted, taken together. Place and colours alone make one twice as "
        "fast as another; a planted one that is clearly faster still was silenced rather than forgotten.",
        "  ",
    )
    for test in tests[:MOST_TARGETS]:
        label = shorten(class_label(test.target, names), 40)
        yield f"    {plural(test.images, 'poisoned image')}, labelled as class {label}"
        yield f"    {'steps':>9}  {'planted trigger (95 %)':<28}{'fresh trigger (95 %)'}"
        rows = list(zip(test.steps, test.planted, test.fresh, strict=True))
        for step, planted, fresh in rows[:MOST_ROWS]:
            yield f"    {step:>9}  {rate(planted):<28}{rate(fresh)}"
        if len(rows) > MOST_ROWS:
            yield f"    and {len(rows) - MOST_ROWS} more; report.json lists all"
    if len(tests) > MOST_TARGETS:
        yield f"    and {plural(len(tests) - MOST_TARGETS, 'class')} more; report.json lists all"


def _short(text: str) -> str:
    return shorten(plain(text), MOST_LETTERS)
