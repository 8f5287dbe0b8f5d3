"""A protobuf as the bytes of its file, piece by piece: a large model never lies in memory a second time to be written.

The pieces in a row are what `SerializeToString` gives: fields by their number (protobuf spec, "Encoding").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from debride.graph.hollow import constant_tensor, copy_field, is_large

Piece = bytes | onnx.TensorProto
"""Bytes as they are, or a tensor for its raw data."""
_LENGTH_DELIMITED = 2


def pieces_of(header: onnx.ModelProto, graph: onnx.GraphProto) -> list[Piece]:
    """The pieces of `header` with `graph` as its graph; a message with fields of a newer ONNX is one piece."""
    if len(UnknownFieldSet(header)):
        whole = onnx.ModelProto()
        whole.CopyFrom(header)
        whole.graph.CopyFrom(graph)
        return [whole.SerializeToString()]
    initializers = [_tensor(tensor) for tensor in graph.initializer]
    nodes = [_node(node) for node in graph.node]
    return _message(header, {"graph": [_message(graph, {"node": nodes, "initializer": initializers})]})


def size_of(pieces: Sequence[Piece]) -> int:
    """Their length in bytes."""
    return sum(len(data_of(piece)) for piece in pieces)


def data_of(piece: Piece) -> bytes:
    """The bytes of one piece."""
    return piece if isinstance(piece, bytes) else piece.raw_data


def _tensor(tensor: onnx.TensorProto) -> list[Piece]:
    if is_large(tensor) and tensor.HasField("raw_data"):
        return _message(tensor, {"raw_data": [[tensor]]})
    return [tensor.SerializeToString()]


def _node(node: onnx.NodeProto) -> list[Piece]:
    value = constant_tensor(node)
    if value is None or not is_large(value):
        return [node.SerializeToString()]
    return _message(node, {"attribute": [_message(node.attribute[0], {"t": [_tensor(value)]})]})


def _message(message: Message, inner: Mapping[str, Sequence[Sequence[Piece]]]) -> list[Piece]:
    """The pieces of `message`, with those of `inner` for the fields named there (once for each value)."""
    if len(UnknownFieldSet(message)):
        return [message.SerializeToString()]
    pieces: list[Piece] = []
    for field in sorted(message.DESCRIPTOR.fields, key=lambda field: field.number):
        if field.name not in inner:
            alone = type(message)()
            copy_field(alone, message, field.name)
            pieces.append(alone.SerializePartialToString())
        for value in inner.get(field.name, ()):
            key = _varint(field.number << 3 | _LENGTH_DELIMITED)
            pieces += [key + _varint(size_of(value)), *value]
    return pieces


def _varint(number: int) -> bytes:
    result = bytearray()
    while number > 0x7F:
        result.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*result, number])
