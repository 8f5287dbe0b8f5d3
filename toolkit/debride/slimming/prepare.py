"""A parsed graph made ready to be slimmed: what stands in a channel's way, without saying anything, is put aside.

Whole numbers that follow from shapes alone become constants, so that no count of channels is computed from channels;
so does the target of a Reshape of which only the batch is open.
Short constants that several nodes share (exporters merge equal biases and scales) become one for each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from debride.graph.ir import Graph, Node
from debride.graph.numbers import whole
from debride.graph.unread import reads_of
from debride.slimming.observe import Observed

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """`graph` with constants of its own: `numbers` by name, and `copies` (new name -> the constant it copies).

    `observed` is what was seen, with these constants in it.
    """

    graph: Graph
    observed: Observed
    numbers: tuple[str, ...]
    copies: Mapping[str, str]


def prepared(graph: Graph, observed: Observed) -> Prepared:
    """`graph` ready to be slimmed. Numbers stay computed where it takes images of many sizes."""
    graph = _without_detours(graph)
    taken = {*observed.shapes, *graph.constants}
    names = {tensor: _fresh(f"{tensor}.folded", taken) for tensor in _numbers(graph, observed)}
    values = {name: observed.numbers[tensor].array for tensor, name in names.items()}
    shared, copies = _shared(graph), {}
    nodes = []
    for node in graph.nodes:
        inputs = [names.get(tensor, tensor) for tensor in node.inputs]
        target = _target(node, observed)
        if target is not None:
            inputs[1] = _fresh(f"{node.outputs[0]}.target", taken)
            values[inputs[1]] = target
        for position, tensor in enumerate(node.inputs):
            if tensor in shared:
                inputs[position] = _fresh(f"{tensor}.at.{node.name}.{position}", taken)
                copies[inputs[position]] = tensor
                values[inputs[position]] = graph.constants[tensor]
        nodes.append(node if inputs == list(node.inputs) else replace(node, inputs=tuple(inputs)))
    small = {name: value for name, value in values.items() if name not in copies}
    return Prepared(
        graph=_needed(replace(graph, nodes=tuple(nodes), constants=_Both(values, graph.constants))),
        observed=replace(
            observed,
            shapes={**observed.shapes, **{name: value.shape for name, value in values.items()}},
            dtypes={**observed.dtypes, **{name: value.dtype for name, value in values.items()}},
            varying={**observed.varying, **dict.fromkeys(values, frozenset())},
            numbers={**observed.numbers, **{name: whole(value) for name, value in small.items()}},
        ),
        numbers=tuple(small),
        copies=copies,
    )


def _needed(graph: Graph) -> Graph:
    """`graph` without nodes that lead to no output, not even through what a subgraph reads."""
    live = {value.name for value in graph.outputs}
    kept = []
    for node in reversed(graph.nodes):
        if live.intersection(node.outputs):
            kept.append(node)
            live.update(node.inputs)
            live.update(inner_reads(node))
    return replace(graph, nodes=tuple(reversed(kept))) if len(kept) < len(graph.nodes) else graph


def inner_reads(node: Node) -> set[str]:
    """The tensors that the subgraphs of `node` (If, Loop, Scan) may read from outside."""
    graphs = [value for value in node.attributes.values() if isinstance(value, onnx.GraphProto)]
    ends = {value.name for graph in graphs for value in graph.output}
    return ends.union(*(reads_of(graph.node) for graph in graphs)) - {""}


def _without_detours(graph: Graph) -> Graph:
    """`graph` reading its constants themselves where it read them by way of an Identity, as exporters share them."""
    ends = {value.name for value in graph.outputs}
    meant: dict[str, str] = {}
    nodes = []
    for node in graph.nodes:
        if any(tensor in meant for tensor in node.inputs):
            node = replace(node, inputs=tuple(meant.get(tensor, tensor) for tensor in node.inputs))
        if node.op == "Identity" and not node.domain and node.inputs[0] in graph.constants:
            meant[node.outputs[0]] = node.inputs[0]
        nodes.append(node)
    return replace(graph, nodes=tuple(nodes)) if meant.keys() - ends else graph


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _numbers(graph: Graph, observed: Observed) -> list[str]:
    """Computed tensors of numbers that no batch changes, as far as something else than such a tensor needs them."""
    if observed.flexible:
        return []
    numbers = {name for name, found in observed.numbers.items() if found.whole} - set(graph.constants)
    kept = [node for node in graph.nodes if not all(t in numbers for t in node.outputs if t)]
    ends = {value.name for value in graph.outputs}
    return sorted(({tensor for node in kept for tensor in node.inputs} & numbers) - ends)


def _target(node: Node, observed: Observed) -> npt.NDArray[np.int64] | None:
    """The target of a Reshape, computed from shapes, as a constant in which the batch is what is left over."""
    if node.op != "Reshape" or node.domain or observed.flexible:
        return None
    wanted, out = observed.numbers.get(node.inputs[1]), node.outputs[0]
    if wanted is None or wanted.whole or np.count_nonzero(~wanted.known) > 1:
        return None
    target = np.where(wanted.known, wanted.array, -1)
    for axis in np.flatnonzero(wanted.known & (target == -1)):  # what was left over is not the batch
        if axis in observed.varying[out]:
            return None
        target[axis] = observed.shapes[out][axis]
    return target.astype(np.int64)


def _shared(graph: Graph) -> set[str]:
    """Float constants with at most one long axis that are read at several places (weights that are tied stay so)."""
    reads = Counter(tensor for node in graph.nodes for tensor in node.inputs if tensor in graph.constants)
    several = [tensor for tensor, count in reads.items() if count > 1]
    ends = {value.name for value in graph.outputs}
    return {
        tensor
        for tensor in several
        if tensor not in ends
        and graph.constants[tensor].dtype.kind == "f"
        and 1 < graph.constants[tensor].size == max(graph.constants[tensor].shape, default=1)
    }


class _Both(Arrays):
    """Two mappings as one, neither of them copied: large constants are decoded only when they are asked for."""

    def __init__(self, first: Arrays, second: Arrays) -> None:
        self._first, self._second = first, second

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._first[name] if name in self._first else self._second[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._first
        yield from (name for name in self._second if name not in self._first)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._first or name in self._second
