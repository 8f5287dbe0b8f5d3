"""Cutting a graph in two before the gated tensors, so that what no mask changes is computed once.

A cut inside a residual block has several live tensors; the frontier is all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping

import onnx
from onnx import TensorProto

from debride.errors import SurgeryError
from debride.graph.batch import BATCH
from debride.graph.gates import MASK
from debride.graph.seen import Seen, infos_of
from debride.graph.tail import LinearTail, linear_tail

__all__ = ["LinearTail", "linear_tail", "split_at"]

_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)


def split_at(
    proto: onnx.ModelProto, edges: Collection[str], scores: str | None = None, known: Seen | None = None
) -> tuple[onnx.ModelProto, onnx.ModelProto, tuple[str, ...]]:
    """`(prefix, suffix, frontier)`: prefix maps the inputs to the frontier, suffix maps the frontier to `scores`.

    The suffix holds the nodes that make `edges` and all that depends on them, or on the gates' mask where `proto` is
    gated (split a gated graph by its edges: the layers before the gates then stay in the prefix). `scores` is any
    float tensor, by default the first output. Values that follow from constants or from shapes alone are computed
    where they are read, so every frontier tensor is a float with the batch first; an input may be one. `known` are
    shapes where inference finds none.

    Raises:
        SurgeryError: `scores` does not depend on `edges`, or a frontier tensor's type cannot be inferred.
    """
    scores = scores or proto.graph.output[0].name
    infos = infos_of(proto, known)
    late = _dependants(proto.graph, {*edges, MASK})
    if scores not in late:
        raise SurgeryError(f"'{scores}' depends on none of the gated tensors; nothing is to be cut")
    light = _light(proto.graph, infos)
    suffix_nodes, frontier = _needed(proto.graph, [scores], lambda tensor: tensor not in late and tensor not in light)
    prefix_nodes, _ = _needed(proto.graph, frontier, lambda tensor: False)
    live = tuple(_batched(infos, name) for name in frontier)
    inputs = {v.name: v for v in proto.graph.input}
    prefix = _part(proto, prefix_nodes, [v for v in inputs.values() if v.name != MASK], live)
    mask = [inputs[MASK]] if MASK in inputs else []
    suffix = _part(proto, suffix_nodes, [*live, *mask], [_batched(infos, scores)])
    return prefix, suffix, tuple(frontier)


def _dependants(graph: onnx.GraphProto, tensors: set[str]) -> set[str]:
    """`tensors`, whatever else the nodes make that make them, and everything computed from these."""
    late = set(tensors)
    for node in graph.node:
        if late.intersection(node.output) or late.intersection(_reads(node)):
            late.update(o for o in node.output if o)
    return late


def _light(graph: onnx.GraphProto, infos: Mapping[str, onnx.ValueInfoProto]) -> set[str]:
    """Tensors that depend on no input, or are integers or truth values: cheap, and without a batch to repeat."""
    varying = {v.name for v in graph.input} - {t.name for t in graph.initializer}
    light: set[str] = set()
    for node in graph.node:
        constant = not varying.intersection(_reads(node))
        for output in node.output:
            elem_type = infos[output].type.tensor_type.elem_type if output in infos else TensorProto.UNDEFINED
            if constant or elem_type not in (TensorProto.UNDEFINED, *_FLOATS):
                light.add(output)
            if not constant:
                varying.add(output)
    return light


def _reads(node: onnx.NodeProto) -> list[str]:
    """What `node` reads, inside its subgraphs too (names made there do no harm)."""
    reads = [tensor for tensor in node.input if tensor]
    for attribute in node.attribute:
        graphs = [attribute.g] if attribute.HasField("g") else []
        for graph in (*graphs, *attribute.graphs):
            reads.extend(tensor for inner in graph.node for tensor in _reads(inner))
            reads.extend(v.name for v in graph.output)
    return reads


def _needed(
    graph: onnx.GraphProto, wanted: Iterable[str], given: Callable[[str], bool]
) -> tuple[list[onnx.NodeProto], list[str]]:
    """Nodes, in order, that compute `wanted` from tensors for which `given` holds; and those tensors, in order."""
    constants = {t.name for t in graph.initializer}
    need = set(wanted)
    nodes: list[onnx.NodeProto] = []
    taken: set[str] = set()
    for node in reversed(graph.node):
        outputs = {o for o in node.output if o in need}
        if not outputs:
            continue
        if any(given(o) for o in outputs):
            taken.update(outputs)
            continue
        nodes.append(node)
        need.update(_reads(node))
    used = [o for node in graph.node for o in node.output if o in taken]
    free = [v.name for v in graph.input if v.name in need and v.name not in constants and given(v.name)]
    return nodes[::-1], [*free, *used]


def _batched(infos: Mapping[str, onnx.ValueInfoProto], name: str) -> onnx.ValueInfoProto:
    """The type of `name` with a symbolic first dimension."""
    known = infos.get(name)
    if known is None or not known.type.tensor_type.HasField("shape") or not known.type.tensor_type.elem_type:
        raise SurgeryError(f"the type of '{name}' cannot be inferred, so the graph is not cut there; run it whole")
    value = onnx.ValueInfoProto()
    value.CopyFrom(known)
    if value.type.tensor_type.shape.dim:
        value.type.tensor_type.shape.dim[0].dim_param = BATCH
    return value


def _part(
    proto: onnx.ModelProto,
    nodes: Iterable[onnx.NodeProto],
    inputs: Iterable[onnx.ValueInfoProto],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """A model of `nodes` alone, with the initializers that they read."""
    part = onnx.ModelProto(ir_version=max(proto.ir_version, 4), producer_name="debride")
    part.opset_import.extend(proto.opset_import)
    part.graph.name = proto.graph.name or "part"
    part.graph.node.extend(nodes)
    read = {tensor for node in part.graph.node for tensor in _reads(node)}
    part.graph.initializer.extend(t for t in proto.graph.initializer if t.name in read)
    constants = {t.name for t in proto.graph.initializer}
    part.graph.input.extend(v for v in inputs if v.name not in constants)
    part.graph.output.extend(outputs)
    return part
