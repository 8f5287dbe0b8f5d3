"""Connections within limits that uvicorn does not set: a head must arrive in time, and be no larger than need be."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

try:
    import resource
except ImportError:  # Windows, where open files have no such limit
    resource = None  # type: ignore[assignment]

MAX_HEAD = 64 << 10
HEAD_SECONDS = 10.0
_MOST = 10_000
_RESERVED = 64  # files for other purposes than connections


def most_connections() -> int:
    """How many connections the limit on open files leaves room for."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else _MOST
    return max(min(soft if soft > 0 else _MOST, _MOST) - _RESERVED, 16)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with limits on connections and on the head of a request.

    Else a client that sends headers slowly, or without end, holds a connection and memory as long as it likes.
    """

    most = most_connections()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Starts the clock, or closes what is one too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._head_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Ends a head that is too large."""
        super().data_received(data)
        if self._head is None:
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """Starts the clock for a request on a kept connection."""
        self._await_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Stops the clock: the body has the gate's."""
        self._head_here()
        super().on_headers_complete()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _head_here(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _too_slow(self) -> None:
        self._head = None
        if not self.transport.is_closing():
            self.transport.close()
