"""Frozen graphs: one `.pb` file with a GraphDef whose weights are constants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters.common import read_bounded
from debride_adapters.tensorflow.audit import forbid, permit
from debride_adapters.tensorflow.graph import every_node, extract, node_of
from debride_adapters.tensorflow.saved import Source
from debride_adapters.tensorflow.signature import Signature, image_shape

_FLOAT, _UINT8 = 1, 4
_NO_RESULTS = frozenset(("Const", "NoOp", "Placeholder", "Assert"))
_VARIABLES = ("VarHandleOp", "VariableV2", "Variable")


def read_frozen(path: Path, options: ConvertOptions) -> Source:
    """The frozen graph at `path`, audited; nothing of it has run.

    Raises `ModelError` for a file that is damaged, holds variables or operators that must not run, or has not one
    input and one output.
    """
    graph = _parse(path)
    forbid(every_node(graph), path)
    images = [node for node in graph.node if node.op == "Placeholder"]
    if len(images) != 1:
        raise ModelError(f"{path}: has {len(images)} inputs{_some(images)}, not one; freeze the classifier alone")
    (image,) = images
    if image.attr["dtype"].type not in (_FLOAT, _UINT8):
        raise ModelError(f"{path}: its input '{image.name[:80]}' takes neither float32 nor uint8; freeze it with one")
    output = _output(graph, path)
    signature = Signature(
        feed=f"{image.name}:0",
        shape=_shape(image, path, options),
        is_bytes=image.attr["dtype"].type == _UINT8,
        outputs=(f"{output}:0",),
        single=[dim.size for dim in image.attr["shape"].shape.dim[:1]] == [1],
    )
    part = extract(graph, signature.outputs, signature.feed, path)
    if any(node.op in _VARIABLES for node in every_node(part)):
        raise ModelError(
            f"{path}: holds variables without their values; freeze the graph, or give the SavedModel folder"
        )
    permit(every_node(part), path)
    return Source(graph=part, signature=signature, variables={})


def _parse(path: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.framework.graph_pb2 import GraphDef

    graph = GraphDef()
    try:
        graph.ParseFromString(read_bounded(path))
    except DecodeError as error:
        raise ModelError(f"{path}: no TensorFlow graph, or cut short; copy or export the file again") from error
    if not graph.node:
        raise ModelError(f"{path}: holds no TensorFlow graph; give a frozen graph or the folder of a SavedModel")
    return graph


def _output(graph: Any, path: Path) -> str:
    """The one node that no other reads, and that computes floats as far as its type says."""
    read = {node_of(tensor) for node in graph.node for tensor in node.input}
    sinks = [node for node in graph.node if node.name not in read and node.op not in _NO_RESULTS]
    floats = [node for node in sinks if "T" not in node.attr or node.attr["T"].type == _FLOAT]
    floats = [node for node in floats if node.op not in ("ArgMax", "ArgMin")]
    if len(floats) != 1:
        raise ModelError(f"{path}: has {len(floats)} float outputs{_some(floats)}, not one; freeze the scores alone")
    return str(floats[0].name)


def _some(nodes: list[Any]) -> str:
    return f" ({', '.join(node.name[:60] for node in nodes[:8])})" if nodes else ""


def _shape(image: Any, path: Path, options: ConvertOptions) -> tuple[int | None, ...]:
    shape = image.attr["shape"].shape
    stated = "shape" in image.attr and not shape.unknown_rank and len(shape.dim) > 0
    dims = tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim) if stated else None
    if dims is not None and len(dims) != 4:
        raise ModelError(f"{path}: its input '{image.name[:80]}' takes {dims}, no batch of images; give a classifier")
    return image_shape(dims, image.name, path, options)
