"""Masks as a graph input: every player's channel is multiplied by its column of one tensor, where it is made.

One row of the mask is one coalition, so one large batch holds many (images, coalition) pairs, on any provider.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from debride.errors import SurgeryError
from debride.graph.batch import add_initializer
from debride.graph.infer import shape_of
from debride.graph.seen import Seen, infos_of
from debride.types import ChannelGroup

MASK = "debride.mask"
_UNGATED = ".ungated"


def gate(proto: onnx.ModelProto, groups: Sequence[ChannelGroup], known: Seen | None = None) -> onnx.ModelProto:
    """A copy of `proto` with the input `MASK`, float32 (batch or 1, P): column p multiplies the channel of groups[p].

    A row of ones changes nothing; a zero equals zeroing the group's slices. Everybody who reads the edge reads the
    masked tensor, the graph's outputs included. Channels of an edge that are no players stay as they are. `known` are
    shapes where inference finds none.

    Raises:
        SurgeryError: no groups, an edge that no node of the main graph makes, or one of unknown rank.
    """
    if not groups:
        raise SurgeryError("no players to gate; find channel groups first")
    gated = onnx.ModelProto()
    gated.CopyFrom(proto)
    infos = infos_of(proto, known)
    players = _by_edge(groups)
    edges = {edge: _Edge(edge, infos.get(edge), groups[columns[0]].axis) for edge, columns in players.items()}
    source, ones = _mask_source(gated, groups, players, edges)
    nodes = list(gated.graph.node)
    del gated.graph.node[:]
    gated.graph.node.extend(ones)
    for node in nodes:
        mine = [(i, name) for i, name in enumerate(node.output) if name in edges]
        for i, name in mine:
            node.output[i] = name + _UNGATED
        gated.graph.node.append(node)
        for _, name in mine:
            gated.graph.node.extend(_gate_nodes(gated, edges.pop(name), groups, players[name], source))
    if edges:
        raise SurgeryError(f"no node makes the edge '{next(iter(edges))}'; find the groups on this very graph")
    gated.graph.input.append(helper.make_tensor_value_info(MASK, TensorProto.FLOAT, ["debride.rows", len(groups)]))
    return gated


def ungated(known: Seen, edges: Iterable[str]) -> Seen:
    """What is `known` of `edges`, for the tensors in a gated graph that these are made of."""
    found = {}
    for edge in edges:
        if edge in known:
            value = found[edge + _UNGATED] = onnx.ValueInfoProto()
            value.CopyFrom(known[edge])
            value.name = edge + _UNGATED
    return found


class _Edge:
    """A tensor to be gated: its rank, channel axis and count, element type."""

    def __init__(self, name: str, info: onnx.ValueInfoProto | None, axis: int) -> None:
        shape = shape_of(info)
        if shape is None or info is None:
            raise SurgeryError(f"the rank of '{name}' is unknown, so no mask can be laid on it; leave its layer out")
        self.name, self.rank, self.axis = name, len(shape), axis % len(shape)
        self.size, self.elem_type = shape[self.axis], info.type.tensor_type.elem_type
        if not self.size or not self.axis:
            raise SurgeryError(f"the channels of '{name}' cannot be counted; leave its layer out")


def _by_edge(groups: Sequence[ChannelGroup]) -> dict[str, list[int]]:
    players: dict[str, list[int]] = {}
    for column, group in enumerate(groups):
        players.setdefault(group.edge, []).append(column)
    return players


def _mask_source(
    gated: onnx.ModelProto,
    groups: Sequence[ChannelGroup],
    players: Mapping[str, list[int]],
    edges: Mapping[str, _Edge],
) -> tuple[str, list[onnx.NodeProto]]:
    """The tensor that columns are taken from: the mask, with a last column of ones if some channel is no player."""
    if all(len({groups[p].channel for p in players[name]}) == edge.size for name, edge in edges.items()):
        return MASK, []
    first = add_initializer(gated, f"{MASK}.first", np.zeros(1, np.int64))
    zero = add_initializer(gated, f"{MASK}.zero", np.zeros(1, np.float32))
    one = add_initializer(gated, f"{MASK}.one", np.ones(1, np.float32))
    names = [f"{MASK}.column", f"{MASK}.zeros", f"{MASK}.ones", f"{MASK}.all"]
    return names[3], [
        helper.make_node("Gather", [MASK, first], [names[0]], name=names[0], axis=1),
        helper.make_node("Mul", [names[0], zero], [names[1]], name=names[1]),
        helper.make_node("Add", [names[1], one], [names[2]], name=names[2]),
        helper.make_node("Concat", [MASK, names[2]], [names[3]], name=names[3], axis=1),
    ]


def _gate_nodes(
    gated: onnx.ModelProto, edge: _Edge, groups: Sequence[ChannelGroup], columns: Sequence[int], source: str
) -> list[onnx.NodeProto]:
    """Take the edge's columns in channel order, lay them along its channel axis, and multiply."""
    column_of = np.full(edge.size, len(groups), np.int64)
    column_of[[groups[p].channel for p in columns]] = columns
    indices = add_initializer(gated, f"{edge.name}.columns", column_of)
    target = [0] + [edge.size if axis == edge.axis else 1 for axis in range(1, edge.rank)]
    shape = add_initializer(gated, f"{edge.name}.mask_shape", np.asarray(target, np.int64))
    taken, mask = f"{edge.name}.mask_columns", f"{edge.name}.mask"
    nodes = [
        helper.make_node("Gather", [source, indices], [taken], name=taken, axis=1),
        helper.make_node("Reshape", [taken, shape], [mask], name=mask),
    ]
    if edge.elem_type != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [mask], [f"{mask}_cast"], name=f"{mask}_cast", to=edge.elem_type))
        mask = f"{mask}_cast"
    gating = helper.make_node("Mul", [edge.name + _UNGATED, mask], [edge.name], name=f"debride.gate:{edge.name}")
    return [*nodes, gating]
