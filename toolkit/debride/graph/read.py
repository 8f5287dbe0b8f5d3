"""A model file -> `Model`: limits, confinement, the ONNX checker, then a working copy and its parsed graph.

The delivered protobuf is kept as it is, for surgery. The working copy has local functions inlined, `If`s that shapes
decide resolved, the batch dimension freed, weights that are computed from constants folded and every node named, and is
what sessions, the proxy and the analyses run on. Where it differs from the delivered one it is kept without the data of
its large tensors, and filled when somebody asks for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx.inliner
from google.protobuf.message import DecodeError

from debride.errors import DebrideError, ModelError, UnsupportedOpError
from debride.graph.batch import free_batch
from debride.graph.branches import resolved
from debride.graph.folding import folded
from debride.graph.hollow import check_model, filled, hollow, payloads
from debride.graph.ir import Graph
from debride.graph.parse import node_names, opset_of, parse
from debride.graph.tensors import check_tensors, load_external

__all__ = ["MAX_BYTES", "Model", "inlined", "model_of", "parse", "plain", "read_model"]

MAX_BYTES = 2**33
"""The default limit for a model with its external data."""
_MESSAGE = 2**31 - 1
"""The most that one protobuf message can hold."""
OPSETS = range(7, 24)
_OLDEST_IR = 3
_ORT = b"ORTM"
"""The identifier of onnxruntime's own format, a flatbuffer's."""
_MAX_NODES = 1_000_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """A model file read: `proto` as delivered (external data loaded), `working` inlined, resolved, freed and named.

    `rewritten` is `working` without the data of large tensors of `proto`, or None where nothing had to be rewritten.
    `graph` is `working` parsed; `bound` says why its batch is fixed, where freeing it was tried. `data` are the file's
    own bytes, `sha256` (hex) and `size` theirs; `external` are the files of external data that belong to it.
    """

    proto: onnx.ModelProto
    rewritten: onnx.ModelProto | None
    graph: Graph
    path: Path
    sha256: str
    size: int
    data: bytes
    external: tuple[Path, ...] = ()
    bound: str = ""

    @cached_property
    def working(self) -> onnx.ModelProto:
        """The model inlined, decided branches in place, the batch freed and every node named; not to be changed."""
        return self.proto if self.rewritten is None else filled(self.rewritten, payloads(self.proto))


def read_model(path: str | Path, *, max_bytes: int = MAX_BYTES, free: bool = True) -> Model:
    """Read the ONNX file `path`, at most `max_bytes` with its external data and 2 GiB without.

    Opsets 7 to 23, IR version 3 and later.
    `free=False` leaves a fixed batch dimension as it is (for a model that only works one by one).

    Raises:
        UnsupportedOpError: an operator of the ONNX domain does not exist in the model's opset; names node and opset.
        ModelError: everything else that is wrong with the file; the message names it and the mend.
    """
    path = Path(path)
    return model_of(_read_bytes(path, min(max_bytes, _MESSAGE)), path, max_bytes=max_bytes, free=free)


def model_of(data: bytes, path: Path, *, max_bytes: int = MAX_BYTES, free: bool = True) -> Model:
    """As `read_model`, of a file's bytes; `path` names it in messages, and external data lie beside it."""
    if data[4:8] == _ORT:
        raise ModelError(f"{path}: in ORT format, which can only be run; give the .onnx file that it was made from")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except DecodeError as error:
        raise ModelError(f"{path}: no ONNX model, or cut short; copy or export the file again") from error
    if not proto.HasField("graph") or not proto.graph.node:
        raise ModelError(f"{path}: holds no ONNX graph; name an .onnx file")
    try:
        external = load_external(proto, path, max_bytes - len(data))
        _check(proto, path)
        rewritten, graph, bound = _parsed(proto, path, free)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        # Bytes damaged in ways that the checker does not look at, such as names that are no UTF-8.
        raise ModelError(f"{path}: damaged ({error}); copy or export the file again") from error
    digest = hashlib.sha256(data).hexdigest()
    return Model(
        proto=proto,
        rewritten=rewritten,
        graph=graph,
        path=path,
        sha256=digest,
        size=len(data),
        data=data,
        external=external,
        bound=bound,
    )


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: no such file; name an .onnx file")
    try:
        with path.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(data) > max_bytes:
        raise ModelError(f"{path}: larger than {max_bytes} bytes; raise the limit if the file is trusted")
    return data


def _check(proto: onnx.ModelProto, path: Path) -> None:
    opset = opset_of(proto)
    if opset not in OPSETS:
        raise ModelError(f"{path}: opset {opset} is not within 7..23; convert it with onnx.version_converter")
    if proto.ir_version < _OLDEST_IR:
        raise ModelError(f"{path}: IR version {proto.ir_version} is older than 3; export the model again")
    check_tensors(proto, path)
    _check_ops(proto, path, opset)
    try:
        check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        message = " ".join(str(error).split())
        raise ModelError(f"{path}: fails the ONNX checker: {message}; export the model again") from error


def _check_ops(proto: onnx.ModelProto, path: Path, opset: int) -> None:
    """The checker refuses such operators too, but says neither the node's place nor the opset."""
    local = {(f.domain, f.name) for f in proto.functions}
    for node, name in zip(proto.graph.node, node_names(proto.graph.node), strict=True):
        if node.domain not in ("", "ai.onnx") or (node.domain, node.op_type) in local:
            continue
        if not onnx.defs.has(node.op_type) or not _defined(node.op_type, opset):
            raise UnsupportedOpError(f"{path}: node '{name}' is a {node.op_type}, which opset {opset} has not")


def _defined(op: str, opset: int) -> bool:
    try:
        return not onnx.defs.get_schema(op, opset, "").deprecated
    except onnx.defs.SchemaError:
        return False


def inlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with its local functions inlined; initializers keep their names.

    Raises:
        ModelError: a function cannot be inlined.
    """
    if not proto.functions:
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        return copy
    _check_expansion(proto)
    try:
        # A function may import another opset than the model; then its body has to be converted.
        flat = onnx.inliner.inline_local_functions(hollow(proto).proto, convert_version=True)
        return filled(flat, payloads(proto))
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelError(f"its functions cannot be inlined ({error}); export without functions") from error


def _check_expansion(proto: onnx.ModelProto) -> None:
    """Refuse functions that would unfold to too many nodes: forty that each call the next one twice make 10^12."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(nodes: Iterable[onnx.NodeProto]) -> float:
        return sum(1 + called((node.domain, node.op_type)) for node in _all_nodes(nodes))

    def called(key: tuple[str, str]) -> float:
        if key in functions and key not in sizes:
            sizes[key] = inf  # while it is counted: one that leads back to itself never ends
            sizes[key] = size(functions[key].node)
        return sizes.get(key, 0)

    if (found := size(proto.graph.node)) > _MAX_NODES:
        raise ModelError(f"its functions unfold to {found:.3g} nodes (limit {_MAX_NODES}); export without functions")


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _all_nodes(graph.node)


def plain(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `proto` with its local functions inlined, decided branches in place, and every node named.

    Raises:
        ModelError: a function cannot be inlined.
    """
    flat = inlined(proto)
    _name(flat)
    found = resolved(flat)
    if found is not flat:
        _name(found)
    return found


def _name(proto: onnx.ModelProto) -> None:
    for node, name in zip(proto.graph.node, node_names(proto.graph.node), strict=True):
        node.name = name


def _parsed(proto: onnx.ModelProto, path: Path, free: bool) -> tuple[onnx.ModelProto | None, Graph, str]:
    try:
        delivered, bound = hollow(proto).proto, ""
        working = plain(delivered)
        if free:
            working, bound = free_batch(working)
        working = folded(working, data=payloads(proto))
        graph = parse(working, payloads(proto))
        if not graph.inputs or not graph.outputs:
            raise ModelError("has no input or no output; export a classifier of images")
        return None if working == delivered else working, graph, bound
    except DebrideError as error:
        raise type(error)(f"{path}: {error}") from error
