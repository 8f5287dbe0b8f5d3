"""The application without a network: what the gate, the routes and the metrics answer."""

import asyncio
import json
import logging
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from debride.serve.http.app import create_app
from debride.serve.http.models import load, parse_all
from debride.serve.http.settings import ServeSettings
from debride.sessions import Runtime
from debride.spec import to_json
from debride.specfile import METADATA_KEY, SpecFlags
from tiny import PALETTE, tiny_classifier, tiny_spec

NAMES = ("red", "green", "blue", "white")
CLASSIFY = "/v2/models/m/classify"
INFER = "/v2/models/m/infer"


def png(colour=0, size=(6, 5)):
    pixels = np.broadcast_to((PALETTE[colour] * 255).astype(np.uint8), (*size, 3))
    return cv2.imencode(".png", pixels[:, :, ::-1])[1].tobytes()


def tensor(values=None, **changes):
    values = np.full((1, 3, 6, 5), 0.5) if values is None else values
    entry = {"name": "image", "shape": list(values.shape), "datatype": "FP32", "data": values.ravel().tolist()}
    return {"inputs": [entry | changes]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def models(folder):
    spec = tiny_spec(class_names=NAMES)
    for name, options in {"m": {}, "m2": {"outputs": ("scores", "again")}, "four": {"batch": 4}}.items():
        data = tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}, **options)
        (folder / f"{name}.onnx").write_bytes(data)
    named = parse_all([f"m={folder / 'm.onnx'}", f"m:2={folder / 'm2.onnx'}", f"four={folder / 'four.onnx'}"])
    return [load(m, flags=SpecFlags(), runtime=Runtime(threads=1), max_batch=8) for m in named]


def client(models, **settings):
    return TestClient(create_app(models, ServeSettings(**settings)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def server(models):
    with client(models) as found:
        yield found


def test_an_image_file_is_classified_as_it_is_and_in_a_form(server):
    for request in (
        {"content": png(2)},
        {"content": png(2, (30, 40)), "headers": {"Content-Type": "image/png"}},
        {"files": {"image": ("a.png", png(2), "image/png")}},
        {"files": {"f": ("a.png", png(2))}, "data": {"note": "x"}},
    ):
        found = server.post(CLASSIFY, params={"top": 2}, **request)
        assert found.status_code == 200, found.text
        body = found.json()
        assert (body["model_name"], body["model_version"]) == ("m", "2")
        assert [p["label"] for p in body["predictions"]][:1] == ["blue"]
        assert len(body["predictions"]) == 2
        assert body["predictions"][0]["index"] == 2
        assert body["predictions"][0]["probability"] > 0.9


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b""}, 400, "body is empty"),
        ({"content": b"junk"}, 400, "image: no readable"),
        ({"content": png()[:60]}, 400, "image: "),
        ({"content": png(), "params": {"top": "0"}}, 400, "top: '0'"),
        ({"content": png(), "params": {"top": "x"}}, 400, "top: 'x'"),
        ({"files": [("a", ("a", png())), ("b", ("b", png()))]}, 400, "form"),
        ({"data": {"image": "text"}, "files": {}}, 400, "image: no readable"),
        ({"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}}, 400, "form"),
        ({"content": png(), "headers": {"Content-Type": "multipart/form-data"}}, 400, "form"),
        ({"content": png(), "headers": {"Content-Encoding": "br"}}, 415, "Content-Encoding 'br'"),
        ({"content": png(0, (200, 200))}, 400, "200x200 pixels exceed the limit of 30000"),
        ({"content": bytes(5000)}, 413, "limit of 4096"),
    ],
)
def test_what_is_no_image_is_refused_in_words(models, request_, status, words):
    with client(models, max_pixels=30_000, max_request=4096) as server:
        found = server.post(CLASSIFY, **request_)
    assert found.status_code == status, found.text
    assert words in found.json()["error"]


def test_a_tensor_gets_what_the_model_gives(server, models):
    values = np.random.default_rng(0).uniform(0, 1, (3, 3, 6, 5)).astype(np.float32)
    found = server.post(INFER, json={"id": "7", **tensor(values)}).json()
    assert (found["model_name"], found["model_version"], found["id"]) == ("m", "2", "7")
    assert [o["name"] for o in found["outputs"]] == ["scores", "again"]
    expected = models[1].session.run({"image": values})[0]
    np.testing.assert_allclose(np.reshape(found["outputs"][0]["data"], (3, 4)), expected, rtol=1e-6)


def test_a_fixed_batch_takes_single_images_and_its_own_size(server):
    assert server.post("/v2/models/four/classify", content=png(1)).json()["predictions"][0]["label"] == "green"
    assert server.post("/v2/models/four/infer", json=tensor(np.zeros((4, 3, 6, 5)))).status_code == 200
    short = server.post("/v2/models/four/infer", json=tensor())
    assert short.status_code == 400
    assert "shape" in short.json()["error"]


@pytest.mark.parametrize("value", [3e38, -3e38])
def test_input_that_overflows_the_model_is_no_error_of_the_server(server, value):
    found = server.post(INFER, json=tensor(np.full((1, 3, 6, 5), value)))
    assert found.status_code == 422
    assert "NaN or infinite" in found.json()["error"]


def test_an_input_that_overflows_does_not_spoil_its_neighbours(models):
    async def scenario(app):
        import httpx2

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as ask:
            bad = [ask.post(INFER, json=tensor(np.full((1, 3, 6, 5), 3e38))) for _ in range(8)]
            good = [ask.post(INFER, json=tensor()) for _ in range(8)]
            return [found.status_code for found in await asyncio.gather(*bad, *good)]

    app = create_app(models, ServeSettings(max_delay=0.2, max_batch=16))
    with TestClient(app) as server:
        assert server.portal.call(scenario, app) == [422] * 8 + [200] * 8


@pytest.mark.parametrize("path", ["/nix", "/v2/models/x", "/v2/models/m/versions/9", "/v2/models/m/x", "/static/../x"])
def test_what_is_not_there_is_404_in_json(server, path):
    found = server.get(path)
    assert found.status_code == 404
    assert set(found.json()) == {"error"}
    assert path.rpartition("/")[2] in found.json()["error"]


def test_wrong_methods_are_405_in_json(server):
    for method, path in (("GET", INFER), ("POST", "/v2"), ("DELETE", "/v2/models/m"), ("PUT", CLASSIFY)):
        found = server.request(method, path)
        assert found.status_code == 405
        assert found.headers["allow"]
        assert set(found.json()) == {"error"}


def test_the_token_is_asked_of_all_but_pages_and_health(models):
    with client(models, token="s3cret-token") as server:
        for path in ("/v2", "/v2/models", "/v2/models/m", "/metrics", "/v2/models/m/report", "/nix"):
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret-token"}):
                found = server.get(path, headers=headers)
                assert found.status_code == 401
                assert found.headers["www-authenticate"] == "Bearer"
                assert "Authorization" in found.json()["error"]
                assert "s3cret" not in found.text
            for scheme in ("Bearer", "bearer"):
                assert server.get(path, headers={"Authorization": f"{scheme} s3cret-token"}).status_code != 401
        assert server.post(CLASSIFY, content=png()).status_code == 401
        for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready", "/static/page.js"):
            assert server.get(path).status_code == 200
    assert "s3cret" not in repr(ServeSettings(token="s3cret-token"))


@pytest.mark.parametrize("path", ["/", "/docs", "/v2", "/nix", "/v2/models/m/report", "/metrics"])
def test_no_answer_may_be_taken_for_what_it_is_not(server, path):
    assert server.get(path).headers.get_list("x-content-type-options") == ["nosniff"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200), ("127.0.0.1", 200)]
    + [(bad, 403) for bad in ("evil.example", "localhost.evil.example:8000", "127.0.0.1.evil", "", "localhost:80:80")],
)
def test_other_names_do_not_open_a_local_server_to_pages_from_elsewhere(models, host, status):
    with client(models, hosts=frozenset({"localhost", "127.0.0.1", "[::1]"})) as server:
        found = server.get("/v2/models", headers={"Host": host})
    assert found.status_code == status
    if status == 403:
        assert "Host" in found.json()["error"]


def test_a_token_that_is_sent_twice_is_refused(models):
    with client(models, token="right") as server:
        found = server.get("/v2", headers=[("Authorization", "Bearer wrong"), ("Authorization", "Bearer right")])
    assert found.status_code == 401
    assert "twice" in found.json()["error"]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "nix", "utf-16"])
def test_a_charset_of_a_form_that_cannot_be_used_is_the_clients_mistake(server, charset):
    body = b'--x\r\nContent-Disposition: form-data; name="\xff"; filename="a"\r\n\r\njunk\r\n--x--\r\n'
    kind = f"multipart/form-data; boundary=x; charset={charset}"
    assert server.post(CLASSIFY, content=body, headers={"Content-Type": kind}).status_code == 400


def test_answers_carry_the_request_id_given_or_one_of_their_own(server):
    assert server.get("/v2", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    own = {server.get("/v2", headers={"X-Request-ID": bad}).headers["x-request-id"] for bad in ("", "a b", "x" * 101)}
    assert len(own) == 3
    assert all(" " not in name and len(name) < 40 for name in own)


def test_a_full_queue_is_429_with_a_time_to_come_again(models):
    """The model stands still, so that what comes waits."""
    gate, entered = threading.Event(), threading.Event()
    served = models[0]

    async def scenario(app):
        import httpx2

        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as ask:
            taken = [asyncio.ensure_future(ask.post(INFER, json=tensor()))]
            await asyncio.to_thread(entered.wait, 10)
            taken += [asyncio.ensure_future(ask.post(INFER, json=tensor())) for _ in range(3)]
            await asyncio.sleep(0.2)
            turned = await ask.post(INFER, json=tensor())
            gate.set()
            return turned, [found.status_code for found in await asyncio.gather(*taken)]

    run = served.session.run

    def slow(feeds, outputs):
        entered.set()
        gate.wait(10)
        return run(feeds, outputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.session, "run", slow)
        app = create_app([served], ServeSettings(queue=3, workers=1))
    with TestClient(app) as server:
        turned, statuses = server.portal.call(scenario, app)
    assert turned.status_code == 429
    assert int(turned.headers["retry-after"]) >= 1
    assert "try again" in turned.json()["error"]
    assert statuses == [200] * 4


def test_a_request_past_its_time_is_503_and_one_that_does_not_arrive_408(models):
    gate, served = threading.Event(), models[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.session, "run", lambda feeds, outputs: gate.wait(10) and [])
        app = create_app([served], ServeSettings(timeout=0.2))
    with TestClient(app) as server:
        late = server.post(INFER, json=tensor())
        gate.set()
    assert (late.status_code, late.headers["retry-after"]) == (503, "1")

    async def never():
        await asyncio.sleep(30)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": INFER,
        "query_string": b"",
        "headers": [(b"content-length", b"9")],
    }

    async def slow_body(app):
        await app(scope, never, send)

    app = create_app([served], ServeSettings(timeout=0.2))
    with TestClient(app) as server:
        server.portal.call(slow_body, app)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]


def test_an_error_of_the_server_is_500_and_told_in_the_log_alone(models, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("debride.serve"), "propagate", True)
    served = models[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served.session, "run", lambda feeds, outputs: 1 / 0)
        app = create_app([served], ServeSettings())
    with TestClient(app, raise_server_exceptions=False) as server:
        found = server.post(INFER, json=tensor(), headers={"X-Request-ID": "r-1"})
    assert found.status_code == 500
    assert "division" not in found.text
    assert found.headers["x-request-id"] == "r-1"
    assert any(r.exc_info and r.fields["request"] == "r-1" for r in caplog.records)


def test_metrics_count_requests_and_batches_and_nothing_from_the_request(models):
    with client(models) as server:
        for _ in range(3):
            server.post(CLASSIFY, content=png())
        server.post(CLASSIFY, content=b"junk")
        server.get("/v2/models/evil%22name")
        text = server.get("/metrics").text
    route = 'route="/v2/models/{model}/classify"'
    assert f'debride_requests_total{{model="m",{route},status="200",version="2"}} 3.0' in text
    assert f'debride_requests_total{{model="m",{route},status="400",version="2"}} 1.0' in text
    assert 'debride_batch_rows_count{model="m",version="2"} 3.0' in text
    assert 'debride_queue_rows{model="m",version="2"} 0.0' in text
    assert "evil" not in text


def test_health_and_metadata(server, models):
    assert server.get("/v2/health/live").json() == {"live": True}
    assert server.get("/v2/health/ready").json() == {"ready": True}
    assert server.get("/v2/models/m/ready").status_code == 200
    assert server.get("/v2").json()["extensions"][0] == "binary_tensor_data"
    found = server.get("/v2/models/m/versions/1").json()
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 6, 5]}]
    assert found["versions"] == ["1", "2"]
    assert found["parameters"] == {"sha256": models[0].sha256, "classes": 4, "size": [6, 5], "channels": "RGB"}
    listed = server.get("/v2/models").json()["models"]
    assert [(m["name"], m["version"], m["report"]) for m in listed] == [
        ("m", "1", False),
        ("m", "2", False),
        ("four", "1", False),
    ]


def test_not_ready_before_it_starts(models):
    app = create_app(models, ServeSettings())
    bare = TestClient(app, raise_server_exceptions=False)  # no lifespan
    assert bare.get("/v2/health/ready").status_code == 503
    assert bare.get("/v2/health/live").status_code == 200
    assert bare.post(CLASSIFY, content=png()).status_code == 503


def test_logs_are_lines_of_json_or_text_without_what_a_terminal_obeys(models, capsys):
    from debride.serve.http.logs import LOGGER, configure

    for kind in ("json", "text"):
        configure(kind)
        with client(models) as server:
            server.get('/nix%1b[31m%0aforged" status=200')
        LOGGER.handlers[0].flush()
        (line,) = [text for text in capsys.readouterr().err.splitlines() if "nix" in text]
        assert "\x1b" not in line
        if kind == "json":
            found = json.loads(line)
            assert found["status"] == 404
            assert found["event"] == "request"
            assert found["path"] == '/nix\x1b[31m\nforged" status=200'
            assert found["level"] == "info"
        else:
            assert 'path="/nix?[31m?forged\\" status=200" status=404' in line


def test_a_long_list_of_numbers_is_read_while_others_are_answered(models):
    """A body over a mebibyte is parsed beside the event loop, and gives the same."""
    values = np.random.default_rng(0).uniform(0, 1, (2000, 3, 6, 5)).astype(np.float32)
    body = json.dumps(tensor(values)).encode()
    assert len(body) > 1 << 20
    threads = set()

    async def scenario(app):
        import httpx2

        from debride.serve.http import routes

        parse = routes.parse_infer

        def seen(*arguments, **options):
            threads.add(threading.current_thread() is threading.main_thread() or threading.current_thread().name)
            return parse(*arguments, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(routes, "parse_infer", seen)
            async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://x") as ask:
                loop_thread = threading.current_thread().name
                found = await ask.post(INFER, content=body)
                return found, loop_thread

    app = create_app(models, ServeSettings(queue=5000))
    with TestClient(app) as server:
        found, loop_thread = server.portal.call(scenario, app)
    assert found.status_code == 200
    assert threads
    assert loop_thread not in threads
    scores = np.reshape(found.json()["outputs"][0]["data"], (2000, 4))
    np.testing.assert_allclose(scores, models[1].session.run({"image": values})[0], rtol=1e-4, atol=1e-5)
