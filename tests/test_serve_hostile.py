"""What a hostile client sends over a bare socket: the server answers 4xx or closes, in time, and goes on serving."""

from __future__ import annotations

import time

import pytest

from serving import BAG, first, post, serving, speak, statuses, unharmed, write_models

TIMEOUT = 1.0
LATE = 5 * TIMEOUT
"""As late as a time limit may be kept on a machine that does much else."""
LIMIT = 1 << 20
CLASSIFY = "/v2/models/fashion/classify"
INFER = "/v2/models/tiny/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    limits = ("--max-request", LIMIT >> 20, "--timeout", TIMEOUT, "--threads", 1)
    with serving(folder, *write_models(folder), *limits) as served:
        yield served


@pytest.fixture(autouse=True)
def goes_on(server):
    with unharmed(server):
        yield


def test_a_body_that_breaks_off(server):
    for path in (CLASSIFY, INFER):
        assert statuses(speak(server, post(path, b"abc", length=100), end=True)) in ([], [400])


@pytest.mark.parametrize("path", [CLASSIFY, INFER])
def test_a_body_that_stalls_ends_by_the_timeout(server, path):
    began = time.monotonic()
    found = speak(server, post(path, b"abc", length=100), within=2 * LATE)
    assert statuses(found) == [408]
    assert TIMEOUT * 0.9 < time.monotonic() - began < LATE


def test_a_body_that_drips_ends_by_the_timeout(server):
    began = time.monotonic()
    with server.socket(timeout=10) as connection:
        connection.sendall(post(CLASSIFY, b"", length=10_000))
        connection.settimeout(0.05)
        found = b""
        while time.monotonic() - began < 2 * LATE:
            try:
                connection.sendall(b"x")
                part = connection.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            if not part:
                break
            found += part
    assert statuses(found) == [408]
    assert time.monotonic() - began < LATE


@pytest.mark.parametrize(
    "head",
    [
        b"X-Bomb: " + b"a" * (8 << 20) + b"\r\n",
        b"".join(b"X-%d: a\r\n" % n for n in range(500_000)),
        b"a" * (4 << 20),
    ],
    ids=["one long header", "half a million headers", "one long name"],
)
def test_a_bomb_of_headers_is_cut_off(server, head):
    before = server.memory()
    found = speak(server, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n" + head + b"Connection: close\r\n\r\n")
    assert statuses(found) in ([], [400], [413], [431])
    assert server.memory() - before < 32 << 20


@pytest.mark.parametrize(
    "length", ["99999999999999999999999999", str(1 << 63), "1e9", "-1", "0x10", "1,1", "+3", "", "²"]
)
def test_an_absurd_content_length(server, length):
    raw = f"POST {CLASSIFY} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\nabc"
    assert statuses(speak(server, raw.encode()))[:1] in ([], [400], [413])


def test_two_content_lengths_or_a_length_with_chunks_are_refused(server):
    """Else a proxy in front may see other borders between requests than the server: request smuggling."""
    for headers in (
        ["Content-Length: 3", "Content-Length: 10"],
        ["Content-Length: 3", "Transfer-Encoding: chunked"],
        ["Transfer-Encoding: chunked", "Content-Length: 3"],
        ["Transfer-Encoding: chunked, identity"],
        ["Transfer-Encoding: xchunked"],
    ):
        found = speak(server, post(CLASSIFY, b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n", *headers, length=""))
        assert statuses(found)[1:] == [], headers
        assert statuses(found) in ([], [400]), headers
    assert "/smuggled" not in server.log()


@pytest.mark.parametrize(
    "chunks",
    [b"zz\r\nabc\r\n", b"-1\r\nabc\r\n0\r\n\r\n", b"ffffffffffffffffff\r\nabc", b"3\r\nabcdef\r\n0\r\n\r\n",
     b"3;" + b"e" * 200_000 + b"\r\nabc\r\n0\r\n\r\n", b"\r\n\r\n\r\n"],
    ids=lambda chunks: f"{chunks[:12]!r}",
)  # fmt: skip
def test_broken_chunks(server, chunks):
    found = speak(server, post(CLASSIFY, chunks, "Transfer-Encoding: chunked", length=""))
    assert statuses(found)[:1] in ([], [400], [408], [413])


@pytest.mark.parametrize("count", [17, 400])
def test_chunks_past_the_limit_are_cut_off(server, count):
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    found = speak(server, post(CLASSIFY, chunk * count, "Transfer-Encoding: chunked", length=""))
    assert statuses(found) == [413]


@pytest.mark.parametrize(
    "path",
    ["/static/../openapi.json", "/static/..%2f..%2fsetup.cfg", "/static/%2e%2e/%2e%2e/setup.cfg", "/static/%00",
     "/static/page.js%00.css", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/....//", "/static/\\..\\x",
     "/v2/models/..%2f..%2fetc/passwd", "/v2/models/fashion/report/..%2f..%2fetc%2fpasswd", "/v2/models/%00",
     "/v2/models/fashion/report/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v2/models/%ff%fe", "/v2/models/fashion/versions/%00",
     "/v2/models/" + "a" * 20_000, "/" + "%25" * 5000, "//v2", "/v2/", "/v2/models/fashion/"],
    ids=lambda path: path[:40],
)  # fmt: skip
def test_paths_that_lead_nowhere(server, path):
    found = speak(server, f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert statuses(found) in ([400], [404])
    assert b"root:" not in found
    assert b"install_requires" not in found


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xaa" * 400,  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nBad Header: y\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n: empty\r\n\r\n",
        b"\r\n" * 1000 + b"X" * 100,
        b"G" * 5000,
        b"CONNECT x:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=lambda raw: f"{raw[:16]!r}",
)
def test_what_is_no_http(server, raw):
    assert statuses(speak(server, raw, end=True))[:1] in ([], [400], [404], [405], [505])


def test_http_1_0_is_answered_and_closed(server):
    found = speak(server, b"GET /v2/health/live HTTP/1.0\r\n\r\n")
    assert statuses(found) == [200]
    assert b'"live":true' in found.replace(b" ", b"")


def test_an_upgrade_is_not_taken(server):
    for protocol, more in (("websocket", "Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n"), ("h2c", "")):
        head = f"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\n{more}\r\n"
        assert statuses(speak(server, head.encode())) == [200]


def test_pipelined_requests_are_answered_in_order(server):
    image = first(BAG).read_bytes()
    wanted, raw = [], b""
    for n in range(20):
        path, status = (("/v2/health/live", 200), ("/nowhere", 404), (CLASSIFY, 200))[n % 3]
        if path == CLASSIFY:
            raw += f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n".encode() + image
        else:
            raw += f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        wanted.append(status)
    found = speak(server, raw + b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", within=10)
    assert statuses(found) == [*wanted, 200]


def test_clients_that_leave_before_their_answer(server):
    image = first(BAG).read_bytes()
    for _ in range(200):
        with server.socket() as connection:
            connection.sendall(post(CLASSIFY, image))
    time.sleep(0.5)


def test_five_hundred_half_open_connections_beside_a_good_client(server):
    files, held = server.open_files(), []
    try:
        for n in range(500):
            connection = server.socket()
            connection.sendall((b"", b"POST ", post(CLASSIFY, b"abc", length=1000))[n % 3])
            held.append(connection)
        began = time.monotonic()
        for _ in range(30):
            assert server.post(CLASSIFY, first(BAG).read_bytes()).status == 200
        assert time.monotonic() - began < 30
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.5)
    assert server.open_files() <= files + 5
