"""The arms of one batched inversion: one mask and one pattern per (class, restart), and its own weight on the L1 norm.

Neural Cleanse (Wang et al., IEEE S&P 2019, section IV-B) for many classes at once: cross entropy to the target plus
lambda * |mask|_1, with lambda raised while the trigger succeeds and lowered while it fails.
"""

from __future__ import annotations

import torch
from torch import Tensor

_THIN = 3.0
"""Masks begin mostly transparent: those that begin at a half need many steps to shrink."""
_PATIENCE = 5
_FACTOR = 1.5
_MEMORY = 0.9
"""Share of the running success rate kept at each step."""


class Arms:
    """Masks (A, 1, H, W) and patterns (A, C, H, W), as logits, with what each arm remembers of its course."""

    def __init__(self, targets: Tensor, shape: tuple[int, int, int], generator: torch.Generator, rate: float) -> None:
        depth, height, width = shape
        n = len(targets)
        self.targets = targets
        self.mask_logits = (torch.randn(n, 1, height, width, generator=generator) - _THIN).requires_grad_()
        self.pattern_logits = torch.randn(n, depth, height, width, generator=generator).requires_grad_()
        self.weight = torch.full((n,), 1e-3)
        self.success = torch.full((n,), float("nan"))
        self.streak = torch.zeros(n)
        self.best_l1 = torch.full((n,), float("inf"))
        self.best_mask = torch.zeros(n, 1, height, width)
        self.best_pattern = torch.zeros(n, depth, height, width)
        self._optimizer(rate)

    def __len__(self) -> int:
        return len(self.targets)

    def _optimizer(self, rate: float) -> None:
        # beta1 0.5 as in Neural Cleanse: the L1 weight changes underway, and long momentum would overshoot.
        self.optimizer = torch.optim.Adam([self.mask_logits, self.pattern_logits], lr=rate, betas=(0.5, 0.9))

    def trigger(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Masks and patterns of the arms `rows`, in 0..1, differentiable."""
        return torch.sigmoid(self.mask_logits[rows]), torch.sigmoid(self.pattern_logits[rows])

    def norms(self) -> Tensor:
        """The L1 norm of every arm's mask now, (A,)."""
        return torch.sigmoid(self.mask_logits.detach()).sum((1, 2, 3))

    def standing(self) -> Tensor:
        """How well each arm does, (A,): the smallest successful norm, or the present one where it never succeeded.

        An arm that never succeeded counts as larger than the whole image, so that it loses to any that did.
        """
        area = self.mask_logits[0].numel()
        return torch.where(torch.isfinite(self.best_l1), self.best_l1, area + self.norms())

    def learn(self, success: Tensor, threshold: float) -> None:
        """Take one step on the gradients set, remember what succeeded, and adapt the weight on the L1 norm."""
        with torch.no_grad():
            masks, patterns, norms = torch.sigmoid(self.mask_logits), torch.sigmoid(self.pattern_logits), self.norms()
            known = torch.where(self.success.isnan(), success, self.success)
            self.success = _MEMORY * known + (1 - _MEMORY) * success
            good = self.success >= threshold
            better = good & (norms < self.best_l1)
            self.best_l1[better] = norms[better]
            self.best_mask[better], self.best_pattern[better] = masks[better], patterns[better]
            self._adapt(good)
        self.optimizer.step()

    def _adapt(self, good: Tensor) -> None:
        # `streak` counts steps of success upwards and steps of failure downwards.
        self.streak = torch.where(good, self.streak.clamp(min=0) + 1, self.streak.clamp(max=0) - 1)
        up, down = self.streak >= _PATIENCE, self.streak <= -_PATIENCE
        self.weight[up] *= _FACTOR
        self.weight[down] /= _FACTOR**1.5
        self.streak[up | down] = 0

    def keep(self, rows: Tensor) -> None:
        """Drop all arms but `rows`, with Adam's moments of those kept."""
        old = self.optimizer.state_dict()
        rate = self.optimizer.param_groups[0]["lr"]
        for name in ("targets", "weight", "success", "streak", "best_l1", "best_mask", "best_pattern"):
            setattr(self, name, getattr(self, name)[rows])
        self.mask_logits = self.mask_logits.detach()[rows].requires_grad_()
        self.pattern_logits = self.pattern_logits.detach()[rows].requires_grad_()
        self._optimizer(rate)
        for state in old["state"].values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key][rows]
        self.optimizer.load_state_dict(old)
