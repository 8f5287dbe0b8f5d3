"""Tensors made from shapes and numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from debride.proxy.convert import to_tensor
from debride.proxy.op import bounded, dtype_of, ints, op


@op(since=(9, 20, 21, 23, 24, 25))
def ConstantOfShape(shape: Tensor, *, value: np.ndarray[Any, Any] | None = None) -> Tensor:
    fill = torch.zeros(1) if value is None else to_tensor(value)
    return fill.reshape(1).expand(bounded(ints(shape)) or [1]).reshape(ints(shape)).clone()


@op(since=(11, 27))
def Range(start: Tensor, limit: Tensor, delta: Tensor, *, stash_type: int = 1) -> Tensor:
    first, last, step = start.item(), limit.item(), delta.item()
    if step == 0:
        raise ValueError("a Range has delta 0")
    count = max(int(np.ceil((last - first) / step)), 0)
    bounded([count])
    kind = torch.float64 if start.dtype.is_floating_point else torch.int64
    return (torch.arange(count, dtype=kind) * step + first).to(start.dtype)


@op(since=(9, 22))
def EyeLike(x: Tensor, *, dtype: int | None = None, k: int = 0) -> Tensor:
    y = torch.ones_like(x, dtype=torch.uint8).triu(k).tril(k)
    return y.to(x.dtype if dtype is None else dtype_of(dtype))


@op(since=(9, 11, 28))
def OneHot(indices: Tensor, depth: Tensor, values: Tensor, *, axis: int = -1) -> Tensor:
    classes = int(depth)
    bounded([*indices.shape, classes])
    wanted = indices.long()
    wanted = torch.where(wanted < 0, wanted + classes, wanted).unsqueeze(axis)
    shape = [1] * wanted.ndim
    shape[axis] = classes
    hot = wanted == torch.arange(classes, device=wanted.device).reshape(shape)
    return torch.where(hot, values[1], values[0])
