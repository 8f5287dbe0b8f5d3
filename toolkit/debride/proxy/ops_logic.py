"""Comparison, logic, selection and casting."""

from __future__ import annotations

import torch
from torch import Tensor

from debride.proxy.op import dtype_of, op
from debride.proxy.ops_math import WIDE


def _comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return (a.to(WIDE[a.dtype]), b.to(WIDE[b.dtype])) if a.dtype in WIDE else (a, b)


@op(since=(7, 11, 13, 19))
def Equal(a: Tensor, b: Tensor) -> Tensor:
    return torch.eq(*_comparable(a, b))


@op(since=(7, 9, 13))
def Greater(a: Tensor, b: Tensor) -> Tensor:
    return torch.gt(*_comparable(a, b))


@op(since=(7, 9, 13))
def Less(a: Tensor, b: Tensor) -> Tensor:
    return torch.lt(*_comparable(a, b))


@op(since=(12, 16))
def GreaterOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return torch.ge(*_comparable(a, b))


@op(since=(12, 16))
def LessOrEqual(a: Tensor, b: Tensor) -> Tensor:
    return torch.le(*_comparable(a, b))


@op(since=(7,))
def And(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_and(a, b)


@op(since=(7,))
def Or(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_or(a, b)


@op(since=(7,))
def Xor(a: Tensor, b: Tensor) -> Tensor:
    return torch.logical_xor(a, b)


@op(since=(1,))
def Not(x: Tensor) -> Tensor:
    return torch.logical_not(x)


@op(since=(18,))
def BitwiseAnd(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_and(a, b)


@op(since=(18,))
def BitwiseOr(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_or(a, b)


@op(since=(18,))
def BitwiseXor(a: Tensor, b: Tensor) -> Tensor:
    return torch.bitwise_xor(a, b)


@op(since=(18,))
def BitwiseNot(x: Tensor) -> Tensor:
    return torch.bitwise_not(x)


@op(since=(9, 16))
def Where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@op(since=(9, 13, 20))
def IsNaN(x: Tensor) -> Tensor:
    return torch.isnan(x)


@op(since=(10, 20))
def IsInf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    up, down = x == float("inf"), x == float("-inf")
    return (up & bool(detect_positive)) | (down & bool(detect_negative))


FLOAT8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e4m3fnuz: 240.0, torch.float8_e5m2: 57344.0}
FLOAT8_MAX[torch.float8_e5m2fnuz] = 57344.0


def cast(x: Tensor, dtype: torch.dtype, saturate: int = 1) -> Tensor:
    """`x` as `dtype`; to an 8-bit float, values beyond its range become its largest where `saturate` is set."""
    if dtype in FLOAT8_MAX and saturate:
        # A NaN stays one: clamp lets it through.
        x = x.to(torch.float32).clamp(-FLOAT8_MAX[dtype], FLOAT8_MAX[dtype])
    return x.to(dtype)


@op(since=(6, 9, 13, 19, 21, 23, 24, 25, 28))
def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, dtype_of(to), saturate)


@op(since=(15, 19, 21, 23, 24, 25, 28))
def CastLike(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, like.dtype, saturate)


@op(since=(1, 13, 14, 16, 19, 21, 23, 24, 25))
def Identity(x: Tensor) -> Tensor:
    return x
