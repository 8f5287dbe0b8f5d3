"""Connections within limits that uvicorn does not set: each waits for its client by a clock, and no head is endless."""

from __future__ import annotations

import json
import re
from asyncio import TimerHandle, Transport
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

try:
    import resource
except ImportError:  # Windows, where open files have no such limit
    resource = None  # type: ignore[assignment]

MAX_HEAD = 64 << 10
HEAD_SECONDS = 10.0
MAX_PIPELINE = 64
MAX_REST = 64 << 20
REST_SECONDS = 4.0
_MOST = 10_000
_RESERVED = 64  # files for other purposes than connections
_UPGRADE = re.compile(rb"\r\nupgrade[ \t]*:[^\r\n]*", re.IGNORECASE)


def most_connections() -> int:
    """How many connections the limit on open files leaves room for."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if resource else _MOST
    return max(min(soft if soft > 0 else _MOST, _MOST) - _RESERVED, 16)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with limits on connections, on heads and on bodies that nobody reads.

    Else a client that sends headers slowly, or without end, holds a connection and memory as long as it likes. A body
    that is still coming when its answer is complete has `REST_SECONDS` left. Where the connection is to be closed then,
    that body is discarded first (RFC 9112, 9.6): closing with bytes unread resets the connection, and the client would
    see the reset in place of the answer.
    """

    most = most_connections()
    head_seconds = HEAD_SECONDS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head: TimerHandle | None = None
        self._rest: TimerHandle | None = None
        self._unused = self._rest_bytes = 0
        self._used = self._in_body = self._lingers = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Starts the clock, or closes what is one too many."""
        super().connection_made(transport)
        self._answers = _Answers(self)
        if len(self.connections) > self.most:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clocks, and forgets what was asked and not begun."""
        self._head_here()
        self._rest_here()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Ends heads and trailers that are too large, discards a body that nobody reads."""
        if self._lingers:
            self._rest_bytes += len(data)
            if self._rest_bytes > MAX_REST:
                self._too_slow()
            return
        self._used = False
        between = not self._unused and (self.cycle is None or not self.cycle.more_body)
        super().data_received(_without_upgrade(data) if between else data)
        # Bytes that completed neither head nor body nor any of it: what the parser holds of a head, or of trailers.
        self._unused = 0 if self._used else self._unused + len(data)
        if self._unused > MAX_HEAD and not self._over():
            self.send_400_response("the head of the request, or what follows its body, is too large")
        elif self._head is None and self._idle() and self.timeout_keep_alive_task is None and self._rest is None:
            self._await_head()  # what came has stopped uvicorn's clock, and begins no request

    def on_message_begin(self) -> None:
        """Starts the clock for a request on a kept connection."""
        self._in_body = False
        self._await_head()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header; one that comes behind the body is none of the request's (RFC 9110, 6.5.1)."""
        if not self._in_body:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stops the clock: the body has the gate's."""
        self._used = self._in_body = True
        self._head_here()
        super().on_headers_complete()
        self.cycle.transport = self._answers
        if len(self.pipeline) > MAX_PIPELINE:
            self.pipeline.clear()
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self._used = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Notes where a request ends."""
        self._used = True
        self._rest_here()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Starts the clock for a body that is still coming."""
        super().on_response_complete()
        if self._idle() and self.cycle.more_body and not self.transport.is_closing():
            self._await_rest()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP, as all else is refused: in JSON."""
        self._refuse(400, msg)

    def write(self, data: bytes) -> None:
        """Part of an answer; the answer to what broke off with a refusal goes nowhere."""
        if not self._lingers:
            self.transport.write(data)

    def close(self) -> None:
        """The end of an answer after which nothing more is taken."""
        if self._idle() and self.cycle.more_body and not self._over():
            self._linger()
        else:
            self.transport.close()

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _over(self) -> bool:
        return self._lingers or self.transport.is_closing()

    def _refuse(self, status: int, message: str) -> None:
        if self._over():
            return
        body = json.dumps({"error": message}).encode()
        head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        if not self.transport.is_closing():
            self._linger()

    def _linger(self) -> None:
        """Says that nothing more is sent, and reads on until the client is done too."""
        self._lingers = True
        self._head_here()
        if self.cycle is not None:
            self.cycle.body = bytearray()
        self._await_rest()
        try:
            self.transport.write_eof()
        except OSError:  # from asyncio's own loop: the client has gone, which this one may learn late
            self.transport.close()
        self.flow.resume_reading()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(self.head_seconds, self._head_too_slow)

    def _head_here(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _head_too_slow(self) -> None:
        self._head = None
        if self._unused:
            self._refuse(408, f"the head of the request did not arrive within {self.head_seconds:g} s")
        else:
            self._too_slow()

    def _await_rest(self) -> None:
        if self._rest is None:
            self._rest = self.loop.call_later(REST_SECONDS, self._too_slow)

    def _rest_here(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


class _Answers(Transport):
    """What uvicorn writes answers to: the connection, which may read on where it is told to close."""

    def __init__(self, protocol: BoundedProtocol) -> None:
        super().__init__()
        self.write = protocol.write  # type: ignore[method-assign,assignment]
        self.close = protocol.close  # type: ignore[method-assign]
        self.is_closing = protocol.transport.is_closing  # type: ignore[method-assign]


def _without_upgrade(data: bytes) -> bytes:
    """`data` without the offer to speak another protocol, where a whole head begins it.

    A server may ignore the offer (RFC 9110, 7.8), which Java's client makes by default; the parser would take the body
    for that protocol and drop it.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0 or not _UPGRADE.search(data, 0, end):
        return data
    return _UPGRADE.sub(b"", data[:end]) + data[end:]


def protocol_within(timeout: float) -> type[BoundedProtocol]:
    """The protocol of a server whose requests have `timeout` seconds: a head has no more than that."""
    return type("BoundedProtocol", (BoundedProtocol,), {"head_seconds": min(HEAD_SECONDS, timeout)})
