"""Freeing a fixed batch dimension, so that many images (and coalitions) go through in one run.

It cannot be proved from the graph that a model treats images independently. Whoever frees a batch compares one large
run with images run one by one, and reads the model with `free=False` if they differ.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from debride.graph.hollow import constant_tensor, is_large
from debride.graph.infer import shape_of, value_infos

BATCH = "batch"


def free_batch(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` whose image inputs (rank 4) and outputs have a symbolic first dimension.

    Constant Reshape targets that bake the batch size in let their leading dimension follow (-1), with the others as
    shape inference finds them. Nodes keep their names, order and outputs; a model without a fixed batch is copied
    unchanged.
    """
    free = onnx.ModelProto()
    free.CopyFrom(proto)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    images = [v for v in free.graph.input if v.name not in initializers and _fixed_batch(v)]
    if not images:
        return free
    size = images[0].type.tensor_type.shape.dim[0].dim_value
    targets = _reshape_targets(proto, {v.name for v in images})
    for index, target in targets.items():
        node = free.graph.node[index]
        node.input[1] = add_initializer(free, f"{node.input[1]}_freed", np.asarray(target, np.int64))
        for attribute in [a for a in node.attribute if a.name == "allowzero"]:
            node.attribute.remove(attribute)
    for value in (*images, *free.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == size:
            dims[0].dim_param = BATCH
    del free.graph.value_info[:]  # stale: it still says the fixed size
    return free


def add_initializer(proto: onnx.ModelProto, name: str, array: np.ndarray) -> str:
    """Add `array` to `proto` (in place) under a name like `name` that nobody has; returns that name."""
    taken = tensor_names(proto)
    base, number = name, 1
    while name in taken:
        number += 1
        name = f"{base}_{number}"
    tensor = numpy_helper.from_array(np.ascontiguousarray(array), name)
    proto.graph.initializer.append(tensor)
    if proto.ir_version < 4:  # until IR version 4 every initializer is an input too
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    return name


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    """Every tensor name of the main graph and its subgraphs."""
    names: set[str] = set()
    todo = [proto.graph]
    while todo:
        graph = todo.pop()
        names.update(v.name for v in (*graph.input, *graph.output, *graph.value_info, *graph.initializer))
        for node in graph.node:
            names.update((*node.input, *node.output))
            todo.extend(a.g for a in node.attribute if a.HasField("g"))
            todo.extend(g for a in node.attribute for g in a.graphs)
    return names


def _fixed_batch(value: onnx.ValueInfoProto) -> bool:
    dims = value.type.tensor_type.shape.dim
    return len(dims) == 4 and dims[0].dim_value > 0


def _reshape_targets(proto: onnx.ModelProto, images: set[str]) -> dict[int, list[int]]:
    """New targets, by node index, of the Reshapes on the images' way that name their leading dimension."""
    constants = _constants(proto)
    infos = value_infos(proto)
    flowing = set(images)
    targets: dict[int, list[int]] = {}
    for index, node in enumerate(proto.graph.node):
        if not flowing.intersection(node.input):
            continue
        flowing.update(node.output)
        if node.op_type != "Reshape" or node.input[0] not in flowing or node.input[1] not in constants:
            continue
        target = constants[node.input[1]].tolist()
        if not target or target[0] in (0, -1):
            continue
        full = shape_of(infos.get(node.output[0])) if -1 in target or 0 in target else target
        if full is not None and all(dim > 0 for dim in full):
            targets[index] = [-1, *full[1:]]
        elif -1 in target:  # the remainder is taken: let the leading dimension be copied from the input
            targets[index] = [0, *target[1:]]
    return targets


def _constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    found = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer if _is_shape(t)}
    for node in proto.graph.node:
        value = constant_tensor(node)
        if node.op_type == "Identity" and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
        elif value is not None and _is_shape(value):
            found[node.output[0]] = numpy_helper.to_array(value)
        elif node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value_ints":
            found[node.output[0]] = np.asarray(node.attribute[0].ints)
    return found


def _is_shape(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_type == onnx.TensorProto.INT64 and not is_large(tensor))
