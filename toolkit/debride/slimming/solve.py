"""The largest set of channels that a graph can do without: rules applied until nothing changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index
from debride.slimming.absorb import missing_carrier
from debride.slimming.axes import Axes
from debride.slimming.heads import find_heads, interior, parameters
from debride.slimming.known import Known
from debride.slimming.observe import Observed
from debride.slimming.prepare import inner_reads
from debride.slimming.problem import Problem
from debride.slimming.rules import apply
from debride.slimming.shuffles import find_shuffles

_MOST_WORK = 10**9
"""Indices looked at in all: some seconds."""


def solve(graph: Graph, observed: Observed, align: int = 1) -> Problem:
    """`graph` with what may leave along every axis of every tensor marked in `axes`.

    An index leaves where the graph's outputs are the same without it; at least one is left along every axis. A
    convolution whose width is a multiple of `align` keeps a multiple of it.
    """
    index = Index(graph)
    heads = find_heads(graph, observed, index)
    shuffles = find_shuffles(graph, observed, index)
    problem = Problem(
        graph=graph,
        observed=observed,
        known=Known(graph, observed, heads),
        axes=Axes(observed),
        index=index,
        shuffles={name: s for name, s in shuffles.items() if not heads.keys() & set(s.nodes)},
        heads=heads,
    )
    _pin_ends(problem)
    settle = Settling(problem)
    settle(reversed(graph.nodes))
    for hold in (_keep_one, _keep_carrier):
        # What is held makes no other layer empty, and no other constant leave: once over the nodes is enough.
        for node in graph.nodes:
            while hold(problem, node):
                settle()
    while any(_keep_aligned(problem, node, align) for node in graph.nodes):
        settle()
    return problem


def _pin_ends(problem: Problem) -> None:
    """What the rules say nothing of: inputs, outputs, what nobody needs, insides of subgraphs and of shuffles."""
    axes, graph = problem.axes, problem.graph
    nodes = graph.nodes
    for value in graph.inputs:
        axes.pin(value.name, "an input of the graph")
    for value in graph.outputs:
        axes.pin(value.name, "an output of the graph")
    read = {tensor for node in nodes for tensor in node.inputs}
    for tensor in set(problem.observed.shapes) - read:
        axes.pin(tensor, "read by nobody")
    for node in nodes:
        for tensor in inner_reads(node):
            axes.pin(tensor, f"read inside '{node.name}'")
        if node.name in problem.heads:
            merged = problem.heads[node.name]
            for tensor in (*interior(merged), *parameters(merged)):
                axes.pin(tensor, "laid out with the heads")
        if node.name in problem.shuffles:
            for tensor in (*node.inputs[1:], *node.outputs):
                if tensor and tensor != problem.shuffles[node.name].out:
                    axes.pin(tensor, "put in order by a shuffle")


class Settling:
    """Applies rules until nothing changes; called without nodes, those around what was touched since.

    The work is bounded: a file of a few bytes can make one index after another fall. Beyond the bound all stays.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem, self._work = problem, 0
        self._around: dict[str, list[Node]] = defaultdict(list)
        for node in problem.graph.nodes:
            shuffle = problem.shuffles.get(node.name)
            for tensor in {*node.inputs, *node.outputs, *((shuffle.x, shuffle.out) if shuffle else ())} - {""}:
                self._around[tensor].append(node)

    def __call__(self, first: Iterable[Node] = ()) -> None:
        """Apply the rules of `first`, then those around whatever changes, until nothing does."""
        axes = self._problem.axes
        todo = {node.name: node for node in first} or self._touched()
        axes.touched.clear()
        while todo:
            node = todo.pop(next(iter(todo)))
            looked_at = filter(axes.knows, (*node.inputs, *node.outputs))
            self._work += sum(sum(self._problem.shape(tensor)) for tensor in looked_at)
            if self._work > _MOST_WORK:
                self._give_up()
                return
            apply(self._problem, node)
            for name, other in self._touched().items():
                todo.setdefault(name, other)
            axes.touched.clear()

    def _touched(self) -> dict[str, Node]:
        return {node.name: node for tensor in self._problem.axes.touched for node in self._around[tensor]}

    def _give_up(self) -> None:
        for tensor in self._problem.observed.shapes:
            self._problem.axes.pin(tensor, "in a graph too tangled to be followed")
        self._problem.axes.touched.clear()


def _keep_one(problem: Problem, node: Node) -> bool:
    """Hold one index of an axis of `node`'s tensors that would lose all; whether there was one."""
    axes = problem.axes
    for tensor in filter(axes.knows, filter(None, (*node.inputs, *node.outputs))):
        for axis in range(axes.rank(tensor)):
            leaves = axes.leaves(tensor, axis)
            if len(leaves) and leaves.all():
                axes.keep(tensor, axis, "the last of its layer", np.arange(len(leaves)) == 0)
                return True
    return False


def _keep_carrier(problem: Problem, node: Node) -> bool:
    """Hold one channel that carries the constants which leave `node`, where none does; whether there was one.

    Only now, when all else is settled: a channel that stays for another reason carries them as well.
    """
    found = None if node.domain else missing_carrier(problem, node)
    if found is None:
        return False
    reading, channel = found
    where = np.arange(problem.axes.shape(reading.x)[reading.axis]) == channel
    problem.axes.keep(reading.x, reading.axis, f"carrying the constants of others into '{node.name}'", where)
    return True


def _keep_aligned(problem: Problem, node: Node, align: int) -> bool:
    """Hold channels of a convolution whose width is no multiple any more; whether it was so."""
    axes, out = problem.axes, node.outputs[0]
    if align == 1 or node.op not in ("Conv", "ConvTranspose") or node.domain or not axes.knows(out):
        return False
    leaves = axes.leaves(out, 1)
    short = -int((~leaves).sum()) % align
    if not leaves.any() or not short or len(leaves) % align:
        return False
    why = f"held so that the width of its layer is a multiple of {align}"
    axes.keep(out, 1, why, leaves & (np.cumsum(leaves) <= short))
    return True
