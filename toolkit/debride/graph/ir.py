"""A parsed ONNX graph as plain frozen values: what the proxy and the analyses read instead of protobufs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """One operator call. An omitted optional input is "". `name` is unique within the graph.

    `attributes` holds Python values: int, float, str, bytes-free lists of these, or numpy arrays for tensors.
    `since_version` is that of the operator's schema at the model's opset (ONNX spec, IR.md, "Operator Sets").
    """

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    since_version: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Value:
    """A graph input or output: its shape has ints, or None where a dimension is symbolic; None if unranked."""

    name: str
    shape: tuple[int | None, ...] | None
    dtype: np.dtype[Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """Nodes in topological order, constants by tensor name (initializers and Constant nodes alike), and the ends.

    `inputs` leaves out initializers that are listed as inputs too. `opset` is the default domain's version.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, npt.NDArray[Any]]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int

    def producer(self, tensor: str) -> Node | None:
        """The node that makes `tensor`, or None for inputs and constants."""
        return next((n for n in self.nodes if tensor in n.outputs), None)

    def consumers(self, tensor: str) -> tuple[Node, ...]:
        """The nodes that read `tensor`, in topological order."""
        return tuple(n for n in self.nodes if tensor in n.inputs)
