"""Who makes and who reads each tensor of a `Graph`, looked up in constant time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy.typing as npt

from debride.graph.ir import Graph, Node
from debride.graph.ranks import ranks_of

Reader = tuple[Node, int]


class Index:
    """Producers, readers and ranks of the tensors of `graph`: `ranks` as known, else as far as the operators tell."""

    def __init__(self, graph: Graph, ranks: Mapping[str, int] | None = None) -> None:
        self.graph = graph
        self.ends = frozenset(v.name for v in graph.outputs)
        self.ranks = {**ranks_of(graph), **(ranks or {})}
        self._producers = {tensor: node for node in graph.nodes for tensor in node.outputs if tensor}
        self._readers: dict[str, list[Reader]] = defaultdict(list)
        for node in graph.nodes:
            for position, tensor in enumerate(node.inputs):
                self._readers[tensor].append((node, position))

    def producer(self, tensor: str) -> Node | None:
        """The node that makes `tensor`; None for inputs and constants."""
        return self._producers.get(tensor)

    def readers(self, tensor: str) -> tuple[Reader, ...]:
        """(node, input position) of every reading of `tensor`."""
        return tuple(self._readers.get(tensor, ()))

    def sole_reader(self, tensor: str) -> Reader | None:
        """The one reading of `tensor`; None if there are more or none, or if it is an output of the graph."""
        readers = self._readers.get(tensor, [])
        return readers[0] if len(readers) == 1 and tensor not in self.ends else None

    def constant(self, tensor: str) -> npt.NDArray[Any] | None:
        """The value of `tensor` where it is constant."""
        return self.graph.constants.get(tensor)

    def ancestors(self, tensors: Iterable[str], stop: Callable[[Node], bool] | None = None) -> dict[str, Node]:
        """Nodes that `tensors` depend on, by name; the walk goes not beyond nodes for which `stop` holds."""
        found: dict[str, Node] = {}
        todo = list(tensors)
        while todo:
            node = self._producers.get(todo.pop())
            if node is None or node.name in found:
                continue
            found[node.name] = node
            if stop is None or not stop(node):
                todo.extend(node.inputs)
        return found
