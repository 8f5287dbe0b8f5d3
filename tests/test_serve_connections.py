"""Connections: what a client sees that sends too much, and that none waits for a client without a clock."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import time

import pytest
from uvicorn import Config
from uvicorn.server import ServerState

from debride.serve.http.connections import (
    HEAD_SECONDS,
    MAX_HEAD,
    MAX_PIPELINE,
    MAX_REST,
    BoundedProtocol,
    protocol_within,
)
from serving import BAG, first, post, serving, speak, statuses, unharmed, write_models

TIMEOUT = 1.0
LATE = 10.0
LIMIT = 1 << 20
CLASSIFY = "/v2/models/fashion/classify"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("connections")
    limits = ("--max-request", LIMIT >> 20, "--timeout", TIMEOUT, "--threads", 1)
    with serving(folder, *write_models(folder), *limits) as served:
        yield served


@pytest.fixture(autouse=True)
def goes_on(request):
    if "server" not in request.fixturenames:
        yield
        return
    with unharmed(request.getfixturevalue("server")):
        yield


# --- a body over the limit ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LIMIT + 1, 8 * LIMIT, 32 * LIMIT])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_client_that_sends_too_much_sees_413_and_no_reset(server, size, chunked):
    """http.client sends all before it reads: a reset while it sends is all that it would see."""
    block = bytes(1 << 16)
    for _ in range(20):
        connection = http.client.HTTPConnection(server.host, server.port, timeout=30)
        whole = -(-size // len(block))
        body = (block for _ in range(whole))
        headers = {} if chunked else {"Content-Length": str(whole * len(block))}
        connection.request("POST", CLASSIFY, body, headers, encode_chunked=chunked)
        reply = connection.getresponse()
        assert (reply.status, reply.headers["connection"]) == (413, "close")
        assert "exceeds the limit of 1048576 bytes" in json.loads(reply.read())["error"]
        assert connection.sock is None
    assert server.memory() < 1 << 30


def test_what_comes_after_the_answer_is_not_taken_for_a_request(server):
    extra = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for length in (2 * LIMIT, 2 * LIMIT + len(extra)):
        assert statuses(speak(server, post(CLASSIFY, bytes(2 * LIMIT) + extra, length=length))) == [413]
    assert "/smuggled" not in server.log()


def test_a_client_that_goes_on_sending_is_cut_off(server):
    """After `MAX_REST` bytes at the latest."""
    block, sent = bytes(1 << 20), 0
    with server.socket() as connection, pytest.raises(OSError, match=r"reset|[Bb]roken pipe"):
        connection.sendall(post(CLASSIFY, b"", length=1 << 40))
        while sent < 4 * MAX_REST:
            connection.sendall(block)
            sent += len(block)
    assert sent < 2 * MAX_REST


def test_what_is_no_http_is_told_in_json(server):
    found = speak(server, b"nonsense" * 10_000)
    assert statuses(found) == [400]
    assert b"content-type: application/json" in found
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]


# --- clocks ------------------------------------------------------------------------------------------------------


def drip(server, start, byte=b"x"):
    """What comes back to `start` and then a byte every fifth of a second, and the seconds until the end."""
    began, found = time.monotonic(), b""
    with server.socket() as connection:
        connection.sendall(start)
        connection.settimeout(0.2)
        while time.monotonic() - began < 2 * LATE:
            try:
                connection.sendall(byte)
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not part:
                break
            found += part
    return found, time.monotonic() - began


def test_a_head_that_drips_ends_by_the_timeout(server):
    """The head has a clock of its own, which a byte now and then does not wind."""
    found, seconds = drip(server, b"POST /v2 HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
    assert statuses(found) == [408]
    assert 0.9 * TIMEOUT < seconds < LATE


def test_a_connection_that_says_nothing_ends_by_the_timeout(server):
    assert speak(server, b"", within=LATE) == b""


def test_a_kept_connection_ends_though_line_ends_drip(server):
    """A line end before a request is skipped (RFC 9112, 2.2), and must not keep the connection."""
    found, seconds = drip(server, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n")
    assert statuses(found)[0] == 200
    assert seconds < LATE


NOWHERE = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


def answered(connection):
    """The status of one answer in JSON, read to its end."""
    found = b""
    while not found.endswith(b"}"):
        part = connection.recv(65536)
        assert part, found
        found += part
    (status,) = statuses(found)
    return status


def test_a_kept_connection_ends_where_the_body_of_an_answered_request_stalls(server):
    with server.socket(timeout=2 * LATE) as connection:
        connection.sendall(NOWHERE % 10_000 + b"a")
        assert answered(connection) == 404
        connection.sendall(b"b")
        began = time.monotonic()
        assert connection.recv(1) == b""
        assert time.monotonic() - began < LATE


def test_a_kept_connection_ends_where_the_body_of_an_answered_request_drips(server):
    found, seconds = drip(server, NOWHERE % 10_000)
    assert statuses(found) == [404]
    assert seconds < LATE


def test_a_kept_connection_goes_on_after_an_answer_that_came_before_the_body(server):
    with server.socket() as connection:
        connection.sendall(NOWHERE % 4)
        assert answered(connection) == 404
        connection.sendall(b"body")
        time.sleep(0.1)
        connection.sendall(NOWHERE % 0)
        assert answered(connection) == 404


def test_the_heads_limit_is_the_smaller_of_its_own_and_the_servers():
    assert protocol_within(0.5).head_seconds == 0.5
    assert protocol_within(60).head_seconds == HEAD_SECONDS
    assert BoundedProtocol.head_seconds == HEAD_SECONDS


# --- the size of a head ------------------------------------------------------------------------------------------


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written, self.closed = b"", False

    def write(self, data):
        self.written += data

    def write_eof(self):
        self.closed = True

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_extra_info(self, name, default=None):
        return default

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


def statuses_of(*chunks, app=None):
    """The statuses of the answers to what comes in exactly these pieces, each answered before the next."""

    async def empty(scope, receive, send):
        while (await receive())["more_body"]:
            pass
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def main():
        config = Config(app or empty, lifespan="off", log_config=None)
        config.load()
        wire, protocol = Wire(), BoundedProtocol(config, ServerState(), {})
        protocol.connection_made(wire)
        for chunk in chunks:
            protocol.data_received(chunk)
            await asyncio.sleep(0)
            while protocol.cycle and not protocol.cycle.response_complete and not protocol.cycle.more_body:
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return statuses(wire.written)

    return asyncio.run(main())


HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
BODY = bytes(3 * MAX_HEAD)
LONG = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + bytes(b"a" * (MAX_HEAD + 1))


def test_a_body_is_not_counted_to_the_head_that_follows_it():
    whole, next_head = HEAD % len(BODY) + BODY, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert statuses_of(whole[:100], whole[100:] + next_head[:10], next_head[10:]) == [204, 204]
    assert statuses_of(whole + next_head[:10], next_head[10:]) == [204, 204]
    assert statuses_of(next_head * 60 + next_head[:10], next_head[10:]) == [204] * 61


@pytest.mark.parametrize("before", [(), (HEAD % 3 + b"abc",)], ids=["first", "later"])
def test_a_head_that_is_too_large_is_refused(before):
    assert statuses_of(*before, LONG) == [204] * len(before) + [400]
    assert statuses_of(*before, LONG[:1000], LONG[1000:50_000], LONG[50_000:]) == [204] * len(before) + [400]
    assert statuses_of(*before, LONG[: MAX_HEAD - 100] + b"\r\n\r\n") == [204] * (len(before) + 1)


def test_a_head_that_begins_behind_a_body_is_refused_by_what_comes_after():
    assert statuses_of(HEAD % len(BODY) + BODY + LONG[:100], LONG[100:] + b"a" * 200) == [204, 400]


# --- what follows a body, and what offers another protocol -------------------------------------------------------


CHUNKED = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n"


@pytest.mark.parametrize("trailer", [b"a:b\r\n" * 100, b"a" * 1000], ids=["many", "one"])
def test_trailers_without_end_are_refused(trailer):
    assert statuses_of(CHUNKED, *[trailer] * (MAX_HEAD // len(trailer) + 2)) == [400]


def test_trailers_are_no_headers_of_the_request(tmp_path):
    tokens = {"DEBRIDE_TOKEN": "right"}
    late = b"Authorization: Bearer right\r\n\r\n"
    with serving(tmp_path, *write_models(tmp_path), environment=tokens) as served:
        head = b"GET /v2/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n"
        assert statuses(speak(served, head + b"\r\n0\r\n" + late)) == [401]
        assert statuses(speak(served, head + late[:-2] + b"\r\n0\r\n\r\n")) == [200]


def test_more_requests_at_once_than_anyone_sends_end_the_connection(server):
    ask = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = ask.replace(b"Host", b"Connection: close\r\nHost")
    assert statuses(speak(server, ask * (MAX_PIPELINE - 1) + last)) == [200] * MAX_PIPELINE
    before = server.memory()
    held = []
    for _ in range(100):
        connection = server.socket()
        with contextlib.suppress(OSError):
            connection.sendall(ask * 2000)
        held.append(connection)
    time.sleep(1)
    assert server.memory() - before < 100 << 20
    for connection in held:
        connection.close()


@pytest.mark.parametrize("split", [False, True])
def test_an_offer_of_another_protocol_is_passed_over(server, split):
    body = b"\r\nUpgrade: h2c\r\n\r\n" + first(BAG).read_bytes()
    offers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__")
    for data, status in ((first(BAG).read_bytes(), 200), (body, 400)):
        request = post(CLASSIFY, data, *offers)
        at = request.index(b"\r\n\r\n") + 4 if split else len(request)
        with server.socket() as connection:
            connection.sendall(request[:at])
            time.sleep(0.05)
            connection.sendall(request[at:])
            assert answered(connection) == status


def test_only_heads_are_searched_for_such_an_offer():
    seen = []

    async def app(scope, receive, send):
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        seen.append((body, [name for name, _ in scope["headers"]]))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    body = b"\r\nUpgrade: h2c\r\n\r\n"
    offered = HEAD.replace(b"Host", b"Connection: upgrade\r\nUpgrade: h2c\r\nHost") % len(body)
    for pieces in ([offered + body], [offered, body], [offered, body[:5], body[5:]]):
        assert statuses_of(*pieces, app=app) == [204]
    assert {found for found, _ in seen} == {body}
    assert all(b"upgrade" not in names for _, names in seen)


def test_an_image_is_still_classified(server):
    assert server.post(CLASSIFY, first(BAG).read_bytes()).status == 200
