"""Dead channels out of a model: solved, cut, and compared in onnxruntime with the model as it was."""

from __future__ import annotations

from dataclasses import dataclass, replace

import onnx
import onnx.checker

from debride.errors import DebrideError, ModelError
from debride.graph.branches import resolved
from debride.graph.hollow import check_model
from debride.graph.ir import Graph
from debride.graph.lend import lent
from debride.graph.parse import parse
from debride.graph.read import Model, inlined
from debride.graph.wire import pieces_of, size_of
from debride.sessions import Runtime, Session
from debride.slimming.account import Account, account_of
from debride.slimming.compare import Comparison, Feed, compared
from debride.slimming.cost import latencies, macs, parameters
from debride.slimming.edit import edited
from debride.slimming.noise import random_feeds
from debride.slimming.observe import Observed, observe
from debride.slimming.prepare import Prepared, prepared
from debride.slimming.problem import Problem
from debride.slimming.solve import solve
from debride.types import Cost, FloatArray, InputSpec, Progress, Slimming, no_progress

TOLERANCE = 1e-5
"""Largest difference from the model as it was, as a share of an output's spread."""
_HALF_TOLERANCE = 5e-3
_STEPS = 3
_MOST_PASSES = 4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slimmed:
    """`proto`: the model without its dead channels, or as it was where none can leave; `facts`: what went and why."""

    proto: onnx.ModelProto
    facts: Slimming


def slim(
    model: Model,
    *,
    spec: InputSpec | None = None,
    images: FloatArray | None = None,
    runtime: Runtime | None = None,
    align: int = 1,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Slimmed:
    """Take the channels out of `model` without which its outputs are the same: zeroed, constant, or read by nobody.

    Names, opset and metadata stay; local functions are inlined, and so are branches that shapes decide. Outputs are
    compared on random inputs, and on `images` (N, C, H, W in 0..1, encoded by `spec`) where given. A channel that
    cannot go stays, with the reason; where the outputs differ by more than `TOLERANCE` of their spread (and rounding),
    all stay. With `align`, a convolution whose width is a multiple of it keeps a multiple: many CPUs are fast where it
    is one of 4 or more.

    Raises:
        ModelError: onnxruntime cannot run the model, or its input size is open and `spec` does not say it.
    """
    runtime = runtime or Runtime()
    proto = resolved(inlined(model.proto) if model.proto.functions else model.proto)
    name = model.path.name
    progress("slimming", 0, _STEPS, "channels")
    first = _solved(proto, spec, runtime, align, name)
    if not first.changes:
        return Slimmed(proto=proto, facts=_facts(first.account, first.cost(), first.cost()))
    progress("slimming", 1, _STEPS, "cutting")
    try:
        last, account = _cut(first, spec, runtime, align, name)
        progress("slimming", 2, _STEPS, "comparing")
        found, seconds = _proved(first, last, Feed(spec=spec, images=images, seed=seed), runtime, name)
    except (DebrideError, onnx.checker.ValidationError, ValueError) as error:
        same = _facts(first.account, first.cost(), first.cost())
        why = " ".join(str(error).split())[:500]
        return Slimmed(proto=proto, facts=replace(same, left=0, channels=0, reason=why))
    before, after = (
        replace(graph.cost(), latency=second / first.observed.smallest)
        for graph, second in zip((first, last), seconds, strict=True)
    )
    facts = replace(_facts(account, before, after), difference=found.difference, images=found.images)
    progress("slimming", _STEPS, _STEPS, f"{facts.channels} channels out")
    return Slimmed(proto=last.proto, facts=facts)


def _cut(first: Pass, spec: InputSpec | None, runtime: Runtime, align: int, name: str) -> tuple[Pass, Account]:
    """What is left of `first`, and the account of it all.

    Where channels had to be held that are dead (the last of a layer, or one that carries constants), others may leave
    once these stand alone: so it is gone over again, until nothing does.
    """
    last, account = _solved(first.cut(), spec, runtime, align, name), first.account
    for _ in range(_MOST_PASSES):
        if not last.changes:
            break
        account = account.then(last.account)
        last = _solved(last.cut(), spec, runtime, align, name)
    return last, account


def _proved(first: Pass, last: Pass, feed: Feed, runtime: Runtime, name: str) -> tuple[Comparison, list[float]]:
    """How equal both are, and the seconds that each takes.

    Raises:
        ModelError: they differ by more than they may, or one does not run.
    """
    check_model(last.proto)
    with lent(first.proto) as old, lent(last.proto) as new:
        sessions = Session(old, runtime, name), Session(new, runtime, f"{name}, slimmed")
        found = compared(*sessions, first.graph, feed)
        limit = _HALF_TOLERANCE if first.halves else TOLERANCE
        if found.beyond > limit:
            raise ModelError(f"the outputs would differ by {found.difference:.2g} of their spread (limit {limit:g})")
        return found, latencies(sessions, random_feeds(first.graph, feed.spec, 1, feed.seed))


def _facts(account: Account, before: Cost, after: Cost) -> Slimming:
    return Slimming(
        before=before,
        after=after,
        dead=len(account.dead),
        left=account.left,
        channels=account.channels,
        stayed=account.stayed,
        difference=0.0,
        images=0,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """A graph gone over once: `graph` is `proto` parsed, `problem` its solution, `account` what that means."""

    proto: onnx.ModelProto
    graph: Graph
    observed: Observed
    ready: Prepared
    problem: Problem
    account: Account

    @property
    def changes(self) -> bool:
        """Whether anything leaves."""
        return any(self.problem.axes.changes(tensor) for tensor in self.observed.shapes)

    @property
    def halves(self) -> bool:
        """Whether it computes in half precision anywhere: sums in another order then differ by more."""
        return any(array.dtype.name in ("float16", "bfloat16") for array in self.graph.constants.values())

    def cut(self) -> onnx.ModelProto:
        """The graph without what leaves."""
        return edited(self.proto, self.problem, self.ready)

    def cost(self) -> Cost:
        """What it costs as it is, without its latency."""
        count = macs(self.graph, lambda tensor: self.observed.shapes.get(tensor, ()), self.observed.batch)
        size = size_of(pieces_of(self.proto, self.proto.graph))
        return Cost(size=size, parameters=parameters(self.graph), macs=count)


def _solved(proto: onnx.ModelProto, spec: InputSpec | None, runtime: Runtime, align: int, name: str) -> Pass:
    graph = parse(proto)
    observed = observe(proto, graph, spec, runtime, name)
    ready = prepared(graph, observed)
    problem = solve(ready.graph, ready.observed, align)
    account = account_of(problem, spec)
    return Pass(proto=proto, graph=graph, observed=observed, ready=ready, problem=problem, account=account)
