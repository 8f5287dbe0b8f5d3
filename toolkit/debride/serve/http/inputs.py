"""The inputs of a request, checked against the model's, to arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from debride.sessions import TensorInfo

from .datatypes import DATATYPES, Datatype
from .errors import BadRequest, TooLarge
from .fields import named_end, parameters_of, shown
from .tensors import Array, from_binary, from_json

LENGTH_HEADER = "Inference-Header-Content-Length"


def read_inputs(
    entries: object, tail: memoryview | None, infos: Sequence[TensorInfo], max_values: int
) -> dict[str, Array]:
    """The arrays by name. `tail` is the binary data behind the JSON, None where the request has no such part.

    Raises `BadRequest` naming the field, `TooLarge` where the inputs together have more than `max_values` values.
    """
    if type(entries) is not list:
        raise BadRequest(f"inputs: {shown(entries)} is no list; give one entry per input of the model")
    known = {info.name: info for info in infos}
    found: dict[str, Array] = {}
    offset = total = 0
    for place, entry in enumerate(entries):
        where = f"inputs[{place}]"
        info = named_end(entry, known, found, where, "input")
        kind = _input_kind(entry.get("datatype"), info, where)
        shape, count = _shape(entry.get("shape"), info, where)
        total += count
        if total > max_values:
            raise TooLarge(f"{where}.shape: {shown(shape)} brings the inputs over the limit of {max_values} values")
        size = _binary_size(entry, tail is not None, where)
        if tail is None or size is None:
            found[info.name] = from_json(entry.get("data"), shape, count, kind, where)
        else:
            found[info.name] = from_binary(tail[offset:], size, shape, count, kind, where)
            offset += found[info.name].nbytes
    missing = [name for name in known if name not in found]
    if missing:
        raise BadRequest(f"inputs: {shown(missing[0])} is missing; the model has the inputs {shown(list(known))}")
    if tail is not None and offset != len(tail):
        raise BadRequest(f"body: {len(tail) - offset} bytes are left over behind the binary data of the inputs")
    return found


def _input_kind(datatype: object, info: TensorInfo, where: str) -> Datatype:
    kind = DATATYPES.get(info.dtype)
    if kind is None:
        raise BadRequest(f"{where}.name: the model's input {shown(info.name)} is of a type that cannot be sent")
    if datatype != kind.name:
        other = ", which is not supported" if datatype in ("BYTES", "BF16") else ""
        raise BadRequest(f"{where}.datatype: {shown(datatype)}{other}; the model's input is {kind.name}")
    return kind


def _shape(shape: Any, info: TensorInfo, where: str) -> tuple[list[int], int]:
    """The shape as sent and its product, where it fits the model's: open dimensions of 1 or more."""
    if type(shape) is list and len(shape) == len(info.shape):
        count = 1
        for dim, own in zip(shape, info.shape, strict=True):
            if type(dim) is not int or (dim < 1 if own is None else dim != own):
                break
            count *= dim
        else:
            return shape, count
    own_shape = [-1 if dim is None else dim for dim in info.shape]
    raise BadRequest(
        f"{where}.shape: {shown(shape)} does not fit the model's {own_shape}; give integers, 1 or more where it has -1"
    )


def _binary_size(entry: dict[str, Any], has_tail: bool, where: str) -> Any:
    """The parameter binary_data_size as sent, None where the data is in the JSON."""
    size = parameters_of(entry, f"{where}.parameters").get("binary_data_size")
    if size is None:
        return None
    if not has_tail:
        raise BadRequest(f"{where}.parameters.binary_data_size: needs the request header {LENGTH_HEADER}")
    if entry.get("data") is not None:
        raise BadRequest(f"{where}.data: is there together with binary_data_size; give one of them")
    return size
