"""Normalisation, in inference mode."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.errors import UnsupportedOpError
from debride.proxy.op import dtype_of, op


def _per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_norm(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, var: Tensor, epsilon: float) -> Tensor:
    # One fused step is faster backwards than torch's batch_norm, which also works out statistics' gradients.
    factor = scale * torch.rsqrt(var + epsilon)
    shift = bias - mean * factor
    return torch.addcmul(_per_channel(shift, x).to(x.dtype), x, _per_channel(factor, x).to(x.dtype))


@op(since=(7,))
def BatchNormalization_7(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
) -> Tensor:
    if not spatial:
        raise UnsupportedOpError("spatial=0 is not computed by the proxy; export the model at opset 9 or later")
    return _batch_norm(x, scale, bias, mean, var, epsilon)


@op(since=(9, 14, 15))
def BatchNormalization_9(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Tensor:
    if training_mode:
        raise UnsupportedOpError("training_mode=1 is not computed by the proxy; export the model for inference")
    return _batch_norm(x, scale, bias, mean, var, epsilon)


def _normalised(x: Tensor, axes: Sequence[int], epsilon: float) -> Tensor:
    mean = x.mean(dim=tuple(axes), keepdim=True)
    centred = x - mean
    return centred * torch.rsqrt(centred.square().mean(dim=tuple(axes), keepdim=True) + epsilon)


@op(since=(6, 22))
def InstanceNormalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    y = _normalised(x, range(2, x.ndim), epsilon)
    return y * _per_channel(scale, x) + _per_channel(bias, x)


def _groups(x: Tensor, num_groups: int, epsilon: float, stash_type: int) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.to(dtype_of(stash_type))
    grouped = wide.reshape(x.shape[0], num_groups, -1)
    return _normalised(grouped, (2,), epsilon).to(x.dtype)


@op(since=(18,))
def GroupNormalization_18(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    # One scale and one bias per group: version 21 has them per channel.
    y = _groups(x, num_groups, epsilon, 1) * scale.reshape(1, -1, 1) + bias.reshape(1, -1, 1)
    return y.reshape(x.shape)


@op(since=(21,))
def GroupNormalization_21(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    y = _groups(x, num_groups, epsilon, stash_type).reshape(x.shape)
    return y * _per_channel(scale, x) + _per_channel(bias, x)


@op(since=(17,), counts_outputs=True)
def LayerNormalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    axes = tuple(range(axis % x.ndim, x.ndim))
    if n_outputs == 1 and x.dtype in (torch.float32, torch.float64) and scale.shape == x.shape[axes[0] :]:
        # torch's fused one lets no gradient through the mean and the deviation, were they asked for.
        return F.layer_norm(x, scale.shape, scale, bias, epsilon)
    wide = x if x.dtype == torch.float64 else x.to(dtype_of(stash_type))
    mean = wide.mean(dim=axes, keepdim=True)
    inverse = torch.rsqrt((wide - mean).square().mean(dim=axes, keepdim=True) + epsilon)
    y = ((wide - mean) * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


@op(since=(23,))
def RMSNormalization(x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.to(dtype_of(stash_type))
    axes = tuple(range(axis % x.ndim, x.ndim))
    return (wide * torch.rsqrt(wide.square().mean(dim=axes, keepdim=True) + epsilon)).to(x.dtype) * scale


@op(since=(9, 13))
def MeanVarianceNormalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    centred = x - x.mean(dim=tuple(axes), keepdim=True)
    return centred / (centred.square().mean(dim=tuple(axes), keepdim=True).sqrt() + 1e-9)


@op(since=(1, 22))
def LpNormalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@op(since=(1, 13))
def LRN(x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0) -> Tensor:
    # The window is centred low: floor((size-1)/2) channels before, ceil((size-1)/2) after.
    before, after = (size - 1) // 2, size // 2
    squares = F.pad(x.square().reshape(x.shape[0], 1, x.shape[1], prod(x.shape[2:])), (0, 0, before, after))
    window = F.avg_pool2d(squares, (size, 1), stride=1).reshape(x.shape)
    return x / (bias + alpha * window) ** beta
