"""A model as onnxruntime takes it: as bytes, or, where these would fill the memory a second time, as a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from debride.graph.write import write_model

_MOST = 1 << 26
"""Elements in all initializers up to which a model goes as bytes."""


@contextmanager
def lent(proto: onnx.ModelProto, outputs: Sequence[str] = ()) -> Iterator[bytes | Path]:
    """`proto`, with the tensors `outputs` among its outputs (onnxruntime finds their types by itself).

    A file lies in a temporary folder, its weights beside it, until the context ends; sessions are made within.
    """
    if sum(prod(tensor.dims) for tensor in proto.graph.initializer) <= _MOST:
        yield _talkative(proto, outputs).SerializeToString()
        return
    with TemporaryDirectory(prefix="debride-") as folder:
        path = Path(folder, "model.onnx")
        write_model(proto, path, limit=0)
        if outputs:
            header = onnx.load(path, load_external_data=False)
            path.write_bytes(_talkative(header, outputs).SerializeToString())
        yield path


def _talkative(proto: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    said = {value.name for value in proto.graph.output}
    new = [onnx.ValueInfoProto(name=tensor) for tensor in outputs if tensor not in said]
    if not new:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(new)
    return copy
