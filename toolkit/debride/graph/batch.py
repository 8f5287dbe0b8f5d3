"""Freeing a fixed batch dimension, so that many images (and coalitions) go through in one run.

It cannot be proved from the graph that a model treats images independently. Whoever frees a batch compares one large
run with images run one by one, and reads the model with `free=False` if they differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import numpy_helper

from debride.graph.batch_axes import Batch, Unfree
from debride.graph.hollow import constant_tensor, is_large
from debride.graph.infer import folded_infos, inferred, shape_of
from debride.graph.parse import opset_of

BATCH = "batch"
_EXPAND = 8


def free_batch(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, str]:
    """A copy of `proto` whose image inputs (rank 4) and outputs have a symbolic first dimension, and "".

    Constant shapes that bake the batch size in let that dimension follow, and constants that are joined to images are
    repeated for each. Nodes keep their names, order and outputs, new ones come between. A model without a fixed batch
    is copied unchanged; so is one whose batch cannot be freed, and the second value says why.
    """
    free = onnx.ModelProto()
    free.CopyFrom(proto)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    images = [v.name for v in free.graph.input if v.name not in initializers and _fixed_batch(v)]
    if not images:
        return free, ""
    infos, values = folded_infos(proto)
    size = (shape_of(infos[images[0]]) or [0])[0]
    batch = Batch(
        size=size,
        opset=opset_of(proto),
        axes=dict.fromkeys(images, 0),
        shapes={name: shape_of(value) for name, value in infos.items()},
        constants=_constants(proto),
        values=values,
    )
    try:
        for index, node in enumerate(proto.graph.node):
            batch.visit(index, node)
        _rewrite(free, batch, images[0])
        _rename(free, batch, images)
        _check(free, images, size)
    except (Unfree, onnx.shape_inference.InferenceError) as error:
        free.CopyFrom(proto)
        return free, str(error) if isinstance(error, Unfree) else "shapes contradict each other at another batch size"
    return free, ""


def _rename(free: onnx.ModelProto, batch: Batch, images: list[str]) -> None:
    inside = [value.name for value in free.graph.output if batch.axes.get(value.name) != 0 or value.name in batch.outer]
    if inside and len(inside) == len(free.graph.output):
        raise Unfree(f"output '{inside[0]}' has its batch inside")
    for value in (*free.graph.input, *free.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and (value.name in images or (dims[0].dim_value == batch.size and batch.axes.get(value.name) == 0)):
            dims[0].dim_param = BATCH
    del free.graph.value_info[:]  # stale: it still says the fixed size


def _rewrite(free: onnx.ModelProto, batch: Batch, image: str) -> None:
    """Put the new constants in place, and the nodes that repeat what has no batch."""
    opset, before = opset_of(free), dict[int, list[onnx.NodeProto]]()
    for (index, position), target in batch.targets.items():
        node = free.graph.node[index]
        node.input[position] = add_initializer(free, f"{node.input[position]}_freed", np.asarray(target, np.int64))
        if index in batch.reshapes:
            node.op_type = "Reshape"
        for attribute in [a for a in node.attribute if a.name in ("allowzero", "axis")]:
            node.attribute.remove(attribute)
    for (index, position), (axis, entries) in batch.spread.items():
        if opset < _EXPAND:
            raise Unfree("opset 7 has no Expand")
        node, shape = free.graph.node[index], batch.shapes[free.graph.node[index].input[position]]
        if not shape or not all(shape):
            raise Unfree(f"the shape of '{node.input[position]}' is unknown")
        nodes = list(_repeated(free, node, position, axis, entries, shape, image, batch.size))
        node.input[position] = nodes[-1].output[0]
        before.setdefault(index, []).extend(nodes)
    if before:
        nodes = [made for index, node in enumerate(free.graph.node) for made in (*before.get(index, ()), node)]
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del free.graph.node[:]
        free.graph.node.extend(copies)


def _repeated(
    free: onnx.ModelProto,
    node: onnx.NodeProto,
    position: int,
    axis: int,
    entries: int,
    shape: list[int],
    image: str,
    size: int,
) -> Iterator[onnx.NodeProto]:
    """Nodes that repeat an input of `node`, of `entries` along `axis` for each image, as often as there are images."""
    stem = f"{node.output[0]}_freed{position}"

    def made(op: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
        name = f"{stem}_{op.lower()}{len(names)}"
        names.append(name)
        return onnx.helper.make_node(op, list(inputs), [name], name=name, **attributes)

    def constant(array: Sequence[int]) -> str:
        return add_initializer(free, f"{stem}_const", np.asarray(array, np.int64))

    names: list[str] = []
    tensor = node.input[position]
    if size > 1:  # what it has for the first image; what differs between images shows when they are compared
        yield made("Gather", tensor, constant(range(entries)), axis=axis)
        tensor = names[-1]
    one, rest = shape[:axis], shape[axis + 1 :]
    yield made("Reshape", tensor, constant([*one, 1, entries, *rest]))
    grouped = names[-1]
    yield made("Shape", image)
    yield made("Gather", names[-1], constant([0]), axis=0)
    # Expand takes 1 for "as it is".
    parts = [constant([1] * axis)] if axis else []
    yield made("Concat", *parts, names[-1], constant([1] * (len(rest) + 1)), axis=0)
    yield made("Expand", grouped, names[-1])
    yield made("Reshape", names[-1], constant([*one, -1, *rest]))


def _check(free: onnx.ModelProto, images: list[str], size: int) -> None:
    """Let shape inference look for contradictions at another batch. Raises `Unfree` or `InferenceError`."""
    other = 3 * size
    tried = onnx.ModelProto()
    tried.CopyFrom(free)
    for value in tried.graph.input:
        if value.name in images:
            value.type.tensor_type.shape.dim[0].dim_value = other
    ends = [list(value.type.tensor_type.shape.dim) for value in tried.graph.output]
    batched = [bool(dims) and dims[0].dim_param == BATCH for dims in ends]
    for value in tried.graph.output:
        value.type.tensor_type.ClearField("shape")
    infos = inferred(tried)
    for value, has in zip(tried.graph.output, batched, strict=True):
        shape = shape_of(infos.get(value.name))
        if has and shape and shape[0] not in (0, other):
            raise Unfree(f"output '{value.name}' keeps its batch")


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
