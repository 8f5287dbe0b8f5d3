"""Element types and shapes of the tensors of a protobuf, as far as ONNX shape inference finds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

from debride.graph.hollow import constant_tensor, hollow, is_large
from debride.graph.numbers import Known, computed, shape_numbers, whole

_SCALES = 64
"""Elements up to which floats count as numbers of a shape: scales of a Resize, bounds that a size is compared with."""
_PLAIN = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
_EVALUATIONS = 20_000
"""Nodes that are evaluated at most; the file is untrusted."""


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
    """As `value_infos`; and the numbers that follow from the shapes and from constants, by tensor name.

    Where dimensions are open, a number is there if it depends on others alone.
    """
    known: dict[str, np.ndarray] = {}
    copy, budget, told = hollow(proto).proto, _EVALUATIONS, set[str]()
    while True:
        infos = value_infos(copy)
        values, budget = _computed(copy, infos, budget)
        reshaped = [value for value in _reshaped(copy, infos, values) if value.name not in told]
        told.update(value.name for value in reshaped)
        copy.graph.value_info.extend(reshaped)
        found = {
            name: numpy_helper.from_array(np.array(value.array, order="C"), name)
            for name, value in values.items()
            if value.whole
        }
        if not found and not reshaped:
            return infos, known
        known.update((name, values[name].array) for name in found)
        # As constants in place of their nodes; the names stay.
        kept = [node for node in copy.graph.node if not found.keys() & set(node.output)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
        del copy.graph.node[:]
        copy.graph.node.extend(copies)
        copy.graph.initializer.extend(found.values())


def numbers_of(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The constants of the main graph that numbers of shapes are computed from, by the name of what they give."""
    found = {t.name: t for t in proto.graph.initializer if _is_number(t)}
    for node in proto.graph.node:
        value = constant_tensor(node) or _plain_value(node)
        if value is not None and _is_number(value):
            found[node.output[0]] = value
    return found


def _plain_value(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The numbers that a Constant node has as such, not as a tensor."""
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name not in _PLAIN:
        return None
    value = onnx.helper.get_attribute_value(node.attribute[0])
    return numpy_helper.from_array(np.asarray(value, _PLAIN[node.attribute[0].name]))


def _is_number(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return bool(prod(tensor.dims) <= _SCALES)
    integer = tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL)
    return integer and not is_large(tensor)


def _computed(
    proto: onnx.ModelProto, infos: Mapping[str, onnx.ValueInfoProto], budget: int
) -> tuple[dict[str, Known], int]:
    """What nodes make of known shapes and constants, and what is left of `budget` evaluations."""
    constants, found = numbers_of(proto), dict[str, Known]()
    for node in proto.graph.node:
        made: Known | None = None
        if node.op_type in ("Shape", "Size") and not node.domain:
            shape = shape_of(infos.get(node.input[0]))
            made = None if shape is None else shape_numbers(node, shape)
        elif node.input and all(i in found or i in constants for i in node.input if i):
            if not budget:
                break
            budget -= 1
            arrays = {i: whole(numpy_helper.to_array(constants[i])) for i in node.input if i and i not in found}
            made = computed(node, [arrays.get(i, found.get(i)) for i in node.input], proto.opset_import)
        if made is not None:
            found[node.output[0]] = made
    return found, budget


def _reshaped(
    proto: onnx.ModelProto, infos: Mapping[str, onnx.ValueInfoProto], values: Mapping[str, Known]
) -> Iterator[onnx.ValueInfoProto]:
    """The shapes that Reshapes give to targets of which only a part is known; inference finds none there."""
    for node in proto.graph.node:
        target = values.get(node.input[1]) if node.op_type == "Reshape" and len(node.input) == 2 else None
        data, made = infos.get(node.input[0]) if node.input else None, infos.get(node.output[0])
        if target is None or data is None or shape_of(made) is not None:
            continue
        entries = zip(target.array.reshape(-1).tolist(), target.known.reshape(-1).tolist(), strict=True)
        dims = [int(size) if known and size > 0 else None for size, known in entries]
        yield onnx.helper.make_tensor_value_info(node.output[0], data.type.tensor_type.elem_type, dims)


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
