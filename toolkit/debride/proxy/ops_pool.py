"""Pooling: explicit and automatic padding, `ceil_mode`, dilations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.proxy.op import bounded, ints, op
from debride.proxy.ops_conv import _CONV, pad_window, spatial, window_pads

_MAX: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _ceil_extra(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> list[int]:
    """How many cells `ceil_mode` adds behind each axis so that the last, partial window counts.

    From version 22 on a window that would start in the right padding is dropped; runtimes did so long before.
    """
    extra = []
    for n, k, s, d, (begin, end) in zip(size, kernel, strides, dilations, pads, strict=True):
        span = n + begin + end - (k - 1) * d - 1
        steps = -(-span // s)
        if steps * s >= n + begin:
            steps -= 1
        extra.append(max(steps * s - span, 0))
    return extra


def _lowest(x: Tensor) -> float:
    return float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min


@op(since=(1, 8, 10, 11, 12, 22), counts_outputs=True)
def MaxPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor]:
    rank = spatial(x)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    extra = _ceil_extra(x.shape[2:], kernel_shape, strides, dilations, both) if ceil_mode else [0] * rank
    padded = pad_window(x, [(b, e + o) for (b, e), o in zip(both, extra, strict=True)], _lowest(x))
    if n_outputs == 1:
        return _MAX[rank](padded, list(kernel_shape), strides, 0, dilations)
    y, flat = _MAX[rank](padded, list(kernel_shape), strides, 0, dilations, return_indices=True)
    return y, _onnx_indices(flat, x.shape, padded.shape[2:], [b for b, _ in both], storage_order)


def _onnx_indices(
    flat: Tensor, shape: Sequence[int], padded: Sequence[int], begins: Sequence[int], storage_order: int
) -> Tensor:
    """Indices into the padded planes -> indices into the whole unpadded input, row-major or column-major planes."""
    coordinates = []
    for n in reversed(padded):
        coordinates.append(flat % n)
        flat = torch.div(flat, n, rounding_mode="floor")
    axes = [c - b for c, b in zip(reversed(coordinates), begins, strict=True)]
    sizes = list(shape[2:])
    if storage_order:
        axes, sizes = axes[::-1], sizes[::-1]
    index = torch.zeros_like(flat)
    for axis, n in zip(axes, sizes, strict=True):
        index = index * n + axis
    planes = torch.arange(shape[0] * shape[1], device=flat.device).reshape(shape[0], shape[1], *[1] * len(sizes))
    return index + planes * prod(sizes)


@op(since=(9, 11, 22))
def MaxUnpool(
    x: Tensor,
    indices: Tensor,
    output_shape: Tensor | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = spatial(x)
    strides, flat = list(strides or [1] * rank), list(pads or [0] * (2 * rank))
    size = [
        (n - 1) * s + k - b - e
        for n, s, k, b, e in zip(x.shape[2:], strides, kernel_shape, flat[:rank], flat[rank:], strict=True)
    ]
    whole = bounded([*x.shape[:2], *size])
    # The indices count through the whole tensor, planes and all.
    y = x.new_zeros(prod(whole)).index_put((indices.reshape(-1).long(),), x.reshape(-1)).reshape(whole)
    if output_shape is None:
        return y
    return pad_window(y, [(0, o - n) for o, n in zip(ints(output_shape)[2:], size, strict=True)])


def _window_sum(x: Tensor, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Tensor:
    """Sum of every window: a convolution with ones, each channel by itself."""
    rank = len(kernel)
    planes = x.reshape(-1, 1, *x.shape[2:])
    y = _CONV[rank](planes, torch.ones(1, 1, *kernel, dtype=x.dtype, device=x.device), None, strides, 0, dilations)
    return y.reshape(*x.shape[:2], *y.shape[2:])


@op(since=(7, 10, 11, 19, 22))
def AveragePool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = spatial(x)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    extra = _ceil_extra(x.shape[2:], kernel_shape, strides, dilations, both) if ceil_mode else [0] * rank
    if not any(extra) and not any(b or e for b, e in both) and all(d == 1 for d in dilations):
        return _AVERAGE[rank](x, list(kernel_shape), strides)
    tails = [(0, o) for o in extra]
    total = _window_sum(pad_window(pad_window(x, both), tails), kernel_shape, strides, dilations)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    # Explicit padding counts if asked to; the cells that only ceil_mode adds never do.
    counted = pad_window(pad_window(ones, both, float(bool(count_include_pad))), tails)
    return total / _window_sum(counted, kernel_shape, strides, dilations)


def _power_root(total: Tensor, p: int) -> Tensor:
    return total if p == 1 else total ** (1.0 / p)


@op(since=(2, 11, 18, 22))
def LpPool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    p: int = 2,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = spatial(x)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = window_pads(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    extra = _ceil_extra(x.shape[2:], kernel_shape, strides, dilations, both) if ceil_mode else [0] * rank
    padded = pad_window(x.abs() ** p, [(b, e + o) for (b, e), o in zip(both, extra, strict=True)])
    return _power_root(_window_sum(padded, kernel_shape, strides, dilations), p)


def _spatial_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@op(since=(1, 22))
def GlobalAveragePool(x: Tensor) -> Tensor:
    return x.mean(dim=_spatial_axes(x), keepdim=True)


@op(since=(1, 22))
def GlobalMaxPool(x: Tensor) -> Tensor:
    return x.amax(dim=_spatial_axes(x), keepdim=True)


@op(since=(2, 22))
def GlobalLpPool(x: Tensor, *, p: int = 2) -> Tensor:
    return _power_root((x.abs() ** p).sum(dim=_spatial_axes(x), keepdim=True), p)
