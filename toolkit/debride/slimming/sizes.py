"""Numbers that follow from shapes and constants alone, and tensors whose very size the image decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx

from debride.graph.ir import Graph
from debride.graph.numbers import SMALL, Known, computed, shape_numbers, whole
from debride.graph.parse import node_names

_COUNTING = frozenset(("Shape", "Size"))
_WILD = frozenset(("NonZero", "Compress", "Unique", "NonMaxSuppression", "If", "Loop", "Scan", "StringSplit"))
"""Operators whose outputs have a size that the values of their inputs decide."""
_RANDOM = frozenset(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"))
_RANDOM |= {"Bernoulli", "Multinomial"}
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
    small = ((name, array) for name, array in graph.constants.items() if array.size <= SMALL)
    numbers = {name: whole(array) for name, array in small if array.dtype.kind in "iufb"}
    derived, wild = {*graph.constants, ""}, set[str]()
    makers = dict(zip(node_names(proto.graph.node), proto.graph.node, strict=True))
    for node in graph.nodes:
        counts = node.op in _COUNTING and not node.domain
        sized = node.inputs[_SIZED.get(node.op, len(node.inputs)) :]
        if node.op in _WILD or wild.intersection(node.inputs) or not derived.issuperset(sized):
            wild.update(node.outputs)
            continue
        if node.domain or node.op in _RANDOM or not (counts or (node.inputs and derived.issuperset(node.inputs))):
            continue
        derived.update(node.outputs)
        found = None
        if counts:
            shape = shapes.get(node.inputs[0])
            if shape is not None and not flexible:
                open_ = varying[node.inputs[0]]
                found = shape_numbers(makers[node.name], [0 if a in open_ else size for a, size in enumerate(shape)])
        elif all(not name or name in numbers for name in node.inputs):
            found = computed(makers[node.name], [numbers.get(name) for name in node.inputs], proto.opset_import)
        shape = shapes.get(node.outputs[0])
        if found is None and not flexible and shape is not None and len(node.outputs) == 1 and 0 < prod(shape) <= SMALL:
            # It follows from the batch in a way that is not worked out: what it is joined with may be known still.
            found = Known(array=np.ones(shape, np.int64), known=np.zeros(shape, np.bool_))
        if found is not None:
            numbers[node.outputs[0]] = found
    return Sizes(numbers=numbers, wild=frozenset(wild - {""}))
