"""The game of channels, played by the proxy: first-order marginals of all players at once, by one backward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from debride.proxy.interpreter import Proxy
from debride.stakes import TINY, Stake
from debride.types import BoolArray, ChannelGroup, DoubleArray

_ROWS = 128


class ProxyGame:
    """A `debride.types.DifferentiableGame`: payoffs and marginals of the stakes' overlaps.

    Every call of `marginals` takes each stake's images in turn, from where the last call stopped.
    """

    def __init__(self, proxy: Proxy, groups: Sequence[ChannelGroup], stakes: Sequence[Stake]) -> None:
        self._proxy, self._stakes, self._n = proxy, tuple(stakes), len(groups)
        at = proxy.device
        self._images = [torch.from_numpy(np.array(stake.images)).to(at) for stake in stakes]
        self._wanted = [torch.from_numpy(np.array(stake.wanted)).to(at) for stake in stakes]
        self._edges = _edges(groups, at)
        self._shapes = _shapes(proxy, self._edges, self._images[0][:1])
        self._next = [0] * len(stakes)
        self._rows = min(_ROWS, proxy.compute.batch)

    @property
    def n_players(self) -> int:
        """How many players there are."""
        return self._n

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, M) of coalitions (B, P) on all images of each stake."""
        rows = []
        for coalition in coalitions:
            mask = torch.from_numpy(coalition[None].astype(np.float32)).to(self._proxy.device)
            with torch.no_grad():
                rows.append([self._mean(m, mask) for m in range(len(self._stakes))])
        return np.array(rows, np.float64)

    def marginals(self, coalitions: BoolArray) -> DoubleArray:
        """First-order marginals (B, M, P) at the coalitions (B, P), each played on one image of each stake."""
        out = np.empty((len(coalitions), len(self._stakes), self._n))
        for first in range(0, len(coalitions), self._rows):
            part = coalitions[first : first + self._rows]
            for m in range(len(self._stakes)):
                out[first : first + len(part), m] = self._gradient(m, part)
        return out

    def _gradient(self, m: int, coalitions: BoolArray) -> DoubleArray:
        stake = self._stakes[m]
        first, self._next[m] = self._next[m], (self._next[m] + len(coalitions)) % len(stake)
        rows = (torch.arange(len(coalitions), device=self._proxy.device) + first) % len(stake)
        mask = torch.from_numpy(coalitions.astype(np.float32)).to(self._proxy.device).requires_grad_()
        overlap = self._overlap(m, rows, mask)
        (found,) = self._proxy.gradients(overlap.sum(), [mask])
        assert found is not None  # `gradients` refuses what the loss does not use, unless told otherwise
        return np.asarray(found.double().cpu().numpy())

    def _mean(self, m: int, mask: Tensor) -> float:
        rows = torch.split(torch.arange(len(self._stakes[m]), device=self._proxy.device), self._rows)
        return float(torch.cat([self._overlap(m, part, mask) for part in rows]).double().mean())

    def _overlap(self, m: int, rows: Tensor, mask: Tensor) -> Tensor:
        logits = self._proxy(self._images[m][rows], self._masks(mask)).float()
        overlap = torch.minimum(torch.softmax(logits, 1), self._wanted[m][rows]).sum(1).double()
        span = self._stakes[m].span
        if span is None:
            return overlap
        odds = torch.log(overlap + TINY) - torch.log(1 - overlap + TINY)
        return ((odds - span[0]) / (span[1] - span[0])).clip(0, 1)

    def _masks(self, mask: Tensor) -> dict[str, Tensor]:
        """Per edge, the players' columns (rows, P) laid along the channel axis; channels without a player stay 1."""
        masks = {}
        for edge, (players, channels, axis) in self._edges.items():
            shape = self._shapes[edge]
            full = mask.new_ones(len(mask), shape[axis]).index_copy(1, channels, mask[:, players])
            masks[edge] = full.view(len(mask), *[s if i == axis % len(shape) else 1 for i, s in enumerate(shape)][1:])
        return masks


def _edges(groups: Sequence[ChannelGroup], at: torch.device) -> Mapping[str, tuple[Tensor, Tensor, int]]:
    players: dict[str, list[int]] = {}
    for player, group in enumerate(groups):
        players.setdefault(group.edge, []).append(player)
    return {
        edge: (
            torch.tensor(mine, device=at),
            torch.tensor([groups[p].channel for p in mine], device=at),
            groups[mine[0]].axis,
        )
        for edge, mine in players.items()
    }


def _shapes(proxy: Proxy, edges: Mapping[str, tuple[Tensor, Tensor, int]], image: Tensor) -> dict[str, tuple[int, ...]]:
    with torch.no_grad():
        found = proxy.run({proxy.spec.name: proxy.encode(image)}, tuple(edges))
    return {edge: tuple(found[edge].shape) for edge in edges}
