"""Running the application with uvicorn until it is told to stop."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence

import uvicorn

from debride.errors import UsageError

from .app import create_app
from .connections import protocol_within
from .logs import event
from .models import Served
from .settings import ServeSettings

# SIGHUP too: a closed terminal is no reason to drop what was taken.
_STOP = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises `UsageError` where the address cannot be had."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=2048)
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: {error.strerror or error}; give another") from error


def url_of(listener: socket.socket) -> str:
    """The address as a browser takes it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(models: Sequence[Served], settings: ServeSettings, listener: socket.socket, *, quiet: bool = False) -> bool:
    """Tells the address and serves until SIGINT, SIGTERM or SIGHUP, then finishes what was taken.

    Whether it could: a second signal cuts it short.
    """
    config = uvicorn.Config(
        create_app(models, settings, quiet=quiet),
        http=protocol_within(settings.timeout),
        loop="uvloop" if os.name == "posix" else "asyncio",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # anyone on this machine could otherwise log as somebody else
        timeout_keep_alive=30,
        # What was taken has its own deadline, so this one only guards against what ignores it.
        timeout_graceful_shutdown=int(settings.timeout) + 5,
    )
    server = uvicorn.Server(config)

    def stop(number: int, frame: object) -> None:
        server.should_exit = True

    # uvicorn puts its own handlers in place of these, and afterwards raises what it caught once more: to its own
    # handler, one Ctrl-C would then be the second, which cuts short.
    # What was ignored from the start, as `nohup` has it, stays so.
    before = {n: signal.signal(n, stop) for n in _STOP if signal.getsignal(n) != signal.SIG_IGN}
    try:
        event("listening", url=url_of(listener), token=bool(settings.token))
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    event("stopped", graceful=not server.force_exit)
    return not server.force_exit
