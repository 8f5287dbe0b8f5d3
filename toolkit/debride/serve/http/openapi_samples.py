"""Commands to copy, for curl in any POSIX shell: they run as they stand once URL (and TOKEN) are set.

Names of tensors come from the model file, a stranger's: all of them are quoted for the shell.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from shlex import quote
from typing import Any

from debride.sessions import TensorInfo

from .datatypes import DATATYPES

_MOST_VALUES = 4096
_HEADER = "Inference-Header-Content-Length"


def get(path: str, *, token: bool = False, more: str = "") -> str:
    """A GET request of `path`, which must need no quoting."""
    return _curl(path, token, more)


def image(path: str, *, token: bool) -> str:
    """An image file as the body."""
    return _curl(path, token, "--data-binary @photo.png")


def form(path: str, *, token: bool) -> str:
    """An image file in a form."""
    return _curl(path, token, "-F image=@photo.png")


def infer_values(inputs: Sequence[TensorInfo]) -> dict[str, Any] | None:
    """A request with every input filled with one value; None where that would be long, or has no JSON form."""
    sizes = [prod(_shape(info)) for info in inputs]
    if not _in_json(inputs) or sum(sizes) > _MOST_VALUES:
        return None
    values = {"f": 0.5, "b": True}
    return {
        "inputs": [
            {**_entry(info), "data": [values.get(info.dtype.kind, 1)] * size}
            for info, size in zip(inputs, sizes, strict=True)
        ]
    }


def infer_json(path: str, inputs: Sequence[TensorInfo], *, token: bool) -> str | None:
    """Every input filled with one value, as JSON; None where a datatype has no JSON form."""
    if not _in_json(inputs):
        return None
    pieces = []
    for place, info in enumerate(inputs):
        head = json.dumps({**_entry(info), "data": []})[:-2]
        pieces += [quote(("," if place else '{"inputs": [') + head), f'"$({_values(info)})"', "']}'"]
    command = f"printf %s {' '.join(pieces)} ']}}' |\n  "
    return command + _curl(path, token, "-H 'Content-Type: application/json' --data-binary @-")


def infer_binary(path: str, inputs: Sequence[TensorInfo], *, token: bool) -> str | None:
    """Every input filled with zeros, as binary tensors; None where a datatype cannot be sent."""
    if not all(info.dtype in DATATYPES for info in inputs):
        return None
    sizes = [prod(_shape(info)) * info.dtype.itemsize for info in inputs]
    entries = [
        {**_entry(info), "parameters": {"binary_data_size": size}} for info, size in zip(inputs, sizes, strict=True)
    ]
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": False}})
    command = f"{{ printf %s {quote(head)}; head -c {sum(sizes)} /dev/zero; }} |\n  "
    more = f"-H 'Content-Type: application/octet-stream' -H '{_HEADER}: {len(head)}' --data-binary @-"
    return command + _curl(path, token, more)


def _curl(path: str, token: bool, more: str = "") -> str:
    parts = ["curl", *(['-H "Authorization: Bearer $TOKEN"'] if token else []), *([more] if more else [])]
    return " ".join([*parts, f'"$URL{path}"'])


def _in_json(inputs: Sequence[TensorInfo]) -> bool:
    return all(info.dtype in DATATYPES and DATATYPES[info.dtype].in_json for info in inputs)


def _entry(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "datatype": DATATYPES[info.dtype].name, "shape": _shape(info)}


def _shape(info: TensorInfo) -> list[int]:
    return [1 if dim is None else dim for dim in info.shape]


def _values(info: TensorInfo) -> str:
    value = {"f": "0.5", "b": "true"}.get(info.dtype.kind, "1")
    return f"yes {value} | head -n {prod(_shape(info))} | paste -sd , -"
