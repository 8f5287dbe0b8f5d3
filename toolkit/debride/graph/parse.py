"""An ONNX protobuf -> the frozen `Graph` that the proxy and the analyses read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.defs
from onnx import helper, numpy_helper

from debride.errors import ModelError
from debride.graph.arrays import Arrays
from debride.graph.hollow import constant_tensor
from debride.graph.ir import Graph, Node, Value
from debride.types import frozen_array

_CONSTANT_VALUES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def opset_of(proto: onnx.ModelProto, domain: str = "") -> int:
    """The version of operator set `domain` that `proto` imports; 0 if it does not ("ai.onnx" means "")."""
    return max((o.version for o in proto.opset_import if _plain(o.domain) == domain), default=0)


def node_names(nodes: Iterable[onnx.NodeProto]) -> list[str]:
    """One unique name per node, in order: its own where nobody before has it, else made from its first output.

    ONNX lets names be missing or repeated; outputs are unique, so these names are the same on every reading.
    """
    names: list[str] = []
    taken: set[str] = set()
    for node in nodes:
        name = node.name
        while not name or name in taken:
            name = f"{name or node.op_type}:{next((o for o in node.output if o), 'unnamed')}"
        taken.add(name)
        names.append(name)
    return names


def parse(proto: onnx.ModelProto, data: Mapping[str, onnx.TensorProto] | None = None) -> Graph:
    """The main graph of `proto`; Constant nodes become constants, a subgraph stays an opaque attribute value.

    Constants named in `data` are read from there: `proto` may be hollow.

    `since_version` of an operator that onnx does not know is the version of its imported operator set.

    Raises:
        ModelError: nodes out of topological order, a tensor made twice, a sparse initializer, or an input or output
            that is no tensor.
    """
    graph = proto.graph
    if graph.sparse_initializer:
        name = graph.sparse_initializer[0].values.name
        raise ModelError(f"initializer '{name}' is sparse; export the model with dense weights")
    data = data or {}
    constants = Arrays()
    for tensor in graph.initializer:
        constants.put(tensor.name, data.get(tensor.name, tensor))
    inputs = tuple(_value(v) for v in graph.input if v.name not in constants)
    known = {"", *constants, *(v.name for v in inputs)}
    opsets = {_plain(o.domain): o.version for o in proto.opset_import}
    nodes: list[Node] = []
    for raw, name in zip(graph.node, node_names(graph.node), strict=True):
        _check_order(raw, name, known)
        known.update(raw.output)
        constant = _constant(raw)
        if constant is not None:
            constants.put(raw.output[0], data.get(raw.output[0], constant))
        else:
            nodes.append(_node(raw, name, opsets.get(_plain(raw.domain), 0)))
    outputs = tuple(_value(v) for v in graph.output)
    for value in outputs:
        if value.name not in known:
            raise ModelError(f"nothing makes the output '{value.name}'; export the model again")
    return Graph(nodes=tuple(nodes), constants=constants, inputs=inputs, outputs=outputs, opset=opset_of(proto))


def _plain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _check_order(raw: onnx.NodeProto, name: str, known: set[str]) -> None:
    missing = [tensor for tensor in raw.input if tensor not in known]
    if missing:
        raise ModelError(f"node '{name}' ({raw.op_type}) reads '{missing[0]}' before it is made; sort the graph")
    twice = [tensor for tensor in raw.output if tensor and tensor in known]
    if twice:
        raise ModelError(f"node '{name}' ({raw.op_type}) makes '{twice[0]}' a second time; export the model again")


def _node(raw: onnx.NodeProto, name: str, opset: int) -> Node:
    return Node(
        op=raw.op_type,
        domain=_plain(raw.domain),
        name=name,
        inputs=tuple(raw.input),
        outputs=tuple(raw.output),
        attributes={a.name: _attribute(a) for a in raw.attribute},
        since_version=_since(raw.op_type, opset, _plain(raw.domain)),
    )


def _since(op: str, opset: int, domain: str) -> int:
    try:
        return int(onnx.defs.get_schema(op, opset, domain).since_version)
    except onnx.defs.SchemaError:
        return opset


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, onnx.TensorProto):
        return frozen_array(numpy_helper.to_array(value))
    if isinstance(value, onnx.GraphProto):
        return value
    if isinstance(value, int | float):
        return value
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value]


def _constant(raw: onnx.NodeProto) -> onnx.TensorProto | npt.NDArray[Any] | None:
    """The value of a Constant node; None for other nodes and for strings and sparse values."""
    if raw.op_type != "Constant" or _plain(raw.domain) or len(raw.attribute) != 1:
        return None
    attribute = raw.attribute[0]
    if attribute.name == "value":
        return constant_tensor(raw)
    if attribute.name in _CONSTANT_VALUES:
        return np.asarray(helper.get_attribute_value(attribute), _CONSTANT_VALUES[attribute.name])
    return None


def _value(value: onnx.ValueInfoProto) -> Value:
    if not value.type.HasField("tensor_type"):
        raise ModelError(f"'{value.name}' is an input or output that is no tensor; export a plain classifier")
    kind = value.type.tensor_type
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type))
    except (KeyError, TypeError) as error:
        raise ModelError(f"'{value.name}' has no element type; export the model again") from error
    shape = None
    if kind.HasField("shape"):
        # Old exporters write 0 or -1 for a dimension that they do not know.
        shape = tuple(d.dim_value if d.dim_value > 0 else None for d in kind.shape.dim)
    return Value(name=value.name, shape=shape, dtype=dtype)
