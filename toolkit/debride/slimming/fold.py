"""Whole numbers that follow from shapes alone, made constants: no count of channels is then computed from channels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.slimming.observe import Observed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Folded:
    """`graph` reads constants in place of numbers that it computed; `names` are theirs, by the tensor that was read.

    `observed` is what was seen, with these constants in it.
    """

    graph: Graph
    observed: Observed
    names: Mapping[str, str]


def folded(graph: Graph, observed: Observed) -> Folded:
    """`graph` with the numbers that no batch changes as constants; as it is where it takes images of many sizes."""
    numbers = set() if observed.flexible else set(observed.values) - set(graph.constants)
    gone = {node.name for node in graph.nodes if all(t in numbers for t in node.outputs if t)}
    kept = [node for node in graph.nodes if node.name not in gone]
    ends = {value.name for value in graph.outputs}
    read = ({tensor for node in kept for tensor in node.inputs} & numbers) - ends
    names = {tensor: f"{tensor}.folded" for tensor in sorted(read)}
    taken = {*observed.shapes, *graph.constants}
    while clash := next((tensor for tensor, name in names.items() if name in taken), None):
        names[clash] += "_"
    values = {name: observed.values[tensor] for tensor, name in names.items()}
    return Folded(
        graph=replace(
            graph,
            nodes=tuple(node if node.name in gone else _reading(node, names) for node in graph.nodes),
            constants=_Both(values, graph.constants),
        ),
        observed=replace(
            observed,
            shapes={**observed.shapes, **{name: value.shape for name, value in values.items()}},
            varying={**observed.varying, **dict.fromkeys(values, frozenset())},
            values={**observed.values, **values},
        ),
        names=names,
    )


class _Both(Mapping[str, npt.NDArray[Any]]):
    """Two mappings as one, neither of them copied: large constants are decoded only when they are asked for."""

    def __init__(self, first: Mapping[str, npt.NDArray[Any]], second: Mapping[str, npt.NDArray[Any]]) -> None:
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


def _reading(node: Node, names: Mapping[str, str]) -> Node:
    if not any(tensor in names for tensor in node.inputs):
        return node
    return replace(node, inputs=tuple(names.get(tensor, tensor) for tensor in node.inputs))
