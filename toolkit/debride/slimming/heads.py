"""Attention heads that are merged with the batch: PyTorch lays queries, keys and values out as (length, N*H, size).

Along such an axis a head has no index of its own, but row by row, image before head, it is every H-th entry: without a
head in all that goes in and comes out, what lies between says the same of the others, written as it is. The Reshapes
at both ends alone name sizes that change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index
from debride.slimming.axes import Axes
from debride.slimming.compute import ALIGNED, UNARY
from debride.slimming.observe import Observed
from debride.slimming.prepare import inner_reads
from debride.types import BoolArray

Array = npt.NDArray[Any]
Shapes = Mapping[str, tuple[int, ...]]

_LAYOUT = frozenset(("Reshape", "Squeeze", "Unsqueeze"))
_SHARES = frozenset(("Softmax", "LogSoftmax"))
_KEEPS_ZERO = frozenset(("Abs", "Cast", "Dropout", "Erf", "Identity", "Neg", "Relu", "Sign", "Sqrt", "Tanh"))
_MOST = 2**24
_MOST_NODES = 100
"""A group that is larger is none: an attention has a dozen, and each of its Reshapes may be looked at anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """Where heads are apart from the batch: head h is entries h*step to (h+1)*step along `axis` of `tensor`."""

    tensor: str
    axis: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """`heads` heads go in by `inputs` and out by `outs`; `nodes` are those between, both Reshapes with them, in order.

    Everything that the nodes make but `outs` has one axis along which images and heads are merged.
    """

    inputs: tuple[Side, ...]
    outs: tuple[Side, ...]
    heads: int
    nodes: tuple[Node, ...]


Merged = Mapping[str, Heads]
"""Heads by the name of each of their nodes."""


def find_heads(graph: Graph, observed: Observed, index: Index) -> Merged:
    """All groups of nodes that work on heads merged with the batch, and of which every one goes head by head.

    `graph` is prepared: without what no output needs, and with targets that are constant where only the batch is open.
    """
    if observed.flexible:
        return {}
    search = _Search(graph, observed, index)
    found: dict[str, Heads] = {}
    for node in graph.nodes:
        if node.op != "Reshape" or node.name in found:
            continue
        heads = search.around(node)
        if heads is not None:
            found.update((inner.name, heads) for inner in heads.nodes)
    return found


class _Search:
    """What is asked of nodes and tensors while a group is put together; no tensor in `_bound` may be in one."""

    def __init__(self, graph: Graph, observed: Observed, index: Index) -> None:
        self._observed, self._index = observed, index
        self._shapes = observed.shapes
        self._bound = {*index.ends, *observed.wild}.union(*map(inner_reads, graph.nodes))
        self._places = {node.name: place for place, node in enumerate(graph.nodes)}

    def around(self, first: Node) -> Heads | None:
        """The group that begins with the Reshape `first`; None where it merges no heads, or anything else joins in."""
        if first.domain:
            return None
        count = self._merges(first.inputs[0], first.outputs[0])
        if count < 2 or self._side(first, count, end=False) is None:
            return None
        nodes = self._joined(first, count)
        if nodes is None:
            return None
        starts = [node for node in nodes if self._merges(node.inputs[0], node.outputs[0]) == count]
        ends = [node for node in nodes if self._merges(node.outputs[0], node.inputs[0]) == count]
        inputs, outs = (
            tuple(dict.fromkeys(side for node in some if (side := self._side(node, count, end=end)) is not None))
            for some, end in ((starts, False), (ends, True))
        )
        # Without any of these, what leaves along other axes goes through as well, which no rule here would let it.
        worth = any(s.step > 1 for s in (*inputs, *outs)) or any(n.op in ("MatMul", "Transpose") for n in nodes)
        return Heads(inputs=inputs, outs=outs, heads=count, nodes=tuple(nodes)) if worth and outs else None

    def _joined(self, first: Node, count: int) -> list[Node] | None:
        """All nodes that merged tensors connect with `first`, in order; None if one of them is no part of a group."""
        nodes = {first.name: first}
        seen: set[str] = set()
        todo = [first.outputs[0]]
        while todo:
            tensor = todo.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            maker = self._index.producer(tensor)
            if maker is None or tensor in self._bound:
                return None
            for node in (maker, *(reader for reader, _ in self._index.readers(tensor))):
                merged = self._merged(node, count)
                if merged is None or tensor not in merged or len(nodes) > _MOST_NODES:
                    return None
                nodes[node.name] = node
                todo.extend(merged)
        return sorted(nodes.values(), key=lambda node: self._places[node.name])

    def _axis(self, tensor: str) -> int | None:
        """The one axis of `tensor` that follows the batch."""
        axes = self._observed.varying.get(tensor, frozenset())
        return next(iter(axes)) if len(axes) == 1 else None

    def _merges(self, plain: str, merged: str) -> int:
        """How many heads are merged in `merged` that are not in `plain`, which holds the same row by row; else 0."""
        one, other = self._axis(plain), self._axis(merged)
        if one is None or other is None or 0 in self._shapes[plain]:
            return 0
        count, rest = divmod(prod(self._shapes[merged][: other + 1]), prod(self._shapes[plain][: one + 1]))
        # The last entries before the heads must be images, not parts of one.
        whole = count and self._shapes[merged][other] % (count * self._observed.batch) == 0
        return count if whole and not rest else 0

    def _side(self, node: Node, count: int, *, end: bool) -> Side | None:
        """The end of `node`, a Reshape with a constant target, at which the heads are apart from the batch."""
        tensor = node.outputs[0] if end else node.inputs[0]
        axis, shape = self._axis(tensor), self._shapes.get(tensor, ())
        constant = node.op == "Reshape" and self._observed.value(node.inputs[1]) is not None
        if tensor in self._observed.wild:
            return None
        if not constant or axis is None or axis + 1 >= len(shape) or shape[axis + 1] % count or not shape[axis + 1]:
            return None
        return Side(tensor=tensor, axis=axis + 1, step=shape[axis + 1] // count)

    def _merged(self, node: Node, count: int) -> tuple[str, ...] | None:
        """The tensors around `node` that have images and heads merged; None where it does not go head by head."""
        if node.domain or any(node.outputs[1:]):
            return None
        x, out = node.inputs[0], node.outputs[0]
        if node.op in _LAYOUT:
            return self._laid_out(node, count)
        data = node.inputs[:1] if node.op in UNARY | _SHARES | {"Transpose"} else node.inputs
        merged = [t for t in data if t and self._observed.varying.get(t)]
        if any(self._axis(tensor) is None for tensor in (*merged, out)):
            return None
        if node.op == "Transpose":
            order = list(node.attributes.get("perm") or range(len(self._shapes[x]))[::-1])
            fits = order.index(self._axis(x)) == self._axis(out)
        elif node.op == "MatMul":
            fits = len(merged) == 2 and all((a := self._from_last(t)) is not None and a < -2 for t in (*merged, out))
        elif node.op in _SHARES:
            fits = not self._shared_out(node)
        else:
            fits = node.op in ALIGNED
        if node.op != "Transpose":
            fits = fits and len({(self._from_last(t), self._size(t)) for t in (*merged, out)}) == 1
            fits = fits and all(self._same_for_all(t, out) for t in node.inputs if t and t not in merged)
        return (*merged, out) if fits else None

    def _laid_out(self, node: Node, count: int) -> tuple[str, ...] | None:
        x, out = node.inputs[0], node.outputs[0]
        if node.op == "Squeeze" and not (node.attributes.get("axes") or any(node.inputs[1:])):
            return None  # a single head of a single image would go with it
        if node.op == "Reshape" and self._observed.value(node.inputs[1]) is None:
            return None
        if self._merges(x, out) == 1 and self._size(x) == self._size(out):
            return (x, out)
        if self._merges(x, out) == count and self._side(node, count, end=False) is not None:
            return (out,)
        if self._merges(out, x) == count and self._side(node, count, end=True) is not None:
            return (x,)
        return None

    def _from_last(self, tensor: str) -> int | None:
        axis = self._axis(tensor)
        return None if axis is None else axis - len(self._shapes[tensor])

    def _size(self, tensor: str) -> int:
        axis = self._axis(tensor)
        return 0 if axis is None else self._shapes[tensor][axis]

    def _shared_out(self, node: Node) -> bool:
        """Whether Softmax goes along the merged axis; before opset 13 it took all axes from its own on as one."""
        rank, merged = len(self._shapes[node.inputs[0]]), self._axis(node.inputs[0])
        axis = int(node.attributes.get("axis", -1 if node.since_version >= 13 else 1)) % rank
        return merged is None or (merged == axis if node.since_version >= 13 else merged >= axis)

    def _same_for_all(self, tensor: str, out: str) -> bool:
        """Whether `tensor` broadcasts to `out` with one entry for all images and heads."""
        shape, place = self._shapes.get(tensor), self._from_last(out)
        if shape is None or place is None or len(shape) > len(self._shapes[out]):
            return False
        return len(shape) < -place or shape[place] == 1


def hold_heads(axes: Axes, heads: Heads) -> None:
    """A head leaves as a whole on every side, or not at all; along other axes all stays."""
    sides = (*heads.inputs, *heads.outs)
    if not axes.knows(*(side.tensor for side in sides)):
        for side in sides:
            axes.pin(side.tensor, "in a shape that is not known")
        return
    stays = np.zeros(heads.heads, np.int32)
    for side in sides:
        stays = np.maximum(stays, axes.state(side.tensor, side.axis).reshape(heads.heads, -1).max(axis=1))
    for side in sides:
        axes.set(side.tensor, side.axis, np.repeat(stays, side.step))
        for axis in range(axes.rank(side.tensor)):
            if axis != side.axis:
                axes.keep(side.tensor, axis, f"laid out with the heads by '{heads.nodes[0].name}'")


def interior(heads: Heads) -> Iterator[str]:
    """All that is made between both sides: it stays as it is written, and no rule but `hold_heads` applies to it."""
    outs = {side.tensor for side in heads.outs}
    return (tensor for node in heads.nodes for tensor in node.outputs if tensor and tensor not in outs)


def parameters(heads: Heads) -> Iterator[str]:
    """What the nodes read beside heads: targets, scales, masks. It is the same for all heads, and stays."""
    known = {*interior(heads), *(side.tensor for side in heads.inputs)}
    return (tensor for node in heads.nodes for tensor in node.inputs if tensor and tensor not in known)


def known_heads(heads: Heads, out: str, value: Callable[[str], Array | None], shapes: Shapes) -> Array | None:
    """What of `out` is zero whatever the images: 0 there, NaN elsewhere; None if nothing is, or if it is no end.

    `value` tells what is known of the inputs and parameters; both broadcast to the tensors' `shapes`.
    """
    if all(side.tensor != out for side in heads.outs):
        return None
    zero: dict[str, BoolArray] = {}
    for side in heads.inputs:
        known = value(side.tensor)
        if known is not None and prod(shapes[side.tensor]) <= _MOST and (known == 0).any():
            zero[side.tensor] = np.broadcast_to(known == 0, shapes[side.tensor])
    made = {*interior(heads), *(side.tensor for side in (*heads.inputs, *heads.outs))}
    for node in heads.nodes:
        masks = [
            zero.get(t) if t in made else None if (k := value(t) if t else None) is None else np.asarray(k == 0)
            for t in node.inputs
        ]
        found = _zeros(node, masks, value, shapes)
        if found is not None and found.any():
            zero[node.outputs[0]] = found
    return np.where(zero[out], 0.0, np.nan) if out in zero else None


def _zeros(
    node: Node, masks: list[BoolArray | None], value: Callable[[str], Array | None], shapes: Shapes
) -> BoolArray | None:
    """Where the output of `node` is zero, as far as it follows from where its inputs are (`masks`)."""
    x = masks[0]
    if node.op == "MatMul":
        rows = None if x is None else np.asarray(x.all(axis=-1, keepdims=True))
        columns = None if masks[1] is None else np.asarray(masks[1].all(axis=-2, keepdims=True))
        return rows if columns is None else columns if rows is None else np.asarray(rows | columns)
    if node.op == "Mul":
        return _either([mask for mask in masks if mask is not None], shapes[node.outputs[0]])
    if node.op in ("Add", "Sub", "Sum"):
        sure = [mask for mask in masks if mask is not None]
        return ~_either([~mask for mask in sure], shapes[node.outputs[0]]) if len(sure) == len(masks) else None
    if x is None:
        return None
    if node.op in _LAYOUT:
        return np.broadcast_to(x, shapes[node.inputs[0]]).reshape(shapes[node.outputs[0]])
    if node.op == "Transpose":
        return x.transpose(node.attributes.get("perm") or list(range(x.ndim))[::-1])
    if node.op == "Div":
        divisor = value(node.inputs[1])
        divides = divisor is not None and bool((np.isfinite(divisor) & (divisor != 0)).all())
        return _either([x], shapes[node.outputs[0]]) if divides else None
    return x if node.op in _KEEPS_ZERO else None


def _either(masks: list[BoolArray], shape: tuple[int, ...]) -> BoolArray:
    found = np.zeros((1,) * len(shape), np.bool_)
    for mask in masks:
        found = np.asarray(found | mask)
    return found
