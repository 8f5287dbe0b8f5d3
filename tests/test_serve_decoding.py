"""Which images are decoded where, and that no image keeps a stopping server from ending."""

import asyncio
import gc
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from debride.errors import ImagesError
from tiny import tiny_spec

pytest.importorskip("starlette")
decoding = pytest.importorskip("debride.serve.http.decoding")
Unavailable = pytest.importorskip("debride.serve.http.errors").Unavailable


def png(height, width, seed=None):
    pixels = np.zeros((height, width), np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    return cv2.imencode(".png", pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("data", "short_side", "quick"),
    [
        pytest.param(png(28, 28), None, True, id="small"),
        pytest.param(png(256, 256), None, True, id="the most pixels"),
        pytest.param(png(256, 257), None, False, id="a column more"),
        pytest.param(png(256, 64, seed=0), None, False, id="few pixels in many bytes"),
        pytest.param(png(120, 120, seed=0), None, True, id="not quite so many bytes"),
        pytest.param(png(192, 256), 224, True, id="enlarged a little"),
        pytest.param(png(16, 4091), 224, False, id="few pixels that scaling makes many"),
        pytest.param(png(8, 8), 512, False, id="a large model"),
        pytest.param(png(8, 8) + bytes(1 << 14), None, False, id="bytes after the end"),
    ],
)
def test_what_takes_longer_than_a_millisecond_is_not_decoded_on_the_loop(data, short_side, quick):
    assert decoding.is_quick(data, tiny_spec(short_side=short_side)) is quick


def test_the_size_that_a_model_wants_counts_too():
    assert decoding.is_quick(png(8, 8), tiny_spec(size=(361, 362)))
    assert not decoding.is_quick(png(8, 8), tiny_spec(size=(362, 362)))


@pytest.mark.parametrize(
    ("cores", "pixels", "threads"), [(1, 1 << 25, 2), (3, 1 << 25, 3), (64, 1 << 25, 4), (64, 1 << 26, 2), (2, 1, 2)]
)
def test_threads_are_as_many_as_cores_and_memory_allow(cores, pixels, threads, monkeypatch):
    monkeypatch.setattr(decoding, "usable_cores", lambda: cores)
    assert decoding.threads_for(pixels) == threads


class Slow:
    """Stands for a classifier: each image holds its thread until `go` is set."""

    def __init__(self):
        self.spec = tiny_spec()
        self.go = threading.Event()
        self.began = []

    def prepare(self, data, name, *, max_pixels):
        self.began.append((data, name, max_pixels, threading.current_thread().name))
        assert self.go.wait(60)
        if data.endswith(b"bad"):
            raise ImagesError(f"{name}: is bad")
        return np.full(1, len(data))


def large(n, end=b""):
    return png(8, 8) + bytes((1 << 14) + n) + end


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(decoding, "usable_cores", lambda: 2)


async def until(holds):
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.01)


def test_large_images_are_decoded_two_at_a_time_beside_the_loop_and_each_gets_its_own_answer(two_threads):
    async def main():
        slow, decoders = Slow(), decoding.Decoders(1000)
        files = [large(n) for n in range(6)] + [large(0, b"bad")]
        asked = [asyncio.ensure_future(decoders.prepared(slow, data)) for data in files]
        await until(lambda: len(slow.began) == 2)
        await asyncio.sleep(0.1)
        assert len(slow.began) == 2  # the loop is free, and the others wait
        slow.go.set()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert [int(row[0]) for row in found[:-1]] == [len(data) for data in files[:-1]]
        assert isinstance(found[-1], ImagesError)
        assert {name for _, _, _, name in slow.began} == {"decode-0", "decode-1"}
        assert {(name, most) for _, name, most, _ in slow.began} == {("image", 1000)}
        decoders.close()

    asyncio.run(main())


def test_small_images_are_decoded_at_once_without_any_thread():
    async def main():
        slow, decoders = Slow(), decoding.Decoders(1000)
        slow.go.set()
        assert int((await decoders.prepared(slow, png(8, 8)))[0]) == len(png(8, 8))
        assert slow.began[0][3] == threading.current_thread().name
        decoders.close()

    asyncio.run(main())


def test_an_image_whose_time_is_over_is_not_decoded_and_not_held(two_threads):
    async def main():
        slow, decoders = Slow(), decoding.Decoders(1000)
        first = [asyncio.ensure_future(decoders.prepared(slow, large(n))) for n in range(2)]
        await until(lambda: len(slow.began) == 2)
        data = large(50)
        held = sys.getrefcount(data)
        waiting = asyncio.ensure_future(decoders.prepared(slow, data))
        await asyncio.sleep(0.05)
        waiting.cancel()
        await asyncio.wait([waiting])
        del waiting
        gc.collect()
        assert sys.getrefcount(data) == held
        slow.go.set()
        await asyncio.gather(*first)
        assert int((await decoders.prepared(slow, large(7)))[0]) == len(large(7))
        assert data not in [given for given, *_ in slow.began]
        decoders.close()

    asyncio.run(main())


def test_closing_refuses_what_waits_and_waits_for_nothing(two_threads):
    async def main():
        slow, decoders = Slow(), decoding.Decoders(1000)
        asked = [asyncio.ensure_future(decoders.prepared(slow, large(n))) for n in range(5)]
        await until(lambda: len(slow.began) == 2)
        began = time.monotonic()
        decoders.close()
        found = await asyncio.gather(*asked, return_exceptions=True)
        assert time.monotonic() - began < 10  # an image would hold it for 60
        assert [type(one) for one in found] == [Unavailable] * 5
        with pytest.raises(Unavailable, match="shutting down"):
            await decoders.prepared(slow, large(0))
        slow.go.set()
        await until(lambda: not any(thread.name.startswith("decode-") for thread in threading.enumerate()))
        assert len(slow.began) == 2

    asyncio.run(main())


def test_a_thread_outlives_whatever_an_image_does_to_it(two_threads):
    async def main():
        broken = SimpleNamespace(spec=tiny_spec(), prepare=lambda *_, **__: 1 / 0)
        decoders = decoding.Decoders(1000)
        for _ in range(5):
            with pytest.raises(ZeroDivisionError):
                await decoders.prepared(broken, large(0))
        decoders.close()

    asyncio.run(main())


STUCK = """
import asyncio, sys, threading, time
sys.path[:0] = sys.argv[2:]
from types import SimpleNamespace
import cv2, numpy as np
from debride.serve.http.decoding import Decoders
from debride.serve.http.leaving import leave
from tiny import tiny_spec

pixels = np.zeros((4000, 4000), np.uint8)
begun = threading.Event()

def prepare(*_, **__):
    while True:
        begun.set()
        cv2.medianBlur(pixels, 5) if sys.argv[1] == "computes" else time.sleep(600)

async def main():
    decoders = Decoders(1000)
    asked = asyncio.ensure_future(decoders.prepared(SimpleNamespace(spec=tiny_spec(), prepare=prepare), bytes(1 << 15)))
    await asyncio.to_thread(begun.wait, 60)
    decoders.close()
    await asyncio.gather(asked, return_exceptions=True)

asyncio.run(main())
leave(3)
"""


@pytest.mark.parametrize("what", ["sleeps", "computes"])
def test_a_process_ends_with_its_own_exit_code_while_an_image_keeps_a_thread_busy(what):
    """Ended as usual, it would be aborted when OpenCV comes back to an interpreter that is gone."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", STUCK, what, *sys.path], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (3, "")


def test_a_process_whose_threads_are_idle_ends_as_usual():
    code = STUCK.replace("while True:", "for _ in range(1):").replace("time.sleep(600)", "None") + "\nprint('usual')"
    done = subprocess.run(
        [sys.executable, "-c", code, "sleeps", *sys.path], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "usual\n", "")
