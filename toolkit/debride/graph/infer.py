"""Element types and shapes of the tensors of a protobuf, as far as ONNX shape inference finds them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx.shape_inference

from debride.graph.hollow import hollow


def value_infos(proto: onnx.ModelProto) -> Mapping[str, onnx.ValueInfoProto]:
    """Type and shape by tensor name: inputs, outputs, initializers and whatever inference adds.

    Tensors that inference does not reach are left out; where it gives up on the whole graph, what the file says
    remains.
    """
    try:
        graph = onnx.shape_inference.infer_shapes(_plain_constants(proto), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        graph = proto.graph
    infos = {
        t.name: onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in proto.graph.initializer
    }
    infos.update((value.name, value) for value in (*graph.value_info, *graph.input, *graph.output))
    return infos


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
