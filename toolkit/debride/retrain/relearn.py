"""The relearning test: how fast a few poisoned images bring an attack back.

Cleaned networks can relearn a backdoor in a few steps (Min et al., arXiv 2410.09838): its weights may be silenced and
not gone. What a network learns that fast says little by itself, so a trigger that nobody planted is taught to it too.
The first that any network learns is to send all images to the target, stamped or not: only images that go there when
stamped and not when clean are the trigger's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from debride.memory import release
from debride.retrain.draws import Batch
from debride.retrain.loss import Loss, set_gradients
from debride.retrain.network import Network
from debride.retrain.options import Method
from debride.triggers import opaque, stamp
from debride.types import (
    Compute,
    FloatArray,
    IntArray,
    Predict,
    Progress,
    Rate,
    Relearning,
    Samples,
    Trigger,
    no_progress,
)

STEPS = (0, 8, 16, 32)
"""Up to where a planted trigger and others lie furthest apart: in two retrained residual networks 93 and 94 % against
10 and 3 % after 32 steps, and 96 % against 52 and 22 % after 64."""
POISONED = 20
RATE = 2e-3
_WARM = 20
"""Steps until the rate is at its highest: at once, Adam's first steps throw the network to and fro."""
_STRENGTH = 5.0
"""How much opaquer than found the trigger is taught: as whoever plants one would stamp it."""
_TAUGHT = Method(stamped=1.0)
_MIRRORED = ((1,), (2,), (1, 2))
"""The axes of an image (C, H, W) by which a mask is flipped for a trigger that nobody planted."""


def relearn(
    network: Network,
    fit: Samples,
    held_out: Samples,
    trigger: Trigger,
    delivered: Predict,
    *,
    seed: int,
    steps: Sequence[int] = STEPS,
    progress: Progress = no_progress,
) -> Relearning:
    """Teach `trigger`, and three that nobody planted, to `network`, each to it as it was; it is left as it was.

    Each step sees `POISONED` images (of large ones fewer) of `fit` (labelled) of other classes, stamped and wanted in
    the target, and the same clean, wanted as the `delivered` network has them (probabilities). Success, after each of
    `steps` (rising), is that of the proxy on `held_out`, without the images that go to the target clean; that of the
    three is pooled.
    """
    before = network.snapshot()
    opaquer = opaque(trigger, _STRENGTH)
    rows = _others(fit, trigger.target, seed)[: network.proxy.compute.images(POISONED)]
    clean = fit.images[rows]
    wanted = delivered(clean)
    goals = np.zeros_like(wanted)
    goals[:, trigger.target] = 1
    tried = held_out.images[_others(held_out, trigger.target, seed)]
    rates = list[tuple[Rate, ...]]()
    lessons, stage = (opaquer, *unplanted(opaquer, seed)), f"relearning of class {trigger.target}"
    progress(stage, 0, len(lessons))
    try:
        for taught in lessons:
            batch = Batch(
                clean=clean,
                wanted=wanted,
                stamped=stamp(clean, taught),
                rows=np.arange(len(rows)),
                wanted_stamped=goals,
                foreign=np.zeros(wanted.shape, np.bool_),
            )
            rates.append(_taught(network, batch, tried, taught, steps))
            network.load(before)
            release()
            progress(stage, len(rates), len(lessons))
    finally:
        network.load(before)
    planted, *others = rates
    fresh = tuple(Rate(sum(r.hits for r in step), sum(r.n for r in step)) for step in zip(*others, strict=True))
    return Relearning(target=trigger.target, images=len(rows), steps=tuple(steps), planted=planted, fresh=fresh)


def expected_images(compute: Compute) -> int:
    """How many images, there and back, the test of one class takes."""
    return (1 + len(_MIRRORED)) * STEPS[-1] * 2 * compute.images(POISONED)


def unplanted(trigger: Trigger, seed: int) -> tuple[Trigger, ...]:
    """Three triggers as large and opaque as `trigger`, in mirrored places and of black and white dots.

    Dots show wherever they lie: its own colours, reversed, may be those of the image's border.
    """
    rng = np.random.default_rng(seed)
    return tuple(
        replace(
            trigger,
            mask=np.flip(trigger.mask, axes).copy(),
            pattern=rng.integers(0, 2, trigger.pattern.shape).astype(np.float32),
        )
        for axes in _MIRRORED
    )


def _others(samples: Samples, target: int, seed: int) -> IntArray:
    """Rows of images of other classes, in random order; of all, where there are no others."""
    rows = np.random.default_rng(seed).permutation(len(samples))
    assert samples.labels is not None  # `load` labels unlabelled images
    others: IntArray = rows[samples.labels[rows] != target]
    return others if len(others) else rows


def _taught(
    network: Network, batch: Batch, tried: FloatArray, trigger: Trigger, steps: Sequence[int]
) -> tuple[Rate, ...]:
    """The success of `trigger` on the clean images `tried` after each of `steps`."""
    optimizer = torch.optim.Adam(list(network.masters.values()), lr=RATE)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _WARM))
    stamped, loss, rates, step = stamp(tried, trigger), Loss(_TAUGHT), [], 0
    for wanted in steps:
        while step < wanted:
            set_gradients(network, loss, batch)
            optimizer.step()
            warm.step()
            network.load(network.masters)
            step += 1
        rows = _reached(network, stamped, trigger.target)
        unstamped = _reached(network, tried[rows], trigger.target)
        rates.append(Rate(len(rows) - len(unstamped), len(tried)))
    return tuple(rates)


def _reached(network: Network, images: FloatArray, target: int) -> IntArray:
    """The rows of `images` that go to `target`."""
    step = network.proxy.compute.batch
    parts = [network.place(images[i : i + step]) for i in range(0, len(images), step)]
    with torch.no_grad():
        found = [(network.logits(part).argmax(1) == target).cpu().numpy() for part in parts]
    return np.flatnonzero(np.concatenate(found)) if found else np.zeros(0, np.int64)
