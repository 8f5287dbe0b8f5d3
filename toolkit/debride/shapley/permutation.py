"""Shapley values by sampled permutations (Castro, Gomez and Tejada 2009), walked from the whole network downwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from debride.errors import UsageError
from debride.shapley.budget import Budget, CountedGame, Ledger
from debride.shapley.moments import Moments
from debride.shapley.orders import draw_orders
from debride.shapley.stopping import leaders_part
from debride.shapley.walk import Table, open_table, walk
from debride.types import DoubleArray, Game, IntArray, ShapleyValues


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    epsilon: float
    discard: float
    antithetic: bool
    walkers: int
    top: int | None
    batch: int

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise UsageError(f"epsilon is {self.epsilon}: give a probability between 0 and 1")
        if not self.discard >= 0:
            raise UsageError(f"the discarding threshold is {self.discard}: give 0 (off) or more")
        if self.walkers < 1 or self.walkers % self.unit:
            raise UsageError(f"{self.walkers} walkers: give 1 or more, an even number with antithetic orders")
        if self.top is not None and self.top < 1:
            raise UsageError(f"top is {self.top}: give 1 or more leaders, or None to spend the whole budget")
        if self.batch < 1:
            raise UsageError(f"batch is {self.batch}: give 1 or more coalitions for each call of the game")

    @property
    def unit(self) -> int:
        """Walks that make one independent draw: an order and its reverse are one."""
        return 2 if self.antithetic else 1


def permutation(
    game: Game,
    *,
    budget: Budget,
    seed: int,
    players: IntArray | None = None,
    epsilon: float = 1.0,
    discard: float = 0.0,
    antithetic: bool = True,
    walkers: int = 8,
    top: int | None = None,
    batch: int | None = None,
) -> ShapleyValues:
    """Values of `players` (all by default) of a game in M payoffs, from permutations walked in lockstep.

    Each walk starts with everybody present and removes one player after another, so that its first marginals lie
    where pruning does. `walkers` permutations are walked side by side: one call of the game holds one coalition of
    each, or up to `batch` coalitions (default `walkers`) by looking several steps ahead.

    `players`, int64 (S,) distinct indices, are the only ones sampled; the others stay present always. The values are
    then those of this restricted game, `empty` is its payoff without `players`, and the others' values are NaN.

    An order is uniformly random with probability `epsilon`, else greedy: most valuable in payoff 0 first, with an
    `epsilon` share of random places. Once a coalition's payoff 0 is within `discard` of the empty coalition's, the rest
    of that walk gets marginal zero in every payoff without being played (Ghorbani and Zou 2019; Guan et al. 2022).
    The estimate is unbiased with `epsilon` 1 and `discard` 0. A greedy order weighs the marginals of the valuable
    towards the whole network and of the worthless towards the empty one; `discard` takes what little is left of
    payoff 0 (at most `discard` a walk) from late players, and all that late players hold of the other payoffs.

    With `antithetic` each random order is paired with its reverse (`walkers` must be even). `top` stops when the
    `top` leaders in payoff 0 part from the rest (`leaders_part`), which sets `converged`. Otherwise the budget ends
    it; it must bound evaluations (2 or more) or seconds. Walks it cuts short count only if not even the first were
    whole: they hold early marginals alone, and who was never reached is NaN. Whole walks sum to grand - empty.

    `counts` are walks; `stderr` is taken over independent draws, so over pairs with `antithetic`.
    Raises `UsageError` for arguments out of range, `ModelError` where a payoff is not finite.
    """
    options = _Options(
        epsilon=epsilon,
        discard=discard,
        antithetic=antithetic,
        walkers=walkers,
        top=top,
        batch=walkers if batch is None else batch,
    )
    if budget.evaluations is None and budget.seconds is None:
        raise UsageError("permutations can be sampled for ever: bound the evaluations or the seconds of the budget")
    ledger = Ledger(budget)
    play = CountedGame(game, ledger)
    table = open_table(play, _checked_players(players, game.n_players))
    moments, counts, converged = _sample(table, options, np.random.default_rng(seed))
    return ShapleyValues(
        values=_spread(moments.values(), table.players, game.n_players),
        stderr=_spread(moments.stderr(), table.players, game.n_players),
        counts=np.bincount(table.players, counts, game.n_players).astype(np.int64),
        empty=table.empty,
        grand=table.grand,
        evaluations=ledger.spent,
        passes=0,
        seed=seed,
        converged=converged,
        estimator="permutation",
    )


def _checked_players(players: IntArray | None, n: int) -> IntArray:
    """The sampled players as int64 (S,)."""
    if players is None:
        return np.arange(n)
    players = np.asarray(players, np.int64)
    if players.ndim != 1 or not len(players) or len(np.unique(players)) != len(players):
        raise UsageError("players: give one or more distinct indices, each once")
    if players.min() < 0 or players.max() >= n:
        raise UsageError(f"players: index {players.min()} to {players.max()} in a game of {n} players")
    return players


def _sample(table: Table, options: _Options, rng: np.random.Generator) -> tuple[Moments, IntArray, bool]:
    """Rounds of walks until the leaders part or the budget ends; moments, walks per player, and whether they parted."""
    moments = Moments(len(table.players), len(table.grand))
    counts = np.zeros(len(table.players), np.int64)
    while walks := _round(table, options, first=not counts.any()):
        estimates = moments.values()[:, 0]
        orders = draw_orders(rng, estimates, walks, epsilon=options.epsilon, antithetic=options.antithetic)
        marginals, seen = walk(table, orders, discard=options.discard, batch=options.batch)
        whole = bool(seen.all())
        if not whole and counts.any():
            break
        counts += seen.sum(axis=0)
        if whole and walks % options.unit == 0:
            moments.add(marginals.reshape(-1, options.unit, *marginals.shape[1:]).mean(axis=1))
        else:
            moments.add(marginals, seen)
        if options.top and leaders_part(moments.values()[:, 0], moments.stderr()[:, 0], moments.n, options.top):
            return moments, counts, True
        if not whole or not table.cost:  # a single player's value is known for good after one walk
            break
    return moments, counts, False


def _round(table: Table, options: _Options, *, first: bool) -> int:
    """How many walks to start next: as many as surely end within the budget, in whole units; 0 ends the sampling."""
    ledger = table.play.ledger
    if ledger.expired and not first:
        return 0
    fits = min(options.walkers, ledger.left // max(table.cost, 1))
    if fits >= options.unit or not table.cost:
        return max(fits // options.unit, 1) * options.unit
    if first:
        return 1 if fits else min(options.unit, ledger.left)
    # With discarding, walks may well end early: worth a try, and dropped if they do not.
    return options.unit if options.discard > 0 and ledger.left >= options.unit else 0


def _spread(rows: DoubleArray, players: IntArray, n: int) -> DoubleArray:
    """`rows` (S, M) put at `players` of an array (n, M) that is NaN elsewhere."""
    spread = np.full((n, rows.shape[1]), np.nan)
    spread[players] = rows
    return spread
