"""Operations and answers of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import openapi_samples as samples
from .openapi_schemas import Schema, ref

Operation = dict[str, Any]

JSON = "application/json"
_ERRORS = {
    400: "What was sent is not what the interface or the model takes.",
    401: "The bearer token is missing or wrong.",
    403: "Asked for by a name that is not this server's: only on a loopback address without a token.",
    404: "There is no such model, version, report or file.",
    408: "The request did not arrive in time.",
    413: "The body, the image or the tensor is larger than the server takes.",
    415: "The content encoding is not understood.",
    422: "The model gives no finite scores for this input.",
    429: "The queue is full.",
    503: "Not ready, shutting down, short of memory, or no answer in time.",
}


def operation(
    tag: str,
    key: str,
    summary: str,
    answers: dict[int, Any],
    *,
    errors: Sequence[int] = (),
    token: bool = False,
    free: bool = False,
    sample: str = "",
    description: str = "",
) -> Operation:
    """One operation. `free`: no token is asked for, whatever the rest does; `sample` is a path to show with curl."""
    refused = (*errors, 401, 403) if token else (*errors, 403)
    responses = {str(s): a for s, a in sorted({**{s: _error(s) for s in refused}, **answers}.items())}
    found: Operation = {"tags": [tag], "operationId": key, "summary": summary, "responses": responses}
    if description:
        found["description"] = description
    if free:
        found["security"] = []
    return with_samples(found, curl=samples.get(sample, token=token)) if sample else found


def with_samples(found: Operation, **commands: str | None) -> Operation:
    """The operation `found` with commands to copy, by label; None where there is none."""
    rows = [
        {"lang": "Shell", "label": label.replace("_", " "), "source": source}
        for label, source in commands.items()
        if source
    ]
    return {**found, "x-codeSamples": rows}


def json_answer(schema: Schema, description: str = "Success.") -> Schema:
    """An answer in JSON."""
    return answer({JSON: {"schema": schema}}, description)


def answer(content: dict[str, Any], description: str = "Success.") -> Schema:
    """An answer by media type."""
    return {"description": description, "content": content}


def _error(status: int) -> Schema:
    found = json_answer(ref("Error"), _ERRORS[status])
    if status == 429:
        seconds = {"type": "integer", "minimum": 1}
        found["headers"] = {"Retry-After": {"description": "Seconds to wait.", "required": True, "schema": seconds}}
    return found
