"""Dynamic batching: rows of requests that wait at the same time run through the model together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from threading import Condition, Thread
from time import monotonic
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError

from .errors import Busy, NoAnswer, TooLarge, Unavailable

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array], Sequence[str]], list[Array]]
"""Input tensors by name and the wanted output names -> those outputs, as `debride.sessions.Session.run`."""


_Answer = list[Array] | Exception
_BATCH_SECONDS = 0.1
_LARGEST_ROW = 16


class Watch(Protocol):
    """Who wants to know of every batch (the metrics)."""

    def batch(self, rows: int, waited: float, seconds: float) -> None:
        """`rows` ran in `seconds`; the oldest of them had waited `waited` seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How rows of one model may run together.

    `fixed` is the batch size that the graph insists on (0: any). `stackable` are the outputs whose rows are the same
    whatever else is in the batch: a request for any other output runs alone. `row_values` is how many values one row
    has by the model's spec: of larger ones, which open dimensions allow, fewer run together.
    """

    input: str
    fixed: int = 0
    stackable: frozenset[str] = frozenset()
    row_values: int = 0


@dataclass(slots=True, eq=False)
class _Job:
    rows: Array
    outputs: tuple[str, ...]
    key: Hashable
    answer: asyncio.Future[list[Array]]
    arrived: float = field(default_factory=monotonic)


class Batcher:
    """One model's queue, and the threads that empty it.

    `submit` is called on the event loop; batches run in `workers` threads, each taking what waits when it is free: a
    busy model gathers its next batch without waiting for it. `start` and `stop` belong to the loop's thread.
    """

    def __init__(
        self,
        run: Run,
        plan: Plan,
        *,
        max_batch: int = 8,
        max_delay: float = 0.0,
        limit: int = 256,
        workers: int = 1,
        watch: Watch | None = None,
    ) -> None:
        self._run, self._plan, self._watch = run, plan, watch
        self._most = plan.fixed or max_batch
        # A graph of a fixed batch of one gains nothing by waiting.
        self._delay, self._limit = (0.0 if plan.fixed == 1 else max_delay), limit
        self._jobs: deque[_Job] = deque()
        self._waiting = 0
        self._row_seconds = 0.0
        self._changed = Condition()
        self._open = False
        self._threads = [Thread(target=self._work, name=f"batch-{n}", daemon=True) for n in range(workers)]
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Rows in the queue, those that run not counted."""
        return self._waiting

    def start(self) -> None:
        """Starts the threads; answers are delivered on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._open = True
        for thread in self._threads:
            thread.start()

    async def stop(self, within: float = 60.0) -> None:
        """Takes no more rows, answers those that wait, and ends the threads.

        A model that does not come back `within` seconds is left to itself: its daemon thread ends with the process.
        """
        with self._changed:
            self._open = False
            self._changed.notify_all()
        until = monotonic() + within
        for thread in self._threads:
            await asyncio.to_thread(thread.join, max(until - monotonic(), 0))

    async def submit(self, rows: Array, outputs: tuple[str, ...]) -> list[Array]:
        """The tensors `outputs` for `rows` (N, ...) of the model's input, each with as many rows where it is stacked.

        Raises `Busy` where the queue is full, `Unavailable` where the server stops, `NoAnswer` where the model fails on
        these rows, `TooLarge` where they are too many for outputs that depend on the whole batch.
        """
        alone = not self._plan.stackable.issuperset(outputs)
        most = self._fitting(rows)
        if alone and len(rows) > most:
            raise TooLarge(
                f"inputs[0].shape: {len(rows)} rows exceed {most}, and outputs of this model that are asked for "
                "depend on all rows at once, so that they cannot be run in parts"
            )
        step = len(rows) if alone or self._plan.fixed else most
        jobs = [self._job(rows[at : at + step], outputs, alone) for at in range(0, len(rows), max(step, 1))]
        self._admit(jobs)
        if len(jobs) == 1:
            return await jobs[0].answer
        parts = await asyncio.gather(*(job.answer for job in jobs))
        return [np.concatenate(pieces) for pieces in zip(*parts, strict=True)]

    def _fitting(self, rows: Array) -> int:
        """How many such rows may run together. Raises `TooLarge` where one is too large by itself."""
        own = self._plan.row_values
        if not own or not len(rows):
            return self._most
        times = rows[0].size / own
        if times > _LARGEST_ROW:
            raise TooLarge(
                f"inputs[0].shape: rows of {rows[0].size} values are more than {_LARGEST_ROW} times the {own} of the "
                "size that the model is served for; send smaller images"
            )
        return self._plan.fixed or max(1, min(self._most, int(self._most / times)))

    def _job(self, rows: Array, outputs: tuple[str, ...], alone: bool) -> _Job:
        if self._loop is None:
            raise Unavailable("the server is not ready")
        key = object() if alone else (rows.shape[1:], outputs)
        return _Job(rows=rows, outputs=outputs, key=key, answer=self._loop.create_future())

    def _admit(self, jobs: Sequence[_Job]) -> None:
        rows = sum(len(job.rows) for job in jobs)
        with self._changed:
            if not self._open:
                raise Unavailable("the server is shutting down")
            # What is larger than the whole queue comes in when nothing waits: else it never could.
            if self._waiting and self._waiting + rows > self._limit:
                wait = max(1, ceil(self._waiting * self._row_seconds))
                raise Busy(f"{self._waiting} rows wait already; try again in {wait} s", {"Retry-After": str(wait)})
            self._jobs.extend(jobs)
            self._waiting += rows
            self._changed.notify(len(jobs))

    def _work(self) -> None:
        while batch := self._take():
            began = monotonic()
            found = self._answers(batch)
            seconds, rows = monotonic() - began, sum(len(job.rows) for job in batch)
            known = self._row_seconds or seconds / rows
            self._row_seconds = 0.8 * known + 0.2 * seconds / rows
            if self._watch is not None:
                self._watch.batch(rows, began - batch[0].arrived, seconds)
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(_deliver, batch, found)

    def _take(self) -> list[_Job]:
        """The next jobs to run together, in order of arrival; empty once stopped and drained."""
        with self._changed:
            while True:
                while not self._jobs:
                    if not self._open:
                        return []
                    self._changed.wait()
                left = self._jobs[0].arrived + self._delay - monotonic()
                if left > 0 and self._waiting < self._most and self._open:
                    self._changed.wait(left)
                elif taken := self._gathered():
                    return taken

    def _gathered(self) -> list[_Job]:
        """The oldest job and those that can run with it; empty where the clients of all have gone."""
        first = self._jobs[0]
        room = min(self._room(), self._fitting(first.rows))
        taken: list[_Job] = []
        left: deque[_Job] = deque()
        while self._jobs and room > 0:
            job = self._jobs.popleft()
            if job.answer.cancelled():  # its client has gone
                self._waiting -= len(job.rows)
            elif job.key == first.key and (len(job.rows) <= room or not taken):
                taken.append(job)
                room -= len(job.rows)
            else:
                left.append(job)
        self._jobs.extendleft(reversed(left))
        self._waiting -= sum(len(job.rows) for job in taken)
        if self._jobs:
            self._changed.notify()  # another worker may be free for what is left
        return taken

    def _room(self) -> int:
        """How many rows the next batch may have: of a slow model few, which gain nothing by waiting for more."""
        if self._plan.fixed or not self._row_seconds:
            return self._most
        return min(self._most, max(1, int(_BATCH_SECONDS / self._row_seconds)))

    def _answers(self, batch: Sequence[_Job]) -> list[_Answer]:
        try:
            return self._computed(batch)
        except ModelError as error:
            if len(batch) > 1:  # one of them may be to blame, and the others are not
                return [answer for job in batch for answer in self._answers([job])]
            return [NoAnswer(f"the model cannot take this input: {error}")]
        except Exception as error:  # a thread that dies would leave every later request without an answer
            return [error] * len(batch)

    def _computed(self, batch: Sequence[_Job]) -> list[_Answer]:
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([job.rows for job in batch])
        n, fixed = len(rows), self._plan.fixed
        if fixed and n < fixed:
            rows = np.concatenate([rows, np.repeat(rows[-1:], fixed - n, axis=0)])
        tensors = self._run({self._plan.input: rows}, batch[0].outputs)
        if len(batch) == 1:
            # A request that fills the graph's own batch gets whatever shape the output has.
            return [tensors if n == len(rows) else [tensor[:n] for tensor in tensors]]
        ends = np.cumsum([len(job.rows) for job in batch])
        return [[tensor[end - len(job.rows) : end] for tensor in tensors] for job, end in zip(batch, ends, strict=True)]


def _deliver(batch: Sequence[_Job], found: Sequence[_Answer]) -> None:
    for job, answer in zip(batch, found, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)
