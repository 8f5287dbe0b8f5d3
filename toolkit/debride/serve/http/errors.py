"""What a request can do wrong: each error carries its HTTP status, and a message that names the field and the mend."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from debride.errors import DebrideError


class RequestError(DebrideError):
    """Base of all answers that are no success; `headers` go into the answer."""

    status = 400

    def __init__(self, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.headers = MappingProxyType(dict(headers or {}))


class BadRequest(RequestError):
    """What was sent is not what the interface or the model takes."""


class Unauthorized(RequestError):
    """The bearer token is missing or wrong (RFC 6750)."""

    status = 401


class Forbidden(RequestError):
    """Asked for by a name that this server does not have."""

    status = 403


class NotFound(RequestError):
    """No such model, version, report or path."""

    status = 404


class TooSlow(RequestError):
    """The request did not arrive in time."""

    status = 408


class TooLarge(RequestError):
    """The body exceeds the limit."""

    status = 413


class Unsupported(RequestError):
    """A media type or content encoding that is not understood."""

    status = 415


class NoAnswer(RequestError):
    """The request is well formed, and the model gives no usable scores for it."""

    status = 422


class Busy(RequestError):
    """The queue is full; `Retry-After` says when to come again."""

    status = 429


class Unavailable(RequestError):
    """Not ready, or shutting down."""

    status = 503
