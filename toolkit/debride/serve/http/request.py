"""An inference request, JSON or JSON with binary tensors behind it, to checked arrays; pure functions.

Follows the Open Inference Protocol v2 (REST, "Inference Request JSON Object"), its binary tensor data extension, and
Triton's classification extension.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from debride.sessions import TensorInfo

from .errors import BadRequest, TooLarge
from .fields import flag, parameters_of, shown
from .inputs import LENGTH_HEADER, read_inputs
from .outputs import Wanted, read_outputs
from .tensors import Array

_SEQUENCES = ("sequence_id", "sequence_start", "sequence_end")
# Lists, objects, names and texts in the JSON: as Python objects they take twenty times their text, so they are counted
# before anything is read; images as nested lists stay below. Numbers come on top, see `max_values`.
_MOST_PARTS = 1 << 20
# JSON up to this size is read a second time, slowly, to say which field holds a NaN.
_LENIENT_SIZE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InferRequest:
    """A request that fits the model: `inputs` by name, each of the model's dtype, rank and fixed dimensions, finite."""

    id: str | None
    inputs: dict[str, Array]
    outputs: tuple[Wanted, ...]


def parse_infer(
    body: bytes | memoryview,
    header_length: str | None,
    *,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    max_values: int,
) -> InferRequest:
    """The request in `body`; `header_length` is the value of Inference-Header-Content-Length, None where not sent.

    Arrays from binary data are read-only views of `body` where alignment allows. Parameters that are not known are
    ignored. Raises `BadRequest` naming the field, `TooLarge` where the inputs hold more than `max_values` values.
    """
    head, tail = _parted(memoryview(body), header_length)
    _check_amount(head, max_values)
    try:
        document = orjson.loads(head)
    except orjson.JSONDecodeError as error:
        lenient = _with_nan(head)
        if lenient is not None:  # clients write NaN into JSON: say in which field
            _request(lenient, tail, inputs, outputs, max_values)
        raise BadRequest(f"body: no valid JSON: {error}") from error
    return _request(document, tail, inputs, outputs, max_values)


def _parted(body: memoryview, header_length: str | None) -> tuple[memoryview, memoryview | None]:
    """The JSON, and the binary data behind it: None where the header says nothing of such."""
    if header_length is None:
        return body, None
    if not (header_length.isascii() and header_length.isdigit() and len(header_length) <= 20):
        raise BadRequest(f"{LENGTH_HEADER}: {shown(header_length)} is no number of bytes")
    length = int(header_length)
    if length > len(body):
        raise BadRequest(f"{LENGTH_HEADER}: {length}, but the body has only {len(body)} bytes")
    return body[:length], body[length:]


def _check_amount(head: memoryview, max_values: int) -> None:
    """Refuse JSON that would swell in memory; no part is shorter than a byte, so what is short passes unread."""
    if len(head) <= _MOST_PARTS:
        return
    text = bytes(head)
    if sum(text.count(mark) for mark in (b"[", b"{", b":", b'"')) > _MOST_PARTS:
        raise TooLarge(f"body: JSON of more than {_MOST_PARTS} lists and names; send data flat, or as binary data")
    if text.count(b",") > max_values + _MOST_PARTS:
        raise TooLarge(f"body: holds more than the {max_values} values that a request may have")


def _with_nan(head: memoryview) -> Any:
    """The JSON with NaN and infinities read as numbers, as Python's parser does; None where those are not the fault."""
    text = bytes(head) if len(head) <= _LENIENT_SIZE else b""
    if b"NaN" not in text and b"Infinity" not in text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _request(
    document: Any,
    tail: memoryview | None,
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
    max_values: int,
) -> InferRequest:
    if type(document) is not dict:
        raise BadRequest(f"body: {shown(document)} is no JSON object; give one with inputs")
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise BadRequest(f"id: {shown(request_id)} is no text")
    parameters = parameters_of(document, "parameters")
    for key in _SEQUENCES:
        if parameters.get(key):
            raise BadRequest(f"parameters.{key}: sequences are not supported; leave it out")
    binary = flag(parameters, "binary_data_output", "parameters", False)
    return InferRequest(
        id=request_id,
        inputs=read_inputs(document.get("inputs"), tail, inputs, max_values),
        outputs=read_outputs(document.get("outputs"), outputs, binary),
    )
