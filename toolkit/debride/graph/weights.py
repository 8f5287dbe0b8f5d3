"""What retraining may change in a model: its weights by name, entries of them that stay zero, running statistics.

Training happens on the working graph and is written back into the delivered file. So a constant can be trained only
where that file stores it under the same name, and where nothing but layers reads it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from debride.errors import SurgeryError
from debride.graph.constants import Constants, array_of
from debride.graph.hollow import is_large
from debride.graph.ir import Graph
from debride.graph.read import Model
from debride.graph.readings import Reading, Role, readings, trains
from debride.graph.unread import graphs_of, reads_of
from debride.graph.walk import Index
from debride.types import BoolArray, ChannelGroup, Refused, frozen_array

FLOATS = frozenset(("float16", "float32", "float64", "bfloat16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """The constant `name` (an initializer, or the output of a Constant node), of the graph and of the file alike.

    `role` says what it is to `layer`, the first that has it; scale and shift are those of a normalisation.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm:
    """A BatchNormalization: the names of its running statistics and of the tensor `data` that it normalises.

    They are per entry of `axis`; the biased variance over all others is what inference takes for `variance`.
    """

    node: str
    mean: str
    variance: str
    data: str
    epsilon: float
    axis: int = 1


def trainable(model: Model, scores: str | None = None) -> tuple[tuple[Weight, ...], tuple[Refused, ...]]:
    """The constants of `model` that can be trained, each once, and the layers' parameters that cannot, with reasons.

    Both are in topological order of the layers; with `scores`, only of those on the way to that tensor. Weights and
    biases of linear layers (a bias may be added by a node of its own), scales and shifts of normalisations, slopes of
    PRelu. One that several layers share is trained as one.
    """
    found = readings(model.graph, scores)
    file = _File(model)
    by_name: dict[str, list[Reading]] = defaultdict(list)
    for reading in found:
        if reading.name:
            by_name[reading.name].append(reading)
    reasons = {name: file.why_not(name, group) for name, group in by_name.items()}
    weights: dict[str, Weight] = {}
    refused: dict[Refused, None] = {}
    for reading in found:
        reason = reading.reason or reasons[reading.name]
        if reason:
            refused[Refused(layer=reading.layer, channel=None, reason=reason)] = None
        elif reading.name not in weights:
            shape = model.graph.constants[reading.name].shape
            weight = Weight(name=reading.name, shape=shape, role=reading.role, layer=reading.layer)
            weights[reading.name] = weight
    return tuple(weights.values()), tuple(refused)


def statistics(model: Model, scores: str | None = None) -> tuple[BatchNorm, ...]:
    """The BatchNormalizations of `model`, in inference mode, whose mean and variance can be written anew.

    Both are constants of the file that nobody else reads. With `scores`, only those on the way to that tensor.
    """
    graph, file = model.graph, _File(model)
    wanted = None if scores is None else Index(graph).ancestors([scores])
    found = []
    for node in graph.nodes:
        if node.op != "BatchNormalization" or node.domain or trains(node) or not node.attributes.get("spatial", 1):
            continue
        mean, variance = node.inputs[3:5]
        if (wanted is None or node.name in wanted) and file.sole(mean) and file.sole(variance):
            epsilon = float(node.attributes.get("epsilon", 1e-5))
            norm = BatchNorm(node=node.name, mean=mean, variance=variance, data=node.inputs[0], epsilon=epsilon)
            found.append(norm)
    return tuple(found)


def silent(graph: Graph, groups: Sequence[ChannelGroup]) -> Mapping[str, BoolArray]:
    """Per constant of `graph` the entries (True, in its own shape) that have to stay zero, where it has any.

    They are all slices of those of `groups` whose slices are all zero: what was pruned, or dead as delivered.

    Raises:
        SurgeryError: the groups are of another graph.
    """
    nodes = {node.name: node for node in graph.nodes}
    alive: dict[tuple[str, int], BoolArray] = {}
    masks: dict[str, BoolArray] = {}
    for group in groups:
        places: list[tuple[str, int, list[int]]] = []
        for piece in group.slices:
            node = nodes.get(piece.node)
            name = node.inputs[piece.position] if node is not None and piece.position < len(node.inputs) else ""
            if (name, piece.axis) not in alive:  # a large array is decoded whenever it is asked for
                alive[name, piece.axis] = _alive(graph, name, piece.axis)
            if max(piece.indices) >= len(alive[name, piece.axis]):
                raise SurgeryError(f"layer '{group.layer}' has no such channel; find the groups on this model")
            places.append((name, piece.axis, list(piece.indices)))
        if any(alive[name, axis][rows].any() for name, axis, rows in places):
            continue
        for name, axis, rows in places:
            if name not in masks:
                masks[name] = np.zeros(graph.constants[name].shape, np.bool_)
            masks[name][(slice(None),) * axis + (rows,)] = True
    return {name: frozen_array(mask) for name, mask in masks.items()}


def _alive(graph: Graph, name: str, axis: int) -> BoolArray:
    """Which entries of the constant `name` along `axis` are not all zero; none where there is no such axis."""
    array = graph.constants.get(name)
    if array is None or array.ndim <= axis:
        return np.zeros(0, np.bool_)
    others = tuple(other for other in range(array.ndim) if other != axis)
    return np.asarray((array != 0).any(axis=others))


class _File:
    """Says which constants of the working graph are tensors of the delivered file."""

    def __init__(self, model: Model) -> None:
        self._model = model
        working = model.rewritten or model.proto
        self._reads = Counter(reads_of(working.graph.node))
        self._reads.update(value.name for value in working.graph.output)
        self._stored = Constants(model.proto).stored
        self._computed = {name for node in model.proto.graph.node for name in node.output}
        self._inner = {t.name for graph in graphs_of(model.proto.graph.node) for t in graph.initializer}

    def why_not(self, name: str, found: Sequence[Reading]) -> str:
        """Why the constant `name`, with `found` its readings as a parameter, cannot be trained; "" if it can."""
        array, roles = self._model.graph.constants[name], sorted({reading.role for reading in found})
        if array.dtype.name not in FLOATS:
            return f"its {roles[0]} holds {array.dtype.name} numbers"
        if not self._has(name):
            return f"its {roles[0]} {self._where(name)}"
        if len(roles) > 1:
            return f"one constant is both {roles[0]} and {roles[1]}"
        if self._reads[name] > len({reading.reader for reading in found}):
            return f"its {roles[0]} serves another purpose too"
        return ""

    def sole(self, name: str) -> bool:
        """Whether `name` is a constant of floats in the file, read once."""
        array = self._model.graph.constants.get(name)
        return array is not None and array.dtype.name in FLOATS and self._has(name) and self._reads[name] == 1

    def _has(self, name: str) -> bool:
        tensor, array = self._stored.get(name), self._model.graph.constants[name]
        if tensor is None or tuple(tensor.dims) != array.shape:
            return False
        if self._model.rewritten is None or is_large(tensor):  # large ones are read from the file by their name
            return True
        data = array_of(tensor)
        return data.dtype == array.dtype and data.tobytes() == array.tobytes()

    def _where(self, name: str) -> str:
        if name in self._stored:
            return "is not what the file stores under its name"
        if name in self._computed:
            return "is computed in the graph"
        if self._model.proto.functions and name not in self._inner:
            return "lies inside a function"
        return "lies inside a branch"
