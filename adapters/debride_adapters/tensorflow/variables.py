"""Which entry of a SavedModel's checkpoint holds the value of which variable of its graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride_adapters.tensorflow.graph import called, node_of

_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"


def checkpoint_keys(meta: Any, graph: Any, reader: Any, path: Path) -> dict[str, str]:
    """Checkpoint entries by the name of the variable's node in `graph`.

    TensorFlow 2 names no entry after a variable: a function lists the objects that it is bound to, in the order of
    its call's last inputs, and the checkpoint describes the same objects by the attributes that lead to them from
    the root. TensorFlow 1 uses the variable's own name.

    Raises `ModelError` where the two descriptions of the objects do not fit together.
    """
    if not meta.object_graph_def.nodes or not reader.has_tensor(_OBJECTS):
        return {node.name: _own_name(node) for node in graph.node if node.op.startswith("Var")}
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    objects = TrackableObjectGraph()
    try:
        objects.ParseFromString(reader.get_tensor(_OBJECTS))
        entries = _entries(meta.object_graph_def.nodes, objects.nodes)
    except (DecodeError, IndexError, TypeError) as error:
        raise ModelError(f"{path}: its checkpoint is damaged; export the model again") from error
    variables = {node.name for node in graph.node if node.op == "VarHandleOp"}
    keys: dict[str, str] = {}
    for node in graph.node:
        for function in called(node):
            bound = list(meta.object_graph_def.concrete_functions[function].bound_inputs)
            data = [node_of(tensor) for tensor in node.input if not tensor.startswith("^")]
            for tensor, number in zip(data[len(data) - len(bound) :], bound, strict=True):
                if (
                    tensor in variables
                    and number in entries
                    and keys.setdefault(tensor, entries[number]) != entries[number]
                ):
                    raise ModelError(f"{path}: the variable '{tensor[:80]}' has two values; export the model again")
    return keys


def _own_name(node: Any) -> str:
    return node.attr["shared_name"].s.decode("utf-8", "replace") or str(node.name)


def _entries(saved: Any, stored: Any) -> dict[int, str]:
    """Walk the model's objects and the checkpoint's side by side from the root: number in the model -> entry."""
    entries: dict[int, str] = {}
    todo, seen = [(0, 0)], {0}
    while todo:
        ours, theirs = todo.pop()
        for attribute in stored[theirs].attributes:
            if attribute.name == _VALUE:
                entries[ours] = attribute.checkpoint_key
        children = {child.local_name: child.node_id for child in stored[theirs].children}
        for child in saved[ours].children:
            if child.node_id not in seen and child.local_name in children:
                seen.add(child.node_id)
                todo.append((child.node_id, children[child.local_name]))
    return entries
