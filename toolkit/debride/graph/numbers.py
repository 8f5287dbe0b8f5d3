"""Small numbers that follow from shapes and constants, though some of their entries may be unknown.

The file is untrusted: only operators whose results are bounded by their inputs are evaluated, and those that could
make much of little (a shape that is filled, a range) only after their size is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

SMALL = 4096
"""Elements from which on a computed constant is none of a shape."""
_MOVES = frozenset(("Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose"))
_MOVES |= {"Concat", "Unsqueeze"}
_ELEMENTWISE = frozenset(("Abs", "Add", "And", "Cast", "Ceil", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual"))
_ELEMENTWISE |= {"Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Round", "Sign", "Sqrt", "Sub"}
_ELEMENTWISE |= {"Where", "Xor"}
_WHOLE = frozenset(("ConstantOfShape", "CumSum", "GatherElements", "NonZero", "Pow", "Range", "ScatterElements"))
_WHOLE |= {"ScatterND", "Trilu"}
_REDUCTIONS = frozenset(("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"))
_FAILURES = (RuntimeError, ValueError, TypeError, NotImplementedError, LookupError, AttributeError, ArithmeticError)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Known:
    """Numbers, of which those entries count where `known` (of the same shape) is true."""

    array: npt.NDArray[Any]
    known: npt.NDArray[np.bool_]

    @property
    def whole(self) -> bool:
        """Whether every entry is known."""
        return bool(self.known.all())


def whole(array: npt.NDArray[Any]) -> Known:
    """`array`, all of it known."""
    return Known(array=array, known=np.ones(array.shape, np.bool_))


def shape_numbers(node: onnx.NodeProto, shape: Sequence[int]) -> Known | None:
    """What the Shape or Size `node` makes of a tensor of `shape`, in which 0 is an unknown dimension."""
    sizes = np.asarray(shape, np.int64).reshape(-1)
    known = sizes > 0
    if node.op_type == "Size":
        return Known(array=np.asarray(prod(np.maximum(sizes, 1).tolist()), np.int64), known=np.asarray(known.all()))
    bounds = {attribute.name: int(attribute.i) for attribute in node.attribute}
    part = slice(bounds.get("start", 0), bounds.get("end"))
    return Known(array=np.maximum(sizes, 1)[part], known=known[part])


def computed(node: onnx.NodeProto, inputs: Sequence[Known | None], opsets: Sequence[Any]) -> Known | None:
    """What `node` makes of `inputs` (None: left out), by ONNX's reference; None where that is not to be told.

    An operator that only moves entries moves the unknown ones with them; one that takes entries one by one leaves
    those unknown to which an unknown one goes.
    """
    given = [value for value in inputs if value is not None]
    op = node.op_type
    if len(node.output) != 1 or node.domain not in ("", "ai.onnx") or not given:
        return None
    everything = all(value.whole for value in given)
    if op not in _MOVES | _ELEMENTWISE | _REDUCTIONS and not (op in _WHOLE and everything):
        return None
    arrays = [None if value is None else value.array for value in inputs]
    array = _evaluated(node, arrays, opsets)
    if array is None or everything:
        return None if array is None else whole(array)
    if op in _ELEMENTWISE:
        masks = [np.broadcast_to(value.known, array.shape) for value in given]
        return Known(array=array, known=np.logical_and.reduce(masks))
    if op in _REDUCTIONS:  # one number of them all is unknown with any of them
        return Known(array=array, known=np.zeros(array.shape, np.bool_)) if array.size == 1 else None
    if op != "Concat" and not all(value.whole for value in given[1:]):
        return None
    for i, value in enumerate(inputs):
        if value is not None and (i == 0 or op == "Concat"):
            arrays[i] = value.known.astype(np.int64)
    mask = _evaluated(node, arrays, opsets)
    return None if mask is None else Known(array=array, known=mask.astype(np.bool_))


def by_reference(
    node: onnx.NodeProto, feeds: Mapping[str, npt.NDArray[Any]], opsets: Sequence[Any]
) -> npt.NDArray[Any] | None:
    """The one output of `node`, by ONNX's reference; None where that does not take it.

    Nothing here bounds how much is computed: whoever asks does.
    """
    try:
        kinds = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
        ends = [helper.make_tensor_value_info(name, kinds[name], array.shape) for name, array in feeds.items()]
        output = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.UNDEFINED, None)
        graph = helper.make_graph([node], "one", ends, [output])
        made: Any = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, dict(feeds))
        return np.asarray(made[0])
    except _FAILURES:
        return None  # a graph of a file that the reference does not take: what it makes stays unknown


def _evaluated(
    node: onnx.NodeProto, arrays: Sequence[npt.NDArray[Any] | None], opsets: Sequence[Any]
) -> npt.NDArray[Any] | None:
    try:
        if _size(node, arrays) > SMALL:
            return None
    except _FAILURES:  # inputs that the operator does not take
        return None
    feeds = {name: array for name, array in zip(node.input, arrays, strict=True) if array is not None and name}
    with np.errstate(all="raise"):
        result = by_reference(node, feeds, opsets)
    return result if result is not None and result.dtype.kind in "iubf" and result.size <= SMALL else None


def _size(node: onnx.NodeProto, arrays: Sequence[npt.NDArray[Any] | None]) -> float:
    """At least as many elements as `node` makes."""
    given = [array for array in arrays if array is not None]
    first = given[0]
    if node.op_type == "ConstantOfShape":
        return prod(int(i) for i in first.reshape(-1))
    if node.op_type == "Expand":
        return prod(max(int(i), 1) for i in given[1].reshape(-1)) * first.size
    if node.op_type == "Tile":
        return prod(int(i) for i in given[1].reshape(-1)) * first.size
    if node.op_type == "Range":
        start, limit, delta = (float(array.reshape(())) for array in given)
        return abs((limit - start) / delta)
    if node.op_type == "Gather":
        return first.size * given[1].size
    if node.op_type in _ELEMENTWISE:
        return prod(np.broadcast_shapes(*(array.shape for array in given)))
    return sum(array.size for array in given)
