"""Taking out of a protobuf what a solved problem says may leave; nothing else of it changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from debride.graph.batch import add_initializer
from debride.graph.constants import Constants
from debride.graph.hollow import give, hollow
from debride.graph.ir import Node
from debride.graph.parse import node_names
from debride.graph.unread import reads_of
from debride.slimming.absorb import carried, contributions
from debride.slimming.groups import cut_groups, loses_unevenly
from debride.slimming.prepare import Prepared
from debride.slimming.problem import Problem
from debride.slimming.rewrite import Change, rewritten

Nodes = Mapping[str, onnx.NodeProto]


def edited(proto: onnx.ModelProto, problem: Problem, ready: Prepared) -> onnx.ModelProto:
    """A copy of `proto` without what leaves; `problem` is that of its graph made `ready`.

    Constants are cut, parameters that name sizes or places are written anew, and constants that leave with their
    channels go into the next bias. Nodes and constants that nobody reads any more are dropped.
    """
    uneven = {node.inputs[1]: node for node in problem.graph.nodes if _loses_unevenly(problem, node)}
    changing = {name for name in problem.graph.constants if problem.axes.changes(name)} | uneven.keys()
    # What changes is copied without its data: a protobuf does not give back what it once held.
    copy = hollow(proto, also=changing)
    for name, stub, tensor in copy.held:
        if name not in changing:
            give(stub, tensor)
    result = copy.proto
    nodes = dict(zip(node_names(result.graph.node), result.graph.node, strict=True))
    read = {*reads_of(proto.graph.node), *(value.name for value in proto.graph.output)}
    idle = {tensor.name for tensor in proto.graph.initializer} - read
    _make_ready(result, nodes, problem, ready)
    changes = {node.name: rewritten(problem, node) for node in problem.graph.nodes}
    _cut_constants(result, problem, changing, uneven)
    for name, listed in changes.items():
        for change in listed:
            _change(result, nodes[name], change, problem)
    _add_contributions(result, nodes, problem)
    _order_shuffles(result, nodes, problem)
    _drop_unread(result, idle)
    _correct_infos(result, problem)
    return result


def _make_ready(proto: onnx.ModelProto, nodes: Nodes, problem: Problem, ready: Prepared) -> None:
    """Write the constants of `ready` into `proto`; a copy only where it loses other channels than its fellows."""
    for name in ready.numbers:
        add_initializer(proto, name, problem.graph.constants[name])
    names: dict[str, str] = {}
    made: dict[tuple[str, bytes], str] = {}
    for copy, original in ready.copies.items():
        leaving = b"".join(problem.axes.leaves(copy, a).tobytes() for a in range(problem.axes.rank(copy)))
        if not problem.axes.changes(copy):
            names[copy] = original
        elif (original, leaving) not in made:
            made[original, leaving] = add_initializer(proto, copy, problem.graph.constants[copy])
        names.setdefault(copy, made.get((original, leaving), original))
    for node in problem.graph.nodes:
        nodes[node.name].input[:] = [names.get(tensor, tensor) for tensor in node.inputs]


def _cut_constants(
    proto: onnx.ModelProto, problem: Problem, changing: Iterable[str], uneven: Mapping[str, Node]
) -> None:
    """Delete what leaves from the constants `changing`; one that is listed as an input of the graph changes there too.

    Those in `uneven` are the weights of grouped convolutions that lose other inputs in every group.
    """
    stored: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in proto.graph.initializer}
    makers = {output: node for node in proto.graph.node if node.op_type == "Constant" for output in node.output}
    weights = carried(problem)
    for name in changing:
        if name not in stored and name not in makers:  # copies that are like others were written once
            continue
        if name in uneven:
            array = cut_groups(problem, uneven[name])
        else:
            array = weights[name] if name in weights else problem.graph.constants[name]
        tensor = numpy_helper.from_array(np.ascontiguousarray(_cut(array, name, problem)))
        if name in stored:
            tensor.name = name
            if stored[name].HasField("doc_string"):
                tensor.doc_string = stored[name].doc_string
            stored[name].CopyFrom(tensor)
        else:
            del makers[name].attribute[:]
            makers[name].attribute.append(helper.make_attribute("value", tensor))
    for value in proto.graph.input:
        if value.name in stored:
            for dim, size in zip(value.type.tensor_type.shape.dim, stored[value.name].dims, strict=False):
                dim.dim_value = size


def _loses_unevenly(problem: Problem, node: Node) -> bool:
    known = not node.domain and problem.axes.knows(*filter(None, (*node.inputs[:2], *node.outputs)))
    return known and loses_unevenly(problem, node)


def _cut(array: npt.NDArray[np.generic], name: str, problem: Problem) -> npt.NDArray[np.generic]:
    for axis in range(array.ndim):
        leaves = problem.axes.leaves(name, axis)
        if leaves.any():
            array = array.compress(~leaves, axis=axis)
    return array


def _change(proto: onnx.ModelProto, node: onnx.NodeProto, change: Change, problem: Problem) -> None:
    if change.attribute:
        _set_attribute(node, change)
        return
    old = node.input[change.position] if change.position < len(node.input) else ""
    known = problem.observed.array(old)
    dtype = np.dtype(np.int64) if known is None else known.dtype
    name = add_initializer(proto, f"{old or node.output[0]}.slim", np.asarray(change.numbers, dtype))
    _set_input(node, change.position, name)


def _set_attribute(node: onnx.NodeProto, change: Change) -> None:
    old = next((a for a in node.attribute if a.name == change.attribute), None)
    if change.numbers is None:
        if old is not None:
            node.attribute.remove(old)
        return
    (old or node.attribute.add()).CopyFrom(helper.make_attribute(change.attribute, change.numbers))


def _set_input(node: onnx.NodeProto, position: int, name: str) -> None:
    node.input.extend([""] * (position + 1 - len(node.input)))
    node.input[position] = name


def _add_contributions(proto: onnx.ModelProto, nodes: Nodes, problem: Problem) -> None:
    constants = Constants(proto)
    indices = {name: index for index, name in enumerate(node_names(proto.graph.node))}
    for (name, position), total in contributions(problem).items():
        node = nodes[name]
        out = node.output[0]
        kept = ~problem.axes.leaves(out, 1 if node.op_type == "Conv" else problem.axes.rank(out) - 1)
        if not total[kept].any():
            continue
        if position >= len(node.input) or not node.input[position]:
            weight = problem.graph.constants[node.input[1]]
            bias = add_initializer(proto, f"{out}.bias", total[kept].astype(weight.dtype))
        else:
            stored = constants.stored.get(node.input[position])
            # The graph's own value where no protobuf tensor holds it: a Constant may list its numbers in other ways.
            old = problem.graph.constants[node.input[position]] if stored is None else numpy_helper.to_array(stored)
            new = (old + total[kept].reshape(old.shape)).astype(old.dtype)
            if stored is not None and not constants.shared((indices[name], position)):
                stored.CopyFrom(numpy_helper.from_array(new, stored.name))
                continue
            bias = add_initializer(proto, f"{node.input[position]}.slim", new)
        _set_input(node, position, bias)


def _order_shuffles(proto: onnx.ModelProto, nodes: Nodes, problem: Problem) -> None:
    """A shuffle of fewer channels is a Gather in the place of its first step."""
    for shuffle in {id(s): s for s in problem.shuffles.values()}.values():
        kept = ~problem.axes.leaves(shuffle.x, shuffle.axis)
        if kept.all():
            continue
        stays = ~problem.axes.leaves(shuffle.out, shuffle.axis)
        order = (np.cumsum(kept) - 1)[shuffle.order[stays]]
        first, *rest = (nodes[name] for name in shuffle.nodes)
        indices = add_initializer(proto, f"{shuffle.out}.order", order.astype(np.int64))
        name = first.name
        first.CopyFrom(helper.make_node("Gather", [shuffle.x, indices], [shuffle.out], name=name, axis=shuffle.axis))
        for node in rest:
            proto.graph.node.remove(node)


def _drop_unread(proto: onnx.ModelProto, idle: Iterable[str]) -> None:
    """Drop nodes that lead to no output, and constants that nobody reads but those that were `idle` from the start."""
    live = {value.name for value in proto.graph.output}
    kept = []
    for node in reversed(proto.graph.node):
        if live.intersection(node.output):
            kept.append(node)
            live.update(reads_of([node]))
    if len(kept) < len(proto.graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del proto.graph.node[:]
        proto.graph.node.extend(copies)
    gone = {tensor.name for tensor in proto.graph.initializer} - live - set(idle)
    for listed in (proto.graph.initializer, proto.graph.input):
        for entry in [entry for entry in listed if entry.name in gone]:
            listed.remove(entry)


def _correct_infos(proto: onnx.ModelProto, problem: Problem) -> None:
    """What the file says of its inner tensors' shapes; tensors that are gone are no longer spoken of."""
    made = {output for node in proto.graph.node for output in node.output}
    for value in list(proto.graph.value_info):
        if value.name not in made:
            proto.graph.value_info.remove(value)
        elif problem.axes.changes(value.name):
            for dim, size in zip(value.type.tensor_type.shape.dim, problem.axes.kept(value.name), strict=False):
                if dim.HasField("dim_value"):
                    dim.dim_value = size
