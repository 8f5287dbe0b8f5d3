"""The constants of a protobuf by where they are read: initializers and Constant nodes alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from debride.errors import SurgeryError
from debride.graph.parse import node_names
from debride.types import ChannelGroup

Place = tuple[int, int]
"""(index of a node in the main graph, position of its input)."""
_BLOCK = 1 << 22


class Constants:
    """Looks up which tensor is read at a place, where it is stored, and by how many it is read."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.nodes = proto.graph.node
        self.stored: dict[str, onnx.TensorProto] = {tensor.name: tensor for tensor in proto.graph.initializer}
        for node in proto.graph.node:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
                self.stored[node.output[0]] = node.attribute[0].t
        self._indices = {name: index for index, name in enumerate(node_names(proto.graph.node))}
        self._reads = Counter(_all_reads(proto.graph))

    def places(self, groups: Iterable[ChannelGroup]) -> dict[Place, list[tuple[int, Sequence[int]]]]:
        """What `groups` zero at each place: (axis, indices) pairs.

        Raises:
            SurgeryError: a slice names a node, an input or entries that do not exist, or no constant.
        """
        found: dict[Place, list[tuple[int, Sequence[int]]]] = defaultdict(list)
        for piece in (piece for group in groups for piece in group.slices):
            index = self._indices.get(piece.node)
            if index is None or piece.position >= len(self.nodes[index].input):
                raise SurgeryError(f"no input {piece.position} of a node '{piece.node}'; find the groups on this model")
            tensor = self.stored.get(self.nodes[index].input[piece.position])
            if tensor is None:
                raise SurgeryError(f"input {piece.position} of node '{piece.node}' is no constant; leave its layer out")
            size = tensor.dims[piece.axis] if piece.axis < len(tensor.dims) else 0
            if not all(0 <= i < size for i in piece.indices):
                raise SurgeryError(f"node '{piece.node}' has no channel {piece.indices}; find the groups on this model")
            found[index, piece.position].append((piece.axis, piece.indices))
        return dict(found)

    def tensor(self, place: Place) -> onnx.TensorProto:
        """The stored tensor read at `place`."""
        return self.stored[self.name(place)]

    def name(self, place: Place) -> str:
        """The name of the tensor read at `place`."""
        return str(self.nodes[place[0]].input[place[1]])

    def shared(self, place: Place) -> bool:
        """Whether somebody else (another node, another input, a subgraph, the graph's outputs) reads it too."""
        return self._reads[self.name(place)] > 1


def zeroed(array: npt.NDArray[Any], cuts: Iterable[tuple[int, Sequence[int]]]) -> npt.NDArray[Any]:
    """A copy of `array` with the entries of each (axis, indices) set to zero."""
    result = array.copy()
    for axis, indices in cuts:
        result[(slice(None),) * axis + (np.asarray(indices, np.intp),)] = 0
    return result


def zeroed_blocks(array: npt.NDArray[Any], cuts: Sequence[tuple[int, Sequence[int]]]) -> Iterator[npt.NDArray[Any]]:
    """The same, a few rows at a time: what is made is never held whole."""
    array = np.atleast_1d(array)
    rows = max(1, _BLOCK * len(array) // max(1, array.nbytes))
    for start in range(0, len(array), rows):
        block = array[start : start + rows]
        yield zeroed(block, [(axis, found if axis else _within(found, start, len(block))) for axis, found in cuts])


def _within(indices: Sequence[int], start: int, length: int) -> list[int]:
    return [i - start for i in indices if 0 <= i - start < length]


def array_of(tensor: onnx.TensorProto) -> npt.NDArray[Any]:
    """The value of `tensor`."""
    return numpy_helper.to_array(tensor)


def finite(array: npt.NDArray[Any]) -> bool:
    """Whether all numbers of the float array (bfloat16 too) are finite."""
    return bool(np.isfinite(array).all())


def _all_reads(graph: onnx.GraphProto) -> Iterable[str]:
    yield from (value.name for value in graph.output)
    for node in graph.node:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_reads(attribute.g)
            for inner in attribute.graphs:
                yield from _all_reads(inner)
