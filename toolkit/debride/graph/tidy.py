"""What is done to a graph that another framework exported: brought up to an opset, and freed of the exporter's traces.

Exporters write stack traces, source paths and names of users into doc strings and metadata (PyTorch's on every node);
nothing computes with them, and a model that is passed on should not tell them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import onnx
import onnx.version_converter
from onnx import ModelProto

from debride.graph.parse import opset_of

__all__ = ["ModelProto", "scrubbed", "upgraded"]


def upgraded(proto: ModelProto, opset: int) -> ModelProto | None:
    """`proto` brought up to `opset` by onnx's version converter; None where it is there already or cannot be.

    The converter has changed outputs without a word: whoever takes the result compares it with the original. A model
    with local functions or operators of other domains is left alone.
    """
    own = {"", "ai.onnx"}
    if opset_of(proto) >= opset or proto.functions or any(node.domain not in own for node in proto.graph.node):
        return None
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except (RuntimeError, ValueError, IndexError, onnx.version_converter.ConvertError):
        return None


def scrubbed(proto: ModelProto, *, keep_metadata: bool) -> ModelProto:
    """A copy of `proto` without doc strings, and without metadata on nodes, values, tensors and graphs.

    The entries of the model's own `metadata_props` stay where `keep_metadata`: users read class names there.
    """
    clean = ModelProto()
    clean.CopyFrom(proto)
    kept = list(clean.metadata_props) if keep_metadata else []
    _scrub(clean)
    clean.metadata_props.extend(kept)
    return clean


def _scrub(message: Any) -> None:
    """Clears `doc_string` and `metadata_props` of `message` and of every message below it."""
    for field in ("doc_string", "metadata_props"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        below: Iterable[Any] = [value] if hasattr(value, "DESCRIPTOR") else value
        for inner in below:
            _scrub(inner)
