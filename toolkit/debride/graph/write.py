"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path

import onnx
from onnx import numpy_helper
from onnx.external_data_helper import set_external_data

from debride.errors import SurgeryError, UsageError
from debride.graph.constants import array_of
from debride.graph.hollow import give, hollow, without_graph
from debride.graph.wire import data_of, pieces_of, size_of

_LIMIT = 2**31 - 1
_SMALL = 1024


def write_model(
    proto: onnx.ModelProto,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    force: bool = False,
    limit: int = _LIMIT,
) -> None:
    """Write `proto` to `path` atomically, with the entries of `metadata` set in its metadata_props.

    Above `limit` bytes (a protobuf cannot hold more than 2 GiB) the weights go into `path`.data beside it.

    Raises:
        UsageError: `path` exists and `force` is not given, or its folder does not exist.
        SurgeryError: the system refuses the writing.
    """
    path = Path(path)
    data_path = path.with_name(f"{path.name}.data")
    header = without_graph(proto)
    if metadata:
        kept = [entry for entry in header.metadata_props if entry.key not in metadata]
        del header.metadata_props[:]
        header.metadata_props.extend(kept)
        header.metadata_props.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in metadata.items())
    pieces, moved = pieces_of(header, proto.graph), list[onnx.TensorProto]()
    check_free(path, force)
    large = size_of(pieces) > limit
    if large:
        check_free(data_path, force)
        rest, moved = _moved_out(proto, data_path.name)
        pieces = pieces_of(header, rest.graph)
        if size_of(pieces) > _LIMIT:
            raise SurgeryError(f"{path}: its nodes alone hold more than 2 GiB; export it with weights as initializers")
        _write((_raw(tensor) for tensor in moved), data_path, force)
    try:
        _write(map(data_of, pieces), path, force)
    except BaseException:
        if large:
            data_path.unlink(missing_ok=True)
        raise


def write_bytes(data: bytes | bytearray, path: str | Path, *, force: bool = False) -> None:
    """Write `data` to `path` by way of a temporary file in the same folder; whatever goes wrong, none is left behind.

    Raises:
        UsageError: `path` exists and `force` is not given, or its folder does not exist.
        SurgeryError: the system refuses the writing.
    """
    _write([data], Path(path), force)


def _write(parts: Iterable[bytes | bytearray], path: Path, force: bool) -> None:
    check_free(path, force)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as stream:
            for part in parts:
                stream.write(part)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SurgeryError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_copy(data: bytes, model: Path, external: Sequence[Path], path: Path, *, force: bool = False) -> None:
    """Write the model file `data` to `path` and its `external` data beside it, laid out as beside `model`.

    The model comes last, and what was written before it goes again where something fails: no model without weights.

    Raises:
        UsageError: a place is taken and `force` is not given.
        SurgeryError: the system refuses the writing.
    """
    folder = model.resolve().parent
    places = {part: path.parent / part.resolve().relative_to(folder) for part in external}
    places = {part: place for part, place in places.items() if not (place.exists() and place.samefile(part))}
    written: list[Path] = []
    try:
        for place in places.values():
            place.parent.mkdir(parents=True, exist_ok=True)
            check_free(place, force)
        for part, place in places.items():
            new = not place.exists()
            write_bytes(part.read_bytes(), place, force=force)
            written += [place] if new else []
        write_bytes(data, path, force=force)
    except BaseException:
        for place in written:
            place.unlink(missing_ok=True)
        raise


def check_free(path: Path, force: bool) -> None:
    """Refuse a `path` that exists (unless `force`), is a folder, or lies in a folder that does not exist.

    Raises:
        UsageError: with the mend.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(f"{path}: not a place for a file; name a file in a folder that exists")
    if not force and (path.exists() or path.is_symlink()):
        raise UsageError(f"{path}: exists already; pass --force to replace it")


def _moved_out(proto: onnx.ModelProto, location: str) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A copy of `proto` that looks for its large initializers at `location`, and these in the order of that file."""
    large = {t.name for t in proto.graph.initializer if t.data_type != onnx.TensorProto.STRING and _is_large(t)}
    copy, moved, offset = hollow(proto, also=large), list[onnx.TensorProto](), 0
    for name, stub, tensor in copy.held:
        if name not in large:
            give(stub, tensor)
            continue
        length = len(_raw(tensor))
        stub.raw_data = b""  # asked for by what sets the place
        set_external_data(stub, location, offset=offset, length=length)
        stub.ClearField("raw_data")
        moved.append(tensor)
        offset += length
    return copy.proto, moved


def _is_large(tensor: onnx.TensorProto) -> bool:
    return prod(tensor.dims) >= _SMALL or len(_raw(tensor)) >= _SMALL


def _raw(tensor: onnx.TensorProto) -> bytes:
    return tensor.raw_data if tensor.HasField("raw_data") else numpy_helper.from_array(array_of(tensor)).raw_data
