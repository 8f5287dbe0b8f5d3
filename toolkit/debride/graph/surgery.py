"""Zeroing channel groups in the delivered protobuf; every other byte of it is carried over.

graphsurgeon edits the constants. It sees only the nodes that are touched, since its round trip drops metadata, doc
strings, unused initializers and types that numpy lacks; the edited constants then go into a copy of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_graphsurgeon as gs

from debride.graph.batch import add_initializer
from debride.graph.constants import Constants, Place, array_of, zeroed
from debride.graph.parse import node_names
from debride.graph.read import Model, inlined
from debride.graph.verify import check_written
from debride.graph.write import write_bytes, write_model
from debride.types import ChannelGroup

__all__ = ["check_written", "editable", "working_zero", "write_bytes", "write_model", "zero"]


def zero(model: Model, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    """The delivered model with all slices of `groups` zeroed (weight, bias, scale and shift); `model` is not changed.

    A constant that anybody else reads too (tied weights, a shared bias) is copied under a new name for the pruned
    layer alone. Where a layer lies in a local function, `editable` says which protobuf is edited instead.

    Raises:
        SurgeryError: a slice does not exist in the model, or is no constant.
    """
    return _zero(editable(model, groups), groups)


def working_zero(model: Model, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    """The same on the working copy (functions inlined, batch freed), for evaluating.

    Raises:
        SurgeryError: as `zero`.
    """
    return _zero(model.working, groups)


def editable(model: Model, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    """The protobuf that `zero` edits: the delivered one, or (a function holds a layer) that with functions inlined.

    A function may be called at many places, so zeroing a weight inside it would touch layers that nobody chose.
    """
    if not model.proto.functions:
        return model.proto
    outer = {name: list(node.output) for name, node in _named(model.proto)}
    inner = {name: list(node.output) for name, node in _named(model.working)}
    nodes = {piece.node for group in groups for piece in group.slices}
    return model.proto if all(outer.get(n) == inner.get(n) for n in nodes) else inlined(model.proto)


def _named(proto: onnx.ModelProto) -> list[tuple[str, onnx.NodeProto]]:
    return list(zip(node_names(proto.graph.node), proto.graph.node, strict=True))


def _zero(proto: onnx.ModelProto, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    constants = Constants(proto)
    cuts = constants.places(groups)
    edited = _edit(proto, constants, cuts)
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    stored = Constants(result)
    for place, tensor in edited.items():
        if constants.shared(place):
            name = f"{constants.name(place)}.pruned"
            result.graph.node[place[0]].input[place[1]] = add_initializer(result, name, array_of(tensor))
        else:
            target = stored.tensor(place)
            for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
                target.ClearField(field)
            target.raw_data = tensor.raw_data
    return result


def _edit(
    proto: onnx.ModelProto, constants: Constants, cuts: Mapping[Place, Sequence[tuple[int, Sequence[int]]]]
) -> dict[Place, onnx.TensorProto]:
    """The edited tensor for each place, by graphsurgeon on the touched nodes alone."""
    part = onnx.ModelProto(ir_version=proto.ir_version)
    part.opset_import.extend(proto.opset_import)
    for number, place in enumerate(cuts):
        node = part.graph.node.add(op_type="Identity", output=[f"edited{number}"])
        node.input.append(f"constant{number}")
        tensor = part.graph.initializer.add()
        tensor.CopyFrom(constants.tensor(place))
        tensor.name = f"constant{number}"
    graph = gs.import_onnx(part)
    for node, edits in zip(graph.nodes, cuts.values(), strict=True):
        node.inputs[0].values = zeroed(node.inputs[0].values, edits)
    exported = {t.name: t for t in gs.export_onnx(graph, do_type_check=False).graph.initializer}
    return {place: exported[f"constant{number}"] for number, place in enumerate(cuts)}
