"""An HDF5 file is walked before Keras sees it: no links, no data in other files, no sizes that the file cannot fill.

Keras reads what the file points to, other files of this machine among it (CVE-2026-1669).
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

from debride.errors import ModelError

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 200_000
_SUSPICIOUS_BYTES = 64 << 20
_SUSPICIOUS_RATIO = 200
_FILTERS = frozenset((1, 2, 3, 32000))
"""Deflate, shuffle, checksum, LZF: the filters that come with h5py; any other would load a plugin."""


def audit_h5(path: Path, source: Path) -> str | None:
    """The attribute `model_config` of the HDF5 file `path`, None where it has none; all its parts are sound.

    `source` is the file that messages name, where `path` is a private copy.

    Raises:
        ModelError: damaged, links, data outside of the file, types other than numbers and text, or declared sizes
            that no file of this size holds.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            total = _walk(file, source)
            size = path.stat().st_size
            if total > _SUSPICIOUS_BYTES and total > _SUSPICIOUS_RATIO * size:
                raise ModelError(
                    f"{source}: {size:,} bytes of HDF5 that declare {total:,}; taken for a bomb, nothing was read"
                )
            config = file.attrs.get("model_config")
            config = config.decode() if isinstance(config, bytes) else config
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise ModelError(f"{source}: a damaged HDF5 file ({error}); copy or save the model again") from error
    if not isinstance(config, str | None):
        raise ModelError(f"{source}: its model_config is no text; save the model again")
    return config


def _walk(file: Any, source: Path) -> int:
    """The bytes that all datasets and attributes of `file` declare together; raises `ModelError` for what is refused.

    Iterative, and each object is met once: a file may nest its groups as deep, or in circles, as it likes.
    """
    import h5py

    total, seen, waiting = _attributes(file, source), {_address(file)}, [file]
    while waiting:
        group = waiting.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"[:200]
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ModelError(f"{source}: {where} is a link to another place; save the model again with Keras")
            item = group[name]
            if _address(item) in seen or len(seen) >= MAX_OBJECTS:
                raise ModelError(f"{source}: {where} is in the file twice, or one of too many; save the model again")
            seen.add(_address(item))
            total += _attributes(item, source)
            if isinstance(item, h5py.Group):
                waiting.append(item)
            elif isinstance(item, h5py.Dataset):
                total += _dataset(item, source)
            else:
                raise ModelError(f"{source}: {where} is neither group nor data; save the model again with Keras")
    return total


def _address(item: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(item.id).addr)


def _dataset(data: Any, source: Path) -> int:
    # Asked of the low level alone: h5py's own `external` and `is_virtual` differ between its versions.
    import h5py

    plist = data.id.get_create_plist()
    if plist.get_external_count() or plist.get_layout() == h5py.h5d.VIRTUAL:
        raise ModelError(f"{source}: {data.name[:200]} lies in another file; save the model again with Keras")
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= _FILTERS:
        raise ModelError(f"{source}: {data.name[:200]} is compressed by a plugin; save the model again with Keras")
    return _declared(data.dtype, data.shape, f"{source}: {data.name[:200]}")


def _attributes(item: Any, source: Path) -> int:
    total = 0
    for name in item.attrs:
        attribute = item.attrs.get_id(name)
        total += _declared(attribute.dtype, attribute.shape, f"{source}: attribute {name[:100]} of {item.name[:100]}")
    return total


def _declared(dtype: Any, shape: tuple[int, ...] | None, where: str) -> int:
    import h5py

    if dtype.kind not in "fiubS" and h5py.check_string_dtype(dtype) is None:
        raise ModelError(f"{where} holds neither numbers nor text; save the model again with Keras")
    return int(dtype.itemsize) * prod(shape or (1,))
