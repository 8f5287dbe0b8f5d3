"""Arithmetic of ONNX's default domain, element by element with numpy broadcasting (from opset 7 on)."""

from __future__ import annotations

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.proxy.op import Operator, op

WIDE = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}
"""torch computes little in these types: compute in a wider one, and wrap as C does."""


def _unary(name: str, since: tuple[int, ...], function: object) -> Operator:
    if not callable(function):
        raise TypeError(name)
    return Operator(name=name, since=since, compute=function)


Abs = _unary("Abs", (6, 13), torch.abs)
Neg = _unary("Neg", (6, 13), torch.neg)
Sign = _unary("Sign", (9, 13), torch.sign)
Floor = _unary("Floor", (6, 13), torch.floor)
Ceil = _unary("Ceil", (6, 13), torch.ceil)
Round = _unary("Round", (11, 22), torch.round)
Exp = _unary("Exp", (6, 13), torch.exp)
Log = _unary("Log", (6, 13), torch.log)
Sqrt = _unary("Sqrt", (6, 13), torch.sqrt)
Reciprocal = _unary("Reciprocal", (6, 13), torch.reciprocal)
Erf = _unary("Erf", (9, 13), torch.erf)
Sin = _unary("Sin", (7, 22), torch.sin)
Cos = _unary("Cos", (7, 22), torch.cos)
Tan = _unary("Tan", (7, 22), torch.tan)
Asin = _unary("Asin", (7, 22), torch.asin)
Acos = _unary("Acos", (7, 22), torch.acos)
Atan = _unary("Atan", (7, 22), torch.atan)
Sinh = _unary("Sinh", (9, 22), torch.sinh)
Cosh = _unary("Cosh", (9, 22), torch.cosh)
Asinh = _unary("Asinh", (9, 22), torch.asinh)
Acosh = _unary("Acosh", (9, 22), torch.acosh)
Atanh = _unary("Atanh", (9, 22), torch.atanh)


def widened(x: Tensor) -> Tensor:
    """`x` in a type that torch can compute in."""
    return x.to(WIDE[x.dtype]) if x.dtype in WIDE else x


@op(since=(7, 13, 14))
def Add(a: Tensor, b: Tensor) -> Tensor:
    return torch.add(widened(a), widened(b)).to(a.dtype) if a.dtype in WIDE else torch.add(a, b)


@op(since=(7, 13, 14))
def Sub(a: Tensor, b: Tensor) -> Tensor:
    return torch.sub(widened(a), widened(b)).to(a.dtype) if a.dtype in WIDE else torch.sub(a, b)


@op(since=(7, 13, 14))
def Mul(a: Tensor, b: Tensor) -> Tensor:
    return torch.mul(widened(a), widened(b)).to(a.dtype) if a.dtype in WIDE else torch.mul(a, b)


@op(since=(7, 13, 14))
def Div(a: Tensor, b: Tensor) -> Tensor:
    # Integers are divided as C does it: towards zero.
    if a.dtype.is_floating_point or b.dtype.is_floating_point:
        return torch.div(a, b)
    return torch.div(widened(a), widened(b), rounding_mode="trunc").to(a.dtype)


@op(since=(10, 13, 28))
def Mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    function = torch.fmod if fmod else torch.remainder
    return function(widened(a), widened(b)).to(a.dtype)


@op(since=(7, 12, 13, 15))
def Pow(base: Tensor, exponent: Tensor) -> Tensor:
    if base.dtype.is_floating_point or not exponent.dtype.is_floating_point:
        return torch.pow(widened(base), widened(exponent)).to(base.dtype)
    return torch.pow(base.double(), exponent.double()).to(base.dtype)


@op(since=(6, 8, 13))
def Sum(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs)


@op(since=(6, 8, 13))
def Mean(*xs: Tensor) -> Tensor:
    return reduce(torch.add, xs) / len(xs)


@op(since=(6, 8, 12, 13))
def Max(*xs: Tensor) -> Tensor:
    return reduce(torch.maximum, map(widened, xs)).to(xs[0].dtype)


@op(since=(6, 8, 12, 13))
def Min(*xs: Tensor) -> Tensor:
    return reduce(torch.minimum, map(widened, xs)).to(xs[0].dtype)


def _are_numbers(*bounds: Tensor) -> bool:
    """Whether bounds can be read without waiting for another device, and want no gradient."""
    return all(bound.device.type == "cpu" and not bound.requires_grad for bound in bounds)


@op(since=(6,))
def Clip_6(x: Tensor, *, min: float = -3.4028234663852886e38, max: float = 3.4028234663852886e38) -> Tensor:
    return F.hardtanh(x, min, max) if min <= max else torch.full_like(x, max)


@op(since=(11, 12, 13))
def Clip_11(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    # High wins where low exceeds it, as ONNX has it: min(max(x, low), high).
    if low is not None and high is not None and x.dtype.is_floating_point and _are_numbers(low, high):
        least, most = float(low), float(high)
        # Between two numbers torch has a fused gradient, many times as fast: MobileNets clip after every layer.
        return F.hardtanh(x, least, most) if least <= most else torch.full_like(x, most)
    y = widened(x)
    # Without axes a number of the CPU may stand beside data that lie elsewhere.
    y = y if low is None else torch.maximum(y, widened(low.reshape(())))
    y = y if high is None else torch.minimum(y, widened(high.reshape(())))
    return y.to(x.dtype)


@op(since=(11, 14))
def CumSum(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis)
    y = x.flip(dim) if reverse else x
    total = torch.cumsum(y, dim, dtype=x.dtype)
    total = total - y if exclusive else total
    return total.flip(dim) if reverse else total


@op(since=(26,))
def CumProd(x: Tensor, axis: Tensor, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis)
    y = x.flip(dim) if reverse else x
    if exclusive:
        y = torch.cat([torch.ones_like(y.narrow(dim, 0, 1)), y.narrow(dim, 0, y.shape[dim] - 1)], dim)
    total = torch.cumprod(y, dim, dtype=x.dtype)
    return total.flip(dim) if reverse else total


@op(since=(9,))
def Shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, zero)).to(x.dtype)


@op(since=(11, 22))
def Det(x: Tensor) -> Tensor:
    result: Tensor = torch.linalg.det(x)
    return result
