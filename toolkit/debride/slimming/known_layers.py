"""What is known behind layers: a channel is constant where all that it reads with a weight is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node
from debride.slimming.products import sum_of_products

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
Values = Sequence[Array | None]


def unpadded(node: Node) -> bool:
    """Whether a convolution reads no padding."""
    return not any(node.attributes.get("pads") or ()) and node.attributes.get("auto_pad", "NOTSET") in (
        "NOTSET",
        "VALID",
    )


def _bias(values: Values, position: int) -> Array | None:
    """The bias as a known array; zero where there is none, None where it is computed."""
    if len(values) <= position:
        return np.zeros(1)
    return values[position]


def _conv(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    x, weight = values[0], values[1]
    bias = _bias(values, 2) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
    if weight is None or bias is None or len(weight.shape) < 3 or weight.shape != shapes[1]:
        return None
    spatial = tuple(range(2, weight.ndim))
    groups = int(node.attributes.get("group", 1))
    if x is None or any(x.shape[a] != 1 for a in (0, *spatial)):
        channels = np.full(shapes[0][1], np.nan)
    else:
        channels = np.broadcast_to(x.reshape(-1), (shapes[0][1],)).astype(np.float64)
    if not unpadded(node):
        channels = np.where(channels == 0, channels, np.nan)  # next to the padding, a constant is none
    # A kernel sees a constant as often as it has taps; one that no tap weighs is live in none.
    touched = (weight != 0).any(axis=spatial)
    taps = weight.sum(axis=spatial, dtype=np.float64)
    split = touched.reshape(groups, -1, touched.shape[1])
    groups_in = channels.reshape(groups, 1, -1)
    total = np.where(split, np.nan_to_num(groups_in) * taps.reshape(split.shape), 0).sum(axis=2).reshape(-1)
    unknown = (split & np.isnan(groups_in)).any(axis=2).reshape(-1)
    found = np.where(unknown, np.nan, total + bias.astype(np.float64).reshape(-1))
    return found.astype(weight.dtype).reshape(1, -1, *(1 for _ in spatial))


def _conv_transpose(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    """Only nothing at all is the same everywhere: outputs of a transposed convolution overlap unevenly."""
    x, weight = values[0], values[1]
    bias = _bias(values, 2) if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1)
    if weight is None or bias is None or weight.shape != shapes[1]:
        return None
    spatial = tuple(range(2, weight.ndim))
    groups = int(node.attributes.get("group", 1))
    live = np.ones(shapes[0][1], np.bool_)
    if x is not None and all(x.shape[a] == 1 for a in (0, *spatial)):
        live = np.broadcast_to(x.reshape(-1), live.shape) != 0
    touched = (weight != 0).any(axis=spatial) & live[:, None]
    unknown = touched.reshape(groups, -1, touched.shape[1]).any(axis=1).reshape(-1)
    found = np.where(unknown, np.nan, np.broadcast_to(bias.astype(np.float64).reshape(-1), unknown.shape))
    return found.astype(weight.dtype).reshape(1, -1, *(1 for _ in spatial))


def _gemm(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    found = sum_of_products(node, values[:2], shapes[:2])
    if found is None:
        return None
    scaled: Array = found * float(node.attributes.get("alpha", 1.0))
    if len(node.inputs) < 3 or not node.inputs[2]:
        return scaled
    return None if values[2] is None else scaled + values[2] * float(node.attributes.get("beta", 1.0))


def _batch_norm(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    if node.attributes.get("training_mode", 0) or len([o for o in node.outputs if o]) > 1 or len(shapes[0]) < 2:
        return None
    if node.attributes.get("spatial", 1) == 0:
        return None
    if any(v is None for v in values[1:5]):
        return None
    place = (1, -1, *(1 for _ in shapes[0][2:]))
    scale, shift, mean, var = (v.reshape(place).astype(np.float64) for v in values[1:5] if v is not None)
    x = np.full((1,) * len(place), np.nan) if values[0] is None else values[0]
    found = (x - mean) / np.sqrt(var + node.attributes.get("epsilon", 1e-5)) * scale + shift
    return np.where(scale == 0, shift, found).astype(np.float32)


def _instance_norm(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    """A channel that is zero everywhere is its own mean: only the shift remains.

    Of another constant the mean is only nearly as large, and what is left is multiplied by 1 / sqrt(epsilon).
    """
    x, scale, shift = values
    if scale is None or shift is None:
        return None
    place = (1, -1, *(1 for _ in shapes[0][2:]))
    flat = np.zeros(scale.shape, np.bool_)
    if x is not None and x.shape[0] == 1:
        entries = x.reshape(x.shape[1], -1)
        flat = np.broadcast_to((entries == 0).all(axis=1), flat.shape)
    found: Array = np.where(flat | (scale == 0), shift, np.nan).reshape(place)
    return found


def _group_norm(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    """A group that is zero everywhere is its own mean: only the shift remains (see InstanceNormalization)."""
    x, scale, shift = values
    if scale is None or shift is None or node.since_version < 21:
        return None
    place = (1, -1, *(1 for _ in shapes[0][2:]))
    groups = int(node.attributes["num_groups"])
    flat = np.zeros(shapes[0][1], np.bool_)
    if x is not None and x.shape[0] == 1:
        full = np.broadcast_to(x, (1, shapes[0][1], *x.shape[2:])).reshape(groups, -1)
        flat = np.repeat((full == 0).all(axis=1), shapes[0][1] // groups)
    found: Array = np.where(flat | (scale == 0), shift, np.nan).reshape(place)
    return found


def _attention(node: Node, values: Values, shapes: Sequence[Shape]) -> Array | None:
    """Whatever the weights, a sum of values that are all zero is zero."""
    value = values[2]
    if (
        value is None
        or any(len(shape) != 4 or shape[1] != shapes[0][1] for shape in shapes[:3])
        or any(node.inputs[4:])
    ):
        return None
    return np.where((value == 0).all(axis=2, keepdims=True), 0.0, np.nan)


RULES: dict[str, Callable[[Node, Values, Sequence[Shape]], Array | None]] = {
    "Attention": _attention,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": sum_of_products,
    "Einsum": sum_of_products,
    "Gemm": _gemm,
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
}
