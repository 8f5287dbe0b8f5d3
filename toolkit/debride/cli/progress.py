"""How far a run is, on stderr: one bar per stage on a terminal, else lines now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

from debride.cli.guard import plain
from debride.types import WHOLE, Progress, no_progress

PER_SECOND = 4
EVERY = 30.0
"""Seconds between lines that tell how far a stage is, where there is no terminal."""


@contextmanager
def shown(quiet: bool) -> Iterator[Progress]:
    """The `Progress` to hand to a run; bars stay on the screen when it ends."""
    console = Console(stderr=True, markup=False, highlight=False)
    if quiet:
        yield no_progress
    elif not sys.stderr.isatty():  # not console.is_terminal, which FORCE_COLOR makes true in logs
        yield Lines(console)
    else:
        with live_bars(console) as live:
            yield Bars(live)


def live_bars(console: Console) -> RichProgress:
    """Rich's display: name, bar, share, time left (taken, at the end) and note."""
    return RichProgress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
        refresh_per_second=PER_SECOND,
    )


class Bars:
    """One bar per stage; a stage that begins again has its bar set back."""

    def __init__(self, live: RichProgress) -> None:
        self._live = live
        self._tasks: dict[str, tuple[TaskID, int]] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Moves the bar of `stage` to `done` of `total`; a `total` of 0 is not known yet."""
        goal = total or None
        if stage not in self._tasks:
            self._tasks[stage] = (self._live.add_task(plain(stage), total=goal, note=""), done)
        task, before = self._tasks[stage]
        if done < before:
            self._live.reset(task, total=goal)
        self._tasks[stage] = (task, done)
        self._live.update(task, completed=done, total=goal, note=plain(note))


class Lines:
    """One line per finished stage, with the seconds since the one before it; and every half minute how far it is.

    What is told of the stage `WHOLE` has no lines of its own: the others' say then how far the run is, too.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._clock = console, clock
        self._since = self._said = clock()
        self._stage, self._first = "", (0.0, 0)
        self._began: tuple[float, float] | None = None
        self._share = 0.0
        self._finished: set[str] = set()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Prints a line when `stage` reaches its `total`, and again when it has begun anew and does so again.

        Where the last line is half a minute old, one with the share that is done and the time left at this pace.
        """
        now, remark = self._clock(), f", {plain(note)}" if note else ""
        if stage == WHOLE:
            self._began = self._began or (now, done / total)
            self._share = done / total
            return
        if stage != self._stage:
            self._stage, self._first = stage, (now, done)
        if done < total:
            self._finished.discard(stage)
            since, before = self._first
            if now - self._said >= EVERY and done > before:
                left = (now - since) * (total - done) / (done - before)
                self._print(
                    f"{plain(stage)}: {done / total:.0%}, about {_span(left)} left{self._all(now)}{remark}", now
                )
        elif stage not in self._finished:
            self._finished.add(stage)
            self._print(f"{plain(stage)}: {now - self._since:.1f} s{remark}", now)
            self._since, self._stage = now, ""

    def _all(self, now: float) -> str:
        """How far the whole run is, and about how long the rest takes; "" where nobody told."""
        since, first = self._began or (now, 0.0)
        if not first < self._share < 1:
            return ""
        left = (now - since) * (1 - self._share) / (self._share - first)
        return f" ({WHOLE}: {self._share:.0%}, {_span(left)})"

    def _print(self, line: str, now: float) -> None:
        self._console.print(line, soft_wrap=True)
        self._said = now


def _span(seconds: float) -> str:
    """`40 s`, `5 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
