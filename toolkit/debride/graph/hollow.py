"""Copies of a protobuf that leave the data of its large tensors where they are.

A copy of a model costs as much memory as the model. What looks at structure alone (the checker, shape inference,
comparisons, the working copy) gets a hollow one: all fields as they were, and large tensors without their data.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod

import onnx
import onnx.checker
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
PAYLOAD = ("raw_data", *TYPED)
LARGE = 1 << 14
"""Elements from which on a tensor is left hollow; what shape inference reads (shapes, axes, scales) is smaller."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hollow:
    """`proto`, and for each tensor without its data: the name of what it gives, itself, and what it was copied from."""

    proto: onnx.ModelProto
    held: tuple[tuple[str, onnx.TensorProto, onnx.TensorProto], ...]


def without_graph(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with an empty graph."""
    copy = onnx.ModelProto()
    _fill(copy, proto, ("graph",))
    copy.graph.SetInParent()
    return copy


def hollow(proto: onnx.ModelProto, *, also: Container[str] = ()) -> Hollow:
    """A copy of `proto` without the data of large tensors among its main graph's initializers and Constant nodes.

    Those named in `also` are left hollow whatever their size (a Constant node is named by its output).
    """
    copy = without_graph(proto)
    held: list[tuple[str, onnx.TensorProto, onnx.TensorProto]] = []
    _fill(copy.graph, proto.graph, ("initializer", "node"))
    for tensor in proto.graph.initializer:
        added = copy.graph.initializer.add()
        if is_large(tensor) or tensor.name in also:
            _fill(added, tensor, PAYLOAD)
            held.append((tensor.name, added, tensor))
        else:
            added.CopyFrom(tensor)
    for node in proto.graph.node:
        made, value = copy.graph.node.add(), constant_tensor(node)
        if value is not None and (is_large(value) or node.output[0] in also):
            _fill(made, node, ("attribute",))
            attribute = made.attribute.add()
            _fill(attribute, node.attribute[0], ("t",))
            attribute.t.SetInParent()
            _fill(attribute.t, value, PAYLOAD)
            held.append((node.output[0], attribute.t, value))
        else:
            made.CopyFrom(node)
    return Hollow(proto=copy, held=tuple(held))


def is_large(tensor: onnx.TensorProto) -> bool:
    """Whether `tensor` has so many elements that a hollow copy leaves them out; read from its shape alone."""
    return tensor.data_type != onnx.TensorProto.STRING and prod(tensor.dims) >= LARGE


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node that has its value as one; None for every other node."""
    if node.op_type != "Constant" or len(node.attribute) != 1 or node.attribute[0].name != "value":
        return None
    value: onnx.TensorProto = node.attribute[0].t
    return value


def payloads(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """The large tensors of the main graph by the name of what they give."""
    found = {tensor.name: tensor for tensor in proto.graph.initializer if is_large(tensor)}
    for node in proto.graph.node:
        value = constant_tensor(node)
        if value is not None and is_large(value):
            found[node.output[0]] = value
    return found


def filled(proto: onnx.ModelProto, data: Mapping[str, onnx.TensorProto]) -> onnx.ModelProto:
    """A copy of the hollow `proto` with the data of the tensors `data`, by the name of what they give."""
    full = onnx.ModelProto()
    full.CopyFrom(proto)
    for name, tensor in payloads(full).items():
        if name in data:
            give(tensor, data[name])
    return full


def give(target: onnx.TensorProto, source: onnx.TensorProto) -> None:
    """Put the data of `source` into `target`, whose own data are gone."""
    if source.HasField("raw_data"):
        target.raw_data = source.raw_data
    for field in TYPED:
        getattr(target, field).MergeFrom(getattr(source, field))


def same_data(one: onnx.TensorProto, other: onnx.TensorProto) -> bool:
    """Whether both hold the same data in the same fields (by SHA-256)."""
    if any(getattr(one, field) != getattr(other, field) for field in TYPED):
        return False
    # Each access copies the data, so that comparing them would hold both.
    digests = [sha256(tensor.raw_data).digest() for tensor in (one, other)]
    return one.HasField("raw_data") == other.HasField("raw_data") and digests[0] == digests[1]


def check_model(proto: onnx.ModelProto) -> None:
    """ONNX's checker on `proto`, whatever its size.

    Raises:
        ValidationError, ValueError, RuntimeError: as `onnx.checker.check_model`.
    """
    copy = hollow(proto)
    for _, stub, tensor in copy.held:
        fields = [field for field in PAYLOAD if _has(tensor, field)]
        if len(fields) != 1:
            raise onnx.checker.ValidationError(f"tensor '{tensor.name}' should hold one field of data, not {fields}")
        stub.dims[:] = [0]  # without data the checker takes no other size
    onnx.checker.check_model(copy.proto)


def _has(tensor: onnx.TensorProto, field: str) -> bool:
    return tensor.HasField(field) if field == "raw_data" else len(getattr(tensor, field)) > 0


def _fill(target: Message, source: Message, without: Container[str]) -> None:
    """Copy the fields of `source` into the empty `target`, but for those named in `without`."""
    if len(UnknownFieldSet(source)):  # of a newer ONNX: only a whole copy carries them
        target.CopyFrom(source)
        for name in _names(source):
            if name in without:
                target.ClearField(name)
        return
    for name in _names(source):
        if name not in without:
            copy_field(target, source, name)


def copy_field(target: Message, source: Message, name: str) -> None:
    """Copy the field `name`, where `source` has it, into `target`, which has not."""
    value = getattr(source, name)
    if isinstance(value, Message):
        if source.HasField(name):
            getattr(target, name).CopyFrom(value)
    elif hasattr(value, "MergeFrom"):  # repeated
        getattr(target, name).MergeFrom(value)
    elif source.HasField(name):
        setattr(target, name, value)


def _names(message: Message) -> Iterator[str]:
    yield from message.DESCRIPTOR.fields_by_name
