"""Where the layers of a graph read their weights, biases, scales and shifts, and which constants lie behind these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import onnx

from debride.graph.ir import Graph, Node
from debride.graph.layers import Unfit, extended, layer_of
from debride.graph.walk import Index, Reader

Role = Literal["weight", "bias", "scale", "shift"]

_PARAMETERS: dict[str, tuple[tuple[int, Role], ...]] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), ((1, "weight"), (2, "bias"))),
    **dict.fromkeys(("MatMul", "Einsum"), ((0, "weight"), (1, "weight"))),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), ((1, "scale"), (2, "shift"))),
    **dict.fromkeys(("GroupNormalization", "LayerNormalization"), ((1, "scale"), (2, "shift"))),
    "RMSNormalization": ((1, "scale"),),
    "PRelu": ((1, "weight"),),
}
_EITHER = frozenset(("MatMul", "Einsum"))
"""Of their operands that one is the weight which does not come from the image."""
_LINEAR = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
_QUANTISED = {"QLinearConv": 3, "ConvInteger": 1, "QLinearMatMul": 3, "MatMulInteger": 1}
"""Position of the weight."""
_LAID_OUT = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""What moves the entries of a tensor about and changes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """`layer` has a parameter of the kind `role`: the constant `name`, or none, for `reason`.

    `reader` is (node, position) where that constant is read: the layer itself, or the first node that lays it out anew.
    """

    layer: str
    role: Role
    name: str = ""
    reader: Reader | None = None
    reason: str = ""


def readings(graph: Graph, scores: str | None = None) -> tuple[Reading, ...]:
    """Every parameter that the layers of `graph` have, in topological order of the layers.

    With `scores`, only of layers on the way to that tensor. What is computed without the image is no layer.
    """
    index = Index(graph)
    wanted = None if scores is None else index.ancestors([scores])
    finder = _Finder(index, _moving(graph))
    nodes = [node for node in graph.nodes if finder.is_layer(node) and (wanted is None or node.name in wanted)]
    own = [finder.own(node) for node in nodes]
    known = {reading.reader for found in own for reading in found}
    return tuple(
        reading
        for node, found in zip(nodes, own, strict=True)
        for reading in (*found, *(r for r in finder.behind(node) if r.reader not in known))
    )


def _moving(graph: Graph) -> set[str]:
    """The tensors that the image decides; a node that carries a graph may read anything."""
    moving = {value.name for value in graph.inputs}
    for node in graph.nodes:
        inner = any(isinstance(value, onnx.GraphProto) for value in node.attributes.values())
        if inner or moving.intersection(node.inputs):
            moving.update(output for output in node.outputs if output)
    return moving


class _Finder:
    """Finds the parameters of single nodes; `moving` are the tensors that the image decides."""

    def __init__(self, index: Index, moving: set[str]) -> None:
        self._index, self._moving = index, moving
        self._nodes = {node.name: node for node in index.graph.nodes}

    def is_layer(self, node: Node) -> bool:
        """Whether the image goes through `node`, which is one of ONNX's own operators."""
        fixed = node.op not in _EITHER and (not node.inputs or node.inputs[0] not in self._moving)
        return not node.domain and not fixed and not self._moving.isdisjoint(node.outputs)

    def own(self, node: Node) -> list[Reading]:
        """The parameters that are inputs of `node`."""
        if node.op in _QUANTISED and node.inputs[_QUANTISED[node.op]] not in self._moving:
            return [Reading(layer=node.name, role="weight", reason="its weight is quantised")]
        places = [(p, role) for p, role in _PARAMETERS.get(node.op, ()) if p < len(node.inputs) and node.inputs[p]]
        if node.op in _EITHER:
            places = [(p, role) for p, role in places if node.inputs[p] not in self._moving]
        return [self._reading(node, position, role, node) for position, role in places]

    def behind(self, node: Node) -> Iterator[Reading]:
        """The constants of nodes right behind `node` that belong to it: a bias, a scale and shift, written as nodes."""
        if node.op in _LINEAR:
            yield from self._added(node)
        end = self._normalised(node)
        scaled = None if end is None else self._operand(end, "Mul")
        if scaled is None:
            return
        yield self._reading(scaled[0], scaled[1], "scale", node)
        shifted = self._operand(scaled[0].outputs[0], "Add")
        if shifted is not None:
            yield self._reading(shifted[0], shifted[1], "shift", node)

    def _added(self, node: Node) -> Iterator[Reading]:
        """What pruning a channel of the layer `node` would zero beyond it; of one number it is no bias (x + 3)."""
        try:
            layer = layer_of(self._index, node)
        except Unfit:
            return
        for part in extended(layer, self._index).parts[len(layer.parts) :]:
            reader = self._nodes[part.node]
            array = self._index.constant(reader.inputs[part.position])
            if array is not None and array.size > 1:
                yield self._reading(reader, part.position, "bias", node)

    def _normalised(self, node: Node) -> str | None:
        """The tensor that a normalisation written in single nodes, of which `node` is the last, has made."""
        maker = self._index.producer
        if node.op == "InstanceNormalization":  # of groups: laid out as they were before
            reader = self._index.sole_reader(node.outputs[0])
            return reader[0].outputs[0] if reader is not None and reader[0].op == "Reshape" else None
        if node.op != "Div":
            return None
        centred, deviation = maker(node.inputs[0]), maker(node.inputs[1])
        if centred is None or centred.op != "Sub" or deviation is None or deviation.op != "Sqrt":
            return None
        mean = maker(centred.inputs[1])
        known = mean is not None and mean.op == "ReduceMean" and mean.inputs[0] == centred.inputs[0]
        return node.outputs[0] if known else None

    def _operand(self, tensor: str, op: str) -> tuple[Node, int] | None:
        """The `op` that alone reads `tensor`, and the position of its other operand, fixed and of several numbers."""
        reader = self._index.sole_reader(tensor)
        if reader is None or reader[0].op != op or reader[0].domain:
            return None
        node, other = reader[0], 1 - reader[1]
        array = self._index.constant(node.inputs[other])
        return None if node.inputs[other] in self._moving or (array is not None and array.size < 2) else (node, other)

    def _reading(self, node: Node, position: int, role: Role, layer: Node) -> Reading:
        try:
            name, reader = self._origin(node, position, role)
            self._check(node, position, role, name)
        except Unfit as unfit:
            return Reading(layer=layer.name, role=role, reason=str(unfit))
        return Reading(layer=layer.name, role=role, name=name, reader=reader)

    def _origin(self, node: Node, position: int, what: str) -> tuple[str, Reader]:
        """The constant behind an input of `node`, through nodes that lay it out for that alone, and who reads it."""
        tensor = node.inputs[position]
        while self._index.constant(tensor) is None:
            maker = self._index.producer(tensor)
            if tensor in self._moving or maker is None:
                raise Unfit(f"its {what} depends on the model's input")
            if maker.domain or maker.op not in _LAID_OUT:
                raise Unfit(f"its {what} is computed in the graph, by {maker.op}")
            if self._index.sole_reader(tensor) is None:
                raise Unfit(f"its {what} is laid out once for several readers")
            node, position, tensor = maker, 0, maker.inputs[0]
        return tensor, (node, position)

    def _check(self, node: Node, position: int, role: Role, name: str) -> None:
        array = self._index.constant(name)
        if node.op in _EITHER and array is not None and array.ndim < 2:
            raise Unfit("its weight is a vector")
        if node.op == "BatchNormalization" and trains(node):
            raise Unfit("it normalises by the images at hand")
        if node.op == "Gemm" and role == "bias" and self._common(node):
            raise Unfit("its bias is one number for all channels")

    def _common(self, node: Node) -> bool:
        """Whether all channels of a Gemm share one bias, of 0: no slice of a pruned channel would keep it so."""
        try:
            return len(layer_of(self._index, node).parts) < 2
        except Unfit:
            return False


def trains(node: Node) -> bool:
    """Whether a BatchNormalization takes mean and variance from the images at hand."""
    return bool(node.attributes.get("training_mode", 0)) or len([o for o in node.outputs if o]) > 1
