"""The answer to an inference request: JSON, with binary tensors behind it where asked for; pure functions.

Follows the Open Inference Protocol v2 (REST, "Inference Response JSON Object"), its binary tensor data extension, and
Triton's classification extension.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .datatypes import DATATYPES
from .errors import NoAnswer
from .outputs import Wanted
from .request import InferRequest

Array = npt.NDArray[Any]


def render_infer(
    model: str, version: str, request: InferRequest, tensors: Mapping[str, Array], labels: Sequence[str] = ()
) -> tuple[bytes, int | None]:
    """The body, and the value of Inference-Header-Content-Length: None where no output is binary.

    `tensors` holds every output that `request` wants. `labels` are the names of the classes, used where an output
    has as many. Raises `NoAnswer` naming the output where it is not finite: JSON cannot say that, and it is no score.
    """
    heads: list[dict[str, Any]] = []
    tails: list[Any] = []
    data: Any
    for place, wanted in enumerate(request.outputs):
        values = tensors[wanted.name]
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NoAnswer(f"outputs[{place}]: the model's {wanted.name!r} is NaN or infinite for these inputs")
        if wanted.classification:
            head, data = _classes(wanted, values, labels)
        else:
            head, data = _tensor(wanted, values)
        if wanted.binary:
            head["parameters"] = {"binary_data_size": memoryview(data).nbytes}
            tails.append(data)
        else:
            head["data"] = data
        heads.append(head)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    document["outputs"] = heads
    header = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if not any(wanted.binary for wanted in request.outputs):
        return header, None
    return b"".join((header, *tails)), len(header)


def _tensor(wanted: Wanted, values: Array) -> tuple[dict[str, Any], Array]:
    """The tensor's description, and its values, flat: little-endian where they are to be sent as binary data."""
    kind = DATATYPES[values.dtype]
    flat = np.ascontiguousarray(values).reshape(-1)
    head = {"name": wanted.name, "datatype": kind.name, "shape": values.shape}
    return head, flat.astype(kind.wire, copy=False) if wanted.binary else flat


def _classes(wanted: Wanted, values: Array, labels: Sequence[str]) -> tuple[dict[str, Any], list[str] | bytes]:
    """Entries "score:index[:label]", best first (ties by index): (N, k) of an output (N, ...), (k,) of a vector."""
    batched = values.ndim > 1
    rows = values.reshape(len(values), int(np.prod(values.shape[1:]))) if batched else values.reshape(1, -1)
    width = rows.shape[1]
    count = min(wanted.classification, width)
    # Sorted from behind and turned round: equal scores then stay in the order of their indices, in any dtype.
    order = (width - 1 - np.argsort(rows[:, ::-1], axis=1, kind="stable"))[:, ::-1][:, :count]
    named = labels if len(labels) == width else ()
    entries = [
        f"{row[index]!s}:{index}:{_encodable(named[index])}" if named else f"{row[index]!s}:{index}"
        for row, best in zip(rows, order, strict=True)
        for index in best.tolist()
    ]
    head = {"name": wanted.name, "datatype": "BYTES", "shape": [len(rows), count] if batched else [count]}
    return head, _packed(entries) if wanted.binary else entries


def _encodable(label: str) -> str:
    """A label as valid UTF-8: it may come from a model file's JSON, which can write half a surrogate pair."""
    return label.encode("utf-8", "replace").decode()


def _packed(entries: list[str]) -> bytes:
    """BYTES as binary data: every element behind its length, 4 bytes."""
    parts = [text.encode() for text in entries]
    return b"".join(piece for part in parts for piece in (struct.pack("<I", len(part)), part))
