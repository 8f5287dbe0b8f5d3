"""One loss for all methods, and the steps that lower it: plain, or where the neighbourhood is worst (FT-SAM)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from debride.retrain.draws import Batch
from debride.retrain.network import Network
from debride.retrain.options import Method
from debride.types import FloatArray

_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """The loss of `method` for a network, on batches; `delivered` gives the features that it is held to.

    `delivered` is None where the method asks for no features.
    """

    method: Method
    delivered: Network | None = None

    def __call__(self, network: Network, batch: Batch) -> Tensor:
        """Cross entropy to what is wanted, of clean images and (by the method's weight) of stamped ones, and features.

        A scalar with gradient in the network's constants.
        """
        count = len(batch.clean)
        use = self.method.stamped > 0 and len(batch.rows) > 0
        images = torch.from_numpy(batch.clean)
        if use:
            images = torch.cat([images, torch.from_numpy(batch.stamped)])
        if self.delivered is None:
            logits, apart = network.logits(images), None
        else:
            logits, features = network.logits_and_features(images)
            apart = self._apart(features, batch, use)
        foreign = torch.from_numpy(batch.foreign) * self.method.margin
        loss = _cross_entropy(logits[:count] + foreign, batch.wanted)
        if use:
            apart_from = foreign[torch.from_numpy(batch.rows)]
            loss = loss + self.method.stamped * _cross_entropy(logits[count:] + apart_from, batch.wanted_stamped)
        return loss if apart is None else loss + self.method.features * apart

    def _apart(self, features: Tensor, batch: Batch, stamped: bool) -> Tensor:
        """Mean squared distance to the delivered network's features of the clean images, in shares of their size."""
        assert self.delivered is not None
        with torch.no_grad():
            _, wanted = self.delivered.logits_and_features(torch.from_numpy(batch.clean))
        size = wanted.square().mean() + _TINY
        count = len(batch.clean)
        apart = (features[:count] - wanted).square().mean()
        if stamped:
            apart = apart + (features[count:] - wanted[torch.from_numpy(batch.rows)]).square().mean()
        return apart / size


def _cross_entropy(logits: Tensor, wanted: FloatArray) -> Tensor:
    return -(torch.from_numpy(wanted) * logits.log_softmax(1)).sum(1).mean()


def set_gradients(network: Network, loss: Loss, batch: Batch) -> None:
    """Set the masters' gradients: of the loss here or, where the method has a radius, of the worst loss nearby.

    The worst is looked for in one step uphill, each weight by its own size (Zhu et al., arXiv 2304.11823, equation 7).
    """
    network.set_gradients(loss(network, batch))
    if loss.method.radius <= 0:
        return
    here, masters = network.snapshot(), network.masters
    pulls = {name: m * m.grad for name, m in masters.items() if m.grad is not None}
    length = torch.sqrt(sum((pull.square().sum() for pull in pulls.values()), torch.tensor(_TINY)))
    network.load({name: here[name] + loss.method.radius * here[name] * pull / length for name, pull in pulls.items()})
    network.set_gradients(loss(network, batch))
    network.load(here)
