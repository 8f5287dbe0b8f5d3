"""Layers: an output channel is a slice of the weight; an input channel is needed unless nothing comes of it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from debride.graph.ir import Node
from debride.slimming.absorb import bias_place
from debride.slimming.known_layers import unpadded
from debride.slimming.letters import einsum_of
from debride.slimming.problem import Problem
from debride.slimming.rules_pointwise import align


def _needed(problem: Problem, node: Node, x: str, axis: int, weight: str, weight_axis: int, *, steady: bool) -> None:
    """Hold the input channels that count: unknown ones with a weight, and constants that no bias can take over.

    `steady`: a constant channel gives the same everywhere, so a bias can stand for it.
    """
    axes = problem.axes
    axes.tie(x, axis, weight, weight_axis)
    if axes.state(x, axis).all():
        return
    free = problem.zero(x, axis) | problem.zero(weight, weight_axis)
    constant = problem.constant(x, axis) & ~free
    if steady and constant.any() and bias_place(problem, node) is not None:
        free = free | constant
    leak = f"leaves a constant that is no zero, which '{node.name}' reads beside its padding or without a bias"
    axes.keep(x, axis, leak, constant & ~free)
    axes.keep(x, axis, f"is read by '{node.name}' and not constant", ~(free | constant))
    axes.tie(x, axis, weight, weight_axis)


def _conv(problem: Problem, node: Node) -> None:
    axes, x, weight, out = problem.axes, node.inputs[0], node.inputs[1], node.outputs[0]
    transposed = node.op == "ConvTranspose"
    groups = int(node.attributes.get("group", 1))
    for axis in range(2, axes.rank(x)):
        for tensor in (x, weight, out):
            axes.keep(tensor, axis, "is a place in the image")
    axes.tie(x, 0, out, 0)
    if len(node.inputs) > 2 and node.inputs[2]:
        axes.tie(node.inputs[2], 0, out, 1)
    if groups > 1:
        _grouped(problem, node, groups, transposed)
        return
    axes.tie(weight, 1 if transposed else 0, out, 1)
    steady = not transposed and unpadded(node)
    _needed(problem, node, x, 1, weight, 0 if transposed else 1, steady=steady)


def _grouped(problem: Problem, node: Node, groups: int, transposed: bool) -> None:
    """A group of channels leaves as a whole: all that it reads and all that it makes."""
    axes, x, weight, out = problem.axes, node.inputs[0], node.inputs[1], node.outputs[0]
    axes.keep(weight, 1, "is one of its group's")
    axes.tie(weight, 0, x if transposed else out, 1)
    for tensor, other in ((x, out), (out, x)):
        state = axes.state(tensor, 1).reshape(groups, -1)
        reason = state.max(axis=1)  # 0 where the whole group may leave
        for target in (tensor, other):
            axes.set(target, 1, np.repeat(reason, axes.shape(target)[1] // groups))
    axes.tie(weight, 0, x if transposed else out, 1)


def _product(problem: Problem, node: Node) -> None:
    """MatMul, Gemm, Einsum: letters that both operands share go together; summed ones leave where they add nothing."""
    axes = problem.axes
    operands = [node.inputs[0], node.inputs[1]] if len(node.inputs) > 1 else [node.inputs[0]]
    letters = einsum_of(node, [problem.shape(t) for t in operands])
    if letters is None or any(node.outputs[1:]):
        problem.pin(node, f"goes through {node.op} in a way that is not taken apart")
        return
    where: dict[str, list[tuple[str, int]]] = {}
    for position, term in letters.terms:
        for axis, letter in enumerate(term):
            where.setdefault(letter, []).append((operands[position], axis))
    sizes = letters.sizes([problem.shape(t) for t in operands])
    for place, letter in enumerate(letters.out):
        for tensor, axis in where.get(letter, ()):
            if axes.shape(tensor)[axis] == sizes[letter]:
                axes.tie(tensor, axis, node.outputs[0], place)
    for letter in set(where) - set(letters.out):
        ends = where[letter]
        if len(ends) != 2 or any(axes.shape(t)[a] != sizes[letter] for t, a in ends):
            for tensor, axis in ends:
                axes.keep(tensor, axis, f"is summed up by '{node.name}'")
        else:
            (one, one_axis), (other, other_axis) = ends
            _needed(problem, node, one, one_axis, other, other_axis, steady=True)
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2]:
        align(problem, node.inputs[2], node.outputs[0])


RULES: dict[str, Callable[[Problem, Node], None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    **dict.fromkeys(("MatMul", "Gemm", "Einsum"), _product),
}
