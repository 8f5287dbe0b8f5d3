"""The outputs that a request asks for, checked against the model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from debride.sessions import TensorInfo

from .datatypes import DATATYPES
from .errors import BadRequest
from .fields import flag, named_end, parameters_of, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One output asked for: as `binary` data or in JSON; `classification`: that many best classes, 0: the tensor."""

    name: str
    binary: bool
    classification: int


def read_outputs(entries: object, infos: Sequence[TensorInfo], binary: bool) -> tuple[Wanted, ...]:
    """The outputs asked for, in that order; where none is named, all of a type that can be sent.

    `binary` is the request's own wish, which an output's parameter overrides. Raises `BadRequest` naming the field.
    """
    if entries is not None and type(entries) is not list:
        raise BadRequest(f"outputs: {shown(entries)} is no list")
    if not entries:
        able = [info for info in infos if info.dtype in DATATYPES]
        return tuple(_wanted(info, binary, 0, f"outputs ({shown(info.name)})") for info in able)
    known = {info.name: info for info in infos}
    found: dict[str, Wanted] = {}
    for place, entry in enumerate(entries):
        where = f"outputs[{place}]"
        info = named_end(entry, known, found, where, "output")
        parameters = parameters_of(entry, f"{where}.parameters")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise BadRequest(f"{where}.parameters.classification: {shown(classes)} is no number of classes")
        as_bytes = flag(parameters, "binary_data", f"{where}.parameters", binary)
        found[info.name] = _wanted(info, as_bytes, classes, where)
    return tuple(found.values())


def _wanted(info: TensorInfo, binary: bool, classes: int, where: str) -> Wanted:
    kind = DATATYPES.get(info.dtype)
    if kind is None:
        raise BadRequest(f"{where}.name: the model's output {shown(info.name)} is of a type that cannot be sent")
    if not (kind.in_json or binary or classes):
        raise BadRequest(f"{where}: {kind.name} has no JSON form; set parameters.binary_data to true")
    return Wanted(name=info.name, binary=binary, classification=classes)
