"""Activations, and Softmax with both of its meanings."""

from __future__ import annotations

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.proxy.op import op


@op(since=(6, 13, 14))
def Relu(x: Tensor) -> Tensor:
    return F.relu(x)


@op(since=(6, 16))
def LeakyRelu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op(since=(7, 9, 16))
def PRelu(x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


@op(since=(10, 22))
def ThresholdedRelu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


@op(since=(6, 22))
def Elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op(since=(6, 22))
def Selu(x: Tensor, *, alpha: float = 1.6732632423543772, gamma: float = 1.0507009873554805) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(torch.clamp(x, max=0)))


@op(since=(12, 28))
def Celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@op(since=(20,))
def Gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@op(since=(6, 13))
def Sigmoid(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


@op(since=(6, 22))
def HardSigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    return torch.clamp(alpha * x + beta, 0, 1)


@op(since=(14, 22))
def HardSwish(x: Tensor) -> Tensor:
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@op(since=(24,))
def Swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x)


@op(since=(28,))
def SwiGLU(x: Tensor, gate: Tensor, *, alpha: float = 1.0) -> Tensor:
    return x * torch.sigmoid(alpha * x) * gate


@op(since=(18, 22))
def Mish(x: Tensor) -> Tensor:
    return F.mish(x)


@op(since=(1, 22))
def Softplus(x: Tensor) -> Tensor:
    return F.softplus(x)


@op(since=(1, 22))
def Softsign(x: Tensor) -> Tensor:
    return F.softsign(x)


@op(since=(6, 13))
def Tanh(x: Tensor) -> Tensor:
    return torch.tanh(x)


def _flattened(x: Tensor, axis: int) -> Tensor:
    """`x` as the matrix that versions before 13 normalise: the axes from `axis` on are one."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(prod(x.shape[:axis]), -1)


@op(since=(1, 11))
def Softmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.softmax(_flattened(x, axis), 1).reshape(x.shape)


@op(since=(13,))
def Softmax_13(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@op(since=(1, 11))
def LogSoftmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return torch.log_softmax(_flattened(x, axis), 1).reshape(x.shape)


@op(since=(13,))
def LogSoftmax_13(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _hardmax(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@op(since=(1, 11))
def Hardmax_1(x: Tensor, *, axis: int = 1) -> Tensor:
    return _hardmax(_flattened(x, axis), 1).reshape(x.shape)


@op(since=(13,))
def Hardmax_13(x: Tensor, *, axis: int = -1) -> Tensor:
    return _hardmax(x, axis)
