"""curl against a server: bodies as they are, as forms, in chunks and after 100-continue, tokens, and other methods."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from serving import BAG, Answer, colour_png, first, serving, tiny_scores, write_models
from tiny import PALETTE

TOKEN = "0123456789-of-the-tests"
AUTHORIZED = ("-H", f"Authorization: Bearer {TOKEN}")
LIMIT = 2 << 20

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curl")
    (folder / "token").write_text(f"{TOKEN}\n")
    limits = ("--max-request", LIMIT >> 20, "--token-file", folder / "token")
    with serving(folder, *write_models(folder), "--threads", 1, *limits) as served:
        yield served


def curl(server, path, *arguments, stdin=b""):
    """The last answer of curl; a 100 Continue before it is passed over."""
    command = ["curl", "--silent", "--show-error", "--include", "--max-time", "20", *map(str, arguments)]
    done = subprocess.run([*command, server.url + path], check=False, input=stdin, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    rest = done.stdout
    while rest.startswith(b"HTTP/1.1 100"):
        rest = rest.split(b"\r\n\r\n", 1)[1]
    head, body = rest.split(b"\r\n\r\n", 1)
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return Answer(status=int(status.split()[1]), headers=headers, body=body)


def best(answer):
    assert answer.status == 200, answer.body
    return answer.json()["predictions"][0]["index"]


def large_image(folder):
    """An image file between 1 MiB, from where on curl asks before it sends, and the server's limit."""
    path = folder / "large.bmp"
    pixels = np.broadcast_to((PALETTE[2] * 255).astype(np.uint8)[::-1], (700, 600, 3))
    path.write_bytes(cv2.imencode(".bmp", pixels)[1].tobytes())
    assert 1 << 20 < path.stat().st_size < LIMIT
    return path


def test_an_image_as_the_body_whatever_the_content_type(server):
    for kind in ("image/png", "application/octet-stream", "application/x-www-form-urlencoded", ""):
        sent = ("--data-binary", f"@{first(BAG)}", "-H", f"Content-Type: {kind}")
        assert best(curl(server, "/v2/models/fashion/classify", *AUTHORIZED, *sent)) == 8


def test_an_image_as_a_form(server):
    answer = curl(server, "/v2/models/fashion/classify?top=3", *AUTHORIZED, "-F", f"image=@{first(BAG)};type=image/png")
    assert best(answer) == 8
    assert len(answer.json()["predictions"]) == 3
    assert (answer.json()["model_name"], answer.json()["model_version"]) == ("fashion", "1")


def test_a_form_must_hold_one_file(server):
    path, file = "/v2/models/fashion/classify", f"@{first(BAG)}"
    for form in (("-F", f"a={file}", "-F", f"b={file}"), ("-F", "a=text")):
        answer = curl(server, path, *AUTHORIZED, *form)
        assert (answer.status, "file" in answer.error) == (400, True)


def test_an_image_in_chunks_without_a_length(server):
    sent = ("-H", "Transfer-Encoding: chunked", "--data-binary", "@-", "-H", "Content-Type: image/png")
    answer = curl(server, "/v2/models/fashion/classify", *AUTHORIZED, *sent, stdin=first(BAG).read_bytes())
    assert best(answer) == 8


def test_a_large_image_after_100_continue(server, tmp_path):
    file = large_image(tmp_path)
    sent = ("--data-binary", f"@{file}", "-H", "Expect: 100-continue")
    assert best(curl(server, "/v2/models/tiny/classify", *AUTHORIZED, *sent)) == 2


def test_json_inference(server):
    pixels = np.broadcast_to(PALETTE[1][:, None, None], (3, 6, 5))[None]
    entry = {"name": "image", "shape": [1, 3, 6, 5], "datatype": "FP32", "data": pixels.tolist()}
    sent = ("-H", "Content-Type: application/json", "--data-binary", "@-")
    body = json.dumps({"id": "7", "inputs": [entry]}).encode()
    answer = curl(server, "/v2/models/tiny/versions/1/infer", *AUTHORIZED, *sent, stdin=body)
    assert answer.status == 200, answer.body
    found = answer.json()
    assert (found["id"], found["model_name"], found["model_version"]) == ("7", "tiny", "1")
    (output,) = found["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [1, 4])
    np.testing.assert_allclose(output["data"], tiny_scores(pixels, "1").ravel(), rtol=1e-5)


@pytest.mark.parametrize("way", ["length", "chunked", "gzip"])
def test_a_body_past_the_limit_is_refused(server, way, tmp_path):
    body, headers = bytes(LIMIT + 1), {"length": (), "chunked": ("-H", "Transfer-Encoding: chunked")}
    if way == "gzip":
        body, headers["gzip"] = gzip.compress(body), ("-H", "Content-Encoding: gzip")
    sent = ("--data-binary", "@-", "-H", "Content-Type: image/png", *headers[way])
    answer = curl(server, "/v2/models/fashion/classify", *AUTHORIZED, *sent, stdin=body)
    assert (answer.status, "limit" in answer.error) == (413, True)


def test_a_length_past_the_limit_is_refused_before_the_body_is_sent(server):
    head = "POST /v2/models/fashion/classify HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
    head += f"Authorization: Bearer {TOKEN}\r\nContent-Length: {LIMIT + 1}\r\n\r\n"
    with server.socket(timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_without_the_token_only_pages_and_health_open(server):
    for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"):
        assert curl(server, path).status == 200
    for path in ("/v2", "/v2/models", "/v2/models/fashion", "/metrics", "/v2/models/fashion/ready", "/nowhere"):
        for wrong in ((), ("-H", "Authorization: Bearer x"), ("-H", f"Authorization: {TOKEN}"), ("-u", f"x:{TOKEN}")):
            answer = curl(server, path, *wrong)
            assert (answer.status, "token" in answer.error) == (401, True), path
            assert answer.headers["www-authenticate"].startswith("bearer")
    assert curl(server, "/v2/models", *AUTHORIZED).status == 200


def test_the_token_is_asked_for_before_a_body_is_read(server):
    head = "POST /v2/models/fashion/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    with server.socket(timeout=5) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_other_methods_are_refused_with_those_that_are_allowed(server):
    for method, path, allowed in (
        ("GET", "/v2/models/fashion/infer", "POST"),
        ("OPTIONS", "/v2/models/fashion/classify", "POST"),
        ("DELETE", "/v2/models/fashion", "GET"),
        ("PUT", "/v2", "GET"),
        ("POST", "/", "GET"),
    ):
        answer = curl(server, path, *AUTHORIZED, "-X", method)
        assert answer.status == 405
        assert allowed.lower() in answer.headers["allow"]
        assert answer.error


def test_head_is_get_without_the_body(server):
    for path in ("/", "/v2", "/v2/health/live", "/v2/models/fashion", "/openapi.json"):
        full, head = curl(server, path, *AUTHORIZED), curl(server, path, *AUTHORIZED, "--head")
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-length"] == full.headers["content-length"] == str(len(full.body))


def test_what_is_not_there_is_404_in_json(server):
    for path in ("/nowhere", "/v2/nothing", "/v2/models/nobody", "/v2/models/tiny/versions/9", "/static/nothing.js"):
        answer = curl(server, path, *AUTHORIZED)
        assert answer.status == 404, path
        assert answer.error


def test_two_images_over_one_connection(server, tmp_path):
    url, command = f"{server.url}/v2/models/tiny/versions/1/classify?top=1", ["curl"]
    for at, name in ((0, "red"), (3, "white")):
        (tmp_path / name).write_bytes(colour_png(at))
        command += ["--next"] if at else []
        command += [*AUTHORIZED, "-s", "--data-binary", f"@{tmp_path / name}", "-w", "\n%{num_connects}\n", url]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.splitlines()
    assert [json.loads(line)["predictions"][0]["label"] for line in lines[::2]] == ["red", "white"]
    assert lines[1::2] == ["1", "0"]
