"""Proof that surgery changed what it should and nothing else, by comparing bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import onnx.checker

from debride.errors import SurgeryError
from debride.graph.constants import Constants, Place, array_of, zeroed
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
        expected, found = zeroed(array_of(old.tensor(place)), edits), array_of(new.stored[name])
        same = expected.dtype == found.dtype and expected.shape == found.shape
        if not same or np.ascontiguousarray(expected).tobytes() != np.ascontiguousarray(found).tobytes():
            raise SurgeryError(f"'{name}' of the cut model is not the delivered one with its slices zeroed")
    _check_rest(before, _restored(before, after, list(cuts)))
    try:
        onnx.checker.check_model(after)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise SurgeryError(f"the cut model fails the ONNX checker: {' '.join(str(error).split())}") from error


def _restored(before: onnx.ModelProto, after: onnx.ModelProto, places: Sequence[Place]) -> onnx.ModelProto:
    """`after` with the pruned constants set back to what `before` has: what remains must be equal."""
    result = onnx.ModelProto()
    result.CopyFrom(after)
    old, new = Constants(before), Constants(result)
    private: set[str] = set()
    for place in places:
        if new.name(place) == old.name(place):
            new.tensor(place).CopyFrom(old.tensor(place))
        else:
            private.add(new.name(place))
            result.graph.node[place[0]].input[place[1]] = old.name(place)
    private -= set(old.stored)
    for listed in (result.graph.initializer, result.graph.input):
        for entry in [entry for entry in listed if entry.name in private]:
            listed.remove(entry)
    return result


def _check_rest(before: onnx.ModelProto, restored: onnx.ModelProto) -> None:
    if before.SerializeToString(deterministic=True) == restored.SerializeToString(deterministic=True):
        return
    for one, other, where in ((before.graph, restored.graph, "graph"), (before, restored, "model")):
        for field in one.DESCRIPTOR.fields_by_name:
            if field != "graph" and getattr(one, field) != getattr(other, field):
                raise SurgeryError(f"surgery changed '{field}' of the {where} beyond the pruned slices")
    raise SurgeryError("surgery changed bytes beyond the pruned slices")
