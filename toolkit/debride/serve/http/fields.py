"""Reading one field of a request: what it is, or an error that names it."""

from __future__ import annotations

from collections.abc import Container
from reprlib import Repr
from typing import Any

from debride.sessions import TensorInfo

from .errors import BadRequest

_REPR = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 3


def shown(value: object) -> str:
    """A value of the request as text for a message: of bounded length, and printable whatever it holds."""
    return _REPR.repr(value)


def parameters_of(holder: dict[str, Any], field: str) -> dict[str, Any]:
    """The object `parameters` of a request, an input or an output; empty where there is none."""
    found = holder.get("parameters")
    if found is None:
        return {}
    if type(found) is not dict:
        raise BadRequest(f"{field}: {shown(found)} is no JSON object")
    if "shared_memory_region" in found:
        raise BadRequest(
            f"{field}.shared_memory_region: shared memory is not supported; send and ask for the data itself"
        )
    return found


def flag(parameters: dict[str, Any], key: str, field: str, default: bool) -> bool:
    """The parameter `key`, which must be true or false."""
    found = parameters.get(key, default)
    if type(found) is not bool:
        raise BadRequest(f"{field}.{key}: {shown(found)} is neither true nor false")
    return found


def named_end(entry: Any, known: dict[str, TensorInfo], taken: Container[str], where: str, what: str) -> TensorInfo:
    """The model's input or output that `entry` names, each at most once."""
    if type(entry) is not dict:
        raise BadRequest(f"{where}: {shown(entry)} is no JSON object")
    name = entry.get("name")
    if type(name) is not str or name not in known:
        raise BadRequest(f"{where}.name: the model has no {what} named {shown(name)}; it has {shown(list(known))}")
    if name in taken:
        raise BadRequest(f"{where}.name: {shown(name)} is given twice")
    return known[name]
