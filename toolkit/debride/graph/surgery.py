"""Zeroing channel groups in the delivered protobuf; every other byte of it is carried over.

graphsurgeon edits the constants. It sees only those, since its round trip drops metadata, doc strings, unused
initializers and types that numpy lacks; their new data then go into a copy of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_graphsurgeon as gs
from onnx.helper import tensor_dtype_to_np_dtype
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from debride.graph.batch import add_initializer
from debride.graph.constants import Constants, array_of, zeroed_blocks
from debride.graph.folding import folded
from debride.graph.hollow import give, hollow
from debride.graph.parse import node_names
from debride.graph.read import Model, inlined, plain
from debride.graph.verify import check_written
from debride.graph.write import write_bytes, write_model
from debride.types import ChannelGroup

__all__ = ["check_written", "editable", "working_zero", "write_bytes", "write_model", "zero"]


def zero(model: Model, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    """The delivered model with all slices of `groups` zeroed (weight, bias, scale and shift); `model` is not changed.

    A constant that anybody else reads too (tied weights, a shared bias) is copied under a new name for the pruned
    layer alone. Where a layer lies in a local function or a branch, or its weight is computed, `editable` says which
    protobuf is edited instead.

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
    """The protobuf that `zero` edits: the delivered one, or that with as little written out as the layers need.

    A function may be called at many places, so zeroing a weight inside it would touch layers that nobody chose. A layer
    in a branch that is always taken is edited where the branch stands in place of its If, and a weight that is computed
    from constants where its value stands in place of the computation.
    """
    pieces = [piece for group in groups for piece in group.slices]
    nodes, working = {piece.node for piece in pieces}, model.rewritten or model.proto
    base, inner = model.proto, _ends(working, nodes)
    if _ends(base, nodes) != inner:
        base = inlined(model.proto)
    if _ends(base, nodes) != inner:
        base = plain(model.proto)
    names = dict(zip(node_names(base.graph.node), base.graph.node, strict=True))
    read = {names[p.node].input[p.position] for p in pieces if p.position < len(_inputs(names, p.node))}
    computed = read.intersection(tensor.name for tensor in working.graph.initializer) - Constants(base).stored.keys()
    return folded(base, computed) if computed else base


def _inputs(nodes: Mapping[str, onnx.NodeProto], name: str) -> Sequence[str]:
    return nodes[name].input if name in nodes else ()


def _ends(proto: onnx.ModelProto, names: set[str]) -> dict[str, list[str]]:
    """The outputs of the nodes of these names."""
    named = zip(node_names(proto.graph.node), proto.graph.node, strict=True)
    return {name: list(node.output) for name, node in named if name in names}


def _zero(proto: onnx.ModelProto, groups: Sequence[ChannelGroup]) -> onnx.ModelProto:
    constants = Constants(proto)
    cuts = constants.places(groups)
    # An edited tensor is copied without its data: what a protobuf once held, it does not give back.
    own = {constants.name(place) for place in cuts if not constants.shared(place)}
    copy = hollow(proto, also=own)
    result = copy.proto
    stored = Constants(result)
    # The largest first, while the copy is small: its data are held twice for a moment.
    for place in sorted(cuts, key=lambda place: -prod(constants.tensor(place).dims)):
        tensor = constants.tensor(place)
        if constants.shared(place):
            name = f"{constants.name(place)}.pruned"
            data = np.frombuffer(_edited(tensor, cuts[place]), tensor_dtype_to_np_dtype(tensor.data_type))
            array = data.reshape(tensor.dims)
            result.graph.node[place[0]].input[place[1]] = add_initializer(result, name, array)
        else:
            stored.tensor(place).raw_data = _edited(tensor, cuts[place])
    for name, stub, tensor in copy.held:
        if name not in own:
            give(stub, tensor)
    return result


def _edited(tensor: onnx.TensorProto, edits: Sequence[tuple[int, Sequence[int]]]) -> bytes:
    """The data of `tensor` with its slices zeroed."""
    return b"".join(_exported(block) for block in zeroed_blocks(array_of(tensor), edits))


def _exported(block: npt.NDArray[Any]) -> bytes:
    constant = gs.Constant("block", block)
    data: bytes = OnnxExporter.export_tensor_proto(constant).raw_data
    constant.values = np.empty(0)  # a tensor of graphsurgeon is a cycle: its data would stay for a while
    return data
