"""Where the batch is in each tensor of a graph with a fixed batch, and what keeps it from being any other.

An axis carries the batch as its outermost factor (images of a batch of two, cut into four windows each, are eight
windows along it, the first four of them the first image's) or within others, as when words and images share one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from onnx import helper

_FAR = 2**31 - 1
_SOFTMAX_ALONG = 13
"""The opset from which on Softmax looks along one axis; before, it takes that and all after it together."""
_REDUCED = ("Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp")
_BROADCAST = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Sum", "Mean", "PRelu", "Where", "Mod"))
_BROADCAST |= {"And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul"}


class Unfree(Exception):  # noqa: N818 - it is an answer, not an error
    """The batch cannot be freed; says where and why."""


@dataclass(kw_only=True)
class Batch:
    """The walk over a graph whose batch is `size`: `axes` by tensor name, and the changes that free it.

    `shapes` and `constants` (integers) are those of the graph as it is, `values` the integers that it computes.
    `targets` are new constants by (index of the node, position of the input); `spread` are inputs without a batch, by
    the same, that need one along an axis of so many entries for each image. `outer` is how many entries of an axis come
    before the batch changes, where that is not 1; `reshapes` are the Gathers that only give a flat tensor a shape.
    `following` are computed from shapes, and so right for any batch as they are.
    """

    size: int
    opset: int
    axes: dict[str, int]
    shapes: Mapping[str, list[int] | None]
    constants: Mapping[str, np.ndarray]
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    targets: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    spread: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    outer: dict[str, int] = field(default_factory=dict)
    reshapes: set[int] = field(default_factory=set)
    following: set[str] = field(default_factory=set)

    def visit(self, index: int, node: onnx.NodeProto) -> None:
        """Find the axes of what `node` makes. Raises `Unfree`."""
        if any(a.HasField("g") or a.graphs for a in node.attribute):  # what it reads is not only what it names
            raise Unfree(f"node '{node.name}' ({node.op_type}) has a graph of its own")
        if not any(tensor in self.axes for tensor in node.input) or node.op_type in ("Shape", "Size"):
            if self.following.union(self.axes).intersection(node.input):
                self.following.update(node.output)
            return
        outer = {self.outer.get(tensor, 1) for tensor in node.input if tensor in self.axes}
        if len(outer) > 1:
            raise Unfree(f"node '{node.name}' ({node.op_type}) joins batches that lie differently")
        rule = _RULES.get(node.op_type, _broadcast if node.op_type in _BROADCAST else _same)
        axis = rule(self, index, node)
        for tensor in node.output:
            shape = self.shapes.get(tensor)
            if shape is not None and (axis >= len(shape) or shape[axis] % self.size):
                raise Unfree(f"node '{node.name}' ({node.op_type}) has no axis for the batch")
            self.axes[tensor] = axis
            if node.op_type != "Reshape" and outer != {1}:
                self.outer[tensor] = max(outer)

    def rank(self, tensor: str) -> int:
        """The rank of `tensor`. Raises `Unfree` where it is unknown."""
        shape = self.shapes.get(tensor)
        if shape is None:
            raise Unfree(f"the rank of '{tensor}' is unknown")
        return len(shape)

    def fixed(self, tensor: str) -> np.ndarray | None:
        """The integers of `tensor` where they are the same for any batch as the graph stands."""
        return self.constants.get(tensor, None if tensor in self.following else self.values.get(tensor))

    def numbers(self, node: onnx.NodeProto, name: str, position: int) -> list[int] | None:
        """Integers that `node` has as attribute `name`, or as constant input `position`; None where it has none."""
        for attribute in node.attribute:
            if attribute.name == name:
                return list(attribute.ints)
        if len(node.input) <= position or not node.input[position]:
            return None
        found = self.constants.get(node.input[position], self.values.get(node.input[position]))
        if found is None:
            raise Unfree(f"node '{node.name}' ({node.op_type}) computes its {name}")
        return [int(i) for i in found.reshape(-1)]


def _same(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    position = next(i for i, tensor in enumerate(node.input) if tensor in batch.axes)
    source, axis = node.input[position], batch.axes[node.input[position]]
    before, after = batch.shapes.get(source), batch.shapes.get(node.output[0])
    if before and after and (len(before) != len(after) or before[axis] != after[axis]):
        raise Unfree(f"node '{node.name}' ({node.op_type}) changes the axis of the batch")
    return axis


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def _aligned(batch: Batch, node: onnx.NodeProto) -> int:
    """The one axis of the output, counted as broadcasting does from the last, that all batches come to."""
    rank = batch.rank(node.output[0])
    found = {rank - batch.rank(t) + batch.axes[t] for t in node.input if t in batch.axes}
    if len(found) != 1:
        raise Unfree(f"node '{node.name}' ({node.op_type}) joins batches on different axes")
    return found.pop()


def _spread(batch: Batch, index: int, node: onnx.NodeProto, axis: int, least: int) -> None:
    """Note the inputs without a batch that are of a size of their own (`least` or more) where the others have one."""
    inside = any(tensor in batch.outer for tensor in node.input)
    rank, whole = batch.rank(node.output[0]), (batch.shapes.get(node.output[0]) or [])[axis]
    shapes = [batch.shapes.get(t) or [] for t in node.input if t in batch.axes]
    if any(shape[axis - rank + len(shape)] != whole for shape in shapes):
        raise Unfree(f"node '{node.name}' ({node.op_type}) broadcasts the batch")
    for position, tensor in enumerate(node.input):
        shape = batch.shapes.get(tensor)
        if tensor in batch.axes or tensor in batch.following or not tensor or not shape:
            continue
        own = axis - (rank - len(shape))
        if own >= 0 and shape[own] >= least:
            if shape[own] % batch.size or inside:
                raise Unfree(f"node '{node.name}' ({node.op_type}) reads a constant of another batch")
            batch.spread[index, position] = (own, shape[own] // batch.size)


def _broadcast(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    if all(batch.axes.get(tensor) == 0 for tensor in node.input):
        ranks = {len(batch.shapes.get(tensor) or ()) for tensor in node.input}
        if len(ranks) == 1 and node.op_type != "MatMul":
            return 0
    axis = _aligned(batch, node)
    if node.op_type == "MatMul":
        from_end = batch.rank(node.output[0]) - axis
        left, right = (tensor in batch.axes for tensor in node.input)
        if (left and from_end == 1) or (right and from_end == 2):
            raise Unfree(f"node '{node.name}' (MatMul) sums over the batch")
        if from_end <= 2:  # rows of the left or columns of the right operand: no axis of the other
            return axis
    _spread(batch, index, node, axis, 2)
    return axis


def _concat(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    axis = _aligned(batch, node)
    if _attribute(node, "axis", 1) % batch.rank(node.output[0]) == axis:
        raise Unfree(f"node '{node.name}' (Concat) joins batches")
    _spread(batch, index, node, axis, 1)
    return axis


def _expand(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    source = node.input[0]
    if source not in batch.axes:
        raise Unfree(f"node '{node.name}' (Expand) computes its shape from images")
    rank = batch.rank(node.output[0])
    axis = batch.axes[source] + rank - batch.rank(source)
    if (fixed := batch.fixed(node.input[1])) is not None:
        target = [1, *[1] * (rank - 1)]
        shape = fixed.tolist()
        target[rank - len(shape) :] = shape
        target[axis] = 1  # as the input has it
        batch.targets[index, 1] = target
    return axis


def _reshape(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    source = node.input[0]
    if source not in batch.axes:
        raise Unfree(f"node '{node.name}' (Reshape) computes its shape from images")
    axis, constant = batch.axes[source], batch.fixed(node.input[1])
    target = [] if constant is None else constant.tolist()
    if axis == 0 and target and target[0] in (0, -1) and not _attribute(node, "allowzero", 0):
        return 0
    full = batch.shapes.get(node.output[0]) or (target if all(dim > 0 for dim in target) else None)
    if not full or not all(full):
        if axis == 0 and -1 in target:  # the remainder is taken: the leading dimension is copied from the input
            batch.targets[index, 1] = [0, *target[1:]]
            return 0
        raise Unfree(f"node '{node.name}' (Reshape) gives an unknown shape")
    shape = batch.shapes.get(source) or []
    before = prod(shape[:axis]) * batch.outer.get(source, 1)
    place, outer = _place(full, before, batch.size, axis if full == shape[:axis] + shape[axis + 1 :] else 0)
    if outer == 0:
        raise Unfree(f"node '{node.name}' (Reshape) takes the batch apart")
    if outer > 1:
        batch.outer[node.output[0]] = outer
    if target:
        batch.targets[index, 1] = [*full[:place], -1, *full[place + 1 :]]
    return place


def _place(full: list[int], before: int, size: int, vanished: int) -> tuple[int, int]:
    """The axis of `full` that carries a batch with `before` elements outside of it, and `outer`; 0 where none does.

    A batch of 1 could be on any of several: one that `vanished` is taken to be merged with the axis before it,
    otherwise the first that it leads, and the last axis, which holds features, only where there is no other.
    """
    fitting = []
    for axis, dim in enumerate(full):
        outer, rest = divmod(before, prod(full[:axis]))
        if not rest and outer and dim % (outer * size) == 0:
            fitting.append((axis, outer))
    if vanished:
        fitting = [(axis, outer) for axis, outer in fitting if axis == vanished - 1] or fitting
    last = len(full) - 1
    return min(fitting, key=lambda found: (found[0] == last, found[1] > 1 and not vanished, found[0]), default=(0, 0))


def _transpose(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    perm = batch.numbers(node, "perm", 9)
    rank = batch.rank(node.input[0]) if perm is None else len(perm)
    return (perm or list(range(rank))[::-1]).index(batch.axes[node.input[0]])


def _flatten(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    if batch.axes[node.input[0]] or not _attribute(node, "axis", 1) or node.input[0] in batch.outer:
        raise Unfree(f"node '{node.name}' (Flatten) takes the batch apart")
    return 0


def _gone(batch: Batch, node: onnx.NodeProto, axes: list[int] | None) -> int:
    """The batch's axis without those of `axes` (None: all but it, if they are 1; never the batch's own)."""
    rank, axis = batch.rank(node.input[0]), batch.axes[node.input[0]]
    gone = {i % rank for i in axes or ()}
    if axes is None or axis in gone:
        raise Unfree(f"node '{node.name}' ({node.op_type}) takes the batch away")
    return axis - sum(i < axis for i in gone)


def _reduce(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    found = _gone(batch, node, batch.numbers(node, "axes", 1))
    return batch.axes[node.input[0]] if _attribute(node, "keepdims", 1) else found


def _squeeze(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    return _gone(batch, node, batch.numbers(node, "axes", 1))


def _unsqueeze(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    rank = batch.rank(node.output[0])
    new = {i % rank for i in batch.numbers(node, "axes", 1) or ()}
    return [i for i in range(rank) if i not in new][batch.axes[node.input[0]]]


def _gather(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    along = _attribute(node, "axis", 0) % batch.rank(node.input[0])
    if node.input[0] not in batch.axes:
        return along + batch.axes[node.input[1]]
    axis = batch.axes[node.input[0]]
    indices = batch.fixed(node.input[1])
    whole = batch.shapes.get(node.input[0])
    if indices is not None and whole == [indices.size] and (indices.reshape(-1) == np.arange(indices.size)).all():
        place, outer = _place(list(indices.shape), batch.outer.get(node.input[0], 1), batch.size, 0)
        if outer == 1:
            batch.reshapes.add(index)
            batch.targets[index, 1] = [*indices.shape[:place], -1, *indices.shape[place + 1 :]]
            return place
    if axis == along or node.input[1] in batch.axes:
        raise Unfree(f"node '{node.name}' (Gather) picks from the batch")
    return axis if axis < along else axis - 1 + batch.rank(node.input[1])


def _slice(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    rank, axis = batch.rank(node.input[0]), batch.axes[node.input[0]]
    ends = batch.numbers(node, "ends", 2) or []
    axes = batch.numbers(node, "axes", 3)
    along = range(len(ends)) if axes is None else [i % rank for i in axes]
    if any(i == axis and end < _FAR for i, end in zip(along, ends, strict=False)):
        raise Unfree(f"node '{node.name}' (Slice) picks from the batch")
    return _same(batch, index, node)


def _gemm(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    if set(batch.axes) & set(node.input[1:]) or batch.axes[node.input[0]] or _attribute(node, "transA", 0):
        raise Unfree(f"node '{node.name}' (Gemm) mixes the batch")
    return 0


def _einsum(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    equation = helper.get_attribute_value(node.attribute[0]).decode().replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = {t[batch.axes[i]] for i, t in zip(node.input, terms.split(","), strict=True) if i in batch.axes}
    if "." in equation or len(letters) != 1 or not letters <= set(result):
        raise Unfree(f"node '{node.name}' (Einsum) mixes the batch")
    return int(result.index(letters.pop()))


def _along(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    """An operator that looks along one axis, which its axis names or, of CumSum, an input."""
    if node.op_type == "CumSum":
        _apart(batch, node, batch.numbers(node, "axis", 1) or [0])
    else:
        _apart(batch, node, [_attribute(node, "axis", 0 if node.op_type == "Split" else -1)])
    return _same(batch, index, node)


def _from(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    """An operator that takes together all axes from one on."""
    rank = batch.rank(node.input[0])
    default = -1 if node.op_type.endswith("Normalization") else 1
    _apart(batch, node, range(_attribute(node, "axis", default) % rank, rank))
    return _same(batch, index, node)


def _softmax(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    return (_from if batch.opset < _SOFTMAX_ALONG else _along)(batch, index, node)


def _variance(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    _apart(batch, node, batch.numbers(node, "axes", 1) or [0, 2, 3])
    return _same(batch, index, node)


def _most(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    axis = _attribute(node, "axis", 0)
    _apart(batch, node, [axis])
    return batch.axes[node.input[0]] if _attribute(node, "keepdims", 1) else _gone(batch, node, [axis])


def _elements(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    _apart(batch, node, [_attribute(node, "axis", 0)])
    if not all(tensor in batch.axes for tensor in node.input):
        raise Unfree(f"node '{node.name}' ({node.op_type}) reads a constant of another batch")
    return _same(batch, index, node)


def _maps(batch: Batch, index: int, node: onnx.NodeProto) -> int:
    """An operator to which axis 0 is the batch, whatever it is to the model."""
    if batch.axes.get(node.input[0]) != 0:
        raise Unfree(f"node '{node.name}' ({node.op_type}) mixes the batch")
    return _same(batch, index, node)


def _apart(batch: Batch, node: onnx.NodeProto, axes: Iterable[int]) -> None:
    """Raise `Unfree` where one of `axes` is the batch's."""
    rank = batch.rank(node.input[0])
    if batch.axes.get(node.input[0]) in {axis % rank for axis in axes}:
        raise Unfree(f"node '{node.name}' ({node.op_type}) mixes the batch")


_RULES: dict[str, Callable[[Batch, int, onnx.NodeProto], int]] = {
    "Concat": _concat,
    "Einsum": _einsum,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "Reshape": _reshape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
_RULES |= {f"Reduce{kind}": _reduce for kind in _REDUCED}
_RULES |= dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax)
_RULES |= dict.fromkeys(("CumSum", "LpNormalization", "Split", "TopK"), _along)
_RULES |= dict.fromkeys(("LayerNormalization", "RMSNormalization"), _from)
_RULES |= dict.fromkeys(("ArgMax", "ArgMin"), _most) | dict.fromkeys(("GatherElements", "ScatterElements"), _elements)
_RULES |= dict.fromkeys(("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool", "LRN"), _maps)
_RULES |= dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool", "DepthToSpace", "SpaceToDepth"), _maps)
_RULES |= dict.fromkeys(("BatchNormalization", "InstanceNormalization", "GroupNormalization"), _maps)
_RULES["MeanVarianceNormalization"] = _variance
