"""Reading `.npz` archives from strangers: sizes, dtypes and shapes are checked before anything is expanded."""

from __future__ import annotations

import io
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .errors import DebrideError

MAX_BYTES = 1 << 30
_MAX_MEMBERS = 64


def read_npz(
    path: Path, wanted: tuple[str, ...], error: type[DebrideError], max_bytes: int = MAX_BYTES
) -> dict[str, npt.NDArray[Any]]:
    """Those arrays among `wanted` that `path` holds; nothing is unpickled, and the rest is not read.

    Raises `error` where the file is no `.npz`, holds object arrays, or expands to more than `max_bytes`.
    """
    if not path.is_file():
        raise error(f"{path}: no such file; give an .npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MAX_MEMBERS:
                raise error(f"{path}: more than {_MAX_MEMBERS} arrays in one .npz; keep only {', '.join(wanted)}")
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            found = {name: members[name] for name in wanted if name in members}
            if sum(info.file_size for info in found.values()) > max_bytes:
                raise error(f"{path}: expands to more than {max_bytes} bytes; give fewer or smaller images")
            return {name: _read_member(archive, info, f"{path}: {name}", error) for name, info in found.items()}
    except (
        OSError,
        ValueError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        SyntaxError,
        tokenize.TokenError,
        zlib.error,
    ) as failure:
        raise error(f"{path}: cannot be read as .npz ({failure}); write it with numpy.savez_compressed") from failure


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, error: type[DebrideError]
) -> npt.NDArray[Any]:
    with archive.open(info) as stream:
        shape, dtype = _header(stream)
        if dtype.hasobject:
            raise error(f"{name} holds Python objects, which are never loaded; save plain numbers")
        # The header decides what numpy allocates: it must agree with what the archive says it holds.
        if prod(shape) * dtype.itemsize + stream.tell() != info.file_size:
            raise error(f"{name} is truncated or its header is wrong: {shape} {dtype} in {info.file_size} bytes")
    with archive.open(info) as stream:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    return array


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(stream)
    return shape, dtype


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes `arrays` to `path` in one step: an interrupted run leaves no half of a file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    partial = path.with_name(path.name + ".part")
    try:
        partial.write_bytes(buffer.getvalue())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
