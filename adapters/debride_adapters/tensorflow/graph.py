"""The part of a GraphDef that leads to given tensors: a new GraphDef, with nothing else of the file in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debride.errors import ModelError

MAX_NODES = 1_000_000


def node_of(tensor: str) -> str:
    """The name of the node that gives `tensor`: '^relu' or 'relu:0' -> 'relu'."""
    return tensor.lstrip("^").split(":")[0]


def every_node(graph: Any) -> Iterator[Any]:
    """The nodes of `graph` (a GraphDef) and of all functions of its library."""
    yield from graph.node
    for function in graph.library.function:
        yield from function.node_def


def called(node: Any) -> set[str]:
    """The names of the functions that `node` may call."""
    names: set[str] = set()
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            names.add(attribute.func.name)
        names.update(function.name for function in attribute.list.func)
    return names


def extract(graph: Any, outputs: Sequence[str], feed: str, path: Path) -> Any:
    """The nodes of `graph` that `outputs` need when tensor `feed` is given, and the functions those may call.

    Devices, notes for compilers and gradients are left behind: they change where and how a graph runs, not what it
    computes.

    Raises:
        ModelError: a node or function that is needed is missing or defined twice, or there are over a million.
    """
    nodes = {node.name: node for node in graph.node}
    functions = {function.signature.name: function for function in graph.library.function}
    if len(nodes) != len(graph.node) or len(functions) != len(graph.library.function):
        raise ModelError(f"{path}: two nodes or functions share a name; export the model again")
    kept = _closure(nodes, outputs, feed, path)
    part = type(graph)(versions=graph.versions)
    part.node.extend(node for node in graph.node if node.name in kept)
    todo, seen = [name for node in part.node for name in called(node)], set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        if name not in functions:
            raise ModelError(f"{path}: calls the function '{name[:80]}', which it does not hold; export it again")
        seen.add(name)
        todo.extend(callee for node in functions[name].node_def for callee in called(node))
    part.library.function.extend(function for name, function in functions.items() if name in seen)
    if sum(1 for _ in every_node(part)) > MAX_NODES:
        raise ModelError(f"{path}: holds over a million nodes; export a smaller model")
    _strip(part)
    return part


def _closure(nodes: dict[str, Any], outputs: Sequence[str], feed: str, path: Path) -> set[str]:
    kept: set[str] = set()
    todo = [node_of(tensor) for tensor in outputs]
    while todo:
        name = todo.pop()
        if name in kept:
            continue
        if name not in nodes:
            raise ModelError(f"{path}: its graph lacks the node '{name[:80]}'; export the model again")
        kept.add(name)
        todo.extend(node_of(tensor) for tensor in nodes[name].input if _normal(tensor) != _normal(feed))
    if node_of(feed) not in nodes:
        raise ModelError(f"{path}: its graph lacks the input '{feed[:80]}'; export the model again")
    return kept


def _normal(tensor: str) -> str:
    return tensor if ":" in tensor or tensor.startswith("^") else f"{tensor}:0"


def _strip(graph: Any) -> None:
    for node in every_node(graph):
        node.device = ""
        for name in [name for name in node.attr if name.startswith("_")]:
            del node.attr[name]
        node.ClearField("experimental_debug_info")
    for function in graph.library.function:
        # Among them: "compile me with XLA" and "never inline me".
        function.attr.clear()
        for argument in function.arg_attr.values():
            argument.attr.clear()
    graph.ClearField("debug_info")
