"""Exact Shapley values by playing every coalition: for tests and tiny games."""

from __future__ import annotations

from math import comb

import numpy as np

from debride.errors import UsageError
from debride.shapley.budget import Budget, CountedGame, Ledger
from debride.types import Game, ShapleyValues

MAX_PLAYERS = 16
_BATCH = 4096


def exact_values(game: Game) -> ShapleyValues:
    """Shapley values (Shapley 1953) of a game of P <= 16 players, by all 2**P coalitions; stderr is 0.

    Raises `UsageError` for more players, `ModelError` where a payoff is not finite.
    """
    n = game.n_players
    if n > MAX_PLAYERS:
        raise UsageError(f"{n} players have 2**{n} coalitions: sample them with `permutation`, or take {MAX_PLAYERS}")
    ledger = Ledger(Budget())
    play = CountedGame(game, ledger)
    present = (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.bool_)
    payoffs = np.concatenate([play(present[i : i + _BATCH]) for i in range(0, 2**n, _BATCH)])
    # A player joins a coalition of s others in s! (n - s - 1)! of the n! orders: a share of 1 / (n * C(n - 1, s)).
    share = np.array([1 / (n * comb(n - 1, s)) for s in range(n)] + [0.0])
    size = present.sum(axis=1)
    weights = np.where(present, share[size - 1, None], -share[size, None])
    return ShapleyValues(
        values=weights.T @ payoffs,
        stderr=np.zeros((n, payoffs.shape[1])),
        counts=np.full(n, 2 ** (n - 1)),
        empty=payoffs[0],
        grand=payoffs[-1],
        evaluations=ledger.spent,
        passes=0,
        seed=0,
        converged=True,
        estimator="exact",
    )
