"""Proof that an edit changed what it should and nothing else, by comparing bytes (of many, SHA-256)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

import onnx
import onnx.checker

from debride.errors import SurgeryError
from debride.graph.constants import Constants, Place, array_of, finite, zeroed_blocks
from debride.graph.hollow import Hollow, check_model, hollow, same_data
from debride.types import BoolArray, ChannelGroup

_PRUNED, _TRAINED = "the pruned slices", "the trained weights"


def check_written(before: onnx.ModelProto, after: onnx.ModelProto, groups: Sequence[ChannelGroup]) -> None:
    """Check that `after` is `before` with the slices of `groups` zeroed, and valid.

    The pruned constants must hold the same bits outside the slices. Everything else (nodes, names, attributes, opsets,
    metadata, functions, other constants) must serialize to the same bytes, but for the private copies of constants.

    Raises:
        SurgeryError: names what differs.
    """
    old, new = Constants(before), Constants(after)
    cuts = old.places(groups)
    if len(after.graph.node) != len(before.graph.node):
        raise SurgeryError("the cut model has another number of nodes; nothing is written")
    for place, edits in cuts.items():
        name = new.name(place)
        if name not in new.stored:
            raise SurgeryError(f"'{name}' is no constant of the cut model; nothing is written")
        if _digest(old.tensor(place), edits) != _digest(new.stored[name]):
            raise SurgeryError(f"'{name}' of the cut model is not the delivered one with its slices zeroed")
    _check_uncut(before, after, old, new, list(cuts))
    _check_valid(after, "the cut model")


def check_trained(
    before: onnx.ModelProto, after: onnx.ModelProto, names: Collection[str], silent: Mapping[str, BoolArray]
) -> None:
    """Check that `after` is `before` but for the numbers of the constants `names`, and valid.

    These must be finite floats of the same type and shape, stored at the same place, and exactly 0 at the entries of
    `silent` (by name). Everything else must serialize to the same bytes.

    Raises:
        SurgeryError: names what differs.
    """
    old, new = Constants(before).stored, Constants(after).stored
    for name in dict.fromkeys((*names, *silent)):
        if name not in old or name not in new:
            raise SurgeryError(f"'{name}' is no constant of both models; nothing is written")
        _check_numbers(name, old[name], new[name], silent.get(name))
    _check_same(hollow(before, also=names), hollow(after, also=names), names, _TRAINED)
    _check_valid(after, "the retrained model")


def _check_numbers(name: str, old: onnx.TensorProto, new: onnx.TensorProto, silent: BoolArray | None) -> None:
    if new.data_type != old.data_type or new.dims != old.dims:
        raise SurgeryError(f"'{name}' of the retrained model has another type or shape; nothing is written")
    try:
        array = array_of(new)
    except (ValueError, TypeError) as error:
        raise SurgeryError(f"the data of '{name}' do not fill its shape; nothing is written") from error
    if not finite(array):
        raise SurgeryError(f"'{name}' of the retrained model is not finite; nothing is written")
    if silent is not None and (silent.shape != array.shape or array[silent].any()):
        raise SurgeryError(f"'{name}' of the retrained model has other numbers than 0 in a pruned channel")


def _check_valid(proto: onnx.ModelProto, what: str) -> None:
    try:
        check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise SurgeryError(f"{what} fails the ONNX checker: {' '.join(str(error).split())}") from error


def _digest(tensor: onnx.TensorProto, cuts: Sequence[tuple[int, Sequence[int]]] = ()) -> tuple[object, ...]:
    """Type, shape and SHA-256 of the bits of `tensor` with `cuts` zeroed: two large tensors are never both decoded."""
    digest, array = sha256(), array_of(tensor)
    for block in zeroed_blocks(array, cuts):
        digest.update(block.tobytes())
    return array.dtype, array.shape, digest.digest()


def _check_uncut(
    before: onnx.ModelProto, after: onnx.ModelProto, old: Constants, new: Constants, places: Sequence[Place]
) -> None:
    """But for the pruned constants both must be equal, once private copies are taken back."""
    pruned = {old.name(place) for place in places if old.name(place) == new.name(place)}
    private = {new.name(place) for place in places} - pruned - set(old.stored)
    one, other = hollow(before, also=pruned), hollow(after, also=pruned)
    for place in places:
        other.proto.graph.node[place[0]].input[place[1]] = old.name(place)
    for listed in (other.proto.graph.initializer, other.proto.graph.input):
        for entry in [entry for entry in listed if entry.name in private]:
            listed.remove(entry)
    _check_same(one, replace(other, held=tuple(held for held in other.held if held[0] not in private)), pruned, _PRUNED)


def _check_same(before: Hollow, after: Hollow, edited: Collection[str], allowed: str) -> None:
    """But for the data of `edited` both must be equal: first structure and small tensors, then each large one."""
    _check_structure(before.proto, after.proto, allowed)
    for (name, _, delivered), (_, _, tensor) in zip(before.held, after.held, strict=True):
        if name not in edited and not same_data(delivered, tensor):
            raise SurgeryError(f"'{name}' was changed beyond {allowed}")


def _check_structure(before: onnx.ModelProto, after: onnx.ModelProto, allowed: str) -> None:
    if before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True):
        return
    for one, other, where in ((before.graph, after.graph, "graph"), (before, after, "model")):
        for field in one.DESCRIPTOR.fields_by_name:
            if field != "graph" and getattr(one, field) != getattr(other, field):
                raise SurgeryError(f"'{field}' of the {where} was changed beyond {allowed}")
    raise SurgeryError(f"bytes were changed beyond {allowed}")
