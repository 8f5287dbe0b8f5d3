"""Matrix products, and the Fourier transform."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.proxy.op import bounded, op


@op(since=(7, 9, 11, 13))
def Gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    a = a.t() if transA else a
    if alpha == 1.0 and beta == 1.0 and a.dtype.is_floating_point and (c is None or c.ndim == 1):
        return F.linear(a, b if transB else b.t(), c)
    y = a @ (b.t() if transB else b)
    y = y if alpha == 1.0 else (alpha * y).to(a.dtype)
    if c is None:
        return y
    return y + (c if beta == 1.0 else (beta * c).to(c.dtype))


@op(since=(1, 9, 13))
def MatMul(a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


@op(since=(12, 28))
def Einsum(*xs: Tensor, equation: str) -> Tensor:
    result: Tensor = torch.einsum(equation.replace(" ", ""), *xs)
    return result


def _dft(x: Tensor, axis: int, length: Tensor | None, inverse: bool, onesided: bool) -> Tensor:
    """Along `axis` of (..., 1) or (..., real and imaginary): the whole spectrum or its first half."""
    axis = axis % x.ndim
    size = x.shape[axis] if length is None else int(length)
    bounded([n for i, n in enumerate(x.shape) if i != axis] + [size])
    if inverse and onesided:
        half = torch.view_as_complex(x.contiguous())
        real: Tensor = torch.fft.irfft(half, n=size if length is not None else None, dim=axis)
        return real.unsqueeze(-1)
    signal = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x.squeeze(-1)
    y: Tensor = torch.view_as_real(torch.fft.ifft(signal, size, axis) if inverse else torch.fft.fft(signal, size, axis))
    return y.narrow(axis, 0, size // 2 + 1) if onesided else y


@op(since=(17,))
def DFT_17(
    x: Tensor, dft_length: Tensor | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return _dft(x, axis, dft_length, bool(inverse), bool(onesided))


@op(since=(20,))
def DFT_20(
    x: Tensor, dft_length: Tensor | None = None, axis: Tensor | None = None, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    return _dft(x, -2 if axis is None else int(axis), dft_length, bool(inverse), bool(onesided))
