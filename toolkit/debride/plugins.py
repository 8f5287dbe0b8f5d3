"""The plugin door: adapters turn another framework's model file into ONNX.

A distribution offers one entry point per kind of file in the group `debride.adapters`. Its name is the suffix without
the dot (`onnx = debride_adapters.onnx:adapter`) or, for models that are folders, the name of the file that marks one
(`saved_model.pb = ...`). So the door knows from metadata alone what can be read, and imports one adapter only when a
file asks for it. The adapters that come with debride use the same door.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Protocol, runtime_checkable

from packaging.requirements import InvalidRequirement, Requirement

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions

GROUP = "debride.adapters"


@runtime_checkable
class Adapter(Protocol):
    """Reads the model files of one framework. An adapter imports `debride.types` and `debride.errors` only."""

    @property
    def name(self) -> str:
        """The framework's name, for messages."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """What it reads, lower case: file suffixes with the dot, and names of files that mark a folder."""
        ...

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The model at `path` as ONNX, with a free batch dimension; runs none of the file's own code.

        Raises `ModelError` where the file cannot be read or must not be trusted, `UsageError` where an option is
        missing; the message begins with `path` and says the mend.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One kind of file that an installed adapter claims: `kind` is a suffix or the file that marks a folder.

    `missing` are the requirements of the adapter's extra `extra` that are not installed; all is read from metadata.
    """

    kind: str
    adapter: str
    distribution: str
    extra: str
    missing: tuple[str, ...]


def offers() -> tuple[Offer, ...]:
    """What can be read, and what would have to be installed for it, by kind; no adapter is imported to tell."""
    found = [
        Offer(
            kind=_kind(point),
            adapter=point.value.split(":")[0],
            distribution=point.dist.name if point.dist else "",
            extra=", ".join(point.extras),
            missing=tuple(_missing(point)),
        )
        for point in entry_points(group=GROUP)
    ]
    return tuple(sorted(found, key=lambda offer: (offer.kind, offer.adapter)))


def adapter_for(path: Path) -> Adapter:
    """The adapter for the suffix of `path`, or for the files in it where it is a folder; no other is imported.

    Raises `ModelError` where no adapter, or more than one, claims it, or where the one that does cannot be loaded.
    """
    points = list(entry_points(group=GROUP))
    kinds = _kinds(path, points)
    claims = {point.value: point for point in points if _kind(point) in kinds}
    if not claims:
        known = ", ".join(sorted({_kind(point) for point in points}))
        what = "this folder" if path.is_dir() else path.suffix.lower() or "files without a suffix"
        raise ModelError(
            f"{path}: no adapter reads {what}; can be read: "
            f"{known or 'nothing: debride itself is not installed, only on the path'}"
        )
    if len(claims) > 1:
        raise ModelError(
            f"{path}: {' and '.join(sorted(kinds))} is claimed by {' and '.join(sorted(claims))}; uninstall all but one"
        )
    return _load(next(iter(claims.values())), path, kinds)


def _kind(point: EntryPoint) -> str:
    """A name with a dot inside is a file that marks a folder; any other is a suffix."""
    return point.name if "." in point.name else f".{point.name.lower()}"


def _kinds(path: Path, points: list[EntryPoint]) -> set[str]:
    if not path.is_dir():
        return {path.suffix.lower()}
    return {point.name for point in points if "." in point.name and (path / point.name).is_file()}


def _load(point: EntryPoint, path: Path, kinds: set[str]) -> Adapter:
    try:
        adapter = point.load()
    except (ImportError, AttributeError) as error:
        raise ModelError(f"{path}: the adapter {point.value} cannot be loaded ({error}); {_mend(point)}") from error
    if not isinstance(adapter, Adapter) or not kinds.intersection(adapter.suffixes):
        raise ModelError(
            f"{path}: the entry point {point.value} is no adapter for {' or '.join(sorted(kinds))}; update its package"
        )
    return adapter


def _mend(point: EntryPoint) -> str:
    if point.dist and point.extras:
        return f"pip install '{point.dist.name}[{','.join(point.extras)}]'"
    return "install what its framework needs"


def _missing(point: EntryPoint) -> Iterator[str]:
    """The names of what the extras of `point` require and this environment lacks."""
    for text in (point.dist.requires or []) if point.dist and point.extras else []:
        try:
            needed = Requirement(text)
        except InvalidRequirement:
            continue
        wanted = needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in point.extras)
        # A build for the CPU and the full one are the same framework.
        if wanted and not any(map(_installed, {needed.name, needed.name.removesuffix("-cpu")})):
            yield needed.name


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False
