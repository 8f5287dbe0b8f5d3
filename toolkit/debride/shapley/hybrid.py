"""Screen everybody by gradient, then let exactly played permutations decide among the few that matter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from debride.errors import UsageError
from debride.shapley.budget import Budget, Ledger
from debride.shapley.gradient import screened
from debride.shapley.moments import Moments
from debride.shapley.permutation import permutation
from debride.types import BoolArray, DifferentiableGame, DoubleArray, Game, IntArray, ShapleyValues


def hybrid(
    game: Game,
    *,
    screen: DifferentiableGame,
    budget: Budget,
    seed: int,
    shortlist: int = 12,
    top: int = 1,
    weight: float = 0.0,
    passes: int = 20,
    images: int = 64,
    low: float = 0.5,
    high: float = 1.0,
    epsilon: float = 1.0,
    discard: float = 0.0,
    walkers: int = 8,
    batch: int | None = None,
) -> ShapleyValues:
    """Values of all players: screened by `gradient` on `screen`, the leaders decided by `permutation` on `game`.

    The `shortlist` players of the highest screened score, payoff 0 - `weight` * payoff 1, are played until the `top`
    leaders in that score part from the rest of the list (`converged`) or the budget is spent. They play the
    *restricted* game, in which everybody off the list is present: their values are the Shapley values of that game,
    which asks what removing some of these few does to an otherwise whole network, and are not comparable with the
    screened ones beyond their rank. `empty` is the payoff with the shortlist absent.

    `screen` has the same players and payoffs; `passes`, `images` (coalitions a pass), `low` and `high` are those of
    `gradient`; `epsilon`, `discard`, `walkers` and `batch` those of `permutation`, where greedy orders and
    discarding go by the score. Screening makes no evaluations, and takes at most half of the budget's seconds.

    `counts` are walks played on `game`, and 0 where a player keeps its screened value and stderr.
    Raises `UsageError` for arguments out of range, `ModelError` where a payoff or marginal is not finite.
    """
    _check(game, screen, shortlist, top)
    ledger = Ledger(budget)
    half = Budget(seconds=None if budget.seconds is None else budget.seconds / 2)
    moments, done = screened(screen, passes=passes, batch=images, span=(low, high), seed=seed, ledger=Ledger(half))
    decided = permutation(
        _Scored(game, weight),
        budget=ledger.remaining(),
        seed=seed + 1,
        players=_shortlist(moments.mean, weight, shortlist),
        epsilon=epsilon,
        discard=discard,
        walkers=walkers,
        top=top,
        batch=batch,
    )
    return _merge(moments, decided, passes=done, seed=seed)


def _check(game: Game, screen: DifferentiableGame, shortlist: int, top: int) -> None:
    if screen.n_players != game.n_players:
        raise UsageError(f"{screen.n_players} players are screened and {game.n_players} played: give the same ones")
    if not 1 <= top <= shortlist:
        raise UsageError(f"{top} leaders of a shortlist of {shortlist}: give 1 <= top <= shortlist")


@dataclass(frozen=True, slots=True)
class _Scored:
    """The game with its score, payoff 0 - weight * payoff 1, put before its payoffs."""

    game: Game
    weight: float

    @property
    def n_players(self) -> int:
        return self.game.n_players

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        payoffs = self.game(coalitions)
        return np.concatenate([_score(payoffs, self.weight)[:, None], payoffs], axis=1)


def _score(payoffs: DoubleArray, weight: float) -> DoubleArray:
    """(N, M) -> (N,)."""
    if not weight:
        return payoffs[:, 0]
    if payoffs.shape[1] < 2:
        raise UsageError(f"weight is {weight} in a game of one payoff: give weight 0, or a game with a utility too")
    return np.asarray(payoffs[:, 0] - weight * payoffs[:, 1])


def _shortlist(screened_values: DoubleArray, weight: float, n: int) -> IntArray:
    """The `n` highest scores, best first; ties go to the lower index."""
    return np.argsort(-_score(screened_values, weight), kind="stable")[:n].astype(np.int64)


def _merge(moments: Moments, decided: ShapleyValues, *, passes: int, seed: int) -> ShapleyValues:
    """Decided values where there are any, screened ones elsewhere; without the column of scores."""
    if decided.values.shape[1] - 1 != moments.mean.shape[1]:
        raise UsageError(f"{moments.mean.shape[1]} payoffs are screened and {decided.values.shape[1] - 1} played")
    known = decided.counts[:, None] > 0
    return replace(
        decided,
        values=np.where(known, decided.values[:, 1:], moments.values()),
        stderr=np.where(known, decided.stderr[:, 1:], moments.stderr()),
        empty=decided.empty[1:],
        grand=decided.grand[1:],
        passes=passes,
        seed=seed,
        estimator="hybrid",
    )
