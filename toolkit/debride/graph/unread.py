"""Which tensors the nodes of a protobuf read, and nodes that nobody reads any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx


def graphs_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """The graphs that `nodes` carry, not those within these."""
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def reads_of(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    """Every tensor that `nodes` read, within their graphs too."""
    for node in nodes:
        yield from node.input
        for inner in graphs_of([node]):
            yield from reads_of(inner.node)
            yield from (value.name for value in inner.output)


def set_nodes(proto: onnx.ModelProto, nodes: list[onnx.NodeProto], loose: Iterable[str]) -> None:
    """Make `nodes` (copies: the former ones are deleted) those of the main graph of `proto`, in place.

    Left out are nodes, and initializers that are no inputs, that nobody reads, as far as `loose` tensors lead to them.
    """
    reads = Counter(reads_of(nodes))
    reads.update(value.name for value in proto.graph.output)
    makers = {output: index for index, node in enumerate(nodes) for output in node.output if output}
    gone: set[int] = set()
    unread: set[str] = set()
    todo = list(loose)
    while todo:
        name = todo.pop()
        if reads[name]:
            continue
        unread.add(name)
        maker = makers.get(name)
        if maker is not None and maker not in gone and not any(reads[o] for o in nodes[maker].output if o):
            gone.add(maker)
            lost = list(reads_of([nodes[maker]]))
            reads.subtract(lost)
            todo.extend(lost)
    stored, listed = proto.graph.initializer, {value.name for value in proto.graph.input}
    for index in reversed([i for i, tensor in enumerate(stored) if tensor.name in unread - listed]):
        del stored[index]
    del proto.graph.node[:]
    proto.graph.node.extend(node for index, node in enumerate(nodes) if index not in gone)
