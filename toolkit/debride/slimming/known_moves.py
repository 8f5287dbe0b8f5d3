"""What is known behind operators that move, gather or pool elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node
from debride.slimming.parameters import indices_of, pads_of, reduced_axes

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Values = Sequence[Array | None]
Numbers = Sequence[list[int] | None]
Found = tuple[Array | None, ...]
_MOST = 2**27


def _wide(value: Array, axis: int, size: int) -> Array:
    """`value` with all `size` entries along `axis`."""
    shape = list(value.shape)
    shape[axis] = size
    return np.broadcast_to(value, shape)


def _reshape(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    x, size = values[0], int(np.prod(shapes[0]))
    if x is None or size > _MOST or int(np.prod(outputs[0])) != size:
        return (None,)
    if x.size == 1:
        return (x.reshape((1,) * len(outputs[0])),)
    return (np.broadcast_to(x, shapes[0]).reshape(outputs[0]),)


def _transpose(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    x = values[0]
    order = node.attributes.get("perm") or list(range(len(shapes[0])))[::-1]
    return (None if x is None else x.transpose(order),)


def _concat(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    rank = len(outputs[0])
    axis = int(node.attributes.get("axis", 1)) % rank
    if any(v is not None and v.dtype.kind != "f" for v in values):
        return (None,)
    parts = [np.full((1,) * rank, np.nan, np.float32) if v is None else v for v in values]
    wide = [_wide(v, axis, shape[axis]) for v, shape in zip(parts, shapes, strict=True)]
    common = np.broadcast_shapes(*((*v.shape[:axis], 1, *v.shape[axis + 1 :]) for v in wide))
    each = [np.broadcast_to(v, (*common[:axis], v.shape[axis], *common[axis + 1 :])) for v in wide]
    return (np.concatenate(each, axis=axis),)


def _split(node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers) -> Found:
    x = values[0]
    axis = int(node.attributes.get("axis", 0)) % len(shapes[0])
    if x is None:
        return (None,)
    bounds = np.cumsum([shape[axis] for shape in outputs])[:-1]
    return tuple(np.split(_wide(x, axis, shapes[0][axis]), bounds, axis=axis))


def _slice(node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers) -> Found:
    x = values[0]
    places = indices_of(node, shapes[0], parameters)
    if x is None or places is None:
        return (None,)
    for axis, indices in places.items():
        x = x if x.shape[axis] == 1 else x.take(indices, axis=axis)
    return (x,)


def _gather(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    x, indices = values[0], values[1]
    if x is None or indices is None or parameters[1] is None:
        return (None,)
    axis = int(node.attributes.get("axis", 0)) % len(shapes[0])
    return (_wide(x, axis, shapes[0][axis]).take(indices.astype(np.int64), axis=axis),)


def _pad(node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers) -> Found:
    x, pads = values[0], pads_of(node, len(shapes[0]), parameters)
    if pads is None:
        return (None,)
    if node.attributes.get("mode", "constant") != "constant":
        # Mirrored or repeated, what is the same along an axis stays so.
        same = x is not None and all(x.shape[axis] == 1 for axis, pair in enumerate(pads) if any(pair))
        return (x if same else None,)
    fill: Any = node.attributes.get("value", 0.0)
    if len(values) > 2 and node.inputs[2]:
        if values[2] is None or values[2].size != 1:
            return (None,)
        fill = values[2].reshape(-1)[0]
    x = np.full((1,) * len(shapes[0]), np.nan, np.float32) if x is None else x
    if x.dtype.kind != "f" or any(before < 0 or after < 0 for before, after in pads):
        return (None,)
    for axis, (before, after) in enumerate(pads):
        if before or after:
            widths = [(before, after) if a == axis else (0, 0) for a in range(x.ndim)]
            x = np.pad(_wide(x, axis, shapes[0][axis]), widths, constant_values=fill)
    return (x,)


def _expand(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    x = values[0]
    return (None if x is None else x.reshape((1,) * (len(outputs[0]) - x.ndim) + x.shape),)


def _pool(node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers) -> Found:
    """A window over what is the same everywhere gives it again, but for an average that counts the padding."""
    x = values[0]
    if x is None or any(s != 1 for s in (x.shape[0], *x.shape[2:])):
        return (None,)
    padded = any(node.attributes.get("pads") or ()) or node.attributes.get("auto_pad", "NOTSET").startswith("SAME")
    padded = padded or bool(node.attributes.get("ceil_mode", 0))
    counted = node.op == "LpPool" or (node.op == "AveragePool" and padded)
    return (np.where(x == 0, x, np.nan) if counted else x,)


def _reduce(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    x, axes = values[0], reduced_axes(node, shapes[0], parameters)
    if x is None or axes is None or x.dtype.kind != "f":
        return (None,)
    rank = len(shapes[0])
    if any(x.shape[a] != 1 for a in axes):
        # Zeros alone sum up to something known, whatever else is there.
        if node.op not in ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare"):
            return (None,)
        x = np.where((x == 0).all(axis=tuple(axes), keepdims=True), 0.0, np.nan)
    elif node.op not in ("ReduceMean", "ReduceMax", "ReduceMin"):
        x = np.where(x == 0, x, np.nan)
    if node.op not in _REDUCTIONS:
        return (None,)
    if node.attributes.get("keepdims", 1):
        return (x,)
    return (x.reshape([s for a, s in enumerate(x.shape) if a not in axes] if len(axes) < rank else ()),)


_REDUCTIONS = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")


def _resize(
    node: Node, values: Values, shapes: Sequence[Shape], outputs: Sequence[Shape], parameters: Numbers
) -> Found:
    """Interpolation between equal numbers gives them, unless it looks outside."""
    x = values[0]
    if x is None or len(outputs[0]) != x.ndim:
        return (None,)
    moved = [a for a, (one, other) in enumerate(zip(shapes[0], outputs[0], strict=True)) if one != other]
    outside = node.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    if outside or any(x.shape[a] != 1 for a in moved):
        return (None,)
    return (x,)


RULES: dict[str, Callable[[Node, Values, Sequence[Shape], Sequence[Shape], Numbers], Found]] = {
    "Reshape": _reshape,
    "Flatten": _reshape,
    "Squeeze": _reshape,
    "Unsqueeze": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Expand": _expand,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "LpPool": _pool,
    "GlobalAveragePool": _pool,
    "GlobalMaxPool": _pool,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Resize": _resize,
    "Upsample": _resize,
}
