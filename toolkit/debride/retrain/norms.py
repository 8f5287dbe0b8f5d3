"""Running statistics of batch normalisation, estimated anew on the network as it stands."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from debride.errors import ModelError
from debride.graph.weights import BatchNorm
from debride.proxy.interpreter import Proxy
from debride.types import FloatArray


def estimate(proxy: Proxy, norms: Sequence[BatchNorm], images: FloatArray) -> dict[str, FloatArray]:
    """Set mean and variance of `norms` (in topological order) in `proxy` to those over `images` (N, C, H, W); by name.

    One norm after the other, since each sees what those before it make of the images.

    Raises:
        ModelError: a norm's data are not finite on these images.
    """
    batch = torch.from_numpy(images.copy())
    found: dict[str, FloatArray] = {}
    for norm in norms:
        with torch.no_grad():
            data = proxy.edges(batch, (norm.data,))[norm.data].float()
            variance, mean = torch.var_mean(data, [a for a in range(data.ndim) if a != norm.axis], correction=0)
            if not bool(torch.isfinite(variance).all()):
                raise ModelError(f"what '{norm.node}' normalises is not finite on clean images; keep its statistics")
            for name, values in ((norm.mean, mean), (norm.variance, variance)):
                proxy.tensors[name].copy_(values)
                found[name] = values.numpy().copy()
    return found
