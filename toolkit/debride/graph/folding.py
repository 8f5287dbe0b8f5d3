"""Weights that the graph computes from constants alone (standardised, with a norm of their own), written as numbers.

PyTorch's older exporter writes such out, and no channel of a weight that is no constant can be pruned. Quantised
weights are left: what makes them small is that they are computed.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from debride.graph.hollow import constant_tensor, filled, hollow, payloads
from debride.graph.numbers import by_reference
from debride.graph.unread import set_nodes

_WEIGHTS = {"Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2), "MatMul": (1,), "Einsum": (0, 1)}
_ELEMENTWISE = frozenset(("Abs", "Add", "Clip", "Div", "Exp", "Identity", "Max", "Min", "Mul", "Neg", "Pow"))
_ELEMENTWISE |= {"Reciprocal", "Sqrt", "Sub"}
_LAID_OUT = frozenset(("Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
_REDUCED = frozenset(f"Reduce{kind}" for kind in ("L1", "L2", "Max", "Mean", "Min", "Sum", "SumSquare"))
_KNOWN = _ELEMENTWISE | _LAID_OUT | _REDUCED
_PLAIN = frozenset(("Identity", "Transpose"))
"""Through these alone a constant is found anyhow."""
_TYPES = (TensorProto.FLOAT, TensorProto.DOUBLE)
_MOST_NODES = 64
"""For one weight; and for all of them:"""
_EVALUATIONS = 20_000

Data = Mapping[str, TensorProto]


def folded(proto: onnx.ModelProto, only: Container[str] | None = None, data: Data | None = None) -> onnx.ModelProto:
    """`proto` with the weights and biases that it computes from constants as initializers of the same names.

    `only` names those that are folded, by default all; `proto` itself comes back where there is none. Nodes that made
    nothing else go. `data` holds the large constants where `proto` is hollow.
    """
    data = payloads(proto) if data is None else data
    folding = _Folding(proto, data)
    found = {name: folding.value(name) for name in folding.targets() if only is None or name in only}
    arrays = {name: array for name, array in found.items() if array is not None}
    if not arrays:
        return proto
    flat = hollow(proto).proto
    nodes, loose = list[onnx.NodeProto](), list[str]()
    for node in flat.graph.node:
        if arrays.keys() & set(node.output):
            loose.extend(node.input)
        else:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    set_nodes(flat, nodes, loose)
    for name, array in arrays.items():
        flat.graph.initializer.append(numpy_helper.from_array(np.array(array, order="C"), name))
        if flat.ir_version < 4:  # until IR version 4 every initializer is an input too
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            flat.graph.input.append(helper.make_tensor_value_info(name, kind, array.shape))
    return filled(flat, payloads(proto))


class _Folding:
    """Finds and computes the weights of `proto` that follow from its constants."""

    def __init__(self, proto: onnx.ModelProto, data: Data) -> None:
        self._proto, self._data = proto, data
        self._makers = {output: node for node in proto.graph.node for output in node.output if output}
        self._budget = _EVALUATIONS
        self._order = {output: index for index, output in enumerate(self._makers)}
        self._stored = {tensor.name: tensor for tensor in proto.graph.initializer}

    def targets(self) -> Iterator[str]:
        """Weights and biases that a node computes and that are no outputs, each once."""
        ends = {value.name for value in self._proto.graph.output}
        read = (
            node.input[position]
            for node in self._proto.graph.node
            if not node.domain
            for position in _WEIGHTS.get(node.op_type, ())
            if position < len(node.input)
        )
        for name in dict.fromkeys(read):
            if name in self._makers and name not in ends:
                yield name

    def value(self, name: str) -> npt.NDArray[Any] | None:
        """The value of the tensor `name`; None where it is not computed from constants by operators known here."""
        cone = self._cone(name)
        if cone is None or len(cone) > self._budget or all(node.op_type in _PLAIN for node in cone):
            return None
        self._budget -= len(cone)
        values: dict[str, npt.NDArray[Any]] = {}
        for node in cone:
            given = [i for i in node.input if i]
            values.update((i, self._constant(i)) for i in given if i not in values)
            made = _made(node, {i: values[i] for i in given}, self._proto.opset_import)
            if made is None:
                return None
            values[node.output[0]] = made
        return values[name] if np.isfinite(values[name]).all() else None

    def _cone(self, name: str) -> list[onnx.NodeProto] | None:
        """The nodes that make `name`, in the order of the graph; None where something else than constants goes in."""
        found: dict[str, onnx.NodeProto] = {}
        todo, floats = [name], False
        while todo:
            tensor = todo.pop()
            stored = self._tensor(tensor)
            if stored is not None:
                floats |= stored.data_type in _TYPES
                continue
            maker = self._makers.get(tensor)
            if maker is None or maker.op_type not in _KNOWN or maker.domain or len(maker.output) != 1:
                return None
            if tensor not in found:
                found[tensor] = maker
                todo.extend(i for i in maker.input if i)
            if len(found) > _MOST_NODES:
                return None
        return [found[tensor] for tensor in sorted(found, key=self._order.__getitem__)] if floats else None

    def _tensor(self, name: str) -> TensorProto | None:
        maker = self._makers.get(name)
        return self._stored.get(name) if maker is None else constant_tensor(maker)

    def _constant(self, name: str) -> npt.NDArray[Any]:
        return numpy_helper.to_array(self._data.get(name) or self._tensor(name) or TensorProto())


def _made(node: onnx.NodeProto, feeds: Mapping[str, npt.NDArray[Any]], opsets: Any) -> npt.NDArray[Any] | None:
    """What `node` makes of `feeds`; None where that cannot be told, or is larger than the largest of these."""
    if node.op_type in _ELEMENTWISE:
        try:
            size = prod(np.broadcast_shapes(*(array.shape for array in feeds.values())))
        except ValueError:  # shapes that do not go together: onnxruntime refuses them in its words
            return None
        if size > max(array.size for array in feeds.values()):
            return None
    with np.errstate(all="ignore"):
        return by_reference(node, feeds, opsets)
