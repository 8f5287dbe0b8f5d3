"""What TensorFlow 1 leaves open in a graph, settled in the protobuf: its variables, and switches such as "training"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from debride_adapters.tensorflow.graph import node_of

_REFERENCES = ("VariableV2", "Variable")
_BRANCHES = ("If", "StatelessIf")


def settle(graph: Any, variables: Mapping[str, npt.NDArray[Any]]) -> None:
    """Change `graph` (a GraphDef) in place: no references, no defaults that could be overridden, no settled branches.

    Variables of TensorFlow 1 hand out references, which functions cannot take; their `variables` (by node name) serve
    as well. Placeholders with a default keep it, and of a branch whose condition is then known only the taken side
    stays.
    """
    from tensorflow import make_tensor_proto

    nodes = {node.name: node for node in graph.node}
    for node in graph.node:
        if node.op in _REFERENCES:
            _become(node, "Const", dtype=node.attr["dtype"])
            node.attr["value"].tensor.CopyFrom(make_tensor_proto(variables[node.name]))
        elif node.op == "PlaceholderWithDefault":
            _become(node, "Identity", T=node.attr["dtype"])
    renamed: dict[str, str] = {}
    for node in graph.node:
        taken = _known(nodes, node.input[0]) if node.op in _BRANCHES else None
        if taken is not None:
            kept = {"f": node.attr["then_branch" if taken else "else_branch"]}
            kept |= {name: node.attr[name] for name in ("Tin", "Tout")}
            del node.input[0]
            _become(node, "StatefulPartitionedCall" if node.op == "If" else "PartitionedCall", **kept)
            # Inlined, the side's node "a" becomes "cond/a"; TensorFlow aborts where the graph has such a node already.
            renamed[node.name] = f"{node.name}__{'then' if taken else 'else'}"
            node.name = renamed[node.name]
    for node in graph.node:
        for number, tensor in enumerate(node.input):
            name = node_of(tensor)
            if name in renamed:
                node.input[number] = tensor.replace(name, renamed[name], 1)


def free_reshapes(frozen: Any) -> Any:
    """A copy of `frozen` whose Reshapes to a constant (1, a, b) go to (-1, a, b): a batch of one that was written down.

    Whether the images are treated apart from each other is measured, not proved.
    """
    from tensorflow import make_ndarray, make_tensor_proto

    copy = type(frozen)()
    copy.CopyFrom(frozen)
    nodes = {node.name: node for node in copy.node}
    for node in list(copy.node):
        target = nodes.get(node_of(node.input[1])) if node.op == "Reshape" else None
        if target is None or target.op != "Const":
            continue
        shape = make_ndarray(target.attr["value"].tensor)
        if shape.ndim == 1 and len(shape) > 1 and shape[0] == 1 and (shape > 0).all():
            # Of its own: other nodes may read the same constant.
            own = copy.node.add(name=f"{node.name}__free", op="Const")
            own.attr["dtype"].CopyFrom(target.attr["dtype"])
            freed = np.concatenate([[-1], shape[1:]]).astype(shape.dtype)
            own.attr["value"].tensor.CopyFrom(make_tensor_proto(freed))
            node.input[1] = own.name
    return copy


def _become(node: Any, op: str, **attributes: Any) -> None:
    held = {name: type(value).FromString(value.SerializeToString()) for name, value in attributes.items()}
    node.op = op
    node.attr.clear()
    for name, value in held.items():
        node.attr[name].CopyFrom(value)


def _known(nodes: Mapping[str, Any], tensor: str) -> bool | None:
    """The value of the condition `tensor` where it is a constant, as it is or negated; else None."""
    from tensorflow import make_ndarray

    negated = False
    for _ in nodes:
        node = nodes.get(node_of(tensor))
        if node is None or node.op not in ("Const", "Identity", "LogicalNot"):
            return None
        if node.op == "Const":
            value = make_ndarray(node.attr["value"].tensor)
            return bool(value.item()) != negated if value.size == 1 else None
        negated ^= node.op == "LogicalNot"
        tensor = node.input[0]
    return None
