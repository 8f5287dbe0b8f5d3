"""Which nodes to run, in which order, and when each intermediate tensor can be forgotten."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from debride.errors import ModelError
from debride.graph.ir import Graph, Node
from debride.proxy.op import Operator
from debride.proxy.table import lookup


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node to compute; `frees` are the tensors that no later step reads."""

    node: Node
    operator: Operator
    frees: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The steps to some outputs, in order. `still` are those that constants alone decide, `moving` the others.

    `roots` are the constants that the still steps read, `kept` what the moving steps and the outputs take of them.
    """

    steps: tuple[Step, ...]
    still: tuple[Step, ...]
    moving: tuple[Step, ...]
    roots: tuple[str, ...]
    kept: tuple[str, ...]


def make_plan(graph: Graph, known: Collection[str], feeds: Collection[str], outputs: Sequence[str]) -> Plan:
    """The plan that makes `outputs` from `feeds` and the tensors `known` beforehand (constants).

    A fed tensor is never computed, nor is anything that only it needs.

    Raises:
        UnsupportedOpError: a needed operator is not in the table.
        ModelError: a needed tensor is made by no node and was not given.
    """
    given = {*known, *feeds, ""}
    needed = set(outputs) - given
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            nodes.append(node)
            needed.difference_update(node.outputs)
            needed.update(name for name in node.inputs if name not in given)
    if needed:
        raise ModelError(f"tensor {min(needed)!r} is neither made by a node nor given; name a tensor of the graph")
    kept = {*known, *outputs, ""}
    steps: list[Step] = []
    seen: set[str] = set()
    for node in nodes:  # last node first: the first sight of a tensor is its last use
        names = {*node.inputs, *node.outputs} - seen - kept
        seen |= names
        steps.append(Step(node=node, operator=lookup(node, graph.opset), frees=tuple(sorted(names))))
    return _divided(steps[::-1], set(known) - set(feeds), feeds, outputs)


def _divided(steps: Sequence[Step], constants: Collection[str], feeds: Collection[str], outputs: Sequence[str]) -> Plan:
    settled = {*constants, ""}
    still: list[Step] = []
    for step in steps:
        if settled.issuperset(step.node.inputs) and not set(feeds).intersection(step.node.outputs):
            still.append(step)
            settled.update(step.node.outputs)
    alone = set(map(id, still))
    moving = [step for step in steps if id(step) not in alone]
    made = {name for step in still for name in step.node.outputs if name}
    read = {*outputs, *(name for step in moving for name in step.node.inputs)}
    roots = {name for step in still for name in step.node.inputs if name} - made
    return Plan(
        steps=tuple(steps),
        still=tuple(still),
        moving=tuple(moving),
        roots=tuple(sorted(roots)),
        kept=tuple(sorted(made & read)),
    )


_PASSING = {"Identity", "Cast", "Dropout", "Reshape", "Flatten", "Squeeze"}


def logits_edge(graph: Graph, output: str) -> str:
    """The tensor before a final Softmax or Sigmoid (possibly behind reshapes and casts), else `output` itself."""
    makers = {name: node for node in graph.nodes for name in node.outputs if name}
    node = makers.get(output)
    while node is not None and node.op in _PASSING:
        node = makers.get(node.inputs[0])
    if node is not None and node.op in ("Softmax", "Sigmoid") and not node.domain:
        return node.inputs[0]
    return output
