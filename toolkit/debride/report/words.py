"""How numbers, rates and names are put into words, the same in text and in pictures."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from textwrap import wrap

from debride.types import Rate

WIDTH = 100
MOST_ROWS = 20


def plain(text: str) -> str:
    """`text` on one line, with "?" for what a terminal would obey: node and class names come from untrusted files."""
    return "".join(c if c.isprintable() else "?" for c in text)


def shorten(text: str, width: int) -> str:
    """`text` cut to at most `width` characters, the cut marked."""
    return text if len(text) <= width else text[: max(0, width - 2)] + ".."


def fill(text: str, indent: str = "") -> list[str]:
    """`text` as indented lines of at most `WIDTH` columns; none where it is empty."""
    return wrap(plain(text), WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def field(name: str, text: str, indent: str = "") -> list[str]:
    """`text` behind `name`, its further lines below its first."""
    lines = wrap(plain(text), WIDTH - 12 - len(indent), break_on_hyphens=False) or [""]
    return [f"{indent}{name if i == 0 else '':<11} {line}" for i, line in enumerate(lines)]


def class_label(index: int, names: Sequence[str] = ()) -> str:
    """`5 (dog)` where class 5 has a name, else `5`."""
    name = plain(names[index]).strip() if 0 <= index < len(names) else ""
    return f"{index} ({name})" if name and name != str(index) else str(index)


def number(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits and no exponent; "n/a" where it is not finite."""
    if not isfinite(value):
        return "n/a"
    size = abs(value)
    decimals = 0 if size >= 10 ** (digits - 1) else 1 if size >= 10 else 2
    return f"{value:.{decimals}f}"


def percent(value: float) -> str:
    """A share in 0..1 as `98.7 %`; "n/a" where it is not finite."""
    return f"{100 * value:.1f} %" if isfinite(value) else "n/a"


def rate(value: Rate) -> str:
    """`98.7 % (96.3 to 99.6)`: a rate with its 95 % Wilson interval, in per cent."""
    low, high = value.interval()
    return f"{percent(value.value)} ({100 * low:.1f} to {100 * high:.1f})" if value.n else "n/a (no images)"


def plural(count: int, noun: str) -> str:
    """`1 round`, `2 rounds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def size(count: int) -> str:
    """A file size in decimal units."""
    return _scaled(count, (("GB", 1e9), ("MB", 1e6), ("kB", 1e3))) or f"{count} bytes"


def amount(count: float) -> str:
    """How many, to three digits: `21.8 k`, `1.23 M`."""
    return _scaled(count, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))) or f"{count:g}"


def _scaled(count: float, units: Sequence[tuple[str, float]]) -> str:
    """`count` in the largest unit of which there is one once rounded; "" where it is less than the smallest."""
    for unit, limit in units:
        if count >= 0.9995 * limit:
            return f"{count / limit:.3g} {unit}"
    return ""
