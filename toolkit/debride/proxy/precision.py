"""Choosing how the proxy computes, by timing it: what bfloat16 halves on one processor, it multiplies by 60 on another.

What is timed is the model's own graph, forward and backward, on as many images as a pass of the search will hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from debride.errors import ModelError, ParityError
from debride.graph.ir import Graph
from debride.proxy.backend import round_as
from debride.proxy.interpreter import Proxy
from debride.proxy.memory import images_per_pass
from debride.proxy.parity import difference
from debride.types import (
    Compute,
    ComputeReason,
    FloatArray,
    InputSpec,
    Meter,
    Precision,
    PrecisionChoice,
    Predict,
    Timing,
)

Clock = Callable[[], float]

_WAYS: dict[str, tuple[Precision, ...]] = {
    "cpu": ("float32", "bfloat16"),
    "cuda": ("float32", "tf32", "bfloat16", "float16"),
}
_SECONDS = 1.0
"""For all timing together. One pass is never cut short, so each way begins with few images."""
_FEW = 4
_SLOW = 2.0
"""A way that takes so many times longer than the best for `_FEW` images is out."""
_FASTER = 1.2
"""How much faster than what would be taken else a way must be: what is nearly as fast is not told apart reliably, and
the same command should compute in the same way each time."""
_REPEATS = 3
_TOLERANCES: dict[Precision, float] = {"float32": 1e-3, "tf32": 2e-2, "float16": 2e-2, "bfloat16": 1e-1}
"""How far scores may be from onnxruntime's, as a share of their size: products carry 10, 10 and 8 bits of 23."""


def choose_compute(
    graph: Graph,
    spec: InputSpec,
    predict: Predict,
    images: FloatArray,
    *,
    device: str = "cpu",
    asked: PrecisionChoice = "auto",
    meter: Meter | None = None,
    clock: Clock = time.perf_counter,
) -> Compute:
    """How to compute `graph` on `device`: in the precision `asked` or, for "auto", in the way that is fastest here.

    `meter` counts what is computed in that way later.

    Timed are passes of as many images as memory allows, of `images` (N, C, H, W) in 0..1 in turn. Of a way that is
    clearly faster than float32, the scores must be near those of `predict` too. A precision that was asked for is not
    timed: then no clock decides anything.

    Raises:
        ParityError: the scores in the precision `asked` are too far from those of `predict`.
    """
    plain = Compute(device=device, batch=images_per_pass(Proxy(graph, spec, compute=Compute(device=device))))
    images = np.resize(images, (plain.batch, *images.shape[1:]))
    if asked != "auto":
        compute = replace(plain, precision=asked, reason="asked")
        if asked != "float32" and not _exact(graph, spec, predict, images, compute)[0]:
            raise ParityError(
                f"in {asked} the model's scores differ from onnxruntime's by more than {_TOLERANCES[asked]:g} of their "
                "size; take --precision float32 or auto"
            )
        return _settled(compute, meter)
    timings = measure_ways(graph, spec, images, _ways(plain), clock=clock)
    return _settled(_fastest(graph, spec, predict, images, plain, timings), meter)


def _settled(compute: Compute, meter: Meter | None) -> Compute:
    round_as(compute)
    return replace(compute, meter=meter or Meter())


def _ways(plain: Compute) -> tuple[Compute, ...]:
    """What can be tried on the device of `plain`; that itself first."""
    return tuple(
        replace(plain, precision=precision, channels_last=last)
        for precision in _WAYS[plain.device.partition(":")[0]]
        for last in (True, False)
    )


def measure_ways(
    graph: Graph, spec: InputSpec, images: FloatArray, ways: Sequence[Compute], *, clock: Clock = time.perf_counter
) -> tuple[Timing, ...]:
    """Seconds for one image of each way that was timed on all `images`, the fastest first; about a second in all.

    The first of `ways` is always timed. Ways are tried with few images first, and those that are slow with them, or
    come when the second is over, are left out.
    """
    started = clock()
    few = {way: _timed(graph, spec, images[:_FEW], way, clock) for way in ways[:1]}
    for way in ways[1:]:
        if clock() - started < _SECONDS / 2:
            few[way] = _tried(graph, spec, images[:_FEW], way, clock)
    limit = _SLOW * min(few.values())
    found = []
    for way in sorted(few, key=lambda way: (way != ways[0], few[way])):
        if way == ways[0] or (few[way] <= limit and clock() - started < _SECONDS):
            seconds = (_timed if way == ways[0] else _tried)(graph, spec, images, way, clock)
            found.append(Timing(precision=way.precision, channels_last=way.channels_last, seconds=seconds))
    return tuple(sorted((t for t in found if t.seconds < float("inf")), key=lambda timing: timing.seconds))


def _tried(graph: Graph, spec: InputSpec, images: FloatArray, way: Compute, clock: Clock) -> float:
    """`_timed`, or infinity where the graph does not run in this way: its types do not mix, or memory does not do."""
    try:
        return _timed(graph, spec, images, way, clock)
    except (ModelError, RuntimeError):
        return float("inf")


def _timed(graph: Graph, spec: InputSpec, images: FloatArray, way: Compute, clock: Clock) -> float:
    """The least seconds of a few passes, forward and backward, for one image; the first pass only warms up."""
    round_as(way)
    proxy = Proxy(graph, spec, compute=way)
    batch = torch.from_numpy(np.array(images)).to(proxy.device)
    best = float("inf")
    for turn in range(1 + _REPEATS):
        started = clock()
        leaf = batch.clone().requires_grad_()
        torch.autograd.grad(torch.logsumexp(proxy(leaf).float(), 1).sum(), leaf, allow_unused=True)
        _wait(way.device)
        took = clock() - started
        best = min(best, took) if turn else best
        if turn and took > _SECONDS / _REPEATS:  # long enough to be told apart at once
            break
    return best / len(images)


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _fastest(
    graph: Graph,
    spec: InputSpec,
    predict: Predict,
    images: FloatArray,
    plain: Compute,
    timings: Sequence[Timing],
) -> Compute:
    """`plain`, or what is clearly faster than all that come before it in the order of `_ways`, and exact enough."""
    known = {(t.precision, t.channels_last): t for t in timings}
    best, refused = plain, False
    for way in _ways(plain):
        here, there = (known.get((w.precision, w.channels_last)) for w in (way, best))
        if here is None or there is None or here.seconds > there.seconds / _FASTER:
            continue
        near, away = _exact(graph, spec, predict, images, way)
        known[here.precision, here.channels_last] = replace(here, difference=away)
        best, refused = (way, refused) if near else (best, True)
    told = tuple(sorted(known.values(), key=lambda timing: timing.seconds))
    reason: ComputeReason = "inexact" if refused and best.precision == plain.precision else "measured"
    return replace(best, reason=reason, timings=told)


def _exact(graph: Graph, spec: InputSpec, predict: Predict, images: FloatArray, way: Compute) -> tuple[bool, float]:
    """Whether the scores computed in this way are near those of `predict`, and how far they are."""
    round_as(way)
    away = difference(Proxy(graph, spec, compute=way), predict, images)
    return away <= _TOLERANCES[way.precision], away
