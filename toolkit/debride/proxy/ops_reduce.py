"""Reductions: axes as an attribute (before 18; ReduceSum before 13) or as an input, and ArgMax, ArgMin, TopK."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from debride.proxy.op import Operator, ints, op

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(dim=axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.mean(dim=axes, keepdim=keep) if x.dtype.is_floating_point else x.double().mean(axes, keep).to(x.dtype)


def _extreme(x: Tensor, axes: tuple[int, ...], keep: bool, largest: bool) -> Tensor:
    if x.dtype == torch.bool:
        return _extreme(x.to(torch.uint8), axes, keep, largest).bool()
    if all(x.shape[a] for a in axes):
        return x.amax(dim=axes, keepdim=keep) if largest else x.amin(dim=axes, keepdim=keep)
    # ONNX: the extreme of nothing is the type's own bound.
    worst: float = -float("inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    best: float = float("inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).max
    return torch.full_like(_sum(x, axes, keep), worst if largest else best)


def _max(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _extreme(x, axes, keep, largest=True)


def _min(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _extreme(x, axes, keep, largest=False)


def _prod(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(dim=axis, keepdim=keep, dtype=x.dtype)
    return x


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.dtype.is_floating_point:
        # vector_norm has a finite gradient at zero, sqrt has not.
        norm: Tensor = torch.linalg.vector_norm(x, 2, dim=axes, keepdim=keep)
        return norm
    return _sum_square(x, axes, keep).double().sqrt().to(x.dtype)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return torch.log(_sum(x, axes, keep)).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    wide = x if x.dtype.is_floating_point else x.double()
    return torch.logsumexp(wide, dim=axes, keepdim=keep).to(x.dtype)


def _reduce(name: str, reduction: Reduction, attribute: tuple[int, ...], tensor: tuple[int, ...]) -> list[Operator]:
    """The operator twice: with axes as an attribute in the versions `attribute`, as an input in `tensor`."""

    def old(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        dims = tuple(range(x.ndim)) if axes is None else tuple(a % x.ndim for a in axes)
        return reduction(x, dims, bool(keepdims)) if dims else x

    def new(x: Tensor, axes: Tensor | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        listed = [] if axes is None else ints(axes)
        if not listed and not noop_with_empty_axes:
            listed = list(range(x.ndim))
        if x.ndim == 0 or not listed:
            # No axis to reduce still means the element-wise part of the reduction (|x|, x*x, ...).
            return reduction(x.unsqueeze(0), (0,), False)
        return reduction(x, tuple(a % x.ndim for a in listed), bool(keepdims))

    return [Operator(name=name, since=attribute, compute=old), Operator(name=name, since=tensor, compute=new)]


_OLD, _NEW = (1, 11, 13), (18,)
REDUCTIONS: tuple[Operator, ...] = (
    *_reduce("ReduceSum", _sum, (1, 11), (13,)),
    *_reduce("ReduceMean", _mean, _OLD, _NEW),
    *_reduce("ReduceMax", _max, (1, 11, 12, 13), (18, 20)),
    *_reduce("ReduceMin", _min, (1, 11, 12, 13), (18, 20)),
    *_reduce("ReduceProd", _prod, _OLD, _NEW),
    *_reduce("ReduceL1", _l1, _OLD, _NEW),
    *_reduce("ReduceL2", _l2, _OLD, _NEW),
    *_reduce("ReduceLogSum", _log_sum, _OLD, (18, 28)),
    *_reduce("ReduceLogSumExp", _log_sum_exp, _OLD, (18, 28)),
    *_reduce("ReduceSumSquare", _sum_square, _OLD, _NEW),
)


def _arg(x: Tensor, axis: int, keep: bool, last: bool, largest: bool) -> Tensor:
    if last:
        flipped = _arg(x.flip(axis), axis, keep, False, largest)
        return x.shape[axis] - 1 - flipped
    return x.argmax(axis, keepdim=keep) if largest else x.argmin(axis, keepdim=keep)


@op(since=(1, 11, 12, 13))
def ArgMax(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), True)


@op(since=(1, 11, 12, 13))
def ArgMin(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(x, axis, bool(keepdims), bool(select_last_index), False)


def _top_k(x: Tensor, k: int, axis: int, largest: bool) -> tuple[Tensor, Tensor]:
    # A stable sort: of equal elements the lower index comes first, which torch.topk does not promise.
    values, order = torch.sort(x, dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k), order.narrow(axis, 0, k)


@op(since=(1,))
def TopK_1(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    return _top_k(x, k, axis, True)


@op(since=(10, 11, 24))
def TopK_10(x: Tensor, k: Tensor, *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    return _top_k(x, int(k), axis, bool(largest))
