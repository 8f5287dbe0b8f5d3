"""Image files to rows of a model's input: small ones on the event loop, all others in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any

import numpy.typing as npt

from debride.framing import scaled_size
from debride.imagesize import image_size
from debride.serve import Classifier
from debride.sessions import usable_cores
from debride.types_input import InputSpec

from .errors import Unavailable

Row = npt.NDArray[Any]

# What is decoded on the event loop, since handing over takes longer: a millisecond at most for what encoders write.
_FEW_BYTES = 1 << 14
_FEW_PIXELS = 1 << 16
# An image of three colours takes 2.35 times its own bytes while it is decoded and scaled.
_BYTES_PER_PIXEL = 7.05
_MEMORY = 1 << 30


def is_quick(data: bytes, spec: InputSpec) -> bool:
    """Whether the image file `data` becomes a row of `spec` within about a millisecond.

    Raises `ImagesError` naming `image` where the file has no readable size, or one that cannot be scaled.
    """
    if len(data) > _FEW_BYTES:
        return False
    height, width = image_size(data, "image")
    scaled = scaled_size((height, width), spec.size, spec.short_side, "image")
    return height * width <= _FEW_PIXELS and height * width + scaled[0] * scaled[1] <= 2 * _FEW_PIXELS


def threads_for(max_pixels: int) -> int:
    """How many images of up to `max_pixels` are decoded at the same time: by cores and memory, but never one alone."""
    return max(2, min(4, usable_cores(), int(_MEMORY // (_BYTES_PER_PIXEL * max_pixels))))


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Row] | None
    answer: asyncio.Future[Row]
    loop: asyncio.AbstractEventLoop


class Decoders:
    """Threads that decode images; `prepared` and `close` belong to the event loop's thread.

    They are daemons, which no executor's threads are: one that a file keeps busy must not keep the process alive.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._pending: set[asyncio.Future[Row]] = set()
        self._threads: list[Thread] = []
        self._open = True

    async def prepared(self, classifier: Classifier, data: bytes) -> Row:
        """An image file as a row of the classifier's input.

        Raises `ImagesError` naming `image` where it cannot be used, `Unavailable` where the server stops. Where the
        caller gives up, what waits is dropped, and what is being decoded comes to an end unheard.
        """

        def work() -> Row:
            return classifier.prepare(data, "image", max_pixels=self._max_pixels)

        return work() if is_quick(data, classifier.spec) else await self._elsewhere(work)

    def close(self) -> None:
        """Takes no more images, refuses those that wait, and lets the threads end without waiting for them."""
        self._open = False
        for answer in self._pending:
            if not answer.done():
                answer.set_exception(_stopping())
        for _ in self._threads:
            self._jobs.put(None)

    async def _elsewhere(self, work: Callable[[], Row]) -> Row:
        if not self._open:
            raise _stopping()
        if not self._threads:
            names = [f"decode-{n}" for n in range(threads_for(self._max_pixels))]
            self._threads = [Thread(target=self._work, name=name, daemon=True) for name in names]
            for thread in self._threads:
                thread.start()
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Row] = loop.create_future()
        job = _Job(work, answer, loop)
        self._pending.add(answer)
        try:
            self._jobs.put(job)
            return await answer
        finally:
            self._pending.discard(answer)
            job.work = None  # the queue would hold the file's bytes, which are no longer counted

    def _work(self) -> None:
        # No name here holds the last image while the next is waited for.
        while _done(self._jobs.get()):
            pass


def _done(job: _Job | None) -> bool:
    """Does the job, if there is one left to do. Whether there will be more."""
    if job is None:
        return False
    work = job.work
    if work is None:  # its time is over, its client has gone, or the server stops
        return True
    found: Row | Exception
    try:
        found = work()
    except Exception as error:  # a thread that dies would leave every later image without an answer
        found = error
    with suppress(RuntimeError):  # the loop has closed meanwhile
        job.loop.call_soon_threadsafe(_deliver, job.answer, found)
    return True


def _deliver(answer: asyncio.Future[Row], found: Row | Exception) -> None:
    if answer.done():
        return
    if isinstance(found, Exception):
        answer.set_exception(found)
    else:
        answer.set_result(found)


def _stopping() -> Unavailable:
    return Unavailable("the server is shutting down")
