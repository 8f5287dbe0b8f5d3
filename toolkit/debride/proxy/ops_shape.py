"""Shapes: reshaping, joining, splitting, repeating, and the integers that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from debride.proxy.op import bounded, ints, op, shape_tensor


@op(since=(5, 13, 14, 19, 21, 23, 24, 25))
def Reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    wanted = ints(shape)
    if not allowzero:
        wanted = [x.shape[i] if n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@op(since=(1, 9, 11, 13, 21, 23, 24, 25))
def Flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))


def _squeeze(x: Tensor, axes: Sequence[int] | None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(x: Tensor, axes: Sequence[int]) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


@op(since=(1, 11))
def Squeeze_1(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    return _squeeze(x, axes)


@op(since=(13, 21, 23, 24, 25))
def Squeeze_13(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return _squeeze(x, None if axes is None else ints(axes))


@op(since=(1, 11))
def Unsqueeze_1(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    return _unsqueeze(x, axes)


@op(since=(13, 21, 23, 24, 25))
def Unsqueeze_13(x: Tensor, axes: Tensor) -> Tensor:
    return _unsqueeze(x, ints(axes))


@op(since=(1, 13, 21, 23, 24, 25))
def Transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    return x.permute(tuple(reversed(range(x.ndim))) if perm is None else tuple(perm))


@op(since=(4, 11, 13))
def Concat(*xs: Tensor, axis: int) -> Tensor:
    return torch.cat(xs, axis)


def _split(x: Tensor, sizes: Sequence[int] | None, axis: int, parts: int) -> tuple[Tensor, ...]:
    if sizes is None:
        # Equal parts; the last is smaller where the axis does not divide.
        each = -(-x.shape[axis] // parts)
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    return torch.split(x, list(sizes), axis)


@op(since=(2, 11), counts_outputs=True)
def Split_2(x: Tensor, *, axis: int = 0, split: Sequence[int] | None = None, n_outputs: int) -> tuple[Tensor, ...]:
    return _split(x, split, axis, n_outputs)


@op(since=(13, 18), counts_outputs=True)
def Split_13(
    x: Tensor, split: Tensor | None = None, *, axis: int = 0, num_outputs: int | None = None, n_outputs: int
) -> tuple[Tensor, ...]:
    return _split(x, None if split is None else ints(split), axis, num_outputs or n_outputs)


@op(since=(8, 13))
def Expand(x: Tensor, shape: Tensor) -> Tensor:
    both = torch.broadcast_shapes(x.shape, tuple(ints(shape)))  # type: ignore[no-untyped-call]
    return x.expand(bounded(both))


@op(since=(6, 13))
def Tile(x: Tensor, repeats: Tensor) -> Tensor:
    times = ints(repeats)
    bounded([n * r for n, r in zip(x.shape, times, strict=True)])
    return x.repeat(times)


@op(since=(1, 13))
def Shape_1(x: Tensor) -> Tensor:
    return shape_tensor(x.shape)


@op(since=(15, 19, 21, 23, 24, 25))
def Shape_15(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return shape_tensor(x.shape[start:end])


@op(since=(1, 13, 19, 21, 23, 24, 25))
def Size(x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), dtype=torch.int64)


def _blocks_out(x: Tensor, blocksize: int, mode: str) -> Tensor:
    n, c, h, w = x.shape
    b, deep = blocksize, c // (blocksize * blocksize)
    if mode == "DCR":
        y = x.reshape(n, b, b, deep, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, deep, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, deep, h * b, w * b)


@op(since=(1, 11, 13, 28))
def DepthToSpace(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    return _blocks_out(x, blocksize, mode)


@op(since=(1, 13, 28))
def SpaceToDepth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    y = x.reshape(n, c, h // b, b, w // b, b)
    y = y.permute(0, 3, 5, 1, 2, 4) if mode == "DCR" else y.permute(0, 1, 3, 5, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


@op(since=(7, 10))
def Dropout_7(x: Tensor, *, ratio: float = 0.5) -> tuple[Tensor, Tensor]:
    return x, torch.ones_like(x, dtype=torch.bool)


@op(since=(12, 13, 22))
def Dropout_12(
    x: Tensor, ratio: Tensor | None = None, training_mode: Tensor | None = None, *, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    # At inference it is the identity; a training_mode that asks for noise has no place in a vendor's classifier.
    if training_mode is not None and bool(training_mode) and (ratio is None or float(ratio) != 0.0):
        raise ValueError("training_mode is true; export the model for inference")
    return x, torch.ones_like(x, dtype=torch.bool)
