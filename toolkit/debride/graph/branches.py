"""`If` nodes whose condition is decided before the model runs: the chosen branch in their place.

Exporters write such for code that asks for a shape (PyTorch's older one for every `squeeze`). A condition counts as
decided only where it follows from constants, the declared shapes of the inputs, and what operators make of these;
shapes that the file claims in between, which nobody checks when it runs, are not believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from debride.graph.hollow import filled, hollow, payloads
from debride.graph.infer import folded_infos, numbers_of
from debride.graph.unread import graphs_of, reads_of, set_nodes

_VISITS = 1_000_000
"""Nodes whose shapes are inferred, over all rounds: a decided branch may decide the next, and the file is untrusted."""


def resolved(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto` with the chosen branch in place of each `If` that is decided; `proto` itself where none is.

    The nodes of a branch keep their names where these are free. What nobody reads any more goes with the condition.
    Conditions that depend on an open dimension, such as the batch, stay, as do Loop and Scan.
    """
    flat, visits = proto, 0
    while visits < _VISITS:
        visits += len(flat.graph.node)
        choices = _choices(flat) if any(_is_if(node) for node in flat.graph.node) else {}
        if not choices:
            break
        flat = hollow(proto).proto if flat is proto else flat
        _Inlining(flat).run(choices)
    return proto if flat is proto else filled(flat, payloads(proto))


def _is_if(node: onnx.NodeProto) -> bool:
    return node.op_type == "If" and node.domain in ("", "ai.onnx")


def _choices(proto: onnx.ModelProto) -> dict[int, str]:
    """The name of the chosen branch (its attribute) by the index of each `If` that is decided."""
    bare = hollow(proto).proto
    initializers = {tensor.name for tensor in bare.graph.initializer}
    entries = [value for value in bare.graph.input if value.name not in initializers]
    _forget_claims(bare.graph)
    del bare.graph.input[:]
    bare.graph.input.extend(entries)
    _, known = folded_infos(bare)
    constants = numbers_of(bare)
    found = {}
    for index, node in enumerate(proto.graph.node):
        if not _is_if(node) or not node.input:
            continue
        condition = node.input[0]
        value = numpy_helper.to_array(constants[condition]) if condition in constants else known.get(condition)
        if value is not None and value.size == 1:
            chosen = _chosen(value)
            if _fits(node, chosen):
                found[index] = chosen
    return found


def _chosen(condition: npt.NDArray[Any]) -> str:
    return "then_branch" if condition.any() else "else_branch"


def _forget_claims(graph: onnx.GraphProto) -> None:
    """Clear, in place, the shapes that the file claims of tensors that are computed."""
    del graph.value_info[:]
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")
    for inner in graphs_of(graph.node):
        _forget_claims(inner)


def _fits(node: onnx.NodeProto, chosen: str) -> bool:
    branch = _branch(node, chosen)
    return len(branch.output) == len(node.output) and not branch.input and not branch.sparse_initializer


def _branch(node: onnx.NodeProto, chosen: str) -> onnx.GraphProto:
    return next((a.g for a in node.attribute if a.name == chosen), onnx.GraphProto())


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor that `graph` or a graph within it defines."""
    yield from _defined_here(graph)
    for inner in graphs_of(graph.node):
        yield from _defined(inner)


def _defined_here(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (value.name for value in (*graph.input, *graph.initializer))
    yield from (output for node in graph.node for output in node.output if output)


class _Inlining:
    """Moves branches into the main graph of `proto`, in place; no name may then be defined a second time."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.defined = Counter(_defined(proto.graph))
        self.names = {node.name for node in proto.graph.node}

    def run(self, choices: Mapping[int, str]) -> None:
        """Put the chosen branches in place, and drop what is then read by nobody."""
        nodes: list[onnx.NodeProto] = []
        loose: set[str] = set()
        for index, node in enumerate(self.proto.graph.node):
            copy = onnx.NodeProto.FromString(node.SerializeToString())
            if index in choices:
                loose.update(reads_of([copy]))
                nodes.extend(self._moved(copy, _branch(copy, choices[index])))
            else:
                nodes.append(copy)
        set_nodes(self.proto, nodes, loose)

    def _moved(self, node: onnx.NodeProto, branch: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
        self._forget([name for inner in graphs_of([node]) for name in _defined(inner)])
        made = {output for inner in branch.node for output in inner.output}
        new: dict[str, str] = {}
        doubled: list[tuple[str, str]] = []
        for end, value in zip(node.output, branch.output, strict=True):
            if value.name in made and value.name not in new:
                new[value.name] = end
            elif end:  # given twice, a constant, or of the graph around it
                doubled.append((value.name, end))
        self._rename(branch, new)
        self.proto.graph.initializer.extend(branch.initializer)
        for inner in branch.node:
            inner.name = self._node_name(inner.name, node.name)
            yield inner
        for source, end in doubled:
            yield helper.make_node("Identity", [new.get(source, source)], [end], name=self._node_name(end, node.name))

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self.defined[name] -= 1
            if not self.defined[name]:
                del self.defined[name]

    def _rename(self, graph: onnx.GraphProto, new: dict[str, str]) -> None:
        """Give what `graph` defines names that nobody else has, in place; `new`, names that are fixed, takes these."""
        for name in _defined_here(graph):
            if name not in new:
                new[name] = _free(name, self.defined)
                self.defined[new[name]] += 1
        for value in (*graph.input, *graph.initializer, *graph.output):
            value.name = new.get(value.name, value.name)
        del graph.value_info[:]
        for node in graph.node:
            node.input[:] = [new.get(name, name) for name in node.input]
            node.output[:] = [new.get(name, name) for name in node.output]
            for inner in graphs_of([node]):
                within = set(_defined_here(inner))
                self._rename(inner, {old: name for old, name in new.items() if old not in within})

    def _node_name(self, name: str, outer: str) -> str:
        if name and name in self.names:
            name = _free(f"{outer}/{name}", self.names)
        self.names.add(name)
        return name


def _free(name: str, taken: Container[str]) -> str:
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
