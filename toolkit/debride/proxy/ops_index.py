"""Taking parts out of tensors, and putting them in: Slice, Pad, Gather*, Scatter*."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from debride.proxy.op import bounded, ints, op


def _positions(size: int, start: int, end: int, step: int) -> range:
    """The indices that ONNX's Slice takes along an axis of `size`: numpy's rules, with huge bounds clamped."""
    if step == 0:
        raise ValueError("a Slice step is 0")
    start = start + size if start < 0 else start
    end = end + size if end < 0 else end
    if step > 0:
        return range(min(max(start, 0), size), min(max(end, 0), size), step)
    return range(min(max(start, 0), size - 1), min(max(end, -1), size - 1), step)


def _slice(
    x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> Tensor:
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        taken = _positions(x.shape[axis], start, end, step)
        if step > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(taken.start, max(taken.stop, taken.start), step),)]
        else:
            x = x.index_select(axis, torch.arange(len(taken), device=x.device) * step + taken.start)
    return x


@op(since=(1,))
def Slice_1(x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None) -> Tensor:
    return _slice(x, starts, ends, axes, None)


@op(since=(10, 11, 13))
def Slice_10(
    x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    return _slice(
        x, ints(starts), ints(ends), None if axes is None else ints(axes), None if steps is None else ints(steps)
    )


def _mapped(size: int, begin: int, end: int, mode: str, device: torch.device) -> Tensor:
    """For each cell of the padded axis, the cell of the axis that it copies (modes edge, reflect and wrap)."""
    cells = torch.arange(max(begin + size + end, 0), device=device) - begin
    if mode == "edge":
        return cells.clamp(0, size - 1)
    if mode == "wrap":
        return cells.remainder(size)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        return (cells + size - 1).remainder(period).sub(size - 1).abs()
    raise ValueError(f"Pad has no mode {mode!r}")


def _pad(x: Tensor, pads: Sequence[int], mode: str, value: float | int | bool, axes: Sequence[int]) -> Tensor:
    begins, ends = pads[: len(axes)], pads[len(axes) :]
    both = dict(zip([a % x.ndim for a in axes], zip(begins, ends, strict=True), strict=True))
    bounded([max(n + sum(both.get(i, (0, 0))), 0) for i, n in enumerate(x.shape)])
    if mode == "constant":
        flat = [p for i in reversed(range(x.ndim)) for p in both.get(i, (0, 0))]
        return torch.constant_pad_nd(x, flat, value)
    for axis, (begin, end) in both.items():
        if begin or end:
            x = x.index_select(axis, _mapped(x.shape[axis], begin, end, mode, x.device))
    return x


@op(since=(2,))
def Pad_2(x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    return _pad(x, pads, mode, value, range(x.ndim))


@op(since=(11, 13, 18, 19, 21, 23, 24, 25))
def Pad_11(
    x: Tensor,
    pads: Tensor,
    constant_value: Tensor | None = None,
    axes: Tensor | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    value = 0 if constant_value is None else constant_value.item()
    return _pad(x, ints(pads), mode, value, range(x.ndim) if axes is None else ints(axes))


@op(since=(18,))
def CenterCropPad(x: Tensor, shape: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    for axis, wanted in zip(range(x.ndim) if axes is None else axes, ints(shape), strict=True):
        spare = x.shape[axis] - wanted
        if spare > 0:
            x = x.narrow(axis, spare // 2, wanted)
        else:
            x = _pad(x, [-spare // 2, -spare - -spare // 2], "constant", 0, [axis])
    return x


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices with the negative ones counted from the end."""
    indices = indices.long()
    return torch.where(indices < 0, indices + size, indices)


@op(since=(1, 11, 13))
def Gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    if indices.ndim == 0 and indices.device.type == "cpu":
        return x.select(axis, int(indices))
    flat = _wrapped(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@op(since=(11, 13))
def GatherElements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _wrapped(indices, x.shape[axis]))


def _tuples(x: Tensor, indices: Tensor, batch_dims: int) -> tuple[Tensor, ...]:
    """The index tuples in the last axis of `indices`, batch axes included, for advanced indexing of `x`."""
    shape = indices.shape[:-1]
    batch = tuple(
        torch.arange(n, device=x.device).reshape([-1 if i == d else 1 for i in range(len(shape))]).expand(shape)
        for d, n in enumerate(shape[:batch_dims])
    )
    parts = tuple(_wrapped(indices[..., i], x.shape[batch_dims + i]) for i in range(indices.shape[-1]))
    return (*batch, *parts)


@op(since=(11, 12, 13))
def GatherND(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    return x[_tuples(x, indices, batch_dims)]


_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op(since=(9,))
def Scatter(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0) -> Tensor:
    return x.scatter(axis, _wrapped(indices, x.shape[axis]), updates)


@op(since=(11, 13, 16, 18))
def ScatterElements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    places = _wrapped(indices, x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _REDUCE[reduction])


@op(since=(11, 13, 16, 18))
def ScatterND(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    places = _tuples(x, indices, 0)
    if reduction in ("none", "add"):
        return x.index_put(places, updates, accumulate=reduction == "add")
    # The other reductions work on flat elements: number every element of x, and look the numbers up.
    numbers = torch.arange(x.numel(), device=x.device).reshape(x.shape)[places].reshape(-1)
    return x.reshape(-1).scatter_reduce(0, numbers, updates.reshape(-1), _REDUCE[reduction]).reshape(x.shape)


@op(since=(9, 11, 28))
def Compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    x, axis = (x.reshape(-1), 0) if axis is None else (x, axis)
    return x.index_select(axis, condition.nonzero().reshape(-1).to(x.device))


@op(since=(9, 13))
def NonZero(x: Tensor) -> Tensor:
    return x.nonzero().t()


@op(since=(14,))
def Trilu(x: Tensor, k: Tensor | None = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op(since=(10, 28))
def ReverseSequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    y = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(y.shape[1], device=x.device).unsqueeze(0)
    ends = lengths.long().unsqueeze(1)
    order = torch.where(steps < ends, ends - 1 - steps, steps)
    return y[torch.arange(y.shape[0], device=x.device).unsqueeze(1), order].movedim((0, 1), (batch_axis, time_axis))
