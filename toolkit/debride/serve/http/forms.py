"""The one image file of a multipart form (RFC 7578), out of a body that was read within limits."""

from __future__ import annotations

import re
from typing import Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from .errors import BadRequest

_BOUNDARY = re.compile(r"multipart/form-data;\s*boundary=([0-9A-Za-z'()+_,./:=?-]{1,70})", re.IGNORECASE)


async def file_of_form(scope: Scope, kind: str, data: bytes) -> bytes:
    """The file's bytes. `kind` is the Content-Type. Raises `BadRequest` unless the form holds exactly one file."""
    found = _only_part(kind, data)
    return await _parsed(scope, data) if found is None else found


def _only_part(kind: str, data: bytes) -> bytes | None:
    """The content of a form's only part, where that is a file: what clients send, read 20 times faster.

    None for any other form, right or wrong.
    """
    given = _BOUNDARY.fullmatch(kind)
    if given is None:
        return None
    mark = b"--" + given[1].encode()
    head = data.find(b"\r\n\r\n", len(mark))
    if not data.startswith(mark + b"\r\n") or head < 0 or b'; filename="' not in data[:head]:
        return None
    end = data.find(b"\r\n" + mark, head + 2)
    # What follows the first mark behind the content is the end of the form, or there are more parts.
    last = data[end + 2 + len(mark) :] in (b"--", b"--\r\n")
    return data[head + 4 : end] if last and end >= head + 4 and data.count(b"\r\n" + mark) == 1 else None


async def _parsed(scope: Scope, data: bytes) -> bytes:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": data, "more_body": False}

    try:
        # starlette sees the body that was read within our limits, not the connection.
        async with Request(scope, receive).form(max_files=1, max_fields=8) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1:
                raise BadRequest(f"the form holds {len(files)} files; send one image, as in curl -F image=@photo.jpg")
            return await files[0].read()
    except HTTPException as error:
        raise BadRequest(f"the form cannot be read: {error.detail}; send one file") from error
    except (LookupError, UnicodeError) as error:
        raise BadRequest(f"Content-Type: its charset cannot be used ({error}); leave it out") from error
