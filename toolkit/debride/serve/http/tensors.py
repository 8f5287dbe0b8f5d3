"""The values of one input, from JSON numbers or from bytes, to an array; checked before anything is made of them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from .datatypes import Datatype
from .errors import BadRequest
from .fields import shown

Array = npt.NDArray[Any]


def from_binary(data: memoryview, size: object, shape: Sequence[int], count: int, kind: Datatype, where: str) -> Array:
    """The tensor of `shape`, `count` values, in the first `size` bytes of `data` (binary tensor data extension).

    Read-only, and a view of `data` where that is aligned. Raises `BadRequest` where `size` is not what the shape takes,
    where the bytes are not there, and at values that are none of `kind`.
    """
    field, expected = f"{where}.parameters.binary_data_size", count * kind.wire.itemsize
    if type(size) is not int or size != expected:
        raise BadRequest(f"{field}: {shown(size)}, where shape {shown(shape)} of {kind.name} takes {expected} bytes")
    if size > len(data):
        raise BadRequest(f"{field}: {size}, but only {len(data)} bytes are left in the body for it")
    values = np.frombuffer(data[:size], kind.wire)
    if not values.flags.aligned:  # onnxruntime reads the memory as it lies
        values = values.copy()
    if kind.dtype == np.bool_:
        _all_bits(values, where)
    return _finite(values.astype(kind.dtype, copy=False), f"{where}: the binary data").reshape(shape)


def from_json(data: object, shape: Sequence[int], count: int, kind: Datatype, where: str) -> Array:
    """The tensor of `shape`, `count` values, in JSON `data`, flat in row-major order or nested as `shape` says.

    Raises `BadRequest` where the lists do not fit `shape`, and at values that are none of `kind`: numbers out of range,
    floats for integers, true and false for numbers and the other way round.
    """
    field = f"{where}.data"
    if not kind.in_json:
        raise BadRequest(f"{where}.datatype: {kind.name} has no JSON form; send binary data, with binary_data_size")
    if type(data) is not list:
        raise BadRequest(f"{field}: {shown(data)} is no list; give the values, flat or nested as shape says")
    flat = _flattened(data, shape, field)
    if len(flat) != count:
        raise BadRequest(f"{field}: {len(flat)} values, where shape {shown(shape)} takes {count}")
    if kind.dtype == np.bool_:
        if any(type(value) is not bool for value in flat):
            raise _misfit(flat, kind, field)
        return np.array(flat, np.bool_).reshape(shape)
    try:
        packed = struct.pack(f"<{count}{kind.packing}", *flat)  # half the time that numpy takes from a list
    except (struct.error, OverflowError, TypeError) as error:
        raise _misfit(flat, kind, field) from error
    values = np.frombuffer(packed, kind.wire).astype(kind.dtype, copy=False)
    if _holds_bools(flat, values):
        raise _misfit(flat, kind, field)
    return _finite(values, field).reshape(shape)


def _flattened(data: list[Any], shape: Sequence[int], field: str) -> list[Any]:
    """The values in row-major order. Nested lists must have exactly the lengths that `shape` says, level by level."""
    if not data or type(data[0]) is not list:
        return data
    rows: list[Any] = [data]
    for axis, dim in enumerate(shape):
        for row in rows:
            if type(row) is not list or len(row) != dim:
                found = f"a list of {len(row)}" if type(row) is list else shown(row)
                raise BadRequest(f"{field}: {found} at depth {axis}, where shape {shown(shape)} takes lists of {dim}")
        rows = list(chain.from_iterable(rows))
    return rows


def _holds_bools(flat: list[Any], values: Array) -> bool:
    """Whether JSON's true or false passed for a number: only those that became 1 or 0 can have been one."""
    places = np.flatnonzero((values == 0) | (values == 1))
    if 4 * len(places) > len(flat):
        return bool in map(type, flat)
    return any(type(flat[place]) is bool for place in places.tolist())


def _misfit(flat: list[Any], kind: Datatype, field: str) -> BadRequest:
    """The error that names the first value that is none of `kind`."""
    for place, value in enumerate(flat):
        if not _fits(value, kind):
            return BadRequest(f"{field}: value {place} in row-major order, {shown(value)}, is no {kind.name}")
    return BadRequest(f"{field}: holds what is no {kind.name}")


def _fits(value: object, kind: Datatype) -> bool:
    if type(value) is bool or not kind.packing:
        return type(value) is bool and not kind.packing
    if type(value) not in (int, float):
        return False
    try:
        struct.pack(f"<{kind.packing}", value)
    except (struct.error, OverflowError):
        return False
    return True


def _all_bits(values: Array, where: str) -> None:
    bits = values.view(np.uint8)
    if bits.size and bits.max() > 1:
        place = int(np.argmax(bits > 1))
        raise BadRequest(f"{where}: the binary data: byte {place} is {bits[place]}; a BOOL is a byte of 0 or 1")


def _finite(values: Array, what: str) -> Array:
    """`values` (flat), or `BadRequest` at the first NaN or infinity: no model has a right answer to it."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        found = "NaN" if np.isnan(values[place]) else "infinite"
        raise BadRequest(f"{what}: value {place} in row-major order is {found}; send finite numbers")
    return values
