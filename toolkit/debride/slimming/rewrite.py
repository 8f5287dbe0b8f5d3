"""Parameters that name sizes or places, as they must read once channels are gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from debride.graph.ir import Node
from debride.slimming.groups import groups_left
from debride.slimming.parameters import indices_of, pads_of
from debride.slimming.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """New whole numbers for an attribute, for an input (which is added where it was absent), or, None, its removal."""

    attribute: str = ""
    position: int = -1
    numbers: tuple[int, ...] | int | None = None


def rewritten(problem: Problem, node: Node) -> tuple[Change, ...]:
    """What must change of `node` where something leaves that it touches."""
    rule = _RULES.get(node.op)
    touched = any(problem.axes.changes(t) for t in (*node.inputs, *node.outputs) if t)
    if rule is None or node.domain or not touched or node.name in problem.shuffles:
        return ()
    return tuple(rule(problem, node))


def _either(node: Node, name: str, position: int, numbers: list[int]) -> Change:
    """As an attribute where the node has it there, else as an input."""
    if name in node.attributes:
        return Change(attribute=name, numbers=tuple(numbers))
    return Change(position=position, numbers=tuple(numbers))


def _group(problem: Problem, node: Node) -> list[Change]:
    groups = int(node.attributes.get("group", 1))
    if groups == 1:
        return []
    left = groups_left(problem, node)
    return [] if left == groups else [Change(attribute="group", numbers=left)]


def _num_groups(problem: Problem, node: Node) -> list[Change]:
    groups = int(node.attributes["num_groups"])
    left = problem.axes.kept(node.inputs[0])[1] * groups // problem.shape(node.inputs[0])[1]
    return [] if left == groups else [Change(attribute="num_groups", numbers=left)]


def _reshape(problem: Problem, node: Node) -> list[Change]:
    """The target's own 0 (as in the input) and -1 (whatever is left) stay where they still say the right size."""
    x, out = node.inputs[0], node.outputs[0]
    before, after = problem.axes.kept(x), problem.axes.kept(out)
    old = problem.observed.value(node.inputs[1])
    if old is None:
        return []
    numbers = []
    for axis, (entry, size) in enumerate(zip(old, after, strict=True)):
        copies = entry == 0 and not node.attributes.get("allowzero", 0) and before[axis] == size
        numbers.append(entry if entry == -1 or copies else size)
    return [] if numbers == old else [Change(position=1, numbers=tuple(numbers))]


def _split(problem: Problem, node: Node) -> list[Change]:
    axis = int(node.attributes.get("axis", 0)) % problem.axes.rank(node.inputs[0])
    sizes = [problem.axes.kept(out)[axis] for out in node.outputs]
    if sizes == [problem.shape(out)[axis] for out in node.outputs]:
        return []
    stated = "split" in node.attributes or (len(node.inputs) > 1 and node.inputs[1])
    if not stated and len(set(sizes)) == 1:
        return []
    if "split" in node.attributes or (not stated and node.since_version < 13):
        return [Change(attribute="split", numbers=tuple(sizes))]
    gone = [Change(attribute="num_outputs")] if "num_outputs" in node.attributes else []
    return [Change(position=1, numbers=tuple(sizes)), *gone]


def _slice(problem: Problem, node: Node) -> list[Change]:
    x = node.inputs[0]
    numbers = problem.numbers(node)
    places = indices_of(node, problem.shape(x), numbers)
    if places is None:
        return []
    starts, ends = (
        list(node.attributes[name]) if name in node.attributes else list(numbers[k] or ())
        for k, name in ((1, "starts"), (2, "ends"))
    )
    changed = False
    for place, (axis, indices) in enumerate(places.items()):
        kept = ~problem.axes.leaves(x, axis)
        if not kept.all() and len(indices):
            first = int(kept[: indices[0]].sum())
            starts[place], ends[place] = first, first + int(kept[indices].sum())
            changed = True
    return [_either(node, "starts", 1, starts), _either(node, "ends", 2, ends)] if changed else []


def _gather(problem: Problem, node: Node) -> list[Change]:
    x, out = node.inputs[0], node.outputs[0]
    axis = int(node.attributes.get("axis", 0)) % problem.axes.rank(x)
    taken = problem.observed.value(node.inputs[1])
    kept = ~problem.axes.leaves(x, axis)
    if taken is None or len(problem.shape(node.inputs[1])) != 1:
        return []
    stays = ~problem.axes.leaves(out, axis)
    if kept.all() and stays.all():
        return []
    place = np.cumsum(kept) - 1
    left = np.asarray(taken)[stays] % len(kept)
    return [Change(position=1, numbers=tuple(int(place[i]) for i in left))]


def _expand(problem: Problem, node: Node) -> list[Change]:
    x, out = node.inputs[0], node.outputs[0]
    shift = problem.axes.rank(out) - problem.axes.rank(x)
    target = []
    for axis, size in enumerate(problem.shape(out)):
        grows = axis < shift or problem.shape(x)[axis - shift] != size
        target.append(size if grows else 1)
    return [Change(position=1, numbers=tuple(target))]


def _pad(problem: Problem, node: Node) -> list[Change]:
    """Channels that are padding leave by there being less of it."""
    x, out = node.inputs[0], node.outputs[0]
    pads = pads_of(node, problem.axes.rank(x), problem.numbers(node)) or []
    if any(node.inputs[3:4]):
        return []
    before: list[int] = []
    after: list[int] = []
    for axis, edges in enumerate(pads):
        kept = ~problem.axes.leaves(out, axis)
        before.append(int(kept[: edges[0]].sum()) if edges[0] > 0 else edges[0])
        after.append(int(kept[len(kept) - edges[1] :].sum()) if edges[1] > 0 else edges[1])
    changed = list(zip(before, after, strict=True)) != list(pads)
    return [_either(node, "pads", 1, [*before, *after])] if changed else []


def _resize(problem: Problem, node: Node) -> list[Change]:
    sizes = problem.observed.value(node.inputs[3]) if len(node.inputs) > 3 and node.inputs[3] else None
    if sizes is None:
        return []
    left, before = problem.axes.kept(node.outputs[0]), problem.shape(node.outputs[0])
    new = [kept if kept != was else old for kept, was, old in zip(left, before, sizes, strict=True)]
    return [Change(position=3, numbers=tuple(new))]


_RULES: dict[str, Callable[[Problem, Node], list[Change]]] = {
    "Conv": _group,
    "ConvTranspose": _group,
    "GroupNormalization": _num_groups,
    "Reshape": _reshape,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Expand": _expand,
    "Pad": _pad,
    "Resize": _resize,
}
