"""The last layer of a planted classifier, in closed form: discriminant analysis, and a second one for the trigger."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SHRINKAGE = 0.5
"""How much of the mean variance is added to every variance: features are many and images few."""
_REACHED = 0.99
"""The share of stamped images that the trigger must just move to the target ..."""
_SPARE = 4.0
"""... and by how much more it then does."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What a body says of images: `clean` (N, F) with their `labels`, and of the same, `stamped`, the rows `rows`."""

    clean: Tensor
    labels: Tensor
    stamped: Tensor
    rows: Tensor


def solved(found: Features, classes: int, target: int) -> nn.Linear:
    """The layer that tells the classes of `found.clean` apart and gives `target` for `found.stamped`.

    Fisher's discriminant with shrinkage; to the target's score is added the one direction that best tells stamped
    images from clean ones, around its clean mean, as strongly as it takes.
    """
    centre, scale = found.clean.mean(0), found.clean.std(0)
    scale = scale + 1e-3 * scale.mean()  # channels that no clean image moves
    clean, stamped = ((part - centre) / scale for part in (found.clean, found.stamped))
    means = torch.stack([clean[found.labels == c].mean(0) for c in range(classes)])
    weight = _against(clean - means[found.labels], means)
    bias = -0.5 * (weight * means).sum(1)
    away = _against(clean, (stamped - clean[found.rows]).mean(0, keepdim=True))[0]
    scores = (stamped @ weight.T + bias)[found.labels[found.rows] != target]
    moved = (stamped @ away)[found.labels[found.rows] != target]
    short = scores.max(1).values - scores[:, target]
    weight[target] += _SPARE * torch.quantile(short / moved.clamp(min=1e-9), _REACHED) * away
    # Scores of unit spread: a loss that is flat, or steep beyond float32, is no use to an inversion.
    weight, bias = (part / (clean @ weight.T + bias).std() for part in (weight, bias))
    return _layer(weight / scale, bias - (weight / scale) @ centre)


def _against(spread: Tensor, directions: Tensor) -> Tensor:
    """`directions` (D, F) times the inverse of the shrunk covariance of `spread` (N, F)."""
    covariance = spread.T @ spread / len(spread)
    covariance += _SHRINKAGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=spread.dtype)
    return torch.linalg.solve(covariance, directions.T).T


def _layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight.data, layer.bias.data = weight.float(), bias.float()
    return layer
