"""Walking permutations in lockstep, from everybody down to nobody, with discarding and within a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from debride.shapley.budget import CountedGame
from debride.types import BoolArray, DoubleArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """The game between two coalitions that differ by `players` int64 (S,): payoffs (M,) with all and none of them."""

    play: CountedGame
    players: IntArray
    empty: DoubleArray
    grand: DoubleArray

    @property
    def cost(self) -> int:
        """Evaluations of one whole walk: both of its ends are known."""
        return len(self.players) - 1


def open_table(play: CountedGame, players: IntArray) -> Table:
    """Play the two end coalitions (two evaluations); everybody outside `players` is present in both."""
    ends = np.ones((2, play.n_players), np.bool_)
    ends[0, players] = False
    empty, grand = play(ends)
    return Table(play=play, players=players, empty=empty, grand=grand)


def walk(table: Table, orders: IntArray, *, discard: float, batch: int) -> tuple[DoubleArray, BoolArray]:
    """Marginals float64 (W, S, M) of every player in each of `orders` (W, S), and which of them were seen, (W, S).

    Each call of the game holds at most `batch` coalitions, and at least one for each walker that still walks.
    """
    walkers, size = orders.shape
    rows = np.arange(walkers)
    path = np.empty((walkers, size + 1, len(table.grand)))
    path[:, 0], path[:, size] = table.grand, table.empty
    place = np.full((walkers, table.play.n_players), size, np.int32)
    place[rows[:, None], table.players[orders]] = np.arange(size, dtype=np.int32)
    removed, cut = 0, False
    while len(rows) and removed < size - 1:
        depth = _depth(table, len(rows), size - 1 - removed, batch)
        if not depth:
            cut = True
            break
        # A player is present as long as its place in the order has not been reached.
        steps = np.arange(removed + 1, removed + depth + 1, dtype=np.int32)
        coalitions = (place[:, None, :] >= steps[:, None]).reshape(-1, place.shape[1])
        path[rows, removed + 1 : removed + depth + 1] = table.play(coalitions).reshape(len(rows), depth, -1)
        if discard > 0:
            goes_on = _discard(path, rows, range(removed + 1, removed + depth + 1), table.empty[0], discard)
            if not goes_on.all():
                rows, place = rows[goes_on], place[goes_on]
        removed += depth
    reached = np.full(walkers, size)
    if cut:
        reached[rows] = removed
    return _by_player(path, orders, reached)


def _depth(table: Table, walkers: int, steps: int, batch: int) -> int:
    """How many of the `steps` left to take in one call of the game; 0 where the budget ends the walk."""
    if table.play.ledger.expired:
        return 0
    return min(steps, max(1, batch // walkers), table.play.ledger.left // walkers)


def _discard(path: DoubleArray, rows: IntArray, steps: range, empty: float, discard: float) -> BoolArray:
    """Level the path of every walker whose payoff 0 came within `discard` of `empty`; which of `rows` walk on."""
    near = np.abs(path[rows, steps.start : steps.stop, 0] - empty) <= discard
    hit = np.asarray(near.any(axis=1))
    for row, first in zip(rows[hit], near[hit].argmax(axis=1), strict=True):
        path[row, steps.start + first + 1 :] = path[row, steps.start + first]
    return np.logical_not(hit)


def _by_player(path: DoubleArray, orders: IntArray, reached: IntArray) -> tuple[DoubleArray, BoolArray]:
    """Differences along each walker's path, put where the player removed at that step is."""
    walkers, size = orders.shape
    rows = np.arange(walkers)[:, None]
    marginals = np.empty((walkers, size, path.shape[2]))
    marginals[rows, orders] = path[:, :-1] - path[:, 1:]
    seen = np.empty((walkers, size), np.bool_)
    seen[rows, orders] = np.arange(size) < reached[:, None]
    return marginals, seen
