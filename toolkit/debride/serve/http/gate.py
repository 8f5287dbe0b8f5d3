"""What every request passes: its id, the token, the deadline, one way to answer errors, the log and the metrics."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from hmac import compare_digest
from itertools import count
from secrets import token_hex
from time import perf_counter
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import Forbidden, RequestError, TooSlow, Unauthorized, Unavailable
from .logs import failure, request_done
from .metrics import Metrics
from .routes import answer
from .settings import ServeSettings

_OPEN = frozenset({"/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"})
_ID = re.compile(rb"[A-Za-z0-9._:-]{1,100}")
# One draw for all: asking the kernel for each would hand the interpreter over to the models' threads every time.
_RUN, _COUNT = token_hex(6), count(1)
_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_INTERNAL = "internal error; the server's log tells more under this answer's X-Request-ID"


class Gate:
    """ASGI middleware around the routes; `quiet` leaves requests out of the log."""

    def __init__(self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, *, quiet: bool = False) -> None:
        self._app, self._settings, self._metrics, self._quiet = app, settings, metrics, quiet
        self._token = settings.token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and answers it where that fails (ASGI 3)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # starlette then raises what it would answer in plain text
        began, exchange = perf_counter(), _Exchange(scope, receive, send)
        try:
            async with asyncio.timeout(self._settings.timeout):
                self._check_host(exchange.headers)
                self._check_token(scope, exchange.headers)
                await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            exchange.status = 499  # as nginx has it in its log; nobody is there to be answered
        except (RequestError, HTTPException, TimeoutError) as error:
            await exchange.fail(self._rejection(error, exchange))
        except Exception as error:
            failure("internal error", error, request=exchange.id, path=scope["path"])
            await exchange.fail(RequestError(_INTERNAL), status=500)
        self._tell(scope, exchange, perf_counter() - began)

    def _check_host(self, headers: Mapping[bytes, bytes]) -> None:
        """A name that an attacker's DNS points to this machine must not open it to pages in a browser here."""
        said = headers.get(b"host")
        if said is None or not self._settings.hosts:
            return
        name = said.decode("latin-1").lower()
        if re.sub(r":[0-9]*$", "", name) not in self._settings.hosts:
            names = " or ".join(sorted(self._settings.hosts))
            raise Forbidden(
                f"Host: {name[:100]!r} is no name of this server; ask for {names}, or start it with --token-file"
            )

    def _check_token(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        path = scope["path"]
        if not self._token or path in _OPEN or path.startswith("/static/"):
            return
        said = headers.get(b"authorization", b"")
        scheme, _, token = said.partition(b" ")  # RFC 9110, 11.1: the scheme in any case
        twice = sum(name == b"authorization" for name, _ in scope["headers"]) > 1
        if twice or scheme.lower() != b"bearer" or not compare_digest(token.strip(), self._token):
            what = "is sent twice" if twice else "is wrong" if said else "is missing"
            raise Unauthorized(
                f"Authorization: the bearer token {what}; send 'Authorization: Bearer TOKEN'",
                {"WWW-Authenticate": "Bearer"},
            )

    def _rejection(self, error: RequestError | HTTPException | TimeoutError, exchange: _Exchange) -> RequestError:
        if isinstance(error, RequestError):
            return error
        if isinstance(error, HTTPException):
            what = f"{exchange.method} {exchange.path[:200]!r}"
            found = RequestError(f"{what}: {error.detail}; /docs tells what there is", error.headers)
            found.status = error.status_code
            return found
        limit = f"{self._settings.timeout:g} s"
        if exchange.arrived:
            return Unavailable(f"no answer within {limit}; try again later", {"Retry-After": "1"})
        return TooSlow(f"the request did not arrive within {limit}", {"Connection": "close"})

    def _tell(self, scope: Scope, exchange: _Exchange, seconds: float) -> None:
        served, route = scope.get("served"), _route(scope)
        name, version = (served.name, served.version) if served else ("", "")
        self._metrics.answered(route, name, version, exchange.status, seconds)
        if not self._quiet:
            request_done(
                method=scope["method"],
                path=scope["path"][:500],
                status=exchange.status,
                ms=round(1000 * seconds, 2),
                model=f"{name}:{version}" if name else None,
                client=scope["client"][0] if scope.get("client") else None,
                request=exchange.id,
                error=exchange.error,
            )


class _Exchange:
    """One request and its answer: what of it has been seen."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        given = self.headers.get(b"x-request-id", b"")
        self.id = given.decode() if _ID.fullmatch(given) else f"{_RUN}-{next(_COUNT)}"
        self.status = 0
        self.error: str | None = None
        # A request without a body has arrived with its head.
        self.arrived = not ({b"content-length", b"transfer-encoding"} & self.headers.keys())
        self.method, self.path = scope["method"], scope["path"]
        self._scope, self._receive, self._send = scope, receive, send

    async def receive(self) -> Message:
        message = await self._receive()
        self.arrived = self.arrived or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            found = [*message["headers"], (b"x-request-id", self.id.encode())]
            if not any(name == _NO_SNIFF[0] for name, _ in found):
                found.append(_NO_SNIFF)
            message["headers"] = found
        await self._send(message)

    async def fail(self, error: RequestError, status: int | None = None) -> None:
        """Answers with `error`; where an answer has begun, the connection ends instead."""
        # Parts of it may be names of files, which need not be text.
        self.error = str(error).encode("utf-8", "replace").decode()
        if self.status:
            return
        found = answer({"error": self.error}, status or error.status)
        found.headers.update(error.headers)
        await found(self._scope, self._receive, self.send)


def _route(scope: Scope) -> str:
    """The route's pattern, which is no text of the client's."""
    route: Any = scope.get("route")
    return str(getattr(route, "path", "")) or "none"
