"""Whole numbers that follow from shapes alone, made constants: no count of channels is then computed from channels."""

from __future__ import annotations

from dataclasses import replace

import onnx

from debride.graph.batch import add_initializer
from debride.graph.ir import Graph
from debride.graph.parse import node_names
from debride.slimming.observe import Observed


def folded(proto: onnx.ModelProto, graph: Graph, observed: Observed) -> tuple[onnx.ModelProto, Observed]:
    """A copy of `proto` (parsed: `graph`) in which numbers that the batch does not change are initializers.

    `observed` comes back with these initializers in it. Nothing is folded where the graph takes images of many sizes.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if observed.flexible:
        return copy, observed
    numbers = set(observed.values)
    kept = [node for node in graph.nodes if not all(t in numbers for t in node.outputs if t)]
    read = {tensor for node in kept for tensor in node.inputs} & numbers - set(graph.constants)
    read -= {value.name for value in graph.outputs}
    names = {tensor: add_initializer(copy, f"{tensor}.folded", observed.values[tensor]) for tensor in sorted(read)}
    by_name = dict(zip(node_names(copy.graph.node), copy.graph.node, strict=True))
    for node in kept:
        for position, tensor in enumerate(node.inputs):
            if tensor in names:
                by_name[node.name].input[position] = names[tensor]
    values = {names[tensor]: observed.values[tensor] for tensor in names}
    seen = replace(
        observed,
        shapes={**observed.shapes, **{name: value.shape for name, value in values.items()}},
        varying={**observed.varying, **dict.fromkeys(values, frozenset())},
        values={**observed.values, **values},
    )
    return copy, seen
