"""The course of a retraining: Adam by a falling rate, watched on images that it does not learn from."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch

from debride.retrain.draws import Batch, Draws
from debride.retrain.loss import Loss, set_gradients
from debride.retrain.network import Network
from debride.retrain.options import RetrainOptions
from debride.types import Progress, no_progress

_CHECKS = 10
"""How often the loss on watched images is looked at, over the whole course."""
_PATIENCE = 6
"""After so many looks without a better one nothing more is learnt that holds for other images."""
_WARM = 20
"""Steps until the rate is at its highest: Adam's first steps are all of full length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """`steps` of `images` clean images each were taken; the network has the weights of step `best`, whose loss on
    watched images is `loss`."""

    steps: int
    images: int
    best: int
    loss: float


def train(
    network: Network,
    loss: Loss,
    draws: Draws,
    watched: Batch,
    options: RetrainOptions,
    *,
    deadline: float | None = None,
    progress: Progress = no_progress,
    stage: str = "retraining",
) -> Course:
    """Lower `loss` on `draws`; leaves `network` with the weights that were best on `watched`.

    Stops at `options.steps`, at the monotonic time `deadline`, or when `watched` gets no better. Step 0, the network
    as it came, counts: what only spoils it is not kept.
    """
    optimizer = torch.optim.Adam(list(network.masters.values()), lr=options.rate)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, options.steps))
    every = max(1, math.ceil(options.steps / _CHECKS))
    step, images = 0, network.proxy.compute.images(options.images)
    best, kept = Course(steps=0, images=images, best=0, loss=_watch(network, loss, watched)), network.snapshot()
    late = deadline is not None and time.monotonic() > deadline
    while step < options.steps and not late:
        set_gradients(network, loss, draws(images))
        optimizer.step()
        rate.step()
        network.load(network.masters)
        step += 1
        progress(stage, step, options.steps, f"loss {best.loss:.3f}")
        late = deadline is not None and time.monotonic() > deadline
        if step % every and step < options.steps and not late:
            continue
        now = _watch(network, loss, watched)
        if now < best.loss:
            best, kept = Course(steps=step, images=images, best=step, loss=now), network.snapshot()
        elif step - best.best >= _PATIENCE * every:
            break
    network.load(kept)
    progress(stage, options.steps, options.steps, f"loss {best.loss:.3f}")
    return Course(steps=step, images=images, best=best.best, loss=best.loss)


def _share(step: int, steps: int) -> float:
    """Of the highest rate: rising at first, then half a cosine down to nothing (Loshchilov and Hutter, ICLR 2017)."""
    return min(1.0, (step + 1) / _WARM) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


def _watch(network: Network, loss: Loss, batch: Batch) -> float:
    with torch.no_grad():
        found = sum(float(part) for part in loss(network, batch))
    return found if math.isfinite(found) else math.inf
