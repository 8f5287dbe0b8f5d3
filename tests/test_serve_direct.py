"""The short ways that requests by the thousand take say the same as the long ones."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.routing import Route, Router

from debride.serve.http.direct import Direct
from debride.serve.http.errors import BadRequest
from debride.serve.http.forms import _only_part, _parsed, file_of_form

KIND = "multipart/form-data; boundary=XX"
PART = b'Content-Disposition: form-data; name="a"; filename="b.png"\r\nContent-Type: image/png\r\n\r\n'


def form(*contents, head=PART, end=b"--\r\n"):
    return b"".join(b"--XX\r\n" + head + content + b"\r\n" for content in contents) + b"--XX" + end


def long_way(kind, data):
    scope = {"type": "http", "headers": [(b"content-type", kind.encode())]}
    return asyncio.run(_parsed(scope, data))


@pytest.mark.parametrize(
    "content", [b"", b"x", b"\r\n", b"\r\n\r\n", b"x--XX", b"\x89PNG\r\n\x1a\n", bytes(range(256)) * 40]
)
@pytest.mark.parametrize("end", [b"--", b"--\r\n"])
def test_the_only_file_of_a_form_is_read_alike_on_both_ways(content, end):
    data = form(content, end=end)
    assert _only_part(KIND, data) == content == long_way(KIND, data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (KIND, form(b"x", b"y")),
        (KIND, form(b"x", head=b'Content-Disposition: form-data; name="a"\r\n\r\n')),
        (KIND, b"preamble\r\n" + form(b"x")),
        (KIND, form(b"x", end=b"")),
        (KIND, form(b"x", end=b"--\r\nepilogue")),
        (KIND, form(b"x\r\n--XXY")),
        (KIND, form(b"--XX")),
        (KIND, b""),
        (KIND, b"--XX\r\n"),
        ('multipart/form-data; boundary="XX"', form(b"x")),
        ("multipart/form-data; charset=utf-8; boundary=XX", form(b"x")),
        ("multipart/form-data; boundary=", form(b"x")),
    ],
)
def test_every_other_form_takes_the_long_way(kind, data):
    assert _only_part(kind, data) is None


def test_a_form_of_two_files_is_refused():
    scope = {"type": "http", "headers": [(b"content-type", KIND.encode())], "app": None}
    with pytest.raises(BadRequest, match="one file"):
        asyncio.run(file_of_form(scope, KIND, form(b"x", b"y")))


PATHS = [
    "/v2/models/m/infer",
    "/v2/models/m/classify",
    "/v2/models/m/versions/2/infer",
    "/v2/models/m/versions/2/classify",
    "/v2/models//infer",
    "/v2/models/m/versions//infer",
    "/v2/models/m/infer/",
    "//v2/models/m/infer",
    "/v2/models/infer",
    "/v2/models/infer/infer",
    "/v2/models/m/other/2/infer",
    "/v2/models/m/ready",
    "/v3/models/m/infer",
    "/x/v2/models/m/infer",
]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_the_same_endpoint_and_parameters_are_found_as_by_the_router(path, method):
    seen = []

    def endpoint(name):
        async def told(request):
            seen.append((name, request.path_params, request.scope["route"].path))
            return PlainTextResponse("")

        return told

    endpoints = {name: endpoint(name) for name in ("infer", "classify")}
    roots = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    routes = [Route(f"{root}/{name}", endpoints[name], methods=["POST"]) for name in endpoints for root in roots]

    async def ask(app):
        async def send(message):
            pass

        scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
        await app(scope, None, send)

    router = Router(routes, redirect_slashes=False)
    asyncio.run(ask(router))
    by_router, seen[:] = list(seen), []
    asyncio.run(ask(Direct(router, endpoints, routes)))
    assert seen == by_router
