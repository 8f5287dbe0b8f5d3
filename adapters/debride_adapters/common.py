"""What the adapters share: reading within bounds, words for errors and outputs, and what a shape says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from debride.errors import ModelError

LIMIT = 2**31 - 1  # protobuf's own limit for one message


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


def read_bounded(path: Path) -> bytes:
    """The bytes of `path`, at most 2 GiB.

    Raises `ModelError` for a file that cannot be read, is empty or is larger.
    """
    try:
        with path.open("rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give an existing model file") from error
    if not data:
        raise ModelError(f"{path}: is empty; export the model again")
    if len(data) > LIMIT:
        raise ModelError(f"{path}: larger than the 2 GiB of one message; export it as ONNX with external data")
    return data
