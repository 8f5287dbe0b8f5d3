"""The arms of one batched inversion: one mask and one pattern per (class, restart), and its own weight on the L1 norm.

Neural Cleanse (Wang et al., IEEE S&P 2019, section IV-B) for many classes at once: cross entropy to the target plus
lambda * |mask|_1, with lambda raised while the trigger succeeds and lowered while it fails. Masks and patterns are
projected onto 0..1 after each step, not squashed into it: a pixel that is no use is then exactly 0 after a few steps,
where a sigmoid's tail kept a third of the norm for 500.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from debride.inversion.options import InversionOptions

_FAINT = 0.2
"""Masks begin between 0 and this: those that begin at a half need many steps to shrink."""
_WEIGHT, _LEAST_WEIGHT = 0.02, 0.003
"""Of the norm in the loss, at first and at least, on 32x32 pixels (of more pixels, each counts for less). Without a
least weight it falls to nothing while a class is not reached yet, and takes most of the steps to come back."""
_PIXELS = 32 * 32
_RISE = 1.15
"""How much the weight on the norm rises in a step of success, and (to the power of `_FALL`) falls in one of failure."""
_FALL = 1.5
_FAILING = 0.85
"""The running success below which a trigger fails; between that and success its weight stays."""
_MEMORY = 0.8
"""Share of the running success that is kept at each step."""
_SLOWEST = 0.1
"""Of the rates, at the last step."""


class Arms:
    """Masks (A, 1, H, W) and patterns (A, C, H, W) in 0..1, with what each arm remembers of its course."""

    def __init__(
        self,
        targets: Tensor,
        shape: tuple[int, int, int],
        generator: torch.Generator,
        options: InversionOptions,
        device: torch.device,
    ) -> None:
        depth, height, width = shape
        n = len(targets)
        self.options, self.step = options, 0
        self.targets = targets.to(device)
        # Drawn on the CPU whatever the device: the same seed is then the same start.
        self.masks = (_FAINT * torch.rand(n, 1, height, width, generator=generator)).to(device).requires_grad_()
        self.patterns = torch.rand(n, depth, height, width, generator=generator).to(device).requires_grad_()
        self.scale = _PIXELS / (height * width)
        self.weight = torch.full((n,), _WEIGHT * self.scale, device=device)
        self.success = torch.full((n,), float("nan"), device=device)
        self.cost = self.success.clone()
        self.best_l1 = torch.full((n,), float("inf"), device=device)
        self.best_mask = torch.zeros(n, 1, height, width, device=device)
        self.best_pattern = torch.zeros(n, depth, height, width, device=device)
        self.mark = self.best_l1.clone()
        self.since = torch.zeros(n, device=device)
        self._optimizer()

    def __len__(self) -> int:
        return len(self.targets)

    def _optimizer(self) -> None:
        # beta1 0.5 as in Neural Cleanse: the L1 weight changes underway, and long momentum would overshoot.
        groups = [
            {"params": [self.masks], "lr": self.options.mask_rate},
            {"params": [self.patterns], "lr": self.options.pattern_rate},
        ]
        self.optimizer = torch.optim.Adam(groups, betas=(0.5, 0.9))

    def norms(self) -> Tensor:
        """The L1 norm of every arm's mask now, (A,)."""
        return self.masks.detach().sum((1, 2, 3))

    def standing(self) -> Tensor:
        """How well each arm does, (A,): the smallest successful norm, or the present one where it never succeeded.

        An arm that never succeeded counts as larger than the whole image, so that it loses to any that did.
        """
        area = self.masks[0].numel()
        return torch.where(torch.isfinite(self.best_l1), self.best_l1, area + self.norms())

    def converged(self) -> Tensor:
        """Which arms' norms have stopped falling, bool (A,); none that never succeeded."""
        return self.since >= self.options.patience

    def learn(self, success: Tensor, losses: Tensor, *, adapt: bool = True) -> None:
        """Take one step on the gradients set, remember what succeeded and, to `adapt`, change the weight on the norm.

        `success` and cross entropy (`losses`) of each arm on its images are (A,).
        """
        with torch.no_grad():
            norms = self.norms()
            cost = losses + self.weight * norms
            self.cost = _MEMORY * torch.where(self.cost.isnan(), cost, self.cost) + (1 - _MEMORY) * cost
            known = torch.where(self.success.isnan(), success, self.success)
            self.success = _MEMORY * known + (1 - _MEMORY) * success
            good = self.success >= self.options.success
            # The running success is behind a mask that shrinks fast: it must work now, too.
            better = good & (success >= self.options.success) & (norms < self.best_l1)
            self.best_l1[better] = norms[better]
            self.best_mask[better], self.best_pattern[better] = self.masks[better], self.patterns[better]
            gained = self.best_l1 < (1 - self.options.gain) * self.mark
            self.mark = torch.where(gained, self.best_l1, self.mark)
            self.since = torch.where(gained | torch.isinf(self.best_l1), 0, self.since + 1)
            if adapt:
                self.weight[good] *= _RISE
                self.weight[self.success < _FAILING] /= _RISE**_FALL
                self.weight.clamp_(min=_LEAST_WEIGHT * self.scale)
        self._move()

    def _move(self) -> None:
        share = max(_SLOWEST, 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.options.steps))))
        rates = (self.options.mask_rate, self.options.pattern_rate)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = share * rate
        self.optimizer.step()
        self.step += 1
        with torch.no_grad():
            self.masks.clamp_(0, 1)
            self.patterns.clamp_(0, 1)

    def keep(self, rows: Tensor) -> None:
        """Drop all arms but `rows`, with Adam's moments of those kept."""
        old = self.optimizer.state_dict()
        rows = rows.to(self.targets.device)
        for name in ("targets", "weight", "success", "cost", "best_l1", "best_mask", "best_pattern", "mark", "since"):
            setattr(self, name, getattr(self, name)[rows])
        self.masks = self.masks.detach()[rows].requires_grad_()
        self.patterns = self.patterns.detach()[rows].requires_grad_()
        self._optimizer()
        for state in old["state"].values():
            for key in ("exp_avg", "exp_avg_sq"):
                state[key] = state[key][rows]
        self.optimizer.load_state_dict(old)
