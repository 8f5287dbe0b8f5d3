"""What a report says of slimming: what went, what a model costs before and after, and which channels stay and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from textwrap import wrap
from typing import Any

from debride.report.channels import by_reason, refused_fields, spans
from debride.report.words import WIDTH, amount, fill, number, plain, plural, size
from debride.types import Cost, Slimming

MOST_LINES = 20
_COLUMN = 13
_SLOWER = 1.05


def slimming_fields(slimming: Slimming) -> dict[str, Any]:
    """`slimming` as a JSON object."""
    return {
        "before": asdict(slimming.before),
        "after": asdict(slimming.after),
        "dead": slimming.dead,
        "left": slimming.left,
        "channels": slimming.channels,
        "stayed": refused_fields(slimming.stayed),
        "difference": slimming.difference,
        "images": slimming.images,
        "reason": slimming.reason or None,
    }


def changed(slimming: Slimming) -> bool:
    """Whether anything was taken out."""
    return slimming.before != slimming.after


def channels_sentence(slimming: Slimming) -> str:
    """How many channels were found dead, and how many went, in one sentence."""
    if slimming.reason:
        return f"{plural(slimming.dead, 'zeroed channel')}; none was taken out: {slimming.reason}"
    stay, more = slimming.dead - slimming.left, slimming.channels - slimming.left
    said = f"{plural(slimming.dead, 'zeroed channel')}: {slimming.left} taken out, {stay} stay{'s' * (stay == 1)}"
    return f"{said}; {more} more went, constant or unread" if more else said


def equality_sentence(slimming: Slimming) -> str:
    """How far the outputs are from those before, and on what."""
    on = f"random inputs and {plural(slimming.images, 'image')}" if slimming.images else "random inputs"
    return f"on {on} the largest difference is {slimming.difference:.2g} of the scores' spread"


def cost_table(slimming: Slimming) -> list[str]:
    """A table of both costs and their ratio; empty where nothing went."""
    if not changed(slimming):
        return []
    rows: Sequence[tuple[str, Callable[[Cost], float | None], Callable[[float], str]]] = (
        ("size", lambda c: c.size, lambda v: size(int(v))),
        ("parameters", lambda c: c.parameters, amount),
        ("MACs per image", lambda c: c.macs, amount),
        ("latency per image", lambda c: c.latency, lambda v: f"{number(1000 * v)} ms"),
    )
    lines = [f"{'':<18}{'before':>{_COLUMN}}{'after':>{_COLUMN}}{'after/before':>{_COLUMN + 2}}"]
    for name, value, text in rows:
        old, new = value(slimming.before), value(slimming.after)
        if old is not None and new is not None:
            ratio = f"{new / old:.3f}" if old else "-"
            lines.append(f"{name:<18}{text(old):>{_COLUMN}}{text(new):>{_COLUMN}}{ratio:>{_COLUMN + 2}}")
    return lines


def slower_sentence(slimming: Slimming) -> str:
    """Why less work took longer, where it did; else empty."""
    before, after = slimming.before.latency, slimming.after.latency
    if before is None or after is None or after <= _SLOWER * before:
        return ""
    return (
        "Smaller, and yet slower on this machine: many processors like widths that are multiples of 4, 8 or 16, which "
        "--align keeps. Compare before you deploy."
    )


def stayed_lines(slimming: Slimming, width: int = WIDTH, more: str = "") -> list[str]:
    """`layer: channels 1-4, 9: reason`, at most `MOST_LINES` lines; `more` says where the rest is told."""
    entries = [
        wrap(plain(text), width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        for text in _stayed(slimming)
    ]
    lines: list[str] = []
    for shown, entry in enumerate(entries):
        if len(lines) + len(entry) > MOST_LINES - 1 and shown:
            rest = len(entries) - shown
            return [*lines, f"  and {rest} more{f'; {more}' if more else ''}"]
        lines += entry
    return lines


def _stayed(slimming: Slimming) -> Iterator[str]:
    for (layer, reason), channels in by_reason(slimming.stayed).items():
        numbers = [c for c in channels if c is not None]
        noun = "channel" if len(numbers) == 1 else "channels"
        yield f"{layer}: {f'{noun} {spans(numbers)}' if numbers else 'all channels'}: {reason}"


def slimming_section(slimming: Slimming) -> list[str]:
    """The section of a report on slimming."""
    lines = ["Slimmed" if changed(slimming) else "Not slimmed"]
    lines += fill(channels_sentence(slimming), "  ")
    if changed(slimming):
        lines += fill(equality_sentence(slimming), "  ")
        lines += [f"  {line}" for line in cost_table(slimming)]
        lines += fill(slower_sentence(slimming), "  ")
    stayed = stayed_lines(slimming, WIDTH - 2, "report.json lists all")
    return [*lines, "  Zeroed channels that stay", *(f"  {line}" for line in stayed)] if stayed else lines
