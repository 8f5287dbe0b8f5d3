"""The OpenAPI document: valid, true to the routes, and its commands run as they stand; and the routes of the pages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from hashlib import sha256

import jsonschema_rs
import numpy as np
import pytest
import schemathesis

from debride.serve.http.models import Models
from debride.serve.http.openapi import document
from debride.serve.http.pages import POLICY, page_routes, static_files
from debride.serve.http.routes import Api
from debride.serve.http.settings import ServeSettings
from debride.sessions import TensorInfo
from serving import BOOT, first, serving, write_models
from test_serve_reports import document as report_document
from test_serve_reports import write as write_report

TOKEN = "a-token-of-the-tests"
HOSTILE = '\'; touch pwned; "$(touch pwned)" `touch pwned` %s \n\\'


@dataclass(frozen=True)
class Ends:
    inputs: tuple[TensorInfo, ...]


@dataclass(frozen=True)
class Fake:
    name: str
    version: str
    session: Ends


def fake(name="signs", version="1", tensor="image", dtype=np.float32, shape=(None, 3, 4, 5)):
    return Fake(name, version, Ends((TensorInfo(tensor, shape, np.dtype(dtype)),)))


def made(*models, token=False):
    return document(models or (fake(),), token=token, version="9.9")


def operations(found):
    return [
        (path, item[method]) for path, item in found["paths"].items() for method in ("get", "post") if method in item
    ]


def commands(found):
    return [
        (path, sample["label"], sample["source"])
        for path, operation in operations(found)
        for sample in operation.get("x-codeSamples", ())
    ]


def references(value):
    if isinstance(value, dict):
        yield from ([value["$ref"]] if isinstance(value.get("$ref"), str) else [])
        for inner in value.values():
            yield from references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references(inner)


@pytest.mark.parametrize("token", [False, True])
def test_the_document_is_valid_openapi_3_1(token):
    found = made(token=token)
    schemathesis.openapi.from_dict(found).validate()
    assert found["openapi"] == "3.1.0"
    for schema in found["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    for reference in references(found):
        place = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_the_validator_would_notice():
    found = made()
    del found["paths"]["/v2"]["get"]["responses"]["200"]["description"]
    with pytest.raises(Exception, match="description"):
        schemathesis.openapi.from_dict(found).validate()


def test_every_route_is_described_and_nothing_else():
    api = Api(Models(()), {}, ServeSettings())
    routes = {
        (route.path, method) for route in (*api.routes(), *page_routes({})) for method in route.methods - {"HEAD"}
    }
    api.close()
    described = {
        (path, method.upper()) for path, item in made()["paths"].items() for method in item if method != "parameters"
    }
    assert described == {*routes, ("/metrics", "GET")}


def test_operations_are_told_apart_and_say_their_path_parameters():
    found = made()
    assert len({operation["operationId"] for _, operation in operations(found)}) == len(operations(found))
    tags = {tag["name"] for tag in found["tags"]}
    for path, operation in operations(found):
        stated = {
            p["name"]
            for p in (*found["paths"][path].get("parameters", ()), *operation.get("parameters", ()))
            if p["in"] == "path"
        }
        assert stated == set(re.findall(r"{(\w+)}", path))
        assert set(operation["tags"]) <= tags


def test_models_and_versions_that_are_served_are_the_only_ones_named():
    found = made(fake("b", "10"), fake("a", "2"), fake("a", "10"), fake("a", "9"))
    names, versions = found["paths"]["/v2/models/{model}/versions/{version}/infer"]["parameters"]
    assert names["schema"]["enum"] == ["b", "a"]
    assert versions["schema"]["enum"] == ["2", "9", "10"]
    (_, _, command) = next(c for c in commands(made(fake("a", "9"), fake("a", "10"))) if "/versions/" in c[2])
    assert "/v2/models/a/versions/10" in command


def test_a_token_is_spoken_of_only_where_one_is_asked_for():
    without, with_token = made(), made(token=True)
    assert "securitySchemes" not in without["components"]
    assert "security" not in without
    assert not [path for path, operation in operations(without) if "401" in operation["responses"]]
    free = {path for path, operation in operations(with_token) if operation.get("security") == []}
    assert free == {"/", "/docs", "/openapi.json", "/static/{file}", "/v2/health/live", "/v2/health/ready"}
    for path, operation in operations(with_token):
        assert ("401" in operation["responses"]) == (path not in free)
    for path, _, command in commands(with_token):
        assert ("$TOKEN" in command) == (path not in free)


@pytest.mark.parametrize(("dtype", "value"), [
    (np.float32, 0.5), (np.float64, 0.5), (np.uint8, 1), (np.int64, 1), (np.bool_, True), (np.float16, None),
])  # fmt: skip
def test_the_commands_to_infer_send_what_the_model_takes_whatever_its_tensor_is_called(tmp_path, dtype, value):
    found = [c for c in commands(made(fake(tensor=HOSTILE, dtype=dtype))) if c[0] == "/v2/models/{model}/infer"]
    assert [label for _, label, _ in found] == (["binary"] if value is None else ["JSON", "binary"])
    for _, label, command in found:
        body = run_shell(f'curl() {{ printf "%s\\n" "$@" >arguments; cat; }}\n{command}', tmp_path, URL="http://x")
        arguments = (tmp_path / "arguments").read_text().splitlines()
        assert arguments[-1] == "http://x/v2/models/signs/infer"
        assert sorted(p.name for p in tmp_path.iterdir()) == ["arguments"]  # nothing of the name was run
        length = [int(a.rpartition(" ")[2]) for a in arguments if a.startswith("Inference-Header-Content-Length")]
        head, tail = (body[: length[0]], body[length[0] :]) if label == "binary" else (body, b"")
        (entry,) = json.loads(head)["inputs"]
        assert (entry["name"], entry["shape"]) == (HOSTILE, [1, 3, 4, 5])
        if label == "binary":
            assert len(tail) == entry["parameters"]["binary_data_size"] == 60 * np.dtype(dtype).itemsize
        else:
            assert entry["data"] == [value] * 60


def test_an_example_of_a_request_is_given_where_it_is_short():
    (entry,) = made()["components"]["examples"]["Infer"]["value"]["inputs"]
    assert entry == {"name": "image", "datatype": "FP32", "shape": [1, 3, 4, 5], "data": [0.5] * 60}
    assert "examples" not in made(fake(shape=(1, 3, 224, 224)))["components"]
    assert "examples" not in made(fake(dtype=np.float16))["components"]


def run_shell(command, folder, **environment):
    run = subprocess.run(
        ["sh", "-c", command],
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout


@pytest.fixture(scope="module", params=[False, True], ids=["open", "token"])
def served(request, tmp_path_factory):
    """The real server with a report beside one of its models; the folder holds photo.png."""
    folder = tmp_path_factory.mktemp("openapi")
    models = write_models(folder)
    content = report_document()
    content["output"]["sha256"] = sha256((folder / "fashion.onnx").read_bytes()).hexdigest()
    write_report(folder / "fashion.onnx.report", content)
    shutil.copy(first(BOOT), folder / "photo.png")
    environment = {"DEBRIDE_TOKEN": TOKEN} if request.param else {}
    with serving(folder, *models, "--threads", 1, environment=environment) as server:
        yield server, folder, request.param


def test_every_command_of_the_document_works_and_is_answered_as_described(served):
    server, folder, token = served
    found = server.get("/openapi.json").json()
    assert len(commands(found)) == 22
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", "components": found["components"]}
    for path, _, command in commands(found):
        spy = "curl() { command curl -sS -o answer -w '%{http_code} %{content_type}' \"$@\"; }\n"
        said = run_shell(spy + command, folder, URL=server.url, TOKEN=TOKEN if token else "").decode()
        status, _, kind = said.partition(" ")
        assert status == "200", (command, (folder / "answer").read_text())
        item = found["paths"][path]
        content = item["post" if "post" in item else "get"]["responses"][status]["content"]
        schema = content[kind.partition(";")[0]]["schema"]
        if kind == "application/json":
            jsonschema_rs.validate({**whole, **schema}, json.loads((folder / "answer").read_bytes()))


def test_what_the_document_says_is_open_is_open_and_the_rest_asks_for_the_token(served):
    server, _, token = served
    found = server.get("/openapi.json").json()
    for path, operation in operations(found):
        filled = path.replace("{model}", "fashion").replace("{version}", "1").replace("{file}", "page.css")
        method = "POST" if "requestBody" in operation else "GET"
        answer = server.ask(method, filled, b"" if method == "POST" else None)
        assert (answer.status == 401) == (token and operation.get("security") != []), (path, answer.status)


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/openapi.json", *(f"/static/{n}" for n in static_files() if ".html" not in n)]
)
def test_pages_come_with_their_policy_and_are_not_sent_twice(served, path):
    answer = served[0].get(path)
    assert answer.status == 200
    assert answer.headers["content-security-policy"] == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["content-type"].startswith(
        {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml", "json": "application/json"}.get(
            path.rpartition(".")[2], "text/html"
        )
    )
    again = served[0].get(path, {"If-None-Match": f'"other", W/{answer.headers["etag"]}'})
    assert (again.status, again.body) == (304, b"")
    head = served[0].ask("HEAD", path)
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == str(len(answer.body))


@pytest.mark.parametrize(
    "name", ["index.html", "nothing.js", "..%2fpages.py", "%2e%2e/pages.py", "__init__.py", "page.css%00"]
)
def test_nothing_but_the_files_of_the_pages_is_under_static(served, name):
    answer = served[0].get(f"/static/{name}")
    assert answer.status == 404
    assert answer.error


def test_pages_name_nothing_outside_and_hold_no_inline_script_or_style():
    for name, data in static_files().items():
        text = data.decode()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        if name.endswith(".html"):
            assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|javascript:", text), name
            assert not re.search(r'(?:src|href)="/', text), (
                f"{name}: an absolute address breaks behind a proxy's prefix"
            )
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )
