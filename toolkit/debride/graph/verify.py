"""Proof that surgery changed what it should and nothing else, by comparing bytes (of many, SHA-256)."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import onnx
import onnx.checker

from debride.errors import SurgeryError
from debride.graph.constants import Constants, Place, array_of, zeroed_blocks
from debride.graph.hollow import check_model, hollow, same_data
from debride.types import ChannelGroup


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
    _check_rest(before, after, old, new, list(cuts))
    try:
        check_model(after)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise SurgeryError(f"the cut model fails the ONNX checker: {' '.join(str(error).split())}") from error


def _digest(tensor: onnx.TensorProto, cuts: Sequence[tuple[int, Sequence[int]]] = ()) -> tuple[object, ...]:
    """Type, shape and SHA-256 of the bits of `tensor` with `cuts` zeroed: two large tensors are never both decoded."""
    digest, array = sha256(), array_of(tensor)
    for block in zeroed_blocks(array, cuts):
        digest.update(block.tobytes())
    return array.dtype, array.shape, digest.digest()


def _check_rest(
    before: onnx.ModelProto, after: onnx.ModelProto, old: Constants, new: Constants, places: Sequence[Place]
) -> None:
    """But for the pruned constants both must be equal: first structure and small tensors, then each large one."""
    pruned = {old.name(place) for place in places if old.name(place) == new.name(place)}
    private = {new.name(place) for place in places} - pruned - set(old.stored)
    one, other = hollow(before, also=pruned), hollow(after, also=pruned)
    for place in places:
        other.proto.graph.node[place[0]].input[place[1]] = old.name(place)
    for listed in (other.proto.graph.initializer, other.proto.graph.input):
        for entry in [entry for entry in listed if entry.name in private]:
            listed.remove(entry)
    _check_structure(one.proto, other.proto)
    kept = [(name, tensor) for name, _, tensor in other.held if name not in private]
    for (_, _, delivered), (name, tensor) in zip(one.held, kept, strict=True):
        if name not in pruned and not same_data(delivered, tensor):
            raise SurgeryError(f"surgery changed '{name}' beyond the pruned slices")


def _check_structure(before: onnx.ModelProto, restored: onnx.ModelProto) -> None:
    if before.SerializeToString(deterministic=True) == restored.SerializeToString(deterministic=True):
        return
    for one, other, where in ((before.graph, restored.graph, "graph"), (before, restored, "model")):
        for field in one.DESCRIPTOR.fields_by_name:
            if field != "graph" and getattr(one, field) != getattr(other, field):
                raise SurgeryError(f"surgery changed '{field}' of the {where} beyond the pruned slices")
    raise SurgeryError("surgery changed bytes beyond the pruned slices")
