"""What the adapters share: words for errors and outputs, and what a shape says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def one_line(error: BaseException | str, limit: int = 240) -> str:
    """The first line of an error that says something, cut to `limit` characters: frameworks put whole stacks there."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()]
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def output_names(count: int) -> list[str]:
    """The names of `count` graph outputs: scores, scores_1, ..."""
    return ["scores", *(f"scores_{number}" for number in range(1, count))]


def stated_by(sides: Sequence[int | None]) -> dict[str, Any]:
    """The fields of `InputSpec` that one image's shape states (None: a side is free): layout, and size where fixed.

    Nothing where both ends, or neither, could be the colours.
    """
    first, last = sides[0] in (1, 3), sides[2] in (1, 3)
    if first == last:
        return {}
    size = tuple(sides[:2] if last else sides[1:])
    return {"layout": "NHWC" if last else "NCHW", **({} if None in size else {"size": size})}
