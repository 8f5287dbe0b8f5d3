"""The routes for people: the page at /, its files, and the OpenAPI document with a page that draws it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from hashlib import sha256
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from debride.serve.http.errors import NotFound

# No inline script or style, nothing from elsewhere; pictures that were fetched with a token are shown as blobs.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = MappingProxyType(
    {
        "Content-Security-Policy": POLICY,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
)
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


def static_files() -> dict[str, bytes]:
    """The files that the pages are made of, by name; they come with the package."""
    folder = files("debride.serve.http").joinpath("static")
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file() and _suffix(f.name) in _TYPES}


def page_routes(document: Mapping[str, Any]) -> list[Route]:
    """Routes for `/`, `/docs`, `/static/{file}` and `/openapi.json`, which is `document`.

    Everything is read and rendered here, once. An answer carries an ETag, and 304 is sent where the browser has it.
    Raises `NotFound` for an unknown file, which the app renders.
    """
    static = static_files()
    schema = json.dumps(document, allow_nan=False).encode()

    async def file(request: Request) -> Response:
        name = request.path_params["file"]
        if name not in static or name.endswith(".html"):  # pages have their own addresses, which their links fit
            raise NotFound(f"no file {name!r} belongs to the page")
        return _answer(request, static[name], _TYPES[_suffix(name)])

    return [
        Route("/", _fixed(static["index.html"], _TYPES[".html"])),
        Route("/docs", _fixed(static["docs.html"], _TYPES[".html"])),
        Route("/openapi.json", _fixed(schema, "application/json")),
        Route("/static/{file}", file),
    ]


def _fixed(body: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return _answer(request, body, media_type)

    return endpoint


def _answer(request: Request, body: bytes, media_type: str) -> Response:
    tag = f'"{sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": tag}
    known = (part.strip().removeprefix("W/") for part in request.headers.get("if-none-match", "").split(","))
    if tag in known:
        return Response(status_code=304, headers=headers)
    return Response(body, media_type=media_type, headers=headers)


def _suffix(name: str) -> str:
    return name[name.rfind(".") :] if "." in name else ""
