"""The shortest way from a request to its endpoint, for those requests that come by the thousand."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .routes import Endpoint


class Direct:
    """ASGI middleware: POST requests to models go to their `endpoints`, by the path's last part; others to `app`.

    `routes` are those of the endpoints; starlette's walk over all routes, and what it wraps around each, takes longer
    than the rest of a request to a small model.
    """

    def __init__(self, app: ASGIApp, endpoints: Mapping[str, Endpoint], routes: list[Route]) -> None:
        self._app, self._endpoints = app, endpoints
        self._routes = {(route.path.count("/"), route.path.rpartition("/")[2]): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on (ASGI 3)."""
        endpoint = self._endpoint(scope) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
        else:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

    def _endpoint(self, scope: Scope) -> Endpoint | None:
        """The endpoint, its parameters put into `scope` as starlette does; None where the router is to tell."""
        parts = scope["path"].split("/")
        versioned = len(parts) == 7 and parts[4] == "versions"
        if scope.get("root_path") or parts[:3] != ["", "v2", "models"] or not (versioned or len(parts) == 5):
            return None
        endpoint, params = self._endpoints.get(parts[-1]), {"model": parts[3]}
        if versioned:
            params["version"] = parts[5]
        if endpoint is None or not all(params.values()):
            return None
        scope["path_params"], scope["route"] = params, self._routes[len(parts) - 1, parts[-1]]
        return endpoint
