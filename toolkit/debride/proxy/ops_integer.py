"""Products of quantised tensors, and what onnxruntime's quantiser writes beside them (domain com.microsoft).

Everything is computed in floats that hold exact integers, so that the gradient passes straight through the rounding
(ops_quant.py): an int8 tensor of torch's carries none. A sum of products is exact up to 2^24, and right to a float's
precision beyond.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from debride.proxy.op import op
from debride.proxy.ops_activation import LeakyRelu, Sigmoid
from debride.proxy.ops_conv import Conv
from debride.proxy.ops_pool import AveragePool
from debride.proxy.ops_quant import dequantized, quantized

_VENDOR = "com.microsoft"

ROUNDING = frozenset(
    (
        *(
            "QuantizeLinear",
            "DynamicQuantizeLinear",
            "QLinearConv",
            "QLinearMatMul",
            "QLinearAdd",
            "QLinearMul",
            "QGemm",
        ),
        *("QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "QLinearConcat"),
        *("QLinearGlobalAveragePool", "QLinearAveragePool"),
    )
)
"""The operators that round to integers."""


def _whole(x: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """The integers `x` less their zero point, as floats; a vector of zero points lies along `axis`."""
    x = x if x.dtype.is_floating_point else x.to(torch.float32)
    if zero_point is None:
        return x
    return x - _laid(zero_point.to(x.dtype), x.ndim, axis)


def _laid(parameter: Tensor, rank: int, axis: int) -> Tensor:
    """A scalar, or a vector along `axis` of `rank` axes; more axes are left as they are."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    return parameter.reshape([-1 if i == axis % rank else 1 for i in range(rank)]) if parameter.ndim == 1 else parameter


@op(since=(10,))
def ConvInteger(
    x: Tensor, w: Tensor, x_zero_point: Tensor | None = None, w_zero_point: Tensor | None = None, **window: Any
) -> Tensor:
    y: Tensor = Conv(_whole(x, x_zero_point, 1), _whole(w, w_zero_point, 0), **window)
    return y


@op(since=(10,))
def MatMulInteger(
    a: Tensor, b: Tensor, a_zero_point: Tensor | None = None, b_zero_point: Tensor | None = None
) -> Tensor:
    return _whole(a, a_zero_point, -2) @ _whole(b, b_zero_point, -1)


@op(since=(10,))
def QLinearConv(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
    b: Tensor | None = None,
    **window: Any,
) -> Tensor:
    total = Conv(
        _whole(x, x_zero_point, 1).to(x_scale.dtype),
        _whole(w, w_zero_point, 0).to(x_scale.dtype),
        None if b is None else b.to(x_scale.dtype),
        **window,
    )
    return quantized(total * _laid(x_scale * w_scale / y_scale, total.ndim, 1), None, y_zero_point)


@op(since=(10, 21))
def QLinearMatMul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    y_scale: Tensor,
    y_zero_point: Tensor,
) -> Tensor:
    # As float32 even where the scales are narrower: the sums are integers beyond what a half can count.
    total = _whole(a, a_zero_point, -2) @ _whole(b, b_zero_point, -1)
    rank = total.ndim
    scale = _laid(a_scale, rank, -2).to(total.dtype) * _laid(b_scale, rank, -1) / _laid(y_scale, rank, -2)
    return quantized(total * scale, None, y_zero_point, axis=-2)


@op(since=(11,))
def DynamicQuantizeLinear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # The range always holds 0; how the range itself moves with the image is left out of the gradient.
    least, most = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = (most - least) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero_point = torch.round(torch.clamp(-least / scale, 0, 255))
    shifted = x / scale + zero_point
    whole = torch.clamp(torch.round(x / scale) + zero_point, 0, 255)
    # Nothing lies beyond the range, so what the rounded zero point clips keeps its gradient too.
    return shifted + (whole - shifted).detach(), scale, zero_point


@op(since=(1,), domain=_VENDOR)
def QLinearAdd(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    return quantized(
        dequantized(a, a_scale, a_zero_point) + dequantized(b, b_scale, b_zero_point), y_scale, y_zero_point
    )


@op(since=(1,), domain=_VENDOR)
def QLinearMul(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor | None,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
) -> Tensor:
    return quantized(
        dequantized(a, a_scale, a_zero_point) * dequantized(b, b_scale, b_zero_point), y_scale, y_zero_point
    )


@op(since=(1,), domain=_VENDOR)
def QLinearSigmoid(
    x: Tensor, x_scale: Tensor, x_zero_point: Tensor | None, y_scale: Tensor, y_zero_point: Tensor | None = None
) -> Tensor:
    return quantized(Sigmoid(dequantized(x, x_scale, x_zero_point)), y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QLinearLeakyRelu(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 0.01,
) -> Tensor:
    return quantized(LeakyRelu(dequantized(x, x_scale, x_zero_point), alpha=alpha), y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QLinearSoftmax(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    opset: int,
    axis: int | None = None,
) -> Tensor:
    wide = dequantized(x, x_scale, x_zero_point)
    axis = (-1 if opset >= 13 else 1) if axis is None else axis
    # Before opset 13, Softmax ran over all axes from `axis` on.
    flat = wide if opset >= 13 else wide.flatten(axis % wide.ndim)
    y = torch.softmax(flat, axis if opset >= 13 else -1).reshape(wide.shape)
    return quantized(y, y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QLinearConcat(y_scale: Tensor, y_zero_point: Tensor, *parts: Tensor, axis: int) -> Tensor:
    wide = [dequantized(*parts[i : i + 3]) for i in range(0, len(parts), 3)]
    return quantized(torch.cat(wide, axis), y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QLinearGlobalAveragePool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    channels_last: int = 0,
) -> Tensor:
    axes = tuple(range(1, x.ndim - 1) if channels_last else range(2, x.ndim))
    return quantized(dequantized(x, x_scale, x_zero_point).mean(axes, keepdim=True), y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QLinearAveragePool(
    x: Tensor,
    x_scale: Tensor,
    x_zero_point: Tensor | None,
    y_scale: Tensor,
    y_zero_point: Tensor | None = None,
    *,
    channels_last: int = 0,
    kernel_shape: Sequence[int],
    **window: Any,
) -> Tensor:
    wide = dequantized(x, x_scale, x_zero_point)
    wide = wide.movedim(-1, 1) if channels_last else wide
    y = AveragePool(wide, kernel_shape=kernel_shape, **window)
    return quantized(y.movedim(1, -1) if channels_last else y, y_scale, y_zero_point)


@op(since=(1,), domain=_VENDOR)
def QGemm(
    a: Tensor,
    a_scale: Tensor,
    a_zero_point: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero_point: Tensor,
    c: Tensor | None = None,
    y_scale: Tensor | None = None,
    y_zero_point: Tensor | None = None,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    left, right = _whole(a, a_zero_point, 1), _whole(b, b_zero_point, 0 if transB else 1)
    total = (left.t() if transA else left) @ (right.t() if transB else right)
    total = total if c is None else total + c.to(total.dtype)
    y = total * (alpha * a_scale * b_scale)
    return y if y_scale is None else quantized(y, y_scale, y_zero_point)
