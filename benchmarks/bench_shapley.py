"""The permutation estimator beside shapiq's: its own time on large games, and its error on a small one.

Run `OMP_NUM_THREADS=1 python benchmarks/bench_shapley.py`. Both are timed in this one run and play the same number of
coalitions; the time spent inside the game is subtracted. Compare the ratios: seconds depend on the machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import numpy as np
from shapiq.approximator import PermutationSamplingSV

from debride.shapley import Budget, permutation
from debride.types import BoolArray, DoubleArray

SMALL, TERMS, SEEDS = 12, 40, 50


class Dummy:
    """A game that costs next to nothing, and adds up what it did cost."""

    def __init__(self, players: int) -> None:
        self.n_players = players
        self.seconds = 0.0
        self.coalitions = 0

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, 1), all zero."""
        start = perf_counter()
        payoffs = np.zeros((len(coalitions), 1))
        self.coalitions += len(coalitions)
        self.seconds += perf_counter() - start
        return payoffs


class Polynomial:
    """A random multilinear polynomial: each term is worth its coefficient where all its members are present."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.n_players = SMALL
        self.terms = rng.random((TERMS, SMALL)) < 3 / SMALL
        self.coefficients = rng.normal(size=TERMS)

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, 1)."""
        absent = (~coalitions).astype(float) @ self.terms.T.astype(float)
        return np.asarray((absent == 0) @ self.coefficients[:, None])

    def values(self) -> DoubleArray:
        """Shapley's values in closed form: a term is shared equally by its members."""
        members = np.maximum(self.terms.sum(axis=1, keepdims=True), 1)
        return np.asarray((self.terms / members).T @ self.coefficients)


def ours(game: Dummy | Polynomial, budget: int, seed: int, batch: int | None = None) -> DoubleArray:
    """Values (P,) of payoff 0."""
    return permutation(game, budget=Budget(evaluations=budget), seed=seed, batch=batch).values[:, 0]


def theirs(game: Dummy | Polynomial, budget: int, seed: int) -> DoubleArray:
    """Values (P,) by shapiq."""
    sampler = PermutationSamplingSV(n=game.n_players, random_state=seed)
    found = sampler.approximate(budget, lambda z: game(np.atleast_2d(z))[:, 0])
    return np.array([found[(player,)] for player in range(game.n_players)])


def own_seconds(estimate: Callable[[Dummy, int], DoubleArray], players: int, walks: int, repeats: int) -> float:
    """The least time of `repeats` runs that was not spent in the game."""
    times = []
    for _ in range(repeats):
        game, start = Dummy(players), perf_counter()
        estimate(game, 2 + walks * (players - 1))
        times.append(perf_counter() - start - game.seconds)
        if game.coalitions != 2 + walks * (players - 1):
            raise RuntimeError(f"{game.coalitions} coalitions played: the comparison would not be fair")
    return min(times)


def time_table(walks: int) -> None:
    """Own time per number of players."""
    print(f"own seconds of {walks} permutations, game time subtracted")
    print(f"{'players':>8} {'shapiq':>9} {'ours':>9} {'ratio':>7} {'batch=256':>10} {'ratio':>7}")
    for players in (512, 2048, 5000):
        rival = own_seconds(lambda g, b: theirs(g, b, 0), players, walks, 1)
        step = own_seconds(lambda g, b: ours(g, b, 0), players, walks, 3)
        ahead = own_seconds(lambda g, b: ours(g, b, 0, 256), players, walks, 3)
        print(f"{players:8d} {rival:9.3f} {step:9.4f} x{rival / step:6.0f} {ahead:10.4f} x{rival / ahead:6.0f}")


def error_table() -> None:
    """Root mean square error over games and seeds, at equal budgets."""
    print(f"\nRMS error against closed-form values, {SMALL} players, {SEEDS} games, equal budget of evaluations")
    print(f"{'budget':>8} {'shapiq':>9} {'ours':>9} {'ratio':>7}")
    for budget in (100, 500, 2000):
        errors = np.zeros(2)
        for seed in range(SEEDS):
            game = Polynomial(seed)
            for i, estimate in enumerate((theirs, ours)):
                errors[i] += np.mean((estimate(game, budget, seed) - game.values()) ** 2) / SEEDS
        rival, own = np.sqrt(errors)
        print(f"{budget:8d} {rival:9.4f} {own:9.4f} x{rival / own:6.2f}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--walks", type=int, default=2, help="permutations for each timing, even (default 2)")
    time_table(parser.parse_args().walks)
    error_table()


if __name__ == "__main__":
    main()
