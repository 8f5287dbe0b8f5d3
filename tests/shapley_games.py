"""Closed-form games for the tests of the estimators."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from debride.types import BoolArray, DoubleArray


class Played:
    """A game from a function of coalitions (B, P) -> (B,) or (B, M) that keeps every batch it was asked for."""

    def __init__(self, n_players: int, payoff: Callable[[BoolArray], np.ndarray]) -> None:
        self.n_players = n_players
        self.batches: list[BoolArray] = []
        self._payoff = payoff

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        self.batches.append(coalitions.copy())
        payoffs = np.asarray(self._payoff(coalitions), float)
        return payoffs[:, None] if payoffs.ndim == 1 else payoffs

    @property
    def coalitions(self) -> int:
        return sum(len(b) for b in self.batches)


def additive(worth: np.ndarray) -> Played:
    """Every player adds its own worth, (P,) or (P, M): the values are the worth."""
    return Played(len(worth), lambda z: z @ worth)


def unanimity(n: int, carrier: list[int]) -> Played:
    """1 when the whole carrier is present: 1 / |carrier| for each of its members, 0 for the others."""
    return Played(n, lambda z: z[:, carrier].all(axis=1))


def voting(weights: np.ndarray, quota: float) -> Played:
    """1 when the weights present reach the quota."""
    return Played(len(weights), lambda z: z @ weights >= quota)


def glove(left: int, right: int) -> Played:
    """Each pair of a left and a right glove is worth 1."""
    return Played(left + right, lambda z: np.minimum(z[:, :left].sum(axis=1), z[:, left:].sum(axis=1)))


class Polynomial:
    """A multilinear polynomial in M payoffs: sum of coefficients (T, M) times products over rows of terms (T, P) bool.

    `noise` is added to each image's marginals; the payoffs themselves are exact.
    """

    def __init__(self, terms: BoolArray, coefficients: np.ndarray, noise: float = 0.0) -> None:
        self.terms, self.coefficients = terms, coefficients
        self.n_players = terms.shape[1]
        self.evaluations, self.passes = 0, 0
        self._noise, self._rng = noise, np.random.default_rng(99)

    @classmethod
    def random(cls, seed: int, players: int, terms: int, payoffs: int = 2, noise: float = 0.0) -> Polynomial:
        rng = np.random.default_rng(seed)
        chosen = rng.random((terms, players)) < 2.5 / players
        return cls(chosen, rng.normal(size=(terms, payoffs)), noise)

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        self.evaluations += len(coalitions)
        absent = (~coalitions).astype(float) @ self.terms.T.astype(float)
        return (absent == 0) @ self.coefficients

    def marginals(self, coalitions: BoolArray) -> DoubleArray:
        self.passes += 1
        absent = (~coalitions).astype(float) @ self.terms.T.astype(float)
        # A term moves with a player in it where it is whole, or where that player alone of it is absent.
        shares = self.terms[:, None, :] * self.coefficients[:, :, None]
        whole = np.tensordot((absent == 0).astype(float), shares, 1)
        lacking = np.tensordot((absent == 1).astype(float), shares, 1)
        exact = whole + lacking * ~coalitions[:, None, :]
        return exact + self._noise * self._rng.normal(size=exact.shape)

    def values(self) -> DoubleArray:
        """Shapley's values in closed form: each term is shared equally by its members."""
        shares = self.terms / np.maximum(self.terms.sum(axis=1, keepdims=True), 1)
        return shares.T @ self.coefficients
