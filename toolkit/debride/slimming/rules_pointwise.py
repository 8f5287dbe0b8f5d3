"""Operators that act on every element, or on every channel, by itself: a channel passes and leaves in all at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from debride.graph.ir import Node
from debride.slimming.compute import ALIGNED, UNARY
from debride.slimming.parameters import reduced_axes
from debride.slimming.problem import Problem


def aligned(problem: Problem, node: Node) -> None:
    """Inputs broadcast to the output: axes of equal size go together, an axis of one entry serves all."""
    data = node.inputs[:1] if node.op in UNARY else node.inputs
    if any(node.outputs[1:]) and node.op != "Dropout":
        problem.pin(node, "read in several ways")
        return
    for out in filter(None, node.outputs):
        for tensor in filter(None, data):
            align(problem, tensor, out)
    problem.pin(node, "a parameter", slice(len(data), None))


def align(problem: Problem, tensor: str, out: str) -> None:
    """Tie the axes of `tensor` to those of `out`, from the last one on, where they are of one size."""
    axes = problem.axes
    shift = axes.rank(out) - axes.rank(tensor)
    for axis, size in enumerate(axes.shape(tensor)):
        if axis + shift >= 0 and size == axes.shape(out)[axis + shift] and size > 1:
            axes.tie(tensor, axis, out, axis + shift)


def passing(problem: Problem, node: Node, held: Iterable[int], why: str) -> None:
    """Input 0 and output 0 have the same axes; those in `held` stay whole for the reason `why`."""
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    for axis in range(axes.rank(x)):
        if axis in held or axes.shape(x)[axis] != axes.shape(out)[axis]:
            axes.keep(x, axis, f"{why} ('{node.name}')")
            axes.keep(out, axis, f"{why} ('{node.name}')")
        else:
            axes.tie(x, axis, out, axis)
    for tensor in filter(None, node.outputs[1:]):
        axes.pin(tensor, f"{why} ('{node.name}')")


def _per_channel(problem: Problem, node: Node) -> None:
    """BatchNormalization, InstanceNormalization: the parameters have an entry per channel (axis 1)."""
    if any(node.outputs[1:]) or node.attributes.get("spatial", 1) == 0:
        problem.pin(node, "read in several ways")
        return
    spatial = range(2, problem.axes.rank(node.inputs[0]))
    held = spatial if node.op == "InstanceNormalization" else ()
    passing(problem, node, held, "normalised over its image")
    for tensor in filter(None, node.inputs[1:]):
        problem.axes.tie(tensor, 0, node.inputs[0], 1)


def _softmax(problem: Problem, node: Node) -> None:
    rank = problem.axes.rank(node.inputs[0])
    axis = int(node.attributes.get("axis", -1 if node.since_version >= 13 else 1)) % rank
    # Before opset 13 all axes from this one on were taken as one.
    held = [axis] if node.since_version >= 13 else list(range(axis, rank))
    passing(problem, node, held, f"shared out by {node.op}")


def _normalised(problem: Problem, node: Node) -> None:
    """LayerNormalization and RMSNormalization: all from `axis` on are normalised together."""
    rank = problem.axes.rank(node.inputs[0])
    axis = int(node.attributes.get("axis", -1)) % rank
    passing(problem, node, range(axis, rank), f"normalised together with others by {node.op}")
    problem.pin(node, "a parameter", slice(1, None))


def _group_normalised(problem: Problem, node: Node) -> None:
    """GroupNormalization: all channels of a group are normalised together, so a group leaves as a whole."""
    axes, x = problem.axes, node.inputs[0]
    spatial = range(2, axes.rank(x))
    if node.since_version < 21:  # scale and bias have an entry per group, whose number then could not change
        passing(problem, node, [1, *spatial], "normalised together with others by GroupNormalization")
        problem.pin(node, "a parameter", slice(1, None))
        return
    passing(problem, node, spatial, "normalised over its image")
    for tensor in node.inputs[1:]:
        axes.tie(tensor, 0, x, 1)
    groups = int(node.attributes["num_groups"])
    stays = ~axes.leaves(x, 1).reshape(groups, -1)
    partly = np.repeat(stays.any(axis=1), stays.shape[1])
    axes.keep(x, 1, f"normalised together with others by GroupNormalization ('{node.name}')", partly)


def _normalised_channels(problem: Problem, node: Node) -> None:
    """LRN, LpNormalization, MeanVarianceNormalization: what is beside a channel counts."""
    rank = problem.axes.rank(node.inputs[0])
    held = {
        "LRN": [1],
        "LpNormalization": [int(node.attributes.get("axis", -1)) % rank],
        "MeanVarianceNormalization": [a % rank for a in node.attributes.get("axes", [0, 2, 3])],
    }[node.op]
    passing(problem, node, held, f"normalised together with others by {node.op}")
    problem.pin(node, "a parameter", slice(1, None))


def _pooled(problem: Problem, node: Node) -> None:
    if any(node.outputs[1:]):
        problem.pin(node, "read by its place")
        return
    passing(problem, node, range(2, problem.axes.rank(node.inputs[0])), "a place in the image")


def _reduced(problem: Problem, node: Node) -> None:
    """What is summed up may lack zeros; means and maxima need all."""
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    taken = reduced_axes(node, problem.shape(x), problem.numbers(node))
    problem.pin(node, "a parameter", slice(1, None))
    if taken is None:
        problem.pin(node, f"summed up over computed axes by {node.op}")
        return
    kept = [a for a in range(axes.rank(x)) if a not in taken]
    for axis in taken:
        dispensable = None
        if node.op in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
            dispensable = ~problem.zero(x, axis)
        axes.keep(x, axis, f"counted in the {node.op} '{node.name}'", dispensable)
    for place, axis in enumerate(kept):
        axes.tie(x, axis, out, axis if node.attributes.get("keepdims", 1) else place)


def _quantised(problem: Problem, node: Node) -> None:
    """QuantizeLinear, DequantizeLinear: scale and zero point are one number, or one per index along `axis`."""
    align(problem, node.inputs[0], node.outputs[0])
    rank = problem.axes.rank(node.inputs[0])
    axis = int(node.attributes.get("axis", 1)) % max(rank, 1)
    for tensor in filter(None, node.inputs[1:]):
        if problem.axes.rank(tensor) == 1 and rank and problem.shape(tensor)[0] == problem.shape(node.inputs[0])[axis]:
            problem.axes.tie(tensor, 0, node.inputs[0], axis)
        elif max(problem.shape(tensor), default=1) > 1:
            problem.pin(node, "quantised in blocks")


RULES: dict[str, Callable[[Problem, Node], None]] = {
    **dict.fromkeys(ALIGNED, aligned),
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), _normalised),
    "GroupNormalization": _group_normalised,
    **dict.fromkeys(("LRN", "LpNormalization", "MeanVarianceNormalization"), _normalised_channels),
    **dict.fromkeys(
        ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"), _pooled
    ),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2"), _reduced),
    **dict.fromkeys(("ReduceSumSquare", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp"), _reduced),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantised),
}
