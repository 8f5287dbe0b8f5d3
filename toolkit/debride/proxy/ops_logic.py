"""Comparison, logic, selection and casting."""

from __future__ import annotations

import torch
from torch import Tensor

from debride.proxy.op import dtype_of, op
from debride.proxy.ops_math import widened


def _comparable(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    return widened(a), widened(b)


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
    return torch.bitwise_not(widened(x)).to(x.dtype)


@op(since=(11, 28))
def BitShift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    wide, steps = widened(x), widened(by)
    if direction == "LEFT":
        return torch.bitwise_left_shift(wide, steps).to(x.dtype)
    if x.dtype == torch.uint64:
        # In int64 the highest bit is a sign that a shift would repeat: the first step clears it.
        halved = torch.bitwise_right_shift(wide, 1) & torch.iinfo(torch.int64).max
        wide = torch.where(steps > 0, torch.bitwise_right_shift(halved, (steps - 1).clamp(min=0)), wide)
        return wide.to(x.dtype)
    return torch.bitwise_right_shift(wide, steps).to(x.dtype)


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
    if dtype not in FLOAT8_MAX:
        return x.to(dtype)
    largest = FLOAT8_MAX[dtype]
    wide = x.to(torch.float32)
    if saturate:
        return wide.clamp(-largest, largest).to(dtype)  # clamp lets NaN through
    if dtype == torch.float8_e4m3fn:
        # torch saturates here, ONNX has no infinity to give: NaN from where rounding would leave the range.
        wide = torch.where(wide.abs() > 464.0, torch.full_like(wide, float("nan")), wide)
    return wide.to(dtype)


@op(since=(6, 9, 13, 19, 21, 23, 24, 25, 28))
def Cast(x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, dtype_of(to), saturate)


@op(since=(15, 19, 21, 23, 24, 25))
def CastLike(x: Tensor, like: Tensor, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return cast(x, like.dtype, saturate)


@op(since=(1, 13, 14, 16, 19, 21, 23, 24, 25))
def Identity(x: Tensor) -> Tensor:
    return x
