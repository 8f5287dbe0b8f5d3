"""The plugin door: adapters turn another framework's model file into ONNX.

A distribution offers one entry point per file suffix in the group `debride.adapters`; its name is the suffix without
the dot (`onnx = debride_adapters.onnx:adapter`). So the door knows from metadata alone what can be read, and imports
one adapter only when a file asks for it. The adapters that come with debride use the same door.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from debride.errors import ModelError, UsageError
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
        """The file suffixes it reads, lower case, with the dot."""
        ...

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The model at `path` as ONNX, with a free batch dimension; runs none of the file's own code.

        Raises `ModelError` where the file cannot be read or must not be trusted, `UsageError` where an option is
        missing; the message begins with `path` and says the mend.
        """
        ...


def readable_suffixes() -> tuple[str, ...]:
    """Every suffix that an installed adapter claims, sorted, with the dot; nothing is imported to tell."""
    return tuple(sorted({f".{point.name.lower()}" for point in entry_points(group=GROUP)}))


def adapter_for(path: Path) -> Adapter:
    """The adapter for the suffix of `path`; no other is imported.

    Raises `UsageError` where no adapter, or more than one, claims the suffix, and `ModelError` where the one that does
    cannot be loaded.
    """
    suffix = path.suffix.lower()
    claims = {p.value: p for p in entry_points(group=GROUP) if f".{p.name.lower()}" == suffix}
    if not claims:
        known = ", ".join(readable_suffixes()) or "none: debride itself is not installed, only on the path"
        raise UsageError(f"{path}: no adapter reads {suffix or 'files without a suffix'}; can be read: {known}")
    if len(claims) > 1:
        raise UsageError(f"{path}: {suffix} is claimed by {' and '.join(sorted(claims))}; uninstall all but one")
    return _load(next(iter(claims.values())), path, suffix)


def _load(point: EntryPoint, path: Path, suffix: str) -> Adapter:
    try:
        adapter = point.load()
    except (ImportError, AttributeError) as error:
        raise ModelError(
            f"{path}: the adapter {point.value} cannot be loaded ({error}); install what its framework needs"
        ) from error
    if not isinstance(adapter, Adapter) or suffix not in adapter.suffixes:
        raise ModelError(f"{path}: the entry point {point.value} is no adapter for {suffix}; update its package")
    return adapter
