"""Layers: an output channel is a slice of the weight; an input channel is needed unless nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from debride.graph.ir import Node
from debride.graph.letters import einsum_of
from debride.slimming.absorb import Reading, dispensable, readings_of
from debride.slimming.compute import UNARY
from debride.slimming.groups import cuttable
from debride.slimming.problem import Problem
from debride.slimming.rules_pointwise import align
from debride.types import BoolArray

_LAYOUT = frozenset(("Flatten", "Reshape", "Squeeze", "Transpose", "BatchNormalization"))


def _needed(problem: Problem, node: Node, reading: Reading) -> None:
    """Hold the input channels that count: unknown ones with a weight, and constants that nothing can stand for."""
    axes = problem.axes
    x, axis, weight, weight_axis = reading.x, reading.axis, reading.weight, reading.weight_axis
    axes.tie(x, axis, weight, weight_axis)
    if axes.state(x, axis).all():
        return
    free = problem.zero(x, axis) | problem.zero(weight, weight_axis)
    constant = problem.constant(x, axis) & ~free
    spared = dispensable(problem, node, reading, constant)
    axes.keep(x, axis, f"constant but not zero in '{node.name}'", constant & ~spared)
    axes.keep(x, axis, f"{_manner(problem, x)} '{node.name}' reads it", ~(free | constant))
    axes.tie(x, axis, weight, weight_axis)


def _manner(problem: Problem, tensor: str) -> str:
    """In which way `tensor` is not constant, as far as the operators just before it tell."""
    maker = problem.index.producer(tensor)
    while maker is not None and not maker.domain and (maker.op in UNARY or "Pool" in maker.op or maker.op in _LAYOUT):
        maker = problem.index.producer(maker.inputs[0])
    added = maker is not None and maker.op in ("Add", "Sum") and not any(map(problem.known.constant, maker.inputs))
    return "added to what is alive before" if added else "not constant where"


def _conv(problem: Problem, node: Node) -> None:
    axes, x, weight, out = problem.axes, node.inputs[0], node.inputs[1], node.outputs[0]
    transposed = node.op == "ConvTranspose"
    groups = int(node.attributes.get("group", 1))
    for axis in range(2, axes.rank(x)):
        if _pointwise(problem, node, axis):
            axes.tie(x, axis, out, axis)
            continue
        for tensor in (x, weight, out):
            axes.keep(tensor, axis, "a place in the image")
    axes.tie(x, 0, out, 0)
    if len(node.inputs) > 2 and node.inputs[2]:
        axes.tie(node.inputs[2], 0, out, 1)
    if groups > 1:
        _grouped(problem, node, groups, transposed)
        return
    axes.tie(weight, 1 if transposed else 0, out, 1)
    for reading in readings_of(problem, node) or ():
        _needed(problem, node, reading)


def _pointwise(problem: Problem, node: Node, axis: int) -> bool:
    """Whether the kernel looks at one place only along `axis`: networks of tokens have their channels there."""
    one = problem.shape(node.inputs[1])[axis] == 1
    return one and problem.shape(node.inputs[0])[axis] == problem.shape(node.outputs[0])[axis]


def _grouped(problem: Problem, node: Node, groups: int, transposed: bool) -> None:
    """A group leaves as a whole, or all groups that stay lose as many channels as each other."""
    axes, x, weight, out = problem.axes, node.inputs[0], node.inputs[1], node.outputs[0]
    axes.keep(weight, 1, "one of its group's")
    axes.tie(weight, 0, x if transposed else out, 1)
    blocks = [axes.state(tensor, 1).reshape(groups, -1) for tensor in (x, out)]
    stays = np.maximum(*(block.max(axis=1) for block in blocks))  # 0 where the whole group may leave
    if transposed or not cuttable(problem, node):
        for tensor, block in zip((x, out), blocks, strict=True):
            axes.set(tensor, 1, np.repeat(stays, block.shape[1]))
        axes.tie(weight, 0, x if transposed else out, 1)
        return
    needed = ~(problem.zero(x, 1) | _unread(problem, weight, groups)).reshape(groups, -1)
    axes.keep(x, 1, f"not constant where '{node.name}' reads it", (needed & (stays > 0)[:, None]).reshape(-1))
    for tensor in (x, out):
        _even_out(problem, node, tensor, groups, stays > 0)
    axes.tie(weight, 0, out, 1)


def _unread(problem: Problem, weight: str, groups: int) -> BoolArray:
    """Which input channels of a grouped convolution have no weight in any output channel that stays."""
    values = problem.graph.constants[weight]
    touched = (values != 0).any(axis=tuple(range(2, values.ndim))) & ~problem.axes.leaves(weight, 0)[:, None]
    return np.asarray(~touched.reshape(groups, -1, values.shape[1]).any(axis=1)).reshape(-1)


def _even_out(problem: Problem, node: Node, tensor: str, groups: int, stays: BoolArray) -> None:
    """Hold what a group that stays could lose beyond what every such group can, and one channel at least."""
    leaves = problem.axes.leaves(tensor, 1).reshape(groups, -1) & stays[:, None]
    if not leaves.any():
        return
    each = min(int(leaves[stays].sum(axis=1).min()), leaves.shape[1] - 1)
    extra = leaves & (np.cumsum(leaves, axis=1) > each)
    problem.axes.keep(tensor, 1, f"in a group of '{node.name}' that has more of them than others", extra.reshape(-1))


def _product(problem: Problem, node: Node) -> None:
    """MatMul, Gemm, Einsum: letters that both operands share go together; summed ones leave where they add nothing."""
    axes = problem.axes
    operands = [node.inputs[0], node.inputs[1]] if len(node.inputs) > 1 else [node.inputs[0]]
    letters = einsum_of(node, [problem.shape(t) for t in operands])
    if letters is None or any(node.outputs[1:]):
        problem.pin(node, f"bound by {node.op} in a way that is not taken apart")
        return
    sizes = letters.sizes([problem.shape(t) for t in operands])
    readings = readings_of(problem, node)
    for position, term in letters.terms:
        for axis, letter in enumerate(term):
            tensor = operands[position]
            if letter in letters.out and axes.shape(tensor)[axis] == sizes[letter]:
                axes.tie(tensor, axis, node.outputs[0], letters.out.index(letter))
            elif letter not in letters.out and readings is None:
                axes.keep(tensor, axis, f"summed up by '{node.name}'")
    for reading in readings or ():
        _needed(problem, node, reading)
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2]:
        align(problem, node.inputs[2], node.outputs[0])


def _attention(problem: Problem, node: Node) -> None:
    """Attention on (N, heads, length, size): a head leaves in queries, keys, values and result at once."""
    axes, out = problem.axes, node.outputs[0]
    data, mask = node.inputs[:3], problem.shape(node.inputs[3]) if len(node.inputs) > 3 else ()
    shapes = [problem.shape(t) for t in (*data, out)]
    if any(len(shape) != 4 or shape[1] != shapes[0][1] for shape in shapes) or any(node.outputs[1:]):
        problem.pin(node, "bound by Attention in a way that is not taken apart")
        return
    for tensor in (*data, out):
        axes.tie(tensor, 1, out, 1)
        for axis in (0, 2, 3):
            axes.keep(tensor, axis, f"a place in '{node.name}'")
    problem.pin(node, "a parameter", slice(3, None))
    if any(node.inputs[4:]) or (len(mask) > 2 and mask[-3] != 1):
        problem.pin(node, "bound by Attention with numbers for every head")


RULES: dict[str, Callable[[Problem, Node], None]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv,
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), _product),
}
