"""Players: one output channel of one linear layer is one group of weight slices that go together.

A channel is zero only if everything that makes it is: the layer's weight and bias, and the scale and shift of the
BatchNormalization (or the constant Mul and Add that some exporters write in its place) that alone reads it.
"""

from __future__ import annotations

from collections.abc import Mapping

from debride.graph.ir import Graph, Node
from debride.graph.layers import Layer, Unfit, extended, layer_of
from debride.graph.walk import Index
from debride.types import ChannelGroup, Refused, Slice

_LAYERS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
_QUANTISED = frozenset(("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"))


def find_groups(
    graph: Graph, scores: str, ranks: Mapping[str, int] | None = None
) -> tuple[tuple[ChannelGroup, ...], tuple[Refused, ...]]:
    """All players of `graph` on the way to the tensor `scores`, in topological order, and the layers that are none.

    A layer is a Conv, ConvTranspose, Gemm, a MatMul with a constant right operand, or an Einsum with a constant one,
    whose channels are then the weight's own letter, or the first of them (the heads). Those that make the class scores
    themselves (no layer comes after them) are refused, and those whose channels cannot be zeroed exactly; each
    refusal names the layer and says why. `ChannelGroup.axis` counts from the front; -1 where neither
    the operators nor `ranks` tell the rank.
    """
    index = Index(graph, ranks)
    on_the_way = index.ancestors([scores])
    last = index.ancestors([scores], lambda node: _is_layer(node, index))
    groups: list[ChannelGroup] = []
    refused: list[Refused] = []
    for node in graph.nodes:
        if not _is_layer(node, index):
            continue
        try:
            if node.name not in on_the_way:
                raise Unfit("not on the way to the class scores")
            if node.op in _QUANTISED:
                raise Unfit("its weight is quantised")
            if node.name in last:
                raise Unfit("makes the class scores")
            groups.extend(_groups(extended(layer_of(index, node), index)))
        except Unfit as unfit:
            refused.append(Refused(layer=node.name, channel=None, reason=str(unfit)))
    return tuple(groups), tuple(refused)


def _is_layer(node: Node, index: Index) -> bool:
    """Whether `node` mixes channels by weights; a MatMul of two activations (attention) does not."""
    if node.domain or node.op not in _LAYERS | _QUANTISED:
        return False
    if node.op == "Einsum":
        return sum(_from_constants(tensor, index) for tensor in node.inputs) == 1 and len(node.inputs) == 2
    return node.op != "MatMul" or index.producer(node.inputs[1]) is None or _from_constants(node.inputs[1], index)


def _from_constants(tensor: str, index: Index) -> bool:
    makers = index.ancestors([tensor]).values()
    inputs = {v.name for v in index.graph.inputs}
    return not inputs.intersection(i for node in makers for i in node.inputs)


def _groups(layer: Layer) -> list[ChannelGroup]:
    return [
        ChannelGroup(
            layer=layer.node.name,
            channel=channel,
            edge=layer.edge,
            axis=layer.axis,
            slices=tuple(
                Slice(node=part.node, position=part.position, axis=part.axis, indices=part.rows[channel])
                for part in layer.parts
            ),
        )
        for channel in range(layer.size)
    ]
