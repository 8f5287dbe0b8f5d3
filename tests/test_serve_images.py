"""Image files that are broken, none, or far larger or slower than they look: 400 with the reason, nobody held up."""

from __future__ import annotations

import random
import re
import signal
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest

from debride.serve.http.decoding import threads_for
from serving import colour_png, serving, unharmed, write_models

MAX_PIXELS = 4_000_000
CLASSIFY = "/v2/models/tiny/versions/1/classify?top=1"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    with serving(folder, *write_models(folder), "--threads", 1, "--max-pixels", MAX_PIXELS) as served:
        served.post(CLASSIFY, png(2000, 1000))  # what is allocated once is
        yield served


@pytest.fixture(autouse=True)
def goes_on(server):
    with unharmed(server, growth=48 << 20):
        yield


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *extra, rows=None, row=None):
    """A grey PNG, all black, of one bit a pixel: 20000x20000 of them are 50 kB. `rows`: how many there really are."""
    row = b"\0" + bytes((width + 7) // 8) if row is None else row
    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of(width, height):
    """A JPEG whose header says another size than its data has."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


BOMBS = {
    "a header of 50000x50000": png(50_000, 50_000, rows=1),
    "a header of 2**31-1 squared": png(2**31 - 1, 2**31 - 1, rows=1, row=b""),
    "20000x20000 real pixels": png(20_000, 20_000),
    "one row too many": png(2000, 2001),
    "a line": png(MAX_PIXELS + 1, 1),
    "a column": png(1, MAX_PIXELS + 1),
    "JPEG": jpeg_of(65_500, 65_500),
    "PPM": b"P6 60000 60000 255\n" + bytes(1000),
    "PBM": b"P4 100000 100000\n" + bytes(1000),
    "BMP": cv2.imencode(".bmp", np.zeros((4, 4, 3), np.uint8))[1].tobytes()[:18]
    + struct.pack("<ii", 60_000, 60_000)
    + bytes(1000),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(server, bomb):
    began, before = time.monotonic(), server.memory()
    answer = server.post(CLASSIFY, BOMBS[bomb])
    assert answer.status == 400
    assert answer.error.startswith("image")
    assert "pixels" in answer.error
    assert time.monotonic() - began < 1
    assert server.memory() - before < 16 << 20


def test_an_image_at_the_limit_is_taken(server):
    answer = server.post(CLASSIFY, png(2000, MAX_PIXELS // 2000))
    assert answer.status == 200
    assert answer.json()["predictions"][0]["label"] in ("red", "green", "blue", "white")


def test_many_bombs_at_once_hold_nobody_up(server):
    """Large images just within the limit and far beyond it, from 16 clients, beside a client with small images."""
    large = [png(2000, MAX_PIXELS // 2000), BOMBS["20000x20000 real pixels"]]
    before, highest, worst = server.memory(), 0, 0.0
    with ThreadPoolExecutor(16) as clients:
        asked = [clients.submit(server.post, CLASSIFY, large[n % 2]) for n in range(100)]
        while not all(one.done() for one in asked):
            began = time.monotonic()
            assert server.post(CLASSIFY, colour_png(1)).json()["predictions"][0]["label"] == "green"
            worst = max(worst, time.monotonic() - began)
            highest = max(highest, server.memory())
        found = [one.result().status for one in asked]
    assert found == [200, 400] * 50
    # Each thread: 4 million pixels as bytes, as three colours, and as what comes between.
    assert highest - before < 64 * threads_for(MAX_PIXELS) << 20
    assert worst < 2


def idat(packed, width, height):
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def zeros(mebibytes):
    """As zlib packs that many zeros, from one part that is said again."""
    packer = zlib.compressobj(9)
    first, part = (packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + part * (mebibytes // 16 - 1) + packer.flush()


def progressive(side, more, end=b"\xff\xd9"):
    """A JPEG whose last scan, a few bytes for all of its pixels, stands there `more` times more."""
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]
    data = cv2.imencode(".jpg", np.full((side, side, 3), 128, np.uint8), flags)[1].tobytes()[:-2]
    return data + data[data.rindex(b"\xff\xda") :] * more + end


# Each kept the server from answering anybody for 15 s or more.
SLOW = {
    "a PNG of 28x28 that inflates to 4 GiB": (lambda: idat(zeros(4096), 28, 28), "image: inflates to more"),
    "a PNG of 256x256 that inflates to 4 GiB": (lambda: idat(zeros(4096), 256, 256), "image: inflates to more"),
    "a JPEG of two million scans": (lambda: progressive(256, 2_000_000), "image: has more than 100 scans"),
    "a large JPEG of many scans": (lambda: progressive(2000, 200_000), "image: has more than 100 scans"),
    "a JPEG of many segments": (
        lambda: progressive(256, 0, b"\xff\xe1\0\2" * 7_000_000 + b"\xff\xd9"),
        "image: has more than 16384 segments",
    ),
}


def while_others_ask(server, ask):
    """What `ask` gives, where meanwhile, and once at least, the server has answered others soon."""
    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(ask)
        while True:
            began = time.monotonic()
            assert server.get("/v2/health/live").status == 200
            assert time.monotonic() - began < 2
            if asked.done():
                return asked.result()
            time.sleep(0.02)


@pytest.mark.parametrize("slow", SLOW)
def test_what_takes_long_for_its_pixels_is_refused_and_holds_nobody_up(server, slow):
    make, reason = SLOW[slow]
    data, before = make(), cpu(server)
    assert len(data) < 32 << 20
    answer = while_others_ask(server, lambda: server.post(CLASSIFY, data))
    assert answer.status == 400
    assert answer.error.startswith(reason)
    assert cpu(server) - before < 2


def test_texts_that_inflate_to_gigabytes_are_left_out(server):
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(8 << 20), 9))
    before, whole = cpu(server), colour_png(1)
    data = whole[:33] + text * 1000 + whole[33:]
    answer = while_others_ask(server, lambda: server.post(CLASSIFY, data))
    assert answer.json()["predictions"][0]["label"] == "green"
    assert cpu(server) - before < 2


def test_images_that_take_their_time_hold_no_small_ones_up(server):
    """As many scans as are allowed, over as many pixels: all threads are busy, and the loop is free."""
    data = progressive(2000, 90)

    def ask():
        with ThreadPoolExecutor(8) as clients:
            return [one.result().status for one in [clients.submit(server.post, CLASSIFY, data) for _ in range(8)]]

    assert while_others_ask(server, ask) == [200] * 8


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_server_stops_while_images_are_decoded(tmp_path, by):
    """They take seconds each, past the deadline of their requests: nobody waits for them, and nothing crashes."""
    data = progressive(5500, 90)
    with serving(tmp_path, *write_models(tmp_path), "--threads", 1, "--timeout", 0.5) as served:
        with ThreadPoolExecutor(8) as clients:
            found = [one.result() for one in [clients.submit(served.post, CLASSIFY, data) for _ in range(8)]]
        assert {answer.status for answer in found} == {503}
        busy = cpu(served)
        assert served.end(by, within=20) == 0
        assert busy > 0.5
        assert "terminate" not in served.log()


NOT_IMAGES = {
    "nothing": b"",
    "text": b"hello",
    "HTML": b"<html><body>no</body></html>",
    "a PNG's signature": b"\x89PNG\r\n\x1a\n",
    "a PNG's first half": colour_png(0, (64, 64))[:60],
    "a PNG without pixels": png(10, 10, rows=0),
    "a PNG of no width": png(0, 10, rows=10),
    "a JPEG's first bytes": jpeg_of(8, 8)[:100],
    "GIF": b"GIF89a\x01\x00\x01\x00\x00\x00\x00;",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "TIFF": b"II*\0\x08\0\0\0\0\0",
    "zeros": bytes(100_000),
}


@pytest.mark.parametrize("kind", NOT_IMAGES)
def test_what_is_no_image_is_refused(server, kind):
    answer = server.post(CLASSIFY, NOT_IMAGES[kind])
    assert answer.status == 400
    assert "image" in answer.error


@pytest.mark.parametrize("encode", [".png", ".jpg", ".bmp", ".webp", ".ppm"])
def test_files_with_bytes_changed_are_classified_or_refused(server, encode):
    """What the libraries that decode make of it: no crash, no 500, no delay."""
    rng = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    whole = cv2.imencode(encode, pixels)[1].tobytes()
    found = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        began = time.monotonic()
        answer = server.post(CLASSIFY, bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]))
        assert time.monotonic() - began < 2
        assert answer.status in (200, 400), answer.body
        assert answer.status == 200 or answer.error.startswith(("image", "the body"))
        found.add(answer.status)
    assert 400 in found


def test_texts_and_profiles_that_inflate_are_not_inflated(server):
    bomb = zlib.compress(bytes(200 << 20), 9)
    for kind, head in ((b"zTXt", b"key\0\0"), (b"iCCP", b"name\0\0"), (b"iTXt", b"key\0\1\0\0\0")):
        before = server.memory()
        assert server.post(CLASSIFY, png(100, 100, chunk(kind, head + bomb))).status in (200, 400)
        assert server.memory() - before < 32 << 20


@pytest.mark.parametrize("length", [1 << 31, 0xF0000000, 0xFFFFFFF4, 0xFFFFFFFF, 1 << 20])
@pytest.mark.parametrize("at", [8, 33], ids=["of the header", "of the pixels"])
def test_a_png_whose_chunk_says_it_is_huge_takes_no_memory(server, at, length):
    """The decoder would set aside as much as the length says, and fill it: 4 GB and three seconds for 70 bytes."""
    data = bytearray(colour_png(1))
    data[at : at + 4] = struct.pack(">I", length)
    began, highest = time.monotonic(), peak(server)
    assert server.post(CLASSIFY, bytes(data)).status == 400
    assert time.monotonic() - began < 1
    assert peak(server) - highest < 16 << 20


def cpu(server):
    """The seconds of processor time that the process has had."""
    times = psutil.Process(server.process.pid).cpu_times()
    return times.user + times.system


def peak(server):
    """The most memory that the process ever held."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10
