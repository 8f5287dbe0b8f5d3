"""Which nodes to run, in which order, and when each intermediate tensor can be forgotten."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from debride.errors import ModelError
from debride.graph.ir import Graph, Node
from debride.proxy.fuse import fuse
from debride.proxy.op import Operator
from debride.proxy.placing import here, placed, there
from debride.proxy.shapes import shape_arithmetic
from debride.proxy.table import lookup

FLOATS, DOUBLE = (1, 10, 16), 11
"""`TensorProto.DataType` of float32, float16 and bfloat16, and of float64."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """One node to compute; `frees` are the tensors that no later step reads. `asks`: it only asks a tensor's shape."""

    node: Node
    operator: Operator
    frees: tuple[str, ...]
    asks: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Plan:
    """The steps to some outputs, in order. `still` are those that constants alone decide, `moving` the others.

    `roots` are the constants that the still steps read, `kept` what the moving steps and the outputs take of them.
    `lean` are the moving steps without arithmetic on shapes, for a run in which the tensors `shaped` are known from
    an earlier one and those `asking` a shape get the same answers; `shape_roots` are the constants that `shaped` hang
    on. `assumed` are constants whose values the plan took for granted. `lent` are integer constants that are read on
    the device, by the name `placing.there` of theirs.
    """

    steps: tuple[Step, ...]
    still: tuple[Step, ...]
    moving: tuple[Step, ...]
    roots: tuple[str, ...]
    kept: tuple[str, ...]
    lean: tuple[Step, ...]
    asking: tuple[Node, ...]
    shaped: tuple[str, ...]
    shape_roots: tuple[str, ...]
    assumed: tuple[str, ...]
    lent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a plan is for: `outputs` from `feeds`, with `masks` on the way. `wide`: made double, floats stay float64.

    Without `fused`, every node is computed as it is written. Data lie on `device`.
    """

    outputs: tuple[str, ...]
    feeds: frozenset[str]
    masks: frozenset[str]
    wide: bool = False
    fused: bool = True
    device: str = "cpu"


def make_plan(graph: Graph, known: Mapping[str, int], request: Request, exact: Collection[str] = ()) -> Plan:
    """The plan that makes the outputs from the feeds and the constants `known`, given with their numbers of elements.

    A fed tensor is never computed, nor is anything that only it needs. Constants in `exact` lie on the CPU, wherever
    the data lie.

    Raises:
        UnsupportedOpError: a needed operator is not in the table.
        ModelError: a needed tensor is made by no node and was not given.
    """
    nodes = _needed(graph.nodes, {*known, *request.feeds, ""}, request.outputs)
    constants = {k: v for k, v in graph.constants.items() if k not in request.feeds}
    assumed: tuple[str, ...] = ()
    if request.fused:
        found = fuse(nodes, constants, {*request.outputs, *request.feeds, *request.masks})
        nodes, assumed = found.nodes, found.assumed
    nodes = [_widened(node) for node in nodes] if request.wide else nodes
    pairs = [(node, lookup(node, graph.opset)) for node in reversed(nodes)][::-1]  # the last unknown one is named
    given = {*known}
    known = {name: size for name, size in known.items() if name not in request.feeds}
    lent: tuple[str, ...] = ()
    if request.device != "cpu":
        moved = placed(pairs, known, {*exact}.intersection(known), request.feeds, request.device)
        pairs, lent = list(moved.nodes), moved.lent
    known = {**known, **{there(name): known[name] for name in lent}}
    steps = _steps(pairs, given | {*known, *request.outputs, ""})
    return replace(_divided(steps, known, request, assumed), lent=lent)


def _steps(pairs: Sequence[tuple[Node, Operator]], kept: set[str]) -> list[Step]:
    steps: list[Step] = []
    seen: set[str] = set()
    for node, operator in reversed(pairs):  # last node first: the first sight of a tensor is its last use
        names = {*node.inputs, *node.outputs} - seen - kept
        seen |= names
        steps.append(Step(node=node, operator=operator, frees=tuple(sorted(names))))
    return steps[::-1]


def _needed(nodes: Sequence[Node], given: Collection[str], outputs: Collection[str]) -> Sequence[Node]:
    needed = set(outputs) - set(given)
    found: list[Node] = []
    for node in reversed(nodes):
        if needed.intersection(node.outputs):
            found.append(node)
            needed.difference_update(node.outputs)
            needed.update(name for name in node.inputs if name not in given)
    if needed:
        raise ModelError(f"tensor {min(needed)!r} is neither made by a node nor given; name a tensor of the graph")
    return found[::-1]


def _widened(node: Node) -> Node:
    """A Cast to a float type keeps all digits in a graph that was made double."""
    if node.op == "Cast" and not node.domain and node.attributes.get("to") in FLOATS:
        return replace(node, attributes={**node.attributes, "to": DOUBLE})
    return node


def _divided(steps: Sequence[Step], constants: Mapping[str, int], request: Request, assumed: tuple[str, ...]) -> Plan:
    settled = {*constants, ""}
    still: list[Step] = []
    for step in steps:
        if settled.issuperset(step.node.inputs) and not request.feeds.intersection(step.node.outputs):
            still.append(step)
            settled.update(step.node.outputs)
    alone = set(map(id, still))
    rest = [step for step in steps if id(step) not in alone]
    made = {name for step in still for name in step.node.outputs if name}
    read = {*request.outputs, *(name for step in rest for name in step.node.inputs)}
    roots = {name for step in still for name in step.node.inputs if name} - made
    kept = made & read
    # A constant read on the CPU, where its own tensor lies on the device, is as small as that is.
    sizes = {**constants, **{here(k): n for k, n in constants.items() if here(k) in made}}
    found = shape_arithmetic([step.node for step in rest], sizes, request.feeds | request.masks)
    shaped = set(found.outputs)
    moving = tuple(  # what is small stays until the end, to be noted
        replace(step, frees=tuple(n for n in step.frees if n not in shaped), asks=id(step.node) in found.asking)
        for step in rest
    )
    return Plan(
        steps=tuple(steps),
        # A still step may be the last to read what moving steps read too.
        still=tuple(replace(step, frees=tuple(n for n in step.frees if n not in kept)) for step in still),
        moving=moving,
        roots=tuple(sorted(roots)),
        kept=tuple(sorted(kept)),
        lean=tuple(step for step in moving if id(step.node) not in found.derived),
        asking=tuple(step.node for step in moving if step.asks),
        shaped=found.outputs,
        shape_roots=found.constants,
        assumed=assumed,
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
