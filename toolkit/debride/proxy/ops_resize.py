"""Resampling on a grid: Resize and Upsample as a product with one small matrix per axis.

An interpolation along an axis is linear, so a matrix (output size, input size) says all of it, for any mode; what is
left is exact in value and gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from debride.errors import UnsupportedOpError
from debride.proxy.op import bounded, ints, op

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """How cells are read, in the words of ONNX's attributes."""

    coordinates: str
    mode: str
    nearest: str
    cubic: float
    exclude: bool
    antialias: bool


_Axis = tuple[int, int, float, tuple[float, float]]
"""Sizes before and after, the scale between them, and the region that is read."""


def _sources(mode: str, n_in: int, n_out: int, scale: float, roi: tuple[float, float]) -> Doubles:
    """Where in the input every output cell lies (ONNX Resize, `coordinate_transformation_mode`)."""
    x = np.arange(n_out, dtype=np.float64)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * ((n_in - 1) / (n_out - 1)) if n_out > 1 else np.zeros(n_out)
    if mode == "tf_crop_and_resize":
        start, end = roi
        if n_out > 1:
            return start * (n_in - 1) + x * (end - start) * (n_in - 1) / (n_out - 1)
        return np.full(n_out, 0.5 * (start + end) * (n_in - 1))
    if mode == "tf_half_pixel_for_nn":
        return (x + 0.5) / scale
    half = (x + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return half
    if mode == "pytorch_half_pixel":
        return half if n_out > 1 else np.zeros(n_out)
    if mode == "half_pixel_symmetric":
        # The size was rounded down: keep the two centres together.
        return half + n_in / 2 * (1 - n_out / (scale * n_in))
    raise UnsupportedOpError(f"coordinate_transformation_mode {mode!r} is not computed by the proxy")


def _nearest(at: Doubles, rounding: str) -> Doubles:
    if rounding == "round_prefer_floor":
        return np.ceil(at - 0.5)
    if rounding == "round_prefer_ceil":
        return np.floor(at + 0.5)
    return np.floor(at) if rounding == "floor" else np.ceil(at)


def _kernel(mode: str, distance: Doubles, cubic: float) -> Doubles:
    d = np.abs(distance)
    if mode == "linear":
        tent: Doubles = np.maximum(1 - d, 0)
        return tent
    near = ((cubic + 2) * d - (cubic + 3)) * d * d + 1
    far = ((cubic * d - 5 * cubic) * d + 8 * cubic) * d - 4 * cubic
    weights: Doubles = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
    return weights


def _matrix(way: _Way, n_in: int, at: Doubles, scale: float) -> Doubles:
    """Weights (output, input) of one axis; a cell beyond the border counts as the border cell."""
    n_out, matrix = len(at), np.zeros((len(at), n_in))
    if way.mode == "nearest":
        cells = np.clip(_nearest(at, way.nearest), 0, n_in - 1).astype(np.int64)
        matrix[np.arange(n_out), cells] = 1
        return matrix
    shrink = min(scale, 1.0) if way.antialias else 1.0
    reach = int(np.ceil((1 if way.mode == "linear" else 2) / shrink))
    # Each output cell reads the 2 * reach cells around its place.
    cells = np.floor(at)[:, None].astype(np.int64) + np.arange(1 - reach, reach + 1)
    weights = _kernel(way.mode, (at[:, None] - cells) * shrink, way.cubic)
    if way.exclude:
        weights = np.where((cells >= 0) & (cells < n_in), weights, 0)
    if way.exclude or way.antialias:
        weights = weights / weights.sum(1, keepdims=True)
    np.add.at(matrix, (np.arange(n_out)[:, None], np.clip(cells, 0, n_in - 1)), weights)
    return matrix


@lru_cache(maxsize=32)  # made and taken to the device once, not in every pass
def _weights(way: _Way, axis: _Axis, kind: torch.dtype, device: torch.device) -> Tensor | None:
    """The matrix of one axis as a tensor; None where every cell stays as it is."""
    n_in, n_out, scale, roi = axis
    at = _sources(way.coordinates, n_in, n_out, scale, roi)
    if n_out == n_in and np.array_equal(at, np.arange(n_out)):
        return None
    with torch.inference_mode(False):
        return torch.from_numpy(_matrix(way, n_in, at, scale)).to(device=device, dtype=kind)


def _along(x: Tensor, dim: int, way: _Way, axis: _Axis) -> Tensor:
    kind = x.dtype if x.dtype.is_floating_point else torch.float64
    weights = _weights(way, axis, kind, x.device)
    if weights is None:
        return x
    y: Tensor = torch.tensordot(x.to(kind), weights, dims=([dim], [1])).movedim(-1, dim)
    return y if x.dtype.is_floating_point else y.round().to(x.dtype)


@lru_cache(maxsize=32)
def _outside(way: _Way, axis: _Axis, device: torch.device) -> Tensor:
    """Which cells lie beyond what is read."""
    n_in, n_out, scale, roi = axis
    at = _sources(way.coordinates, n_in, n_out, scale, roi)
    with torch.inference_mode(False):
        return torch.from_numpy((at < 0) | (at > n_in - 1)).to(device)


def _fit(sizes: list[int], shape: Sequence[int], policy: str) -> tuple[list[int], list[float]]:
    """Output sizes and scales of the resized axes for the input `sizes` (`keep_aspect_ratio_policy`)."""
    scales = [s / n for s, n in zip(sizes, shape, strict=True)]
    if policy == "stretch":
        return sizes, scales
    scale = min(scales) if policy == "not_larger" else max(scales)
    return [int(np.floor(scale * n + 0.5)) for n in shape], [scale] * len(sizes)


@op(since=(11, 13, 18, 19))
def Resize_11(
    x: Tensor,
    roi: Tensor | None = None,
    scales: Tensor | None = None,
    sizes: Tensor | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    dims = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    shape = [x.shape[d] for d in dims]
    if sizes is not None and sizes.numel():
        out, factors = _fit(ints(sizes), shape, keep_aspect_ratio_policy)
    elif scales is not None:
        factors = [float(s) for s in scales.tolist()]
        out = [int(np.floor(n * s)) for n, s in zip(shape, factors, strict=True)]
    else:
        raise ValueError("neither scales nor sizes are given")
    bounded([*out, *(n for d, n in enumerate(x.shape) if d not in dims)])
    way = _Way(
        coordinates=coordinate_transformation_mode,
        mode=mode,
        nearest=nearest_mode,
        cubic=cubic_coeff_a,
        exclude=bool(exclude_outside),
        antialias=bool(antialias),
    )
    crop = coordinate_transformation_mode == "tf_crop_and_resize"
    bounds = roi.tolist() if crop and roi is not None else [0.0] * len(dims) + [1.0] * len(dims)
    outside = torch.zeros((), dtype=torch.bool, device=x.device)
    for i, d in enumerate(dims):
        axis = (shape[i], out[i], factors[i], (bounds[i], bounds[i + len(dims)]))
        x = _along(x, d, way, axis)
        if crop:
            outside = outside | _outside(way, axis, x.device).reshape([-1 if k == d else 1 for k in range(x.ndim)])
    return torch.where(outside, torch.full_like(x, extrapolation_value), x) if crop else x


@op(since=(10,))
def Resize_10(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    y: Tensor = Resize_11(x, None, scales, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return y


@op(since=(7,))
def Upsample_7(x: Tensor, *, scales: Sequence[float], mode: str = "nearest") -> Tensor:
    y: Tensor = Resize_10(x, torch.tensor(list(scales)), mode=mode)
    return y


@op(since=(9,))
def Upsample_9(x: Tensor, scales: Tensor, *, mode: str = "nearest") -> Tensor:
    y: Tensor = Resize_10(x, scales, mode=mode)
    return y
