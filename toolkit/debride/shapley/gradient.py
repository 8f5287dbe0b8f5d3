"""Values from gradients of the multilinear extension (Owen 1972): every player's marginal in one backward pass."""

from __future__ import annotations

import numpy as np

from debride.errors import ModelError, UsageError
from debride.shapley.budget import Budget, CountedGame, Ledger
from debride.shapley.moments import Moments
from debride.shapley.walk import open_table
from debride.types import BoolArray, DifferentiableGame, DoubleArray, ShapleyValues


def gradient(
    game: DifferentiableGame,
    *,
    passes: int,
    batch: int,
    low: float = 0.0,
    high: float = 1.0,
    seed: int,
    budget: Budget | None = None,
) -> ShapleyValues:
    """Values of all players from `passes` calls of `game.marginals` with `batch` random coalitions each.

    Shapley's value is the integral over q in [0, 1] of the expected marginal of a player in a coalition that each
    other player joins with probability q. Other bounds 0 <= `low` < `high` <= 1 give a semivalue (Dubey, Neyman and
    Weber 1981): [0.5, 1] asks what a player is worth in a network that is still largely whole, and its values do not
    sum to grand - empty. Exact and unbiased where the payoff is multilinear; on a network, first order and biased.

    A pass is a complete draw of its own: q is stratified over its coalitions, which come in antithetic pairs (q and
    its mirror image, and for [0, 1] a coalition and its complement); `batch` is rounded down to an even number, at
    least 2. `stderr` is taken over passes (infinite with one), `counts` are coalitions. The `budget` bounds the
    seconds (one pass is always made) and pays 2 evaluations, for `empty` and `grand`. `converged` is False.
    Raises `UsageError` for arguments out of range, `ModelError` where a payoff or a marginal is not finite.
    """
    ledger = Ledger(budget or Budget())
    table = open_table(CountedGame(game, ledger), np.arange(game.n_players))
    moments, done = screened(game, passes=passes, batch=batch, span=(low, high), seed=seed, ledger=ledger)
    return ShapleyValues(
        values=moments.values(),
        stderr=moments.stderr(),
        counts=np.full(game.n_players, done * _even(batch)),
        empty=table.empty,
        grand=table.grand,
        evaluations=ledger.spent,
        passes=done,
        seed=seed,
        converged=False,
        estimator="gradient",
    )


def screened(
    game: DifferentiableGame, *, passes: int, batch: int, span: tuple[float, float], seed: int, ledger: Ledger
) -> tuple[Moments, int]:
    """Moments over passes of the first-order marginals with q in `span`, and the number of passes made."""
    low, high = span
    if not 0 <= low < high <= 1:
        raise UsageError(f"q between {low} and {high}: give 0 <= low < high <= 1")
    if passes < 1 or batch < 1:
        raise UsageError(f"{passes} passes of {batch} coalitions: give 1 or more of each")
    rng = np.random.default_rng(seed)
    mean = _pass(game, rng, batch, low, high)
    moments, done = Moments(*mean.shape), 1
    moments.add(mean[None])
    while done < passes and not ledger.expired:
        moments.add(_pass(game, rng, batch, low, high)[None])
        done += 1
    return moments, done


def draw_coalitions(rng: np.random.Generator, players: int, pairs: int, low: float, high: float) -> BoolArray:
    """`pairs` antithetic pairs of Bernoulli(q) coalitions, bool (2 * pairs, players), in random order.

    q is stratified over the lower half of [low, high]; each pair's second coalition has the mirror image of its q.
    """
    half = (high - low) / 2
    q = (low + half * (np.arange(pairs) + rng.random(pairs)) / pairs)[:, None]
    u = rng.random((pairs, players))
    coalitions = np.concatenate([u < q, 1 - u <= low + high - q])
    # A game takes its images in turn: without shuffling, an image would meet the same stratum in every pass.
    return coalitions[rng.permutation(2 * pairs)]


def _pass(game: DifferentiableGame, rng: np.random.Generator, batch: int, low: float, high: float) -> DoubleArray:
    """Mean marginals (P, M) over one stratified draw of coalitions (B, P)."""
    coalitions = draw_coalitions(rng, game.n_players, _even(batch) // 2, low, high)
    marginals = np.asarray(game.marginals(coalitions), np.float64)
    if marginals.ndim != 3 or marginals.shape[::2] != coalitions.shape:
        raise UsageError(f"marginals of shape {marginals.shape} for coalitions {coalitions.shape}: want (B, M, P)")
    mean: DoubleArray = marginals.mean(axis=0).T
    if not np.isfinite(mean).all():
        raise ModelError("a marginal is not a finite number: check the model for NaN weights and its input range")
    return mean


def _even(batch: int) -> int:
    return max(2, batch - batch % 2)
