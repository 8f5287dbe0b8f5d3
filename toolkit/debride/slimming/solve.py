"""The largest set of channels that a graph can do without: rules applied until nothing changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import onnx

from debride.graph.ir import Graph, Node
from debride.graph.walk import Index
from debride.slimming.absorb import missing_carrier
from debride.slimming.axes import Axes
from debride.slimming.known import Known
from debride.slimming.observe import Observed
from debride.slimming.problem import Problem
from debride.slimming.rules import apply
from debride.slimming.shuffles import find_shuffles


def solve(graph: Graph, observed: Observed, align: int = 1) -> Problem:
    """`graph` with what may leave along every axis of every tensor marked in `axes`.

    An index leaves where the graph's outputs are the same without it; at least one is left along every axis. A
    convolution whose width is a multiple of `align` keeps a multiple of it.
    """
    index = Index(graph)
    problem = Problem(
        graph=graph,
        observed=observed,
        known=Known(graph, observed),
        axes=Axes(observed),
        index=index,
        shuffles=find_shuffles(graph, observed, index),
    )
    needed = index.ancestors(v.name for v in graph.outputs)
    nodes = [node for node in graph.nodes if node.name in needed]
    _pin_ends(problem, nodes)
    _settle(problem, reversed(nodes), nodes)
    while _keep_one(problem, nodes) or _keep_carrier(problem, nodes) or _keep_aligned(problem, nodes, align):
        _settle(problem, (), nodes)
    return problem


def _pin_ends(problem: Problem, nodes: Iterable[Node]) -> None:
    """What the rules say nothing of: inputs, outputs, what nobody needs, insides of subgraphs and of shuffles."""
    axes, graph = problem.axes, problem.graph
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
        if node.name in problem.shuffles:
            for tensor in (*node.inputs[1:], *node.outputs):
                if tensor and tensor != problem.shuffles[node.name].out:
                    axes.pin(tensor, "put in order by a shuffle")


def inner_reads(node: Node) -> set[str]:
    """The tensors that the subgraphs of `node` (If, Loop, Scan) may read from outside."""
    found: set[str] = set()
    todo = [value for value in node.attributes.values() if isinstance(value, onnx.GraphProto)]
    while todo:
        graph = todo.pop()
        found.update(value.name for value in graph.output)
        for inner in graph.node:
            found.update(name for name in inner.input if name)
            todo.extend(attribute.g for attribute in inner.attribute if attribute.HasField("g"))
    return found


def _settle(problem: Problem, first: Iterable[Node], nodes: Iterable[Node]) -> None:
    """Apply the rules of `first`, then those around whatever changes, until nothing does."""
    around: dict[str, list[Node]] = defaultdict(list)
    for node in nodes:
        shuffle = problem.shuffles.get(node.name)
        for tensor in {*node.inputs, *node.outputs, *((shuffle.x, shuffle.out) if shuffle else ())} - {""}:
            around[tensor].append(node)
    axes = problem.axes
    todo = {node.name: node for node in first}
    if not todo:
        todo = {node.name: node for tensor in axes.touched for node in around[tensor]}
    axes.touched.clear()
    while todo:
        _, node = todo.popitem() if len(todo) == 1 else (None, todo.pop(next(iter(todo))))
        apply(problem, node)
        for tensor in axes.touched:
            for other in around[tensor]:
                todo.setdefault(other.name, other)
        axes.touched.clear()


def _keep_one(problem: Problem, nodes: Iterable[Node]) -> bool:
    """Hold one index of the first axis that would lose all; whether there was one."""
    axes = problem.axes
    for node in nodes:
        for tensor in (*node.inputs, *node.outputs):
            if not tensor or not axes.knows(tensor):
                continue
            for axis in range(axes.rank(tensor)):
                leaves = axes.leaves(tensor, axis)
                if len(leaves) and leaves.all():
                    first = leaves.copy()
                    first[1:] = False
                    axes.keep(tensor, axis, "the last of its layer", first)
                    return True
    return False


def _keep_carrier(problem: Problem, nodes: Iterable[Node]) -> bool:
    """Hold one channel that carries the constants which leave a layer, where none does; whether there was one.

    Only now, when all else is settled: a channel that stays for another reason carries them as well.
    """
    for node in nodes:
        found = None if node.domain else missing_carrier(problem, node)
        if found is not None:
            reading, channel = found
            where = np.arange(problem.axes.shape(reading.x)[reading.axis]) == channel
            problem.axes.keep(reading.x, reading.axis, f"carrying the constants of others into '{node.name}'", where)
            return True
    return False


def _keep_aligned(problem: Problem, nodes: Iterable[Node], align: int) -> bool:
    """Hold channels of the first convolution whose width is no multiple any more; whether there was one."""
    axes = problem.axes
    for node in nodes:
        out = node.outputs[0]
        if node.op not in ("Conv", "ConvTranspose") or node.domain or not axes.knows(out):
            continue
        leaves = axes.leaves(out, 1)
        short = -int((~leaves).sum()) % align
        if leaves.any() and short and len(leaves) % align == 0:
            why = f"held so that the width of its layer is a multiple of {align}"
            axes.keep(out, 1, why, leaves & (np.cumsum(leaves) <= short))
            return True
    return False
