"""Every tensor that a model file carries, wherever it hides, checked before anything else reads it.

External data (ONNX spec, ExternalData.md) is read here and nowhere else: a location in an untrusted file may point
out of the model's folder, so it is resolved and confined before it is opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from debride.errors import ModelError

_TYPED = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
Named = tuple[str, onnx.TensorProto]


def all_tensors(proto: onnx.ModelProto) -> Iterator[Named]:
    """All tensors of `proto`, each with a name for messages: those of subgraphs and functions, sparse parts too."""
    yield from _graph_tensors(proto.graph)
    for info in proto.training_info:
        yield from _graph_tensors(info.initialization)
        yield from _graph_tensors(info.algorithm)
    for function in proto.functions:
        yield from _node_tensors(function.node)
        yield from _attribute_tensors(function.name, function.attribute_proto)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[Named]:
    yield from ((tensor.name, tensor) for tensor in graph.initializer)
    for sparse in graph.sparse_initializer:
        yield from ((sparse.values.name, sparse.values), (sparse.values.name, sparse.indices))
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[Named]:
    for node in nodes:
        yield from _attribute_tensors(node.output[0] if node.output else node.name, node.attribute)


def _attribute_tensors(owner: str, attributes: Iterable[onnx.AttributeProto]) -> Iterator[Named]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield owner, attribute.t
        yield from ((owner, tensor) for tensor in attribute.tensors)
        if attribute.HasField("sparse_tensor"):
            yield from ((owner, attribute.sparse_tensor.values), (owner, attribute.sparse_tensor.indices))
        if attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def load_external(proto: onnx.ModelProto, path: Path, max_bytes: int) -> tuple[Path, ...]:
    """Read the external data of `proto` into it, at most `max_bytes` in all; returns the files read, in order.

    A location must be relative, without "..", and lead (symbolic links followed) to a file in the folder of `path`.

    Raises:
        ModelError: a location leaves the folder, or a file is missing, too short, or larger than declared.
    """
    files: dict[Path, None] = {}
    for name, tensor in all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL and not tensor.external_data:
            continue
        facts = {entry.key: entry.value for entry in tensor.external_data}
        file = _confined(path, name, facts.get("location", ""))
        data = _read_part(path, name, file, facts, max_bytes)
        max_bytes -= len(data)
        for typed in ("raw_data", *_TYPED, "external_data"):
            if typed != "external_data" and getattr(tensor, typed):
                raise ModelError(f"{path}: tensor '{name}' has external data and data of its own; export it with one")
            tensor.ClearField(typed)
        tensor.ClearField("data_location")
        tensor.raw_data = data
        files[file] = None
    return tuple(files)


def _confined(path: Path, name: str, location: str) -> Path:
    refusal = f"{path}: external data of tensor '{name}' at '{location}'"
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ModelError(f"{refusal} must be a relative path inside the model's folder; save the model in one file")
    folder = path.resolve().parent
    try:
        file = (folder / location).resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{refusal} cannot be found; copy it beside the model") from error
    if not file.is_relative_to(folder):
        raise ModelError(f"{refusal} leads out of the model's folder; copy the file itself beside the model")
    if not file.is_file():
        raise ModelError(f"{refusal} is not a file; copy it beside the model")
    return file


def _read_part(path: Path, name: str, file: Path, facts: dict[str, str], max_bytes: int) -> bytes:
    total = file.stat().st_size
    try:
        offset = int(facts.get("offset") or 0)
        length = int(facts["length"]) if facts.get("length") else total - offset
    except ValueError as error:
        raise ModelError(f"{path}: tensor '{name}' gives its external data no sensible place; export again") from error
    if offset < 0 or length < 0 or offset + length > total:
        raise ModelError(f"{path}: {file.name} is too short for tensor '{name}'; copy the whole file beside the model")
    if length > max_bytes:
        raise ModelError(f"{path}: with its external data the model is too large; raise the limit if it is trusted")
    with file.open("rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def check_tensors(proto: onnx.ModelProto, path: Path) -> None:
    """Refuse tensors that readers take differently, that do not fill their shape, or whose numbers are not finite.

    An infinity is allowed in a tensor of one element: a limit of Clip or the padding before MaxPool may be one.

    Raises:
        ModelError: names the tensor.
    """
    for name, tensor in all_tensors(proto):
        fields = [field for field in ("raw_data", *_TYPED) if getattr(tensor, field)]
        if len(fields) > 1:
            raise ModelError(
                f"{path}: tensor '{name}' carries {' and '.join(fields)}; runtimes disagree on which counts"
            )
        if any(dim < 0 for dim in tensor.dims):
            raise ModelError(f"{path}: tensor '{name}' has a negative dimension; export the model again")
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
            raise ModelError(f"{path}: the data of tensor '{name}' does not fill its shape; export again") from error
        if tensor.data_type in _FLOATS and not _finite(array):
            raise ModelError(f"{path}: tensor '{name}' holds NaN or infinity; get an undamaged model")


_FLOATS = frozenset(
    (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
)


def _finite(array: npt.NDArray[Any]) -> bool:
    if array.dtype.kind != "f":  # bfloat16, which numpy knows only by extension
        array = array.astype(np.float32)
    return bool(np.isfinite(array).all()) or (array.size == 1 and not np.isnan(array).any())
