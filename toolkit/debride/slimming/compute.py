"""Operators that act on every element by itself, computed on what is known of their inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from debride.graph.ir import Node

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

UNARY = frozenset(
    ("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos")
) | {"Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu"}
UNARY |= {"Log", "Mish", "Neg", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"}
UNARY |= {"Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu"}
"""Functions of their first input; the others, if any, are single numbers."""
NARY = frozenset(("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "PRelu", "Mod"))
"""Functions of all inputs, broadcast to one shape."""
LINEAR_QUANTISERS = frozenset(("QuantizeLinear", "DequantizeLinear"))
_EDGED = frozenset(("Ceil", "Floor", "Round", "Sign"))
_EDGE = 1e-4
ELEMENTWISE = UNARY | NARY | LINEAR_QUANTISERS
_OTHERS = frozenset(("And", "Or", "Xor", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where"))
ALIGNED = UNARY | NARY | _OTHERS | {"IsNaN", "IsInf", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"}
"""Every operator whose output element depends on the input elements at the same place alone."""


def computed(node: Node, values: Sequence[Array | None], shapes: Sequence[Shape], opset: int) -> Array | None:
    """What is known of the first output of `node`, one of `ELEMENTWISE`; `values` and `shapes` are its inputs'."""
    unknown = [np.full((1,) * len(shape), np.nan, np.float32) for shape in shapes]
    # In double precision throughout: the reference wants one type, and no rounding should look like a difference.
    data = [_double(u if v is None else v) for v, u in zip(values, unknown, strict=True)]
    if node.op in LINEAR_QUANTISERS:
        return _quantised(node, data, shapes)
    used = data[:1] if node.op in UNARY else data
    if node.op in UNARY and any(v is None for v, name in zip(values[1:], node.inputs[1:], strict=True) if name):
        return None
    if any(v.dtype.kind not in "f" for v in data) and any(v is None for v in values):
        return None
    result = _run(node, data, opset)
    if result is None or result.dtype.kind != "f":
        exact = all(v is not None and not (v.dtype.kind == "f" and np.isnan(v).any()) for v in values)
        return result if exact else None
    # An operator may make a number of NaN (a comparison inside, a minimum); what was unknown stays so.
    open_ = np.zeros(result.shape, np.bool_)
    for value in used:
        if value.dtype.kind == "f":
            open_ = open_ | np.isnan(value)
    if node.op in _EDGED:
        open_ = open_ | _at_edge(used[0])
    known = np.where(open_, np.nan, result).astype(result.dtype)
    if node.op == "Mul":
        zero = np.zeros(result.shape, np.bool_)
        for value in used:
            zero = zero | (value == 0)
        known = np.where(zero, 0, known).astype(result.dtype)
    return known


def _at_edge(value: Array) -> npt.NDArray[np.bool_]:
    """Where a number is so near to a half or a whole one that float32 may round it the other way; 0 is exact."""
    return np.asarray((np.abs(value * 2 - np.rint(value * 2)) < _EDGE) & (value != 0))


def _double(value: Array) -> Array:
    return value.astype(np.float64) if value.dtype.kind == "f" else value


def _run(node: Node, data: Sequence[Array], opset: int) -> Array | None:
    """`node` run by ONNX's reference implementation; None where it cannot."""
    names = [f"i{k}" if name else "" for k, name in enumerate(node.inputs)]
    made = helper.make_node(node.op, names, ["o"])
    made.attribute.extend(_attribute(name, value) for name, value in node.attributes.items())
    feeds = {name: value for name, value in zip(names, data, strict=True) if name}
    inputs = [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in feeds]
    outputs = [helper.make_tensor_value_info("o", TensorProto.UNDEFINED, None)]
    model = helper.make_model(
        helper.make_graph([made], "one", inputs, outputs), opset_imports=[helper.make_opsetid("", opset)]
    )
    try:
        results: Any = ReferenceEvaluator(model).run(None, feeds)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, KeyError, IndexError, AttributeError):
        return None  # an operator in a way that the reference lacks: then nothing is known behind it
    return np.asarray(results[0])


def _attribute(name: str, value: Any) -> onnx.AttributeProto:
    return helper.make_attribute(name, numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value)


def _quantised(node: Node, data: Sequence[Array], shapes: Sequence[Shape]) -> Array | None:
    """Quantised numbers are kept as floats, since integers have no NaN (ONNX: QuantizeLinear, DequantizeLinear)."""
    x, scale = data[0].astype(np.float64), data[1].astype(np.float64)
    zero = data[2] if len(data) > 2 and node.inputs[2] else np.zeros(1, np.int64)
    if np.isnan(scale).any() or (scale.ndim and scale.ndim == x.ndim and scale.ndim > 1):
        return None  # a scale that is computed, or one per block
    zeros = zero.astype(np.float64)
    if scale.size > 1:
        axis = int(node.attributes.get("axis", 1)) % len(shapes[0])
        around = tuple(-1 if a == axis else 1 for a in range(len(shapes[0])))
        scale, zeros = scale.reshape(around), zeros.reshape(around) if zeros.size > 1 else zeros.reshape(())
    else:
        scale, zeros = scale.reshape(()), zeros.reshape(())
    if node.op == "DequantizeLinear":
        return np.asarray(((x - zeros) * scale).astype(np.float32))
    if zero.dtype.kind not in "iu" or len(node.inputs) < 3 or not node.inputs[2] or zero.dtype.itemsize > 2:
        return None
    limits = np.iinfo(zero.dtype)
    steps = x / scale
    halfway = np.abs(steps - np.floor(steps) - 0.5) < _EDGE
    return np.asarray(np.where(halfway, np.nan, np.clip(np.rint(steps) + zeros, limits.min, limits.max)))
