"""What the parent asks of the child process and what it hears back, as JSON: no pickles between the two either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import debride.errors
from debride.errors import DebrideError, ModelError
from debride.specfile import SpecFlags, parse_fields
from debride.types import Agreement, Conversion, ConvertOptions, Rate

REQUEST, OUTCOME = "request.json", "outcome.json"
"""The files that the two processes write for each other, in a folder of their own."""
TOLERANCE = 1e-3
GIB = 1 << 30
MAX_OUTCOME = 1 << 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a conversion may use: `seconds` of time and `memory` in bytes (of private memory, on Linux)."""

    seconds: float = 600.0
    memory: int = 8 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One conversion: the model, what the user says of it, and the clean images to measure parity on (or None).

    `name` is that of the ONNX file to make.
    `tolerance` None is the usual one, or the adapter's own where it has a reason (see `Converted`).
    """

    model: Path
    name: str = "model.onnx"
    options: ConvertOptions = field(default_factory=ConvertOptions)
    flags: SpecFlags = field(default_factory=SpecFlags)
    images: Path | None = None
    resize: bool = False
    seed: int = 0
    threads: int = 0
    tolerance: float | None = None
    limits: Limits = field(default_factory=Limits)


def graph_at(folder: Path, request: Request) -> Path:
    """Where the graph of `request` is written when it is worked on in `folder`; it may have any name, alone there."""
    return folder / "graph" / request.name


def request_to_json(request: Request) -> str:
    """`request` as the text that `request_from_json` reads."""
    return json.dumps(asdict(request), default=str)


def request_from_json(text: str) -> Request:
    """The request in `text`, which the parent wrote."""
    found = json.loads(text)
    options = found.pop("options")
    for name in ("input_shape", "images_shape"):
        options[name] = None if options[name] is None else tuple(options[name])
    images = found.pop("images")
    return Request(
        model=Path(found.pop("model")),
        options=ConvertOptions(**options),
        flags=stated(found.pop("flags"), "flags"),
        images=None if images is None else Path(images),
        limits=Limits(**found.pop("limits")),
        **found,
    )


def stated(fields: Mapping[str, Any], where: str) -> SpecFlags:
    """`fields` (None: not said) as `SpecFlags`; raises `SpecError` naming `where` for what is no field of a spec."""
    return parse_fields(json.dumps({key: value for key, value in fields.items() if value is not None}), where)


def outcome_to_json(outcome: Conversion | DebrideError) -> str:
    """What came of a request: facts of the written graph, or the error that ended it."""
    if isinstance(outcome, DebrideError):
        return json.dumps({"error": type(outcome).__name__, "message": str(outcome)})
    return json.dumps(asdict(outcome))


def outcome_from_json(text: str) -> Conversion:
    """The conversion in `text`; raises the error that it tells of.

    The text comes from a process that has read a stranger's file, so it is checked like one: `ModelError` where it is
    not what `outcome_to_json` writes.
    """
    try:
        if len(text) > MAX_OUTCOME:
            raise ValueError("too long")
        found = json.loads(text)
        told = _error(found) if "error" in found else None
        if told is None:
            return _conversion(found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelError(f"the conversion gave no readable outcome ({error}); run it again") from error
    raise told


def _error(found: dict[str, Any]) -> DebrideError:
    kind, message = getattr(debride.errors, str(found["error"])), _plain(found["message"])
    return kind(message) if isinstance(kind, type) and issubclass(kind, DebrideError) else ModelError(message)


def _plain(value: Any) -> str:
    """`value` as text on one line without what a terminal would obey: parts of it come from a stranger's file."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(value).split()))


def _conversion(found: dict[str, Any]) -> Conversion:
    return Conversion(
        framework=_plain(found["framework"]),
        packages={_plain(name): _plain(version) for name, version in found["packages"].items()},
        opset=int(found["opset"]),
        parity=tuple(
            Agreement(
                kind="images" if p["kind"] == "images" else "random",
                difference=float(p["difference"]),
                same_class=Rate(int(p["same_class"]["hits"]), int(p["same_class"]["n"])),
            )
            for p in found["parity"]
        ),
        tolerance=float(found["tolerance"]),
        notes=tuple(map(_plain, found["notes"])),
    )
