"""Channels that were left alone or stay: as runs, by layer and reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from debride.types import Refused


def runs(numbers: Iterable[int]) -> list[list[int]]:
    """Whole numbers as sorted [first, last] runs: 1 2 3 7 -> [[1, 3], [7, 7]]."""
    found: list[list[int]] = []
    for n in sorted(set(numbers)):
        if found and found[-1][1] == n - 1:
            found[-1][1] = n
        else:
            found.append([n, n])
    return found


def spans(numbers: Iterable[int]) -> str:
    """Whole numbers as a reader likes them: `1-3, 7`."""
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs(numbers))


def by_reason(refused: Iterable[Refused]) -> dict[tuple[str, str], list[int | None]]:
    """The channels of every layer and reason, in the order in which these come up; None: the whole layer."""
    groups: dict[tuple[str, str], list[int | None]] = {}
    for item in refused:
        groups.setdefault((item.layer, item.reason), []).append(item.channel)
    return groups


def refused_fields(refused: Iterable[Refused]) -> list[dict[str, Any]]:
    """One JSON object per layer and reason; `channels` are [first, last] runs, null where the whole layer is meant."""
    return [
        {
            "layer": layer,
            "reason": reason,
            "channels": None if None in channels else runs(c for c in channels if c is not None),
        }
        for (layer, reason), channels in by_reason(refused).items()
    ]
