"""Quantisation, per tensor, per axis or per block, with straight-through gradients (Bengio et al. 2013).

QuantizeLinear's result keeps a float type that holds exact integers, so that the gradient can pass it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from debride.errors import UnsupportedOpError
from debride.proxy.op import dtype_of, op

_RANGES = {
    torch.uint8: (0, 255),
    torch.int8: (-128, 127),
    torch.uint16: (0, 65535),
    torch.int16: (-32768, 32767),
    torch.int32: (-(2**31), 2**31 - 1),
}


def _along(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point, shaped so that it broadcasts against `x`."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim == 1:
        return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    size = block_size or -(-x.shape[axis] // parameter.shape[axis])
    return parameter.repeat_interleave(size, dim=axis).narrow(axis, 0, x.shape[axis])


def straight_through(scaled: Tensor, shift: Tensor | int, low: int, high: int) -> Tensor:
    """`scaled` rounded, shifted and clipped, with the gradient of clipping alone."""
    bounded = torch.clamp(scaled + shift, low, high)
    whole = torch.clamp(torch.round(scaled) + shift, low, high)
    return bounded + (whole - bounded).detach()


def quantized(
    x: Tensor,
    scale: Tensor | None,
    zero_point: Tensor | None,
    *,
    axis: int = 1,
    block_size: int = 0,
    target: torch.dtype = torch.uint8,
) -> Tensor:
    """`x` over `scale` as integers of the zero point's type (without one: `target`), in a float tensor.

    Raises:
        UnsupportedOpError: a type of less than 8 bits, or 8-bit floats.
    """
    if zero_point is not None:
        # A zero point made by DynamicQuantizeLinear is a plain float that stands for uint8.
        made = zero_point.dtype in (torch.float32, torch.float64)
        target = torch.uint8 if made else zero_point.dtype
    if target not in _RANGES:
        raise UnsupportedOpError(f"quantisation to {target} is not computed by the proxy; use 8-bit integers")
    scaled = x if scale is None else x / _along(scale, x, axis, block_size)
    shift = 0 if zero_point is None else _along(zero_point, x, axis, block_size).to(scaled.dtype)
    return straight_through(scaled, shift, *_RANGES[target])


def dequantized(
    x: Tensor, scale: Tensor, zero_point: Tensor | None = None, *, axis: int = 1, block_size: int = 0
) -> Tensor:
    """(x - zero point) * scale, in float32 or, where the scale is one, float64."""
    wide = x.to(torch.float32 if scale.dtype != torch.float64 else torch.float64)
    if zero_point is not None:
        wide = wide - _along(zero_point, x, axis, block_size).to(wide.dtype)
    return wide * _along(scale, x, axis, block_size).to(wide.dtype)


@op(since=(10, 13, 19, 21, 23, 24, 25, 28))
def QuantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    target = dtype_of(output_dtype) if output_dtype else torch.uint8
    return quantized(x, scale, zero_point, axis=axis, block_size=block_size, target=target)


@op(since=(10, 13, 19, 21, 23, 24, 25, 28))
def DequantizeLinear(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    y = dequantized(x, scale, zero_point, axis=axis, block_size=block_size)
    return y.to(dtype_of(output_dtype) if output_dtype else scale.dtype)
