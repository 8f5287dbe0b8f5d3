"""A model as onnxruntime takes it: as bytes, or, where these would fill the memory a second time, as a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from debride.errors import SurgeryError
from debride.graph.write import write_model

_MOST = 1 << 26
"""Elements in all initializers up to which a model goes as bytes."""


@contextmanager
def lent(proto: onnx.ModelProto, *, shapes_of: Sequence[str] = ()) -> Iterator[bytes | Path]:
    """`proto`, with the shapes of the tensors `shapes_of` among its outputs, under the names that `counted` gives.

    A file lies in a temporary folder, its weights beside it, until the context ends; sessions are made within.
    """
    if sum(prod(tensor.dims) for tensor in proto.graph.initializer) <= _MOST:
        yield _talkative(proto, shapes_of).SerializeToString()
        return
    with TemporaryDirectory(prefix="debride-") as folder:
        path = Path(folder, "model.onnx")
        try:
            write_model(proto, path, limit=0)
        except SurgeryError as error:
            raise SurgeryError(
                f"a model of this size is run from a file, and the temporary folder takes none ({error}); "
                "set TMPDIR to a larger one"
            ) from error
        if shapes_of:
            header = onnx.load(path, load_external_data=False)
            path.write_bytes(_talkative(header, shapes_of).SerializeToString())
        yield path


def counted(tensor: str) -> str:
    """The name of the output that gives the shape of `tensor`."""
    return f"debride.shape:{tensor}"


def _talkative(proto: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    if not tensors:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    wanted = set(tensors)
    # Right behind its maker, so that the tensor itself can be forgotten as early as ever.
    for node in proto.graph.node:
        copy.graph.node.add().CopyFrom(node)
        for tensor in wanted.intersection(node.output):
            copy.graph.node.add(op_type="Shape", input=[tensor], output=[counted(tensor)], name=counted(tensor))
    copy.graph.output.extend(onnx.ValueInfoProto(name=counted(tensor)) for tensor in tensors)
    return copy
