"""Bodies of requests, read within limits of size, time and memory, and freed of their content encoding."""

from __future__ import annotations

import zlib

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from .errors import BadRequest, TooLarge, Unavailable, Unsupported

CLOSE = {"Connection": "close"}
_SMALL = 1 << 20
_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class Budget:
    """How many bytes of bodies may still be held, over all requests: many large ones at once must not fill memory.

    A quarter is kept for small bodies, which large ones that are slow to come would otherwise keep out.
    """

    def __init__(self, total: int) -> None:
        self._left, self._reserve = total, total // 4

    def take(self, size: int, held: int) -> None:
        """Takes `size` bytes more for a body that has `held`. Raises `Unavailable` where they are not left."""
        if size > self._left - (self._reserve if held + size > _SMALL else 0):
            raise Unavailable("too many large requests at once; try again in 1 s", {"Retry-After": "1", **CLOSE})
        self._left -= size

    def give(self, size: int) -> None:
        """Gives `size` bytes back."""
        self._left += size


class Body:
    """One request's body, whose bytes are taken from a budget until it is released."""

    def __init__(self, receive: Receive, *, limit: int, budget: Budget) -> None:
        self._receive, self._limit, self._budget = receive, limit, budget
        self._taken = 0

    async def read(self, length: str | None, encoding: str | None) -> bytes:
        """The body, decoded. `length` and `encoding` are its Content-Length and Content-Encoding, if there are any.

        Raises `TooLarge` past the limit (before reading, where the length says so), `Unsupported` for an encoding other
        than gzip or deflate, `BadRequest` where it is broken, `Unavailable` where memory is short.
        """
        coding = (encoding or "identity").strip().lower()
        if coding != "identity" and coding not in _WINDOW:
            raise Unsupported(f"Content-Encoding {coding[:50]!r} is not understood; send gzip, deflate or none", CLOSE)
        # The HTTP parser has refused a length that is no number.
        if length is not None and int(length) > self._limit:
            raise TooLarge(f"Content-Length {length} exceeds the limit of {self._limit} bytes", CLOSE)
        raw = await self._raw()
        return raw if coding == "identity" else self._decoded(raw, coding)

    def release(self) -> None:
        """Gives the bytes back to the budget."""
        self._budget.give(self._taken)
        self._taken = 0

    async def _raw(self) -> bytes:
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            self._take(len(part))
            if self._taken > self._limit:
                raise TooLarge(f"the body exceeds the limit of {self._limit} bytes", CLOSE)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _decoded(self, raw: bytes, coding: str) -> bytes:
        decoder = zlib.decompressobj(_WINDOW[coding])
        try:
            body = decoder.decompress(raw, self._limit + 1)
        except zlib.error as error:
            raise BadRequest(f"the body is no {coding} data, as Content-Encoding says: {error}") from error
        if len(body) > self._limit:
            raise TooLarge(f"the body exceeds the limit of {self._limit} bytes once decompressed")
        if not decoder.eof or decoder.unused_data:
            raise BadRequest(f"the body ends within its {coding} data, or goes on after it")
        self._take(len(body))
        return body

    def _take(self, size: int) -> None:
        self._budget.take(size, self._taken)
        self._taken += size
