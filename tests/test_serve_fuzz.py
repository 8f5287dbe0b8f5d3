"""Requests made at random: from the OpenAPI document by schemathesis, and tensors with bytes changed.

Never a 500, never a hang; and every answer is one that the document describes.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving import post, serving, speak, statuses, unharmed, write_models

INFER = "/v2/models/tiny/infer"
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")
# No schema can say which bytes are an image, and which shape goes with which of the models.
NOT_HELD = "positive_data_acceptance"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    limits = ("--max-request", 1, "--timeout", 5, "--threads", 1)
    with serving(folder, *write_models(folder), *limits) as served:
        yield served


@pytest.fixture(autouse=True)
def goes_on(server):
    with unharmed(server):
        yield


@pytest.mark.parametrize("examples", [15, pytest.param(400, marks=pytest.mark.slow)])
def test_every_answer_is_one_that_the_openapi_document_describes(server, tmp_path, examples):
    """Examples, edge cases, random requests and sequences of them, right and wrong ones, for every operation."""
    command = [SCHEMATHESIS, "run", f"{server.url}/openapi.json", "--checks", "all", "--exclude-checks", NOT_HELD]
    command += ["--max-examples", str(examples), "--seed", "1", "--request-timeout", "10", "--no-color"]
    command += ["--generation-database", "none", "--continue-on-failure"]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-2000:]}"
    paths = server.get("/openapi.json").json()["paths"].values()
    operations = sum(method in item for item in paths for method in ("get", "post"))
    assert f"Tested: {operations}" in done.stdout
    answered = {record["status"] for record in server.records() if record["event"] == "request"}
    assert {200, 400, 404, 405} <= answered


def document(size=4 * 3 * 6 * 5, **changes):
    entry = {"name": "image", "shape": [1, 3, 6, 5], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    return json.dumps({"inputs": [entry | changes]}).encode()


def entry(shape, data):
    return b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": ' + shape + b', "data": ' + data + b"}]}"


PIXELS = np.full((1, 3, 6, 5), 0.5, np.float32).tobytes()


def test_the_header_length_that_fits_is_taken(server):
    head = document()
    found = speak(server, post(INFER, head + PIXELS, f"Inference-Header-Content-Length: {len(head)}"))
    assert statuses(found) == [200]


@pytest.mark.parametrize(
    "value",
    ["-1", "0", "1", "{half}", "{more}", "{beyond}", "99999999999999999999999", "1e2", "0x10", "+5", "", " ", "½",
     "5, 5", "NaN", "{head}\t1", "{head}.0"],
)  # fmt: skip
def test_a_wrong_inference_header_content_length(server, value):
    head = document()
    text = value.format(head=len(head), half=len(head) // 2, more=len(head) + 1, beyond=len(head + PIXELS) + 1)
    found = speak(server, post(INFER, head + PIXELS, f"Inference-Header-Content-Length: {text}"))
    assert statuses(found) == [400]


@pytest.mark.parametrize("size", [-4, 0, 4, 356, 364, 1 << 40, 1 << 80, 3.5, "360", None, True, [360]])
def test_a_wrong_binary_data_size(server, size):
    head = document(size)
    found = speak(server, post(INFER, head + PIXELS, f"Inference-Header-Content-Length: {len(head)}"))
    assert statuses(found) == [400]


def test_two_different_header_lengths(server):
    head = document()
    lengths = [f"Inference-Header-Content-Length: {n}" for n in (len(head), 3)]
    assert statuses(speak(server, post(INFER, head + PIXELS, *lengths)))[0] in (200, 400)


@pytest.mark.parametrize("seed", range(3))
def test_random_changes_of_a_binary_request(server, seed):
    """Bytes changed, cut and doubled: a 2xx where they only changed pixels, a 4xx otherwise."""
    rng = random.Random(seed)
    for _ in range(200):
        head = document()
        body = bytearray(head + PIXELS)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            match rng.randrange(4):
                case 0:
                    body[at] = rng.randrange(256)
                case 1:
                    del body[at : at + rng.randint(1, 40)]
                case 2:
                    body[at:at] = body[at : at + rng.randint(1, 40)]
                case 3:
                    body[at:at] = bytes(rng.choices(b'{}[],:"\\0-9eE.\x00\xff', k=rng.randint(1, 8)))
            if not body:
                break
        found = speak(server, post(INFER, bytes(body), f"Inference-Header-Content-Length: {len(head)}"))
        assert statuses(found)[:1] in ([200], [400], [413], [422]), bytes(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b"1" * 500_000,
        b'"' + b"a" * 900_000 + b'"',
        b"\xff\xfe",
        b'{"inputs": 5}',
        b'{"inputs": [[]]}',
        b'{"inputs": [], "inputs": []}',
        b'{"inputs": [{"name": "\\ud800"}]}',
        entry(b"[1e400]", b"[]"),
        entry(b"[" + b"9" * 4000 + b"]", b"[]"),
        entry(b"[9223372036854775807, 3, 6, 5]", b"[]"),
        entry(b"[1, 3, 6, 5]", b"[1e39" + b", 0" * 89 + b"]"),
        entry(b"[1, 3, 6, 5]", b'["1"' + b", 0" * 89 + b"]"),
        entry(b"[1, 3, 6, 5]", b"[NaN" + b", 0" * 89 + b"]"),
    ],
    ids=lambda body: f"{body[:20]!r}...{body[-20:]!r}",
)
def test_json_that_is_no_request(server, body):
    found = speak(server, post(INFER, body, "Content-Type: application/json"))
    assert statuses(found) == [413 if b"92233" in body else 400]
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]
