"""Trained values written back into a protobuf, of which nothing else changes, and what they changed."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import inf, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from debride.errors import SurgeryError
from debride.graph.constants import Constants, array_of, finite
from debride.graph.hollow import give, hollow
from debride.graph.read import Model
from debride.graph.unread import reads_of
from debride.graph.verify import check_trained
from debride.graph.weights import FLOATS
from debride.types import WeightChange

__all__ = ["changes", "check_trained", "working_written", "written"]

Arrays = Mapping[str, npt.NDArray[Any]]
_BLOCK = 1 << 20


def written(model: Model, arrays: Arrays) -> onnx.ModelProto:
    """The delivered model with the constants `arrays` (by name, in their own shapes) in place of what it stores.

    Numbers are rounded to the type of the stored tensor; a tensor that keeps all its bits is carried over as it is
    stored. `model` is not changed.

    Raises:
        SurgeryError: names what is no constant of floats of the file, has another shape, or is not finite once rounded.
    """
    return _written(model.proto, arrays)


def working_written(model: Model, arrays: Arrays) -> onnx.ModelProto:
    """The same on the working copy (functions inlined, batch freed), for evaluating.

    Raises:
        SurgeryError: as `written`.
    """
    return _written(model.working, arrays)


def _written(proto: onnx.ModelProto, arrays: Arrays) -> onnx.ModelProto:
    missing = sorted(arrays.keys() - Constants(proto).stored.keys())
    if missing:
        raise SurgeryError(f"'{missing[0]}' is no constant of the model; train what `trainable` names")
    copy = hollow(proto, also=arrays)
    # The largest first, while the copy is small: its data are held twice for a moment.
    for name, stub, tensor in sorted(copy.held, key=lambda held: -held[2].ByteSize()):
        data = _rounded(name, tensor, arrays[name]) if name in arrays else None
        if data is None:
            give(stub, tensor)
        else:
            stub.raw_data = data
    return copy.proto


def _rounded(name: str, tensor: onnx.TensorProto, array: npt.NDArray[Any]) -> bytes | None:
    """The data of `array` in the type of `tensor`; None where `tensor` holds the same bits."""
    dtype = np.dtype(tensor_dtype_to_np_dtype(tensor.data_type))
    if dtype.name not in FLOATS or array.dtype.name not in FLOATS:
        raise SurgeryError(f"'{name}' holds {dtype.name} numbers, its new values {array.dtype.name}; only floats train")
    if array.shape != tuple(tensor.dims):
        raise SurgeryError(f"'{name}' has the shape {tuple(tensor.dims)}, its new values {array.shape}")
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if not finite(rounded):
        raise SurgeryError(f"'{name}' is not finite as {dtype.name} once trained; train in smaller steps")
    if not _changed(array_of(tensor), rounded):
        return None
    return rounded.astype(dtype.newbyteorder("<"), copy=False).tobytes()


def changes(before: onnx.ModelProto, after: onnx.ModelProto, names: Collection[str]) -> tuple[WeightChange, ...]:
    """By how much the constants `names` differ, those alone that differ in bits, in the order they are first read in.

    Raises:
        SurgeryError: names a constant that is not in both models with the same type and shape.
    """
    old, new = Constants(before).stored, Constants(after).stored
    wanted = set(names)
    order = dict.fromkeys((*(name for name in reads_of(before.graph.node) if name in wanted), *sorted(wanted)))
    found = []
    for name in order:
        if name not in old or name not in new:
            raise SurgeryError(f"'{name}' is no constant of both models")
        change = _change(name, array_of(old[name]), array_of(new[name]))
        if change.changed:
            found.append(change)
    return tuple(found)


def _change(name: str, old: npt.NDArray[Any], new: npt.NDArray[Any]) -> WeightChange:
    if old.dtype != new.dtype or old.shape != new.shape:
        raise SurgeryError(f"'{name}' has another type or shape")
    changed, largest, difference, norm = 0, 0.0, 0.0, 0.0
    for one, other in zip(_blocks(old), _blocks(new), strict=True):
        changed += _changed(one, other)
        exact = one.astype(np.float64)
        apart = other.astype(np.float64) - exact
        largest = max(largest, float(np.abs(apart).max()))
        difference += float(np.square(apart).sum())
        norm += float(np.square(exact).sum())
    relative = sqrt(difference / norm) if norm else inf if difference else 0.0
    return WeightChange(name=name, shape=old.shape, changed=changed, largest=largest, relative=relative)


def _changed(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> int:
    """How many entries differ in bits."""
    width = f"u{one.dtype.itemsize}"
    return int(np.count_nonzero(np.atleast_1d(one).view(width) != np.atleast_1d(other).view(width)))


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The entries of `array`, so many at a time that float64 copies of them stay small."""
    flat = np.ascontiguousarray(array).reshape(-1)
    for start in range(0, flat.size, _BLOCK):
        yield flat[start : start + _BLOCK]
