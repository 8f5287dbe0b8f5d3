"""Dead channels out of a model: solved, cut, and compared in onnxruntime with the model as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx
import onnx.checker

from debride.errors import DebrideError, ModelError
from debride.graph.channels import find_groups
from debride.graph.hollow import check_model
from debride.graph.ir import Graph
from debride.graph.lend import lent
from debride.graph.parse import parse
from debride.graph.read import Model, inlined
from debride.graph.wire import pieces_of, size_of
from debride.sessions import Runtime, Session
from debride.slimming.compare import Feed, compared
from debride.slimming.cost import latencies, macs, parameters
from debride.slimming.edit import edited
from debride.slimming.observe import Observed, observe, random_feeds
from debride.slimming.prepare import Prepared, prepared
from debride.slimming.problem import Problem
from debride.slimming.solve import solve
from debride.types import (
    BoolArray,
    ChannelGroup,
    Cost,
    FloatArray,
    InputSpec,
    Progress,
    Refused,
    Slice,
    Slimming,
    no_progress,
)

TOLERANCE = 1e-5
"""Largest difference from the model as it was, as a share of an output's spread."""
_HALF_TOLERANCE = 5e-3
_STEPS = 4


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

    Structure, names, opset and metadata stay; local functions are inlined. Outputs are compared on random inputs, and
    on `images` (N, C, H, W in 0..1, encoded by `spec`) where given. A channel that cannot go stays, with the reason;
    where the outputs differ by more than `TOLERANCE` of their spread, all stay. With `align`, a convolution whose width
    is a multiple of it keeps a multiple: onnxruntime's fast convolutions on CPUs want multiples of 4.

    Raises:
        ModelError: onnxruntime cannot run the model, or its input size is open and `spec` does not say it.
    """
    runtime = runtime or Runtime()
    proto = inlined(model.proto) if model.proto.functions else model.proto
    name = model.path.name
    progress("slimming", 0, _STEPS, "shapes")
    graph = parse(proto)
    observed = observe(proto, graph, spec, runtime, name)
    progress("slimming", 1, _STEPS, "channels")
    ready = prepared(graph, observed)
    problem = solve(ready.graph, ready.observed, align)
    facts = _facts(problem, spec)
    if not any(problem.axes.changes(tensor) for tensor in observed.shapes):
        cost = _cost(proto, graph, observed.shapes, observed)
        return Slimmed(proto=proto, facts=replace(facts, before=cost, after=cost))
    progress("slimming", 2, _STEPS, "comparing")
    result = _proved(proto, ready, problem, facts, Feed(spec=spec, images=images, seed=seed), runtime, name)
    progress("slimming", _STEPS, _STEPS, f"{result.facts.channels} channels out")
    return result


def _proved(
    proto: onnx.ModelProto,
    ready: Prepared,
    problem: Problem,
    facts: Slimming,
    feed: Feed,
    runtime: Runtime,
    name: str,
) -> Slimmed:
    """`proto` slimmed where that says the same, else as it is, with what both cost; `ready` is its graph made so."""
    graph, observed = problem.graph, problem.observed
    before = _cost(proto, graph, observed.shapes, observed)
    try:
        slimmed = edited(proto, problem, ready)
        check_model(slimmed)
        with lent(proto) as old, lent(slimmed) as new:
            sessions = Session(old, runtime, name), Session(new, runtime, f"{name}, slimmed")
            found = compared(*sessions, graph, feed)
            limit = _HALF_TOLERANCE if _halves(graph) else TOLERANCE
            if found.difference > limit:
                raise ModelError(
                    f"the outputs would differ by {found.difference:.2g} of their spread (limit {limit:g})"
                )
            seconds = latencies(sessions, random_feeds(graph, feed.spec, 1, feed.seed))
    except (DebrideError, onnx.checker.ValidationError, ValueError) as error:
        why = " ".join(str(error).split())[:500]
        return Slimmed(proto=proto, facts=replace(facts, before=before, after=before, left=0, channels=0, reason=why))
    left = {tensor: problem.axes.kept(tensor) for tensor in observed.shapes}
    after = _cost(slimmed, parse(slimmed), left, observed)
    facts = replace(
        facts,
        before=replace(before, latency=seconds[0] / observed.smallest),
        after=replace(after, latency=seconds[1] / observed.smallest),
        difference=found.difference,
        images=found.images,
    )
    return Slimmed(proto=slimmed, facts=facts)


def _cost(proto: onnx.ModelProto, graph: Graph, shapes: Mapping[str, tuple[int, ...]], observed: Observed) -> Cost:
    count = macs(graph, lambda tensor: shapes.get(tensor, ()), observed.batch)
    return Cost(size=size_of(pieces_of(proto, proto.graph)), parameters=parameters(graph), macs=count)


def _halves(graph: Graph) -> bool:
    """Whether the graph computes in half precision anywhere: sums in another order then differ by more."""
    return any(array.dtype.name in ("float16", "bfloat16") for array in graph.constants.values())


def _facts(problem: Problem, spec: InputSpec | None) -> Slimming:
    """Which channels leave, which zeroed ones stay and why; costs are filled in later."""
    graph = problem.graph
    ranks = {tensor: len(shape) for tensor, shape in problem.observed.shapes.items()}
    groups, _ = find_groups(graph, (spec and spec.output) or graph.outputs[0].name, ranks)
    is_zero = _Zeros(graph)
    nothing = Cost(size=0, parameters=0, macs=0)
    dead = left = channels = 0
    stayed = []
    for group in groups:
        reason = _stays(problem, group)
        channels += not reason
        if all(is_zero(piece) for piece in group.slices):
            dead += 1
            left += not reason
            stayed += [Refused(layer=group.layer, channel=group.channel, reason=reason)] if reason else []
    return Slimming(
        before=nothing,
        after=nothing,
        dead=dead,
        left=left,
        channels=channels,
        stayed=tuple(stayed),
        difference=0.0,
        images=0,
    )


def _stays(problem: Problem, group: ChannelGroup) -> str:
    """Why the channel of `group` stays; "" where it leaves."""
    axes = problem.axes
    if not axes.knows(group.edge):
        return "in a shape that is not known"
    return axes.reason(group.edge, group.axis % axes.rank(group.edge), group.channel)


class _Zeros:
    """Which slices of constants are zero; each constant is looked at once for each of its axes."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._makers = {node.name: node for node in graph.nodes}
        self._live: dict[tuple[str, int], BoolArray] = {}

    def __call__(self, piece: Slice) -> bool:
        name = self._makers[piece.node].inputs[piece.position]
        if (name, piece.axis) not in self._live:
            array = self._graph.constants[name]
            others = tuple(axis for axis in range(array.ndim) if axis != piece.axis)
            self._live[name, piece.axis] = np.asarray((array != 0).any(axis=others))
        return not self._live[name, piece.axis][list(piece.indices)].any()
