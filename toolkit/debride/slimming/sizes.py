"""Numbers that follow from shapes and constants alone, and tensors whose very size the image decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx

from debride.graph.ir import Graph
from debride.graph.numbers import SMALL, Known, computed, shape_numbers, whole
from debride.graph.parse import node_names

_COUNTING = frozenset(("Shape", "Size"))
_WILD = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression", "If", "Loop", "Scan", "StringSplit"))
"""Operators whose outputs have a size that the values of their inputs decide."""
_SIZED = {
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Pad", "Slice", "Resize", "Upsample", "TopK", "OneHot", "Split"), 1),
    **dict.fromkeys(("Squeeze", "Unsqueeze", "CenterCropPad", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"), 1),
    **dict.fromkeys(("Range", "ConstantOfShape", "EyeLike"), 0),
}
"""From which input on the values decide the size of what an operator makes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sizes:
    """`numbers` of which the batch may leave entries unknown; `wild` tensors, whose size follows from the image."""

    numbers: Mapping[str, Known]
    wild: frozenset[str]


def sizes_of(
    proto: onnx.ModelProto,
    graph: Graph,
    shapes: Mapping[str, tuple[int, ...]],
    varying: Mapping[str, frozenset[int]],
    flexible: bool,
) -> Sizes:
    """What `graph` (of `proto`) computes of `shapes`, in which the axes `varying` follow the batch.

    Where the graph takes images of many sizes (`flexible`), no shape tells a number.
    """
    numbers = {
        n: whole(array) for n, array in graph.constants.items() if array.size <= SMALL and array.dtype.kind in "iufb"
    }
    wild: set[str] = set()
    makers = dict(zip(node_names(proto.graph.node), proto.graph.node, strict=True))
    for node in graph.nodes:
        first = _SIZED.get(node.op, len(node.inputs))
        # A size that is computed from anything but shapes and constants.
        loose = any(name and name not in numbers and name not in graph.constants for name in node.inputs[first:])
        if node.domain or node.op in _WILD or wild.intersection(node.inputs) or (loose and not flexible):
            wild.update(node.outputs if not node.domain else ())
            continue
        if node.op in _COUNTING:
            shape = shapes.get(node.inputs[0])
            if shape is not None and not flexible:
                open_ = varying[node.inputs[0]]
                found = shape_numbers(makers[node.name], [0 if a in open_ else size for a, size in enumerate(shape)])
                if found is not None:
                    numbers[node.outputs[0]] = found
        elif node.inputs and all(not name or name in numbers for name in node.inputs):
            found = computed(makers[node.name], [numbers.get(name) for name in node.inputs], proto.opset_import)
            if found is not None:
                numbers[node.outputs[0]] = found
    return Sizes(numbers=numbers, wild=frozenset(wild - {""}))
