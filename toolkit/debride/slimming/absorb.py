"""Where the contribution of constant channels goes when they leave: into the bias behind the layer that read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node

if TYPE_CHECKING:
    from debride.slimming.problem import Problem

Place = tuple[str, int]
"""(name of a node, position of its input); the input may be absent so far."""


def bias_place(problem: Problem, node: Node) -> Place | None:
    """The constant bias of `node` (Conv, Gemm, or MatMul with an Add behind it) with its weight at input 1, or None."""
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    if not problem.known.constant(weight):
        return None
    if node.op == "Conv":
        return _third(problem, node, problem.shape(weight)[0])
    if node.op == "Gemm" and node.attributes.get("alpha", 1.0) == 1.0 and node.attributes.get("beta", 1.0) == 1.0:
        return _third(problem, node, problem.shape(node.outputs[0])[1])
    if node.op != "MatMul" or len(problem.shape(weight)) != 2:
        return None
    reader = problem.index.sole_reader(node.outputs[0])
    if reader is None or reader[0].op != "Add" or reader[0].domain:
        return None
    add, position = reader
    return (add.name, 1 - position) if _fits(problem, add.inputs[1 - position], problem.shape(weight)[1]) else None


def _third(problem: Problem, node: Node, size: int) -> Place | None:
    if len(node.inputs) < 3 or not node.inputs[2]:
        return node.name, 2
    return (node.name, 2) if _fits(problem, node.inputs[2], size) else None


def _fits(problem: Problem, bias: str, size: int) -> bool:
    shape = problem.shape(bias)
    return problem.known.constant(bias) and bool(shape) and shape[-1] == size and int(np.prod(shape)) == size


def contributions(problem: Problem) -> dict[Place, npt.NDArray[np.float64]]:
    """What to add to the biases, per output channel as the graph is now, for constants that leave and are not zero."""
    found: dict[Place, npt.NDArray[np.float64]] = {}
    for node in problem.graph.nodes:
        if node.domain or node.op not in ("Conv", "Gemm", "MatMul"):
            continue
        if node.op == "Conv" and int(node.attributes.get("group", 1)) > 1:
            continue
        place = bias_place(problem, node)
        constants = None if place is None else _leaving(problem, node)
        if place is None or constants is None or not constants.any():
            continue
        total = _weights(problem, node) @ constants
        found[place] = found.get(place, np.zeros(total.shape)) + total
    return found


def _leaving(problem: Problem, node: Node) -> npt.NDArray[np.float64] | None:
    """Per input channel, the constant that leaves with it; 0 where none does. None where nothing is known."""
    x = node.inputs[0]
    axis = 1 if node.op == "Conv" else problem.axes.rank(x) - 1
    if node.op == "Gemm" and node.attributes.get("transA", 0):
        axis = 0
    value = problem.known.value(x)
    if value is None:
        return None
    steady = problem.constant(x, axis) & problem.axes.leaves(x, axis)
    entries = value[tuple(slice(None) if a == axis else 0 for a in range(value.ndim))]
    return np.where(steady, np.broadcast_to(entries, steady.shape), 0.0).astype(np.float64)


def _weights(problem: Problem, node: Node) -> npt.NDArray[np.float64]:
    """The weight as (output channels, input channels), a kernel's taps summed up."""
    weight: npt.NDArray[Any] = problem.graph.constants[node.inputs[1]].astype(np.float64)
    if node.op == "Conv":
        return np.asarray(weight.sum(axis=tuple(range(2, weight.ndim))))
    return weight if node.op == "Gemm" and node.attributes.get("transB", 0) else weight.T
