"""Which graphs can be put into fewer bits, and the plain float32 graph that the converters are given."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from debride.errors import ModelError
from debride.graph.read import Model, plain
from debride.graph.wire import pieces_of, size_of

_LARGEST = 2**31 - 1
_QUANTISED = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul"),
        *("ConvInteger", "MatMulInteger", "MatMulNBits", "QGemm", "QAttention", "DynamicQuantizeMatMul"),
    )
)
_OTHERS = {
    onnx.TensorProto.FLOAT16: "half",
    onnx.TensorProto.BFLOAT16: "half",
    onnx.TensorProto.DOUBLE: "double",
}
"""Floats that the converters make nothing of."""


def check_size(model: Model) -> None:
    """Raises `ModelError` where `model` is beyond 2 GiB: onnxruntime's converters hand on one protobuf."""
    if size_of(pieces_of(model.proto, model.proto.graph)) > _LARGEST:
        raise ModelError(
            f"{model.path}: larger than 2 GiB with its weights, more than can be exported; deploy the ONNX file"
        )


def float_graph(model: Model, target: str) -> onnx.ModelProto:
    """A copy of `model` in float32, its functions inlined and every node named, ready to be put into fewer bits.

    Raises `ModelError` where it is quantised already, or holds floats that are no float32.
    """
    proto = plain(model.proto)
    quantised = next((node for node in _nodes(proto.graph) if _is_quantised(node)), None)
    if quantised is not None:
        raise ModelError(
            f"{model.path}: node '{quantised.name}' is a {quantised.op_type}, so the model is quantised already and "
            f"{target} would round it a second time; export the float model, or take --target ort"
        )
    types = [(tensor.name, tensor.data_type) for tensor in proto.graph.initializer]
    types += [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.input]
    other = next((pair for pair in types if pair[1] in _OTHERS), None)
    if other is not None:
        raise ModelError(
            f"{model.path}: '{other[0]}' is in {_OTHERS[other[1]]} precision, and only float32 is put into fewer bits; "
            "export the float32 model, or take --target ort"
        )
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    # A weight that is listed as an input may be overridden, and then neither is folded nor put into fewer bits.
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, 4)
    return proto


def _is_quantised(node: onnx.NodeProto) -> bool:
    return node.op_type in _QUANTISED or (node.domain == "com.microsoft" and node.op_type.startswith("QLinear"))


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
