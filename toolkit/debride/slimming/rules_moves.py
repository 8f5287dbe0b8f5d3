"""Operators that lay elements out anew: what leaves on one side is what leaves on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from debride.graph.ir import Node
from debride.slimming.axes import mixed, unmixed
from debride.slimming.parameters import indices_of, pads_of, steps_of
from debride.slimming.problem import Problem
from debride.slimming.rules_pointwise import align, passing
from debride.slimming.shuffles import Shuffle

_PARAMETER = "a parameter"


def _reshape(problem: Problem, node: Node) -> None:
    """Axes that are merged or split go element by element: a merged index leaves with any of its coordinates."""
    if node.name in problem.shuffles:
        _shuffled(problem, problem.shuffles[node.name])
        return
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    problem.pin(node, _PARAMETER, slice(1, None))
    if node.op == "Reshape" and problem.observed.value(node.inputs[1]) is None:
        problem.pin(node, "laid out by a computed shape")
        return
    for mine, theirs in blocks(problem.shape(x), problem.shape(out)):
        if _varies(problem, x, mine) != _varies(problem, out, theirs):
            for tensor, part in ((x, mine), (out, theirs)):
                for axis in part:
                    axes.keep(tensor, axis, f"mixed with the batch by '{node.name}'")
        elif len(mine) == len(theirs) == 1:
            axes.tie(x, mine[0], out, theirs[0])
        else:
            _mix(problem, node, x, mine, out, theirs)


def _varies(problem: Problem, tensor: str, part: Sequence[int]) -> bool:
    return bool(problem.observed.varying[tensor].intersection(part))


def _mix(problem: Problem, node: Node, x: str, mine: Sequence[int], out: str, theirs: Sequence[int]) -> None:
    axes = problem.axes
    sides = [(x, mine), (out, theirs)]
    grids = [mixed([axes.state(tensor, axis) for axis in part]) for tensor, part in sides]
    grid = np.maximum(*grids)
    for tensor, part in sides:
        sizes = [len(axes.state(tensor, axis)) for axis in part]
        for axis, state in zip(part, unmixed(grid, sizes), strict=True):
            axes.set(tensor, axis, state)


def blocks(one: Sequence[int], other: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The axes of two shapes of as many elements, in the smallest blocks that hold as many on both sides."""
    found: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(one) or j < len(other):
        left, right = ([i], [j]) if i < len(one) and j < len(other) else ([], [])
        if not left:  # what is left over has size 1
            found.append((list(range(i, len(one))), list(range(j, len(other)))))
            break
        i, j = i + 1, j + 1
        a, b = one[left[0]], other[right[0]]
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * one[i], i + 1
            else:
                right.append(j)
                b, j = b * other[j], j + 1
        found.append((left, right))
    return found


def _shuffled(problem: Problem, shuffle: Shuffle) -> None:
    axes = problem.axes
    for axis in range(axes.rank(shuffle.x)):
        if axis != shuffle.axis:
            axes.tie(shuffle.x, axis, shuffle.out, axis)
    axes.set(shuffle.out, shuffle.axis, axes.state(shuffle.x, shuffle.axis)[shuffle.order])
    axes.set(shuffle.x, shuffle.axis, axes.state(shuffle.out, shuffle.axis)[np.argsort(shuffle.order)])


def _transpose(problem: Problem, node: Node) -> None:
    if node.name in problem.shuffles:
        _shuffled(problem, problem.shuffles[node.name])
        return
    order = node.attributes.get("perm") or list(range(problem.axes.rank(node.inputs[0])))[::-1]
    for place, axis in enumerate(order):
        problem.axes.tie(node.inputs[0], axis, node.outputs[0], place)


def _concat(problem: Problem, node: Node) -> None:
    axes, out = problem.axes, node.outputs[0]
    axis = int(node.attributes.get("axis", 1)) % axes.rank(out)
    start = 0
    for tensor in node.inputs:
        size = axes.shape(tensor)[axis]
        _tie_others(problem, tensor, out, axis)
        _part(problem, tensor, out, axis, slice(start, start + size))
        start += size


def _tie_others(problem: Problem, one: str, other: str, axis: int) -> None:
    for place in range(problem.axes.rank(one)):
        if place != axis:
            problem.axes.tie(one, place, other, place)


def _part(problem: Problem, part: str, whole: str, axis: int, place: slice) -> None:
    """All of `part` along `axis` is what `whole` has at `place`."""
    axes = problem.axes
    axes.set(part, axis, axes.state(whole, axis)[place])
    states = np.zeros(axes.shape(whole)[axis], np.int32)
    states[place] = axes.state(part, axis)
    axes.set(whole, axis, states)


def _split(problem: Problem, node: Node) -> None:
    axes, x = problem.axes, node.inputs[0]
    axis = int(node.attributes.get("axis", 0)) % axes.rank(x)
    problem.pin(node, _PARAMETER, slice(1, None))
    start = 0
    for out in node.outputs:
        if not out:
            problem.pin(node, "split with a part left unnamed")
            return
        size = axes.shape(out)[axis]
        _tie_others(problem, x, out, axis)
        _part(problem, out, x, axis, slice(start, start + size))
        start += size


def _slice(problem: Problem, node: Node) -> None:
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    numbers = problem.numbers(node)
    places, steps = indices_of(node, problem.shape(x), numbers), steps_of(node, problem.shape(x), numbers)
    problem.pin(node, _PARAMETER, slice(1, None))
    if places is None:
        problem.pin(node, "cut at computed bounds")
        return
    for axis in range(axes.rank(x)):
        indices = places.get(axis)
        if indices is None:
            axes.tie(x, axis, out, axis)
        elif len(indices) == 0 or steps[axis] != 1:
            axes.keep(x, axis, f"cut in steps by '{node.name}'")
            axes.keep(out, axis, f"cut in steps by '{node.name}'")
        else:
            _part(problem, out, x, axis, slice(int(indices[0]), int(indices[-1]) + 1))


def _gather(problem: Problem, node: Node) -> None:
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    axis = int(node.attributes.get("axis", 0)) % axes.rank(x)
    shape = problem.shape(node.inputs[1])
    indices = problem.observed.value(node.inputs[1])
    problem.pin(node, _PARAMETER, slice(1, None))
    for before in range(axes.rank(x)):
        if before != axis:
            axes.tie(x, before, out, before if before < axis else before + len(shape) - 1)
    if indices is None or len(shape) != 1:
        axes.keep(x, axis, f"picked by '{node.name}'")
        for place in range(len(shape)):
            axes.keep(out, axis + place, f"picked by '{node.name}'")
        return
    # What is picked may leave without what it is picked from, not the other way round.
    taken = np.asarray(indices) % axes.shape(x)[axis]
    states = np.zeros(axes.shape(x)[axis], np.int32)
    np.maximum.at(states, taken, axes.state(out, axis))
    axes.set(x, axis, states)


def _pad(problem: Problem, node: Node) -> None:
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    pads = pads_of(node, axes.rank(x), problem.numbers(node))
    problem.pin(node, _PARAMETER, slice(1, None))
    if pads is None or any(min(pair) < 0 for pair in pads) or node.attributes.get("mode", "constant") != "constant":
        held = range(axes.rank(x)) if pads is None else [a for a, pair in enumerate(pads) if any(pair)]
        for axis in held:
            axes.keep(x, axis, f"padded by '{node.name}'")
            axes.keep(out, axis, f"padded by '{node.name}'")
        pads = [(0, 0)] * axes.rank(x) if pads is None else pads
        for axis in (a for a in range(axes.rank(x)) if a not in held):
            axes.tie(x, axis, out, axis)
        return
    for axis, (before, after) in enumerate(pads):
        size = axes.shape(x)[axis]
        _part(problem, x, out, axis, slice(before, before + size))
        if (before or after) and any(node.inputs[3:4]):
            outside = np.ones(size + before + after, np.bool_)
            outside[before : before + size] = False
            axes.keep(out, axis, f"padding of '{node.name}'", outside)


def _expand(problem: Problem, node: Node) -> None:
    """Where the target is constant, axes that do not grow pass, and are written as 1 in it."""
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    problem.pin(node, _PARAMETER, slice(1, None))
    if problem.observed.value(node.inputs[1]) is None:
        problem.pin(node, "repeated as a computed shape says")
        return
    shift = axes.rank(out) - axes.rank(x)
    for axis, size in enumerate(axes.shape(out)):
        if axis < shift or axes.shape(x)[axis - shift] != size:
            axes.keep(out, axis, f"repeated by '{node.name}'")
    align(problem, x, out)


def _resize(problem: Problem, node: Node) -> None:
    axes, x, out = problem.axes, node.inputs[0], node.outputs[0]
    problem.pin(node, _PARAMETER, slice(1, None))
    moved = [a for a in range(axes.rank(x)) if axes.shape(x)[a] != axes.shape(out)[a]]
    sized = len(node.inputs) > 3 and node.inputs[3]
    if node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        problem.pin(node, "cropped")
    elif node.attributes.get("axes") or node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        problem.pin(node, "scaled in a way that is not taken apart")
    elif sized and problem.observed.value(node.inputs[3]) is None:
        problem.pin(node, "scaled to a computed size")
    else:
        passing(problem, node, moved, "scaled")


def _tile(problem: Problem, node: Node) -> None:
    repeats = problem.observed.value(node.inputs[1])
    problem.pin(node, _PARAMETER, slice(1, None))
    if repeats is None:
        problem.pin(node, "repeated as often as computed")
        return
    passing(problem, node, [a for a, n in enumerate(repeats) if n != 1], "repeated")


def _shape(problem: Problem, node: Node) -> None:
    """A size that is read as a number must stay as it is; that of the batch is held anyway."""
    axes, x = problem.axes, node.inputs[0]
    axes.pin(node.outputs[0], "a shape")
    rank = axes.rank(x)
    start, end = (int(node.attributes.get(k, d)) for k, d in (("start", 0), ("end", rank)))
    seen = list(range(rank))[slice(start, end)]
    read = _entries_read(problem, node, len(seen))
    for place, axis in enumerate(seen):
        if place in read:
            axes.keep(x, axis, f"counted by '{node.name}'")


def _entries_read(problem: Problem, node: Node, size: int) -> set[int]:
    """Which entries of the shape somebody reads."""
    found: set[int] = set()
    for reader, position in problem.index.readers(node.outputs[0]):
        numbers = problem.numbers(reader)
        if reader.op == "Gather" and position == 0 and (taken := numbers[1]) is not None:
            found.update(i % size for i in taken)
        elif reader.op == "Slice" and position == 0 and (places := indices_of(reader, (size,), numbers)) is not None:
            found.update(int(i) for i in places[0])
        else:
            return set(range(size))
    return set(range(size)) if node.outputs[0] in problem.index.ends else found


RULES: dict[str, Callable[[Problem, Node], None]] = {
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "Resize": _resize,
    "Upsample": _resize,
    "Tile": _tile,
    "Shape": _shape,
}
