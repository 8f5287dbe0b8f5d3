"""Arithmetic on shapes: which nodes do it, and their results, kept for as long as the shapes stay the same."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from debride.graph.ir import Node

MOST = 64
"""Elements of the largest constant that counts as a part of a shape."""

ASKS = ("Shape", "Size")
MOVE = "debride.Move"
"""A node that takes a tensor to another device; no operator of ONNX, and made by plans alone."""
_SMALL = {
    *("Gather", "Slice", "Unsqueeze", "Squeeze", "Concat", "Split", "Reshape", "Identity", "Cast", "Where"),
    *("Add", "Sub", "Mul", "Div", "Mod", "Pow", "Sqrt", "Reciprocal", "Neg", "Floor", "Ceil", "Min", "Max"),
    *(MOVE, "Equal", "Less", "Greater", "And", "Or", "Not", "ReduceProd", "ReduceSum"),
}
"""Operators that make no large tensor of small ones; Expand, Tile, Range and Pad may."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arithmetic:
    """`asking` are the nodes (by id) that ask a data tensor's shape, `derived` those that compute with the answers.

    `outputs` are the tensors that both make, `constants` those that the latter read.
    """

    asking: frozenset[int]
    derived: frozenset[int]
    outputs: tuple[str, ...]
    constants: tuple[str, ...]


def shape_arithmetic(nodes: Sequence[Node], sizes: Mapping[str, int], pinned: Collection[str]) -> Arithmetic:
    """What of `nodes` works on shapes and small constants alone.

    `sizes` are the elements of each constant. A tensor in `pinned`, which is fed or masked, ends the arithmetic.
    """
    small = {name for name, size in sizes.items() if size <= MOST} | {""}
    shapes: set[str] = set()
    ranks: set[str] = set()
    asking: set[int] = set()
    derived: set[int] = set()
    read: set[str] = set()
    for node in nodes:
        if node.domain or not set(node.outputs).isdisjoint(pinned):
            continue
        if node.op in ASKS and node.inputs[0] not in shapes:
            asking.add(id(node))
        elif _computes(node, shapes, small, ranks):
            derived.add(id(node))
            read.update(name for name in node.inputs if name not in shapes and name)
            ranks.update(node.outputs if node.op in ASKS else ())
        else:
            continue
        shapes.update(name for name in node.outputs if name)
    return Arithmetic(
        asking=frozenset(asking),
        derived=frozenset(derived),
        outputs=tuple(sorted(shapes)),
        constants=tuple(sorted(read)),
    )


def _computes(node: Node, shapes: Collection[str], small: Collection[str], ranks: Collection[str]) -> bool:
    if not shapes or not any(name in shapes for name in node.inputs):
        return False
    if node.op in ASKS:
        return True
    if node.op == "ConstantOfShape":
        return node.inputs[0] in ranks  # as long as a shape is; any other may be as large as the data
    return node.op in _SMALL and all(name in shapes or name in small for name in node.inputs)


class OtherShapesError(Exception):
    """A tensor has another shape than the last time that the inputs had theirs."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Recall:
    """`values` of a plan's shape arithmetic, as they came of `answers` (by output) and of `constants`."""

    values: Mapping[str, Tensor]
    answers: Mapping[str, tuple[int, ...]]
    constants: Mapping[str, tuple[Tensor, int]]

    @classmethod
    def of(
        cls, asking: Iterable[Node], values: Mapping[str, Tensor], constants: Mapping[str, tuple[Tensor, int]]
    ) -> Recall:
        """What a run left behind; `asking` are the nodes that asked a data tensor's shape."""
        answers = {node.outputs[0]: tuple(values[node.outputs[0]].reshape(-1).tolist()) for node in asking}
        return cls(values=values, answers=answers, constants=constants)

    def check(self, node: Node, asked: Tensor | None) -> None:
        """`OtherShapesError` where `node`, asking the shape of `asked`, would have another answer than it had."""
        if asked is None or _answer(node, asked) != self.answers[node.outputs[0]]:
            raise OtherShapesError(node.name)


def _answer(node: Node, tensor: Tensor) -> tuple[int, ...]:
    if node.op == "Size":
        return (tensor.numel(),)
    return tuple(tensor.shape[node.attributes.get("start", 0) : node.attributes.get("end")])
