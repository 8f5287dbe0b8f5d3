"""Input specs as JSON: the side-car file, and the `debride.input_spec` entry of a model's `metadata_props`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from .errors import SpecError
from .types_input import Channels, InputSpec, Layout, SpecSource

METADATA_KEY = "debride.input_spec"
MAX_SIDE = 1 << 14
_MAX_TEXT = 4 << 20
_MAX_NAMES = 1 << 20
_MAX_NAME = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFlags:
    """The fields of an `InputSpec` that somebody states: on the command line, in a side-car file, in metadata.

    None is "not said". `name` and `output` are tensor names, `size` is (height, width), `short_side` as in `InputSpec`.
    """

    name: str | None = None
    layout: Layout | None = None
    channels: Channels | None = None
    size: tuple[int, int] | None = None
    range: tuple[float, float] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    output: str | None = None
    class_names: tuple[str, ...] | None = None
    short_side: int | None = None

    @property
    def scales(self) -> bool:
        """Whether anything is said of how pixel values are scaled."""
        return not (self.range is None and self.mean is None and self.std is None)


def to_json(spec: InputSpec) -> str:
    """`spec` as the JSON object that `from_json` reads; without `source`, which depends on where it is found.

    `short_side` is left out where it is None: debride 0.1.0 refuses keys that it does not know.
    """
    stated = {key: value for key, value in asdict(spec).items() if key != "source" and value is not None}
    return json.dumps(stated, indent=2, allow_nan=False)


def from_json(text: str, where: str = "input spec", source: SpecSource = "side-car") -> InputSpec:
    """The spec in `text`. Raises `SpecError` naming `where` and the key for anything unknown, missing or wrong."""
    found = parse_fields(text, where)
    stated = {key: value for key, value in asdict(found).items() if value is not None}
    missing = [key for key in ("name", "layout", "channels", "size") if key not in stated]
    if missing:
        raise SpecError(f"{where}: {missing[0]!r} is missing; an input spec needs name, layout, channels and size")
    spec = InputSpec(**{**stated, "source": source})
    check_scaling(spec, where)
    check_framing(spec.size, spec.short_side, where)
    return spec


def parse_fields(text: str, where: str) -> SpecFlags:
    """As `from_json`, but any field may be missing: a side-car may say only what the model does not."""
    if len(text) > _MAX_TEXT:
        raise SpecError(f"{where}: longer than {_MAX_TEXT} characters and no input spec")
    try:
        found = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise SpecError(
            f"{where}: is no valid JSON ({error}); write one object with the fields of an input spec"
        ) from error
    if not isinstance(found, dict):
        raise SpecError(f"{where}: holds no JSON object; write one object with the fields of an input spec")
    unknown = sorted(set(found) - set(_PARSERS))
    if unknown:
        raise SpecError(
            f"{where}: unknown key {unknown[0][:80]!r}; known are {', '.join(_PARSERS)}: "
            "mend it, or rename a file that is no input spec"
        )
    parsed: dict[str, Any] = {}
    for key, value in found.items():
        try:
            parsed[key] = _PARSERS[key](value)
        except ValueError as error:
            raise SpecError(f"{where}: {key!r} {error}") from None
    return SpecFlags(**parsed)


def read_fields(path: Path) -> SpecFlags:
    """`parse_fields` of a side-car file; raises `SpecError` naming it where it cannot be read."""
    try:
        if path.stat().st_size > _MAX_TEXT:
            raise SpecError(f"{path}: larger than {_MAX_TEXT} bytes and no input spec; is it the right file?")
        return parse_fields(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read ({error}); give a JSON file or leave the side-car out") from error


def sidecar_of(model: Path) -> Path | None:
    """The side-car beside `model` (`MODEL.json` for `MODEL.onnx`), or None where there is none."""
    path = named(model).with_suffix(".json")
    return path if path.is_file() and path != named(model) else None


def named(path: Path) -> Path:
    """`path`, or what it is really called where it is "." or ends in ".."; a link keeps its own name."""
    return path if path.name not in ("", "..") else path.resolve()


def check_scaling(spec: InputSpec, where: str) -> None:
    """Raises `SpecError` where range, mean, std and channels contradict each other."""
    low, high = spec.range
    if not low < high:
        raise SpecError(f"{where}: the range {low}..{high} is empty; write the lower end first, as in 0,255")
    for key, values in (("mean", spec.mean), ("std", spec.std)):
        if len(values) not in (0, 1, spec.depth):
            raise SpecError(
                f"{where}: {key} has {len(values)} values for {spec.depth} channels; give 1 or {spec.depth}"
            )
    if any(s <= 0 for s in spec.std):
        raise SpecError(f"{where}: std {spec.std} is not positive")
    if any(not low <= m <= high for m in spec.mean):
        raise SpecError(
            f"{where}: mean {spec.mean} lies outside the range {low}..{high}, in whose units it is; "
            "for means in bytes say range 0,255"
        )


def check_framing(size: tuple[int, int] | None, short_side: int | None, where: str) -> None:
    """Raises `SpecError` where `size` cannot be cut from every image whose short side is `short_side`."""
    if size is not None and short_side is not None and short_side < max(size):
        raise SpecError(
            f"{where}: short_side {short_side} is less than the {size[0]}x{size[1]} pixels to cut from the scaled "
            f"image; give {max(size)} or more"
        )


def merged(first: SpecFlags, then: SpecFlags) -> SpecFlags:
    """`first`, with what it does not say taken from `then`; range, mean and std are taken together."""
    values = {f.name: getattr(first, f.name) for f in fields(SpecFlags)}
    for key, value in values.items():
        if value is None and not (first.scales and key in ("range", "mean", "std")):
            values[key] = getattr(then, key)
    return SpecFlags(**values)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key comes twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_NAME:
        raise ValueError(f"must be a text of 1 to {_MAX_NAME} characters")
    if not value.isascii() and re.search("[\ud800-\udfff]", value):
        raise ValueError("must be a text of whole characters, and holds half of a surrogate pair")
    return value


def _output(value: Any) -> str | None:
    return None if value == "" else _text(value)


def _one_of(*allowed: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return str(value)

    return parse


def _size(value: Any) -> tuple[int, int]:
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int and 1 <= v <= MAX_SIDE for v in value)):
        raise ValueError(f"must be [height, width], whole numbers in 1..{MAX_SIDE}")
    return (value[0], value[1])


def _short_side(value: Any) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 1 <= value <= MAX_SIDE:
        raise ValueError(f"must be a whole number in 1..{MAX_SIDE}")
    return int(value)


def _numbers(value: Any, lengths: tuple[int, ...]) -> tuple[float, ...]:
    numbers = value if isinstance(value, list) else [value]
    if len(numbers) not in lengths or any(type(v) not in (int, float) or not isfinite(v) for v in numbers):
        raise ValueError(f"must be a list of {' or '.join(map(str, lengths))} finite numbers")
    if any(abs(v) > 1e6 for v in numbers):
        raise ValueError("must not exceed a million")
    return tuple(float(v) for v in numbers)


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > _MAX_NAMES:
        raise ValueError("must be a list of texts")
    if len(set(map(_text, value))) != len(value):
        raise ValueError("must not name a class twice")
    return tuple(value)


_PARSERS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "layout": _one_of("NCHW", "NHWC"),
    "channels": _one_of("RGB", "BGR", "L"),
    "size": _size,
    "range": lambda value: _numbers(value, (2,)),
    "mean": lambda value: _numbers(value, (0, 1, 3)),
    "std": lambda value: _numbers(value, (0, 1, 3)),
    "output": _output,
    "class_names": _names,
    "short_side": _short_side,
}
