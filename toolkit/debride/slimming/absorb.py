"""Where the contribution of constant channels goes when they leave: into the bias behind the layer that read them.

Next to zero padding a constant is none, and no bias says the same; there one of the constant channels stays, and
carries the others in its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node
from debride.graph.letters import einsum_of
from debride.slimming.known_layers import unpadded

if TYPE_CHECKING:
    from debride.slimming.problem import Problem
    from debride.types import BoolArray

_ABLE = 0.1
"""Least size of a constant that carries others, as a share of the largest of them."""

Place = tuple[str, int]
"""(name of a node, position of its input); the input may be absent so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A layer's sum over channels: index i along `axis` of `x` meets index i along `weight_axis` of `weight`."""

    x: str
    axis: int
    weight: str
    weight_axis: int


def readings_of(problem: Problem, node: Node) -> tuple[Reading, ...] | None:
    """What `node` sums over: none for grouped convolutions, None where it has no such form."""
    if node.op in ("Conv", "ConvTranspose"):
        if int(node.attributes.get("group", 1)) > 1:
            return ()
        return (Reading(x=node.inputs[0], axis=1, weight=node.inputs[1], weight_axis=int(node.op == "Conv")),)
    if node.op not in ("MatMul", "Gemm", "Einsum"):
        return ()
    operands = node.inputs[:2]
    letters = einsum_of(node, [problem.shape(tensor) for tensor in operands])
    if letters is None:
        return None
    ends: dict[str, list[tuple[str, int]]] = {}
    for position, term in letters.terms:
        for axis, letter in enumerate(term):
            ends.setdefault(letter, []).append((operands[position], axis))
    found = []
    for letter in sorted(set(ends) - set(letters.out)):
        if len(ends[letter]) != 2:
            return None
        (one, one_axis), (other, other_axis) = ends[letter]
        if problem.known.constant(one):
            one, one_axis, other, other_axis = other, other_axis, one, one_axis
        found.append(Reading(x=one, axis=one_axis, weight=other, weight_axis=other_axis))
    return tuple(found)


def bias_place(problem: Problem, node: Node) -> Place | None:
    """The constant bias of `node` (Conv, Gemm, or MatMul with an Add behind it) with its weight at input 1, or None."""
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    if not problem.known.constant(weight):
        return None
    if node.op == "Conv" and unpadded(node):
        return _third(problem, node, problem.shape(weight)[0])
    if node.op == "Gemm" and node.attributes.get("beta", 1.0) != 0:
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


def dispensable(problem: Problem, node: Node, reading: Reading, constant: BoolArray) -> BoolArray:
    """Which of the `constant` channels (none of them zero) something else can stand for: a bias, or one of them."""
    if not constant.any() or bias_place(problem, node) is not None or _can_carry(problem, reading):
        return constant
    return np.zeros_like(constant)


def _can_carry(problem: Problem, reading: Reading) -> bool:
    """Whether the weight may change: it is a constant of this layer alone."""
    return problem.known.constant(reading.weight) and len(problem.index.readers(reading.weight)) == 1


def missing_carrier(problem: Problem, node: Node) -> tuple[Reading, int] | None:
    """A channel that must stay to carry the constants that leave a layer without a bias for them; None if one does."""
    for reading in readings_of(problem, node) or ():
        if not problem.axes.knows(reading.x, reading.weight) or bias_place(problem, node) is not None:
            continue
        leaves = problem.axes.leaves(reading.x, reading.axis)
        if not leaves.any():
            continue
        values = constants(problem, reading)
        going = leaves & (values != 0)
        # What a small constant has lost in rounding would be multiplied with it.
        able = ~leaves & (np.abs(values) >= _ABLE * np.abs(np.where(going, values, 0)).max())
        if going.any() and not able.any():
            going &= ~problem.zero(reading.weight, reading.weight_axis)
            if going.any():
                return reading, _carrier(values, going)
    return None


def _carrier(values: npt.NDArray[np.float64], among: BoolArray) -> int:
    """The channel of the largest constant: the others are small multiples of it."""
    return int(np.argmax(np.where(among, np.abs(values), -1.0)))


def constants(problem: Problem, reading: Reading) -> npt.NDArray[np.float64]:
    """Per channel that the layer reads, its constant value; 0 where it has none."""
    value = problem.known.value(reading.x)
    steady = problem.constant(reading.x, reading.axis)
    if value is None:
        return np.zeros(steady.shape)
    # Where the value is steady, the first entry along the other axes tells it, but for what leaves along these.
    entries = problem.entries(reading.x, reading.axis)
    return np.where(steady, np.broadcast_to(entries, steady.shape), 0.0).astype(np.float64)


def contributions(problem: Problem) -> dict[Place, npt.NDArray[np.float64]]:
    """What to add to the biases, per output channel as the graph is now, for constants that leave and are not zero."""
    found: dict[Place, npt.NDArray[np.float64]] = {}
    for node, _, leaving in _leaving(problem):
        place = bias_place(problem, node)
        if place is not None:
            # A Gemm's bias is multiplied by beta, what it adds up by alpha.
            total = _weights(problem, node) @ leaving * node.attributes.get("alpha", 1.0)
            total /= node.attributes.get("beta", 1.0)
            found[place] = found.get(place, np.zeros(total.shape)) + total
    return found


def carried(problem: Problem) -> dict[str, npt.NDArray[Any]]:
    """Weights, by tensor name and uncut, in which one constant channel stands for those that leave."""
    found: dict[str, npt.NDArray[Any]] = {}
    for node, reading, leaving in _leaving(problem):
        if bias_place(problem, node) is not None or not problem.known.constant(reading.weight):
            continue
        values = constants(problem, reading)
        stays = ~problem.axes.leaves(reading.x, reading.axis) & (values != 0)
        if not stays.any():
            continue  # then no weight that stays reads what leaves
        weight = problem.graph.constants[reading.weight]
        carrier = _carrier(values, stays)
        extra = np.tensordot(weight.astype(np.float64), leaving / values[carrier], axes=(reading.weight_axis, 0))
        place = (slice(None),) * reading.weight_axis + (carrier,)
        changed = weight.copy()
        changed[place] = (weight[place] + extra).astype(weight.dtype)
        found[reading.weight] = changed
    return found


def _leaving(problem: Problem) -> list[tuple[Node, Reading, npt.NDArray[np.float64]]]:
    """Layers that lose constant channels which are not zero, with these constants per channel."""
    found = []
    for node in problem.graph.nodes:
        for reading in () if node.domain else readings_of(problem, node) or ():
            if problem.axes.knows(reading.x, reading.weight):
                leaves = problem.axes.leaves(reading.x, reading.axis)
                values = np.where(leaves, constants(problem, reading), 0.0) if leaves.any() else np.zeros(1)
                if values.any():
                    found.append((node, reading, values))
    return found


def _weights(problem: Problem, node: Node) -> npt.NDArray[np.float64]:
    """The weight as (output channels, input channels), a kernel's taps summed up."""
    weight: npt.NDArray[Any] = problem.graph.constants[node.inputs[1]].astype(np.float64)
    if node.op == "Conv":
        return np.asarray(weight.sum(axis=tuple(range(2, weight.ndim))))
    return weight if node.op == "Gemm" and node.attributes.get("transB", 0) else weight.T
