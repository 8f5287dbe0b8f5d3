"""Matrix products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.proxy.op import op


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
