"""Reverse-engineering a trigger per class: restarts x classes as one batched optimisation on the proxy.

Losing restarts are dropped underway, and triggers that have converged stop: steps are spent on the arms that promise
most (K-Arm, Shen et al., ICML 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from debride.inversion.arms import Arms
from debride.inversion.options import InversionOptions
from debride.inversion.strength import others, strengthened, with_success
from debride.jitter import jitter
from debride.proxy.interpreter import Proxy
from debride.types import FloatArray, IntArray, Predict, Progress, Rate, Samples, Trigger, no_progress, part_of

_BLOCK_VALUES = 1 << 24
"""Values of the masks and patterns learnt together: Adam and the best so far take five times that."""
_SEEDS = 100_000
"""Between the seeds of two blocks of classes, whose triggers would begin alike otherwise."""
_STILL = 0.25
"""Share of an arm's images, at each step, that are not moved while a trigger is fitted.

A planted trigger does not care where the image lies; what merely exploits the few images at hand then needs a larger
mask. On a backdoored WideResNet-16-1 and 70 images this moved the target's anomaly index from 4.5 to 10. Each image
moves on its own: a mask that suits one lucky shift must not win; nor must one that suits moved images alone, so that
every step has some that stay.
"""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What an arm came to: the smallest mask (1, H, W) that succeeded, else the last, after `steps`; CPU arrays."""

    target: int
    mask: FloatArray
    pattern: FloatArray
    steps: int


def invert(
    proxy: Proxy,
    predict: Predict,
    fit: Samples,
    held_out: Samples,
    classes: Sequence[int],
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress = no_progress,
    stage: str = "inversion",
) -> Mapping[int, tuple[Trigger, ...]]:
    """Triggers for each of `classes`, best first: those that succeed on `held_out`, then the smallest.

    `fit` and `held_out` must carry labels (where the images have none, the delivered model's own answers): a class's
    own images are never stamped to reach it. Success is measured by `predict` on held-out images. Where their masks
    and patterns would take too much memory together, classes are inverted in blocks.
    """
    size = max(1, together(fit) // options.restarts)
    blocks = [classes[first : first + size] for first in range(0, len(classes), size)]
    found: dict[int, tuple[Trigger, ...]] = {}
    for number, block in enumerate(blocks):
        told = part_of(progress, number, len(blocks))
        ours = seed + _SEEDS * number
        found |= _inverted(proxy, predict, fit, held_out, block, options=options, seed=ours, progress=told, stage=stage)
    return found


def together(samples: Samples) -> int:
    """How many masks and patterns of such images are learnt together at most."""
    return max(1, _BLOCK_VALUES // int(samples.images[0].size + samples.images[0, 0].size))


def _inverted(
    proxy: Proxy,
    predict: Predict,
    fit: Samples,
    held_out: Samples,
    classes: Sequence[int],
    *,
    options: InversionOptions,
    seed: int,
    progress: Progress,
    stage: str,
) -> dict[int, tuple[Trigger, ...]]:
    """`invert` of one block."""
    draws = Draws(fit, options.images, seed)
    arms = draws.arms([c for c in classes for _ in range(options.restarts)], options, proxy.device)
    planned = len(classes) * planned_steps(options)
    finished: list[Fitted] = []
    spent = 0
    while len(arms) and arms.step < options.steps:
        if arms.step == options.trial:
            arms.keep(_best_of_each(arms))
        over = arms.converged() if options.trial is None or arms.step > options.trial else torch.zeros(0)
        if bool(over.any()):
            finished += _fitted(arms, torch.nonzero(over)[:, 0])
            spent += int(over.sum()) * (options.steps - arms.step)
            arms.keep(torch.nonzero(~over)[:, 0])
            continue
        arms.learn(*draws.gradients(proxy, arms))
        spent += len(arms)
        progress(stage, min(spent, planned - 1), planned, f"{len(arms)} triggers")
    finished += _fitted(arms, torch.arange(len(arms)))
    found: dict[int, list[Trigger]] = {}
    for one in finished:
        found.setdefault(one.target, []).append(_measured(predict, held_out, one, options, seed))
    progress(stage, planned, planned, f"{len(classes)} classes")
    return {c: tuple(sorted(found[c], key=lambda t: preference(t, options.transfer))) for c in classes}


def planned_steps(options: InversionOptions) -> int:
    """Steps of all arms of one class, where none converges early."""
    trial = options.steps if options.trial is None else min(options.trial, options.steps)
    return options.restarts * trial + options.steps - trial


class Draws:
    """Arms over `samples` (labelled), and at each step `images` of other classes than each arm's target, by `seed`."""

    def __init__(self, samples: Samples, images: int, seed: int) -> None:
        self._samples, self._images = samples, images
        self._generator = torch.Generator().manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._pools: dict[int, IntArray] = {}

    def arms(self, targets: Sequence[int], options: InversionOptions, device: torch.device) -> Arms:
        """An arm for each of `targets`."""
        depth, height, width = self._samples.images.shape[1:]
        return Arms(torch.tensor(targets), (depth, height, width), self._generator, options, device)

    def gradients(self, proxy: Proxy, arms: Arms) -> tuple[Tensor, Tensor]:
        """Set the gradients of all arms; the success rate and the cross entropy of each on its images, both (A,)."""
        size = max(1, proxy.compute.batch // self._images)
        success, losses = torch.empty_like(arms.weight), torch.empty_like(arms.weight)
        slopes: list[tuple[Tensor, ...]] = []
        for first in range(0, len(arms), size):
            part = slice(first, first + size)
            masks, patterns = (x.detach()[part].requires_grad_() for x in (arms.masks, arms.patterns))
            targets = arms.targets[part]
            clean = self._clean(targets).to(proxy.device)
            stamped = clean * (1 - masks[:, None]) + (masks * patterns)[:, None]
            logits = proxy(stamped.flatten(0, 1)).float()
            wanted = targets.repeat_interleave(self._images)
            entropy = functional.cross_entropy(logits, wanted, reduction="none").view(len(masks), -1).mean(1)
            loss = (entropy + arms.weight[part] * masks.sum((1, 2, 3))).sum()
            found = proxy.gradients(loss, [masks, patterns])
            slopes.append(tuple(g for g in found if g is not None))
            success[part] = (logits.detach().argmax(1) == wanted).float().view(len(masks), -1).mean(1)
            losses[part] = entropy.detach()
        arms.masks.grad, arms.patterns.grad = (torch.cat(parts) for parts in zip(*slopes, strict=True))
        return success, losses

    def _pool(self, target: int) -> IntArray:
        if target not in self._pools:
            self._pools[target] = others(self._samples, target)
        return self._pools[target]

    def _clean(self, targets: Tensor) -> Tensor:
        """Images (A, N, C, H, W) for arms of `targets`, most of them a little moved."""
        images = self._samples.images
        rows = np.stack([self._rng.choice(self._pool(c), self._images) for c in targets.tolist()])
        still = np.arange(rows.size) % self._images < _STILL * self._images
        moved = jitter(images[rows.flatten()], self._rng, still=still)
        return torch.from_numpy(moved.reshape(*rows.shape, *images.shape[1:]))


def _best_of_each(arms: Arms) -> Tensor:
    """The row of every class's best restart, rising."""
    best: dict[int, int] = {}
    targets = arms.targets.tolist()
    for row in torch.argsort(arms.standing(), stable=True).tolist():
        best.setdefault(targets[row], row)
    return torch.tensor(sorted(best.values()))


def _fitted(arms: Arms, rows: Tensor) -> list[Fitted]:
    """The smallest mask that succeeded of each of `rows`, else the present one."""
    found = []
    for row in rows.tolist():
        ever = bool(torch.isfinite(arms.best_l1[row]))
        mask, pattern = (arms.best_mask, arms.best_pattern) if ever else (arms.masks, arms.patterns)
        planes = [plane[row].detach().cpu().numpy().copy() for plane in (mask, pattern)]
        found.append(Fitted(int(arms.targets[row]), planes[0], planes[1], arms.step))
    return found


def _measured(predict: Predict, held_out: Samples, found: Fitted, options: InversionOptions, seed: int) -> Trigger:
    trigger = Trigger(
        target=found.target,
        mask=found.mask,
        pattern=found.pattern,
        l1=float(found.mask.sum(dtype=np.float64)),
        success=Rate(0, 0),
        restarts=options.restarts,
        steps=found.steps,
        seed=seed,
    )
    return with_success(predict, held_out, strengthened(predict, held_out, trigger, works=options.works))


def preference(trigger: Trigger, transfer: float) -> tuple[bool, float]:
    """By which the triggers of a class are sorted: those that succeed on unseen images first, then the smallest."""
    works = trigger.success.n > 0 and trigger.success.value >= transfer
    return (not works, trigger.l1)
