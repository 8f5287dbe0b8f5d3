"""The scores of a quantised graph, left in float: eight bits make ties, and probabilities that do not sum to 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx

_THROUGH = frozenset(
    (
        *("Softmax", "LogSoftmax", "Sigmoid", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "Cast"),
        *("Add", "Sub", "Mul", "Div"),
    )
)
"""Operators between the last product of weights and the scores."""


def float_scores(proto: onnx.ModelProto, output: str) -> onnx.ModelProto:
    """`proto`, changed in place: what leads from the last product to `output` is no longer rounded to eight bits."""
    tensor: str | None = output
    while tensor is not None:
        makers = {name: node for node in proto.graph.node for name in node.output}
        node = makers.get(tensor)
        if node is None:
            break
        if node.op_type == "DequantizeLinear":
            tensor = _bypassed(proto.graph, makers, node)
        elif node.op_type in _THROUGH:
            varying = [name for name in node.input if name and not _is_constant(name, makers)]
            tensor = varying[0] if len(varying) == 1 else None
        else:
            break
    return proto


def _bypassed(graph: onnx.GraphProto, makers: Mapping[str, onnx.NodeProto], last: onnx.NodeProto) -> str | None:
    """Takes `last` and the QuantizeLinear before it out of `graph`; the tensor now read, None where they must stay."""
    first = makers.get(last.input[0])
    if first is None or first.op_type != "QuantizeLinear" or len(_readers(graph, first.output[0])) > 1:
        return None
    before, after = str(first.input[0]), str(last.output[0])
    maker = makers.get(before)
    if maker is None or any(value.name == before for value in graph.output):
        return None
    # Under the name of what comes after: that may be the graph's output.
    for node in graph.node:
        for ends in (node.input, node.output):
            for place, name in enumerate(ends):
                if name == before:
                    ends[place] = after
    graph.node.remove(first)
    graph.node.remove(last)
    kept = [info for info in graph.value_info if info.name not in (before, first.output[0])]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return after


def _readers(graph: onnx.GraphProto, tensor: str) -> list[onnx.NodeProto]:
    found = [node for node in graph.node if tensor in node.input]
    return found + [node for node in graph.node if tensor in _inner_reads(node)]


def _inner_reads(node: onnx.NodeProto) -> Iterator[str]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from inner.input
                yield from _inner_reads(inner)


def _is_constant(name: str, makers: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether `name` is an initializer, or one in eight bits: something that no input of the graph changes."""
    node = makers.get(name)
    return node is None or (node.op_type == "DequantizeLinear" and node.input[0] not in makers)
