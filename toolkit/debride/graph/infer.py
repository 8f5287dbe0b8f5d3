"""Element types and shapes of the tensors of a protobuf, as far as ONNX shape inference finds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from debride.graph.hollow import constant_tensor, hollow, is_large

_SMALL = 4096
"""Elements from which on a computed constant is none of a shape."""


def value_infos(proto: onnx.ModelProto) -> Mapping[str, onnx.ValueInfoProto]:
    """Type and shape by tensor name: inputs, outputs, initializers and whatever inference adds.

    Tensors that inference does not reach are left out; where it gives up on the whole graph, what the file says
    remains.
    """
    plain = _plain_constants(proto)
    try:
        graph = onnx.shape_inference.infer_shapes(plain, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = proto.graph
    infos = {
        t.name: onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in plain.graph.initializer
    }
    infos.update((value.name, value) for value in (*graph.value_info, *graph.input, *graph.output))
    return infos


def folded_infos(proto: onnx.ModelProto) -> tuple[Mapping[str, onnx.ValueInfoProto], dict[str, np.ndarray]]:
    """As `value_infos`, of a graph of fixed shapes; and the integers that follow from these, by tensor name."""
    known: dict[str, np.ndarray] = {}
    copy = hollow(proto).proto
    while True:
        infos = value_infos(copy)
        found = _computed(copy, infos)
        if not found:
            return infos, known
        known.update((name, numpy_helper.to_array(tensor)) for name, tensor in found.items())
        # As constants in place of their nodes; the names stay.
        kept = [node for node in copy.graph.node if not found.keys() & set(node.output)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del copy.graph.node[:]
        copy.graph.node.extend(copies)
        copy.graph.initializer.extend(found.values())


def _is_number(tensor: onnx.TensorProto) -> bool:
    integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return integer and not is_large(tensor)


def _computed(proto: onnx.ModelProto, infos: Mapping[str, onnx.ValueInfoProto]) -> dict[str, onnx.TensorProto]:
    """The integers that follow from known shapes and constants."""
    constants = {t.name: t for t in proto.graph.initializer if _is_number(t)}
    for node in proto.graph.node:
        value = constant_tensor(node)
        if value is not None and _is_number(value):
            constants[node.output[0]] = value
    found: dict[str, onnx.TensorProto] = {}
    for node in proto.graph.node:
        shape = shape_of(infos.get(node.input[0])) if node.op_type == "Shape" else None
        array: np.ndarray | None
        if shape and all(shape) and not node.attribute:
            array = np.asarray(shape, np.int64)
        elif node.input and all(i in constants for i in node.input if i):
            array = _evaluated(proto, node, constants)
        else:
            continue
        if array is not None and array.size <= _SMALL:
            found[node.output[0]] = constants[node.output[0]] = numpy_helper.from_array(array, node.output[0])
    return found


def _evaluated(
    proto: onnx.ModelProto, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]
) -> np.ndarray | None:
    """What `node` makes of `constants`, by ONNX's reference; None where that cannot tell."""
    if len(node.output) != 1 or node.domain:
        return None
    feeds = {name: numpy_helper.to_array(constants[name]) for name in node.input if name}
    ends = [
        onnx.helper.make_tensor_value_info(name, constants[name].data_type, list(constants[name].dims))
        for name in feeds
    ]
    output = onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)
    graph = onnx.helper.make_graph([node], "one", ends, [output])
    model = onnx.helper.make_model(graph, opset_imports=list(proto.opset_import))
    try:
        made: list[Any] = ReferenceEvaluator(model).run(None, feeds)  # type: ignore[assignment]
        return np.asarray(made[0])
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AttributeError):
        return None  # a graph of a file that the reference does not take: its shapes stay unknown


def inferred(proto: onnx.ModelProto) -> Mapping[str, onnx.ValueInfoProto]:
    """Type and shape by tensor name, of a graph that must not contradict itself.

    Raises:
        InferenceError: it does.
    """
    graph = onnx.shape_inference.infer_shapes(_plain_constants(proto), strict_mode=True, data_prop=True).graph
    return {value.name: value for value in (*graph.value_info, *graph.output)}


def _plain_constants(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A hollow copy of `proto` with Constant nodes, and shapes that pass an Identity, as initializers.

    Before opset 9 inference refuses a Constant of integers, and it does not follow a Reshape's target through Identity.
    """
    plain = hollow(proto).proto
    plain.ir_version = max(proto.ir_version, 4)  # until then an initializer had to be an input too
    shapes = {t.name: t for t in plain.graph.initializer if t.data_type == onnx.TensorProto.INT64}
    for node in list(plain.graph.node):
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
        elif node.op_type == "Identity" and node.input[0] in shapes:
            tensor = shapes[node.input[0]]
        else:
            continue
        added = plain.graph.initializer.add()
        added.CopyFrom(tensor)
        added.name = node.output[0]
        if added.data_type == onnx.TensorProto.INT64:
            shapes[added.name] = added
        plain.graph.node.remove(node)
    return plain


def shape_of(value: onnx.ValueInfoProto | None) -> list[int] | None:
    """The dimensions of `value`, 0 for a symbolic one; None where the rank is unknown."""
    if value is None or not value.type.tensor_type.HasField("shape"):
        return None
    return [max(d.dim_value, 0) for d in value.type.tensor_type.shape.dim]
