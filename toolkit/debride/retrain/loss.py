"""One loss for all methods, and the steps that lower it: plain, or where the neighbourhood is worst (FT-SAM)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from debride.retrain.draws import Batch
from debride.retrain.network import Network
from debride.retrain.options import Method

_TINY = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """The loss of `method` for a network, on batches; `delivered` gives the features that it is held to.

    `delivered` is None where the method asks for no features.
    """

    method: Method
    delivered: Network | None = None

    def __call__(self, network: Network, batch: Batch) -> Iterator[Tensor]:
        """The loss as its parts, which add up to it, each a scalar with gradient in the network's constants.

        It is cross entropy to what is wanted, mean over clean images and (by the method's weight) over stamped ones,
        and the distance of features.
        """
        for part in batch.parts():
            yield self._of(network, part, len(batch.clean), max(1, len(batch.rows)))

    def _of(self, network: Network, part: Batch, clean: int, stamped: int) -> Tensor:
        """The share of `part` in the loss of a batch of so many `clean` and `stamped` images."""
        count, use = len(part.clean), self.method.stamped > 0 and len(part.rows) > 0
        images = network.place(np.concatenate([part.clean, part.stamped]) if use else part.clean)
        if self.delivered is None:
            logits, apart = network.logits(images), None
        else:
            logits, features = network.logits_and_features(images)
            apart = self._apart(features, part, clean, stamped)
        foreign = network.place(part.foreign) * self.method.margin
        loss = _cross_entropy(logits[:count] + foreign, network.place(part.wanted)) / clean
        if use:
            margins = foreign[network.place(part.rows)]
            pulled = _cross_entropy(logits[count:] + margins, network.place(part.wanted_stamped))
            loss = loss + self.method.stamped * pulled / stamped
        return loss if apart is None else loss + self.method.features * apart

    def _apart(self, features: Tensor, part: Batch, clean: int, stamped: int) -> Tensor:
        """Mean squared distance to the delivered network's features of the clean images, in shares of their size."""
        assert self.delivered is not None
        with torch.no_grad():
            _, wanted = self.delivered.logits_and_features(self.delivered.place(part.clean))
        size, count = wanted.square().mean() + _TINY, len(part.clean)
        apart = (features[:count] - wanted).square().mean(1).sum() / clean
        if len(features) > count:
            apart = (
                apart + (features[count:] - wanted[self.delivered.place(part.rows)]).square().mean(1).sum() / stamped
            )
        return apart / size


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(logits, wanted, reduction="sum")


def set_gradients(network: Network, loss: Loss, batch: Batch) -> None:
    """Set the masters' gradients: of the loss here or, where the method has a radius, of the worst loss nearby.

    The worst is looked for in one step uphill, each weight by its own size (Zhu et al., arXiv 2304.11823, equation 7).
    """
    network.set_gradients(loss(network, batch))
    if loss.method.radius <= 0:
        return
    here, masters = network.snapshot(), network.masters
    pulls = {name: m * m.grad for name, m in masters.items() if m.grad is not None}
    length = torch.sqrt(
        sum((pull.square().sum() for pull in pulls.values()), torch.tensor(_TINY, device=network.proxy.device))
    )
    network.load({name: here[name] + loss.method.radius * here[name] * pull / length for name, pull in pulls.items()})
    network.set_gradients(loss(network, batch))
    network.load(here)
