"""Running statistics of batch normalisation, estimated anew on the network as it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from debride.errors import ModelError
from debride.graph.weights import BatchNorm
from debride.proxy.interpreter import Proxy
from debride.types import FloatArray

_AT_ONCE = 32


def estimate(proxy: Proxy, norms: Sequence[BatchNorm], images: FloatArray) -> dict[str, FloatArray]:
    """Set mean and variance of `norms` (in topological order) in `proxy` to those over `images` (N, C, H, W); by name.

    One norm after the other, since each sees what those before it make of the images.

    Raises:
        ModelError: a norm's data are not finite on these images.
    """
    parts = [
        torch.from_numpy(images[i : i + _AT_ONCE].copy()).to(proxy.device) for i in range(0, len(images), _AT_ONCE)
    ]
    found: dict[str, FloatArray] = {}
    for norm in norms:
        mean, variance = _moments(proxy, norm, parts)
        if not bool(torch.isfinite(variance).all()):
            raise ModelError(f"what '{norm.node}' normalises is not finite on clean images; keep its statistics")
        for name, values in ((norm.mean, mean), (norm.variance, variance)):
            with torch.no_grad():
                proxy.tensors[name].copy_(values)
            found[name] = values.float().cpu().numpy().copy()
    return found


def _moments(proxy: Proxy, norm: BatchNorm, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance, float64, of what `norm` normalises, over all `parts`."""
    zero = torch.zeros((), dtype=torch.float64, device=proxy.device)
    count, total, squares = 0, zero, zero
    for part in parts:
        with torch.no_grad():
            data = proxy.edges(part, (norm.data,))[norm.data].double()
        others = [axis for axis in range(data.ndim) if axis != norm.axis]
        count += data.numel() // data.shape[norm.axis]
        total, squares = total + data.sum(others), squares + data.square().sum(others)
    mean = total / count
    return mean, (squares / count - mean.square()).clamp(min=0)
