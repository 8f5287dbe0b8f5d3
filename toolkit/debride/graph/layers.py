"""One linear layer taken apart: which constants make its channels, and on which tensor a channel can be masked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node
from debride.graph.letters import equation_of
from debride.graph.walk import Index

_FLOATS = frozenset(("float16", "float32", "float64", "bfloat16"))


class Unfit(Exception):  # noqa: N818 - no failure of the run: it carries the reason why a layer is no player
    """The layer's channels cannot be zeroed exactly; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Operand:
    """A constant input of a node as that node sees it, and where it is read: `axes[i]` is its own axis i there."""

    array: npt.NDArray[Any]
    node: str
    position: int
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A constant that is input `position` of `node`: entries `rows[c]` along `axis` belong to channel c."""

    node: str
    position: int
    axis: int
    rows: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer's `size` channels: their parts, and the tensor `edge` that has them along `axis`.

    `rank` is the edge's; None where unknown, then `axis` is -1.
    """

    node: Node
    size: int
    parts: tuple[Part, ...]
    edge: str
    axis: int
    rank: int | None


def operand(index: Index, node: Node, position: int, what: str) -> Operand:
    """Input `position` of `node`, seen through Identity and Transpose where nobody else reads these.

    Raises:
        Unfit: it is not constant, or not of floats; `what` names it.
    """
    tensor = node.inputs[position]
    array = index.constant(tensor)
    if array is not None and array.dtype.name not in _FLOATS:
        raise Unfit(f"its {what} holds {array.dtype.name} numbers")
    if array is not None:
        return Operand(array=array, node=node.name, position=position, axes=tuple(range(array.ndim)))
    maker = index.producer(tensor)
    if maker is None or maker.domain or maker.op not in ("Identity", "Transpose"):
        how = "is an input" if maker is None else f"is computed by {maker.op}"
        raise Unfit(f"its {what} {how}")
    if index.sole_reader(tensor) is None:
        raise Unfit(f"its {what} is computed once for several readers")
    inner = operand(index, maker, 0, what)
    if maker.op == "Identity":
        return inner
    order = maker.attributes.get("perm") or list(range(inner.array.ndim))[::-1]
    return replace(inner, array=inner.array.transpose(order), axes=tuple(inner.axes[i] for i in order))


def layer_of(index: Index, node: Node) -> Layer:
    """The Conv, ConvTranspose, Gemm, MatMul or Einsum `node` taken apart, its own bias included.

    Raises:
        Unfit: with the reason.
    """
    build = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul, "Einsum": _einsum}
    return build[node.op](index, node)


def _part(source: Operand, axis: int, rows: tuple[tuple[int, ...], ...]) -> Part:
    return Part(node=source.node, position=source.position, axis=source.axes[axis], rows=rows)


def _single(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple((c,) for c in range(size))


def _bias(index: Index, node: Node, size: int) -> tuple[Part, ...]:
    """The part that is input 2 of `node`, whose last axis has the channels; none where it is absent or zero."""
    if len(node.inputs) < 3 or not node.inputs[2]:
        return ()
    bias = operand(index, node, 2, "bias")
    if bias.array.ndim and bias.array.shape[-1] == size:
        return (_part(bias, bias.array.ndim - 1, _single(size)),)
    if bias.array.any():
        raise Unfit("its bias is one number for all channels")
    return ()


def _conv(index: Index, node: Node) -> Layer:
    weight = operand(index, node, 1, "weight")
    size, rank = weight.array.shape[0], weight.array.ndim
    parts = (_part(weight, 0, _single(size)), *_bias(index, node, size))
    return Layer(node=node, size=size, parts=parts, edge=node.outputs[0], axis=1, rank=rank)


def _conv_transpose(index: Index, node: Node) -> Layer:
    weight = operand(index, node, 1, "weight")
    taken, per_group = weight.array.shape[:2]
    groups = int(node.attributes.get("group", 1))
    size = per_group * groups
    if groups == 1:
        part = _part(weight, 1, _single(size))
    elif per_group == 1:
        each = taken // groups
        part = _part(weight, 0, tuple(tuple(range(g * each, (g + 1) * each)) for g in range(groups)))
    else:
        raise Unfit("a grouped ConvTranspose has no slice of its weight per channel")
    parts = (part, *_bias(index, node, size))
    return Layer(node=node, size=size, parts=parts, edge=node.outputs[0], axis=1, rank=weight.array.ndim)


def _gemm(index: Index, node: Node) -> Layer:
    weight = operand(index, node, 1, "weight")
    axis = 0 if node.attributes.get("transB", 0) else 1
    size = weight.array.shape[axis]
    parts = (_part(weight, axis, _single(size)), *_bias(index, node, size))
    return Layer(node=node, size=size, parts=parts, edge=node.outputs[0], axis=1, rank=2)


def _matmul(index: Index, node: Node) -> Layer:
    weight = operand(index, node, 1, "right operand")
    if weight.array.ndim < 2:
        raise Unfit("its right operand is a vector")
    size = weight.array.shape[-1]
    left = index.ranks.get(node.inputs[0])
    rank = None if left is None or left < 2 else max(left, weight.array.ndim)
    part = _part(weight, weight.array.ndim - 1, _single(size))
    axis = -1 if rank is None else rank - 1
    return Layer(node=node, size=size, parts=(part,), edge=node.outputs[0], axis=axis, rank=rank)


def _einsum(index: Index, node: Node) -> Layer:
    """Of several letters that only the weight brings (heads, channels in them), the first counts the players."""
    letters = equation_of(str(node.attributes.get("equation", "")))
    if letters is None or len(letters.terms) != 2:
        raise Unfit("its equation is not taken apart")
    position = 0 if index.constant(node.inputs[0]) is not None else 1
    weight = operand(index, node, position, "weight")
    term, other = letters.terms[position][1], letters.terms[1 - position][1]
    own = [letter for letter in letters.out if letter in term and letter not in other]
    if not own or letters.out.index(own[0]) == 0 or len(term) != weight.array.ndim:
        raise Unfit("its equation gives the weight no channels of its own")
    axis = term.index(own[0])
    size = weight.array.shape[axis]
    part = _part(weight, axis, _single(size))
    place = letters.out.index(own[0])
    return Layer(node=node, size=size, parts=(part,), edge=node.outputs[0], axis=place, rank=len(letters.out))


def extended(layer: Layer, index: Index) -> Layer:
    """`layer` with the constant shifts (Add, Sub) and normalisations that alone read it taken in; the edge moves on.

    A constant Mul or Div between needs no slice (zero stays zero) and is passed when a shift follows.
    """
    while True:
        step: Layer | None = layer
        while step is not None and (step.edge == layer.edge or len(step.parts) == len(layer.parts)):
            step = _absorb(step, index)
        if step is None:
            return layer
        layer = step


def _absorb(layer: Layer, index: Index) -> Layer | None:
    """`layer` with the edge moved over its sole reader; None where that would not keep a zeroed channel zero."""
    reader = index.sole_reader(layer.edge)
    if reader is None or reader[0].domain:
        return None
    node, position = reader
    try:
        if node.op == "BatchNormalization":
            return _absorb_norm(layer, index, node) if position == 0 else None
        if node.op in ("Add", "Sub", "Mul") or (node.op == "Div" and position == 0):
            return _absorb_constant(layer, index, node, 1 - position)
    except Unfit:
        pass
    return None


def _absorb_norm(layer: Layer, index: Index, node: Node) -> Layer | None:
    trains = node.attributes.get("training_mode", 0) or len([o for o in node.outputs if o]) > 1
    if trains or layer.rank is None or layer.axis != 1:
        return None
    scale, shift = operand(index, node, 1, "scale"), operand(index, node, 2, "shift")
    if scale.array.shape != (layer.size,) or shift.array.shape != (layer.size,):
        return None
    parts = tuple(_part(o, 0, _single(layer.size)) for o in (scale, shift))
    return replace(layer, parts=layer.parts + parts, edge=node.outputs[0])


def _absorb_constant(layer: Layer, index: Index, node: Node, other: int) -> Layer | None:
    constant = operand(index, node, other, "operand")
    from_end = 1 if layer.rank is None else layer.rank - layer.axis
    if constant.array.ndim > (1 if layer.rank is None else layer.rank):
        return None
    if node.op in ("Mul", "Div"):
        usable = bool(np.isfinite(constant.array).all()) and (node.op == "Mul" or bool(constant.array.all()))
        wide = _size_at(constant.array, from_end) in (1, layer.size)
        return replace(layer, edge=node.outputs[0]) if usable and wide else None
    if constant.array.ndim < from_end or constant.array.shape[-from_end] != layer.size:
        return None
    part = _part(constant, constant.array.ndim - from_end, _single(layer.size))
    return replace(layer, parts=(*layer.parts, part), edge=node.outputs[0])


def _size_at(array: npt.NDArray[Any], from_end: int) -> int:
    """Size of the axis `from_end` from the end; 1 where broadcasting adds it."""
    return int(array.shape[-from_end]) if array.ndim >= from_end else 1
