"""Running mean and variance of many quantities at once, in one pass over batches."""

from __future__ import annotations

import numpy as np

from debride.types import BoolArray, DoubleArray, IntArray


class Moments:
    """Mean and spread per player and payoff, merged batch by batch (Chan, Golub and LeVeque 1979).

    `n` int64 (P,) counts independent units, `mean` float64 (P, M). A sum of squares kept beside the sum would cancel
    to nothing where marginals are all but constant, which is just where the stopping rule looks.
    """

    def __init__(self, players: int, payoffs: int) -> None:
        self.n: IntArray = np.zeros(players, np.int64)
        self.mean: DoubleArray = np.zeros((players, payoffs))
        self._m2: DoubleArray = np.zeros((players, payoffs))

    def add(self, units: DoubleArray, seen: BoolArray | None = None) -> None:
        """Take in `units` float64 (U, P, M); where `seen` (U, P) is False the entry is ignored."""
        if seen is None:
            seen = np.ones(units.shape[:2], np.bool_)
        n = seen.sum(axis=0)
        some = np.maximum(n, 1)[:, None]
        mean = np.where(seen[:, :, None], units, 0.0).sum(axis=0) / some
        m2 = (np.where(seen[:, :, None], units - mean, 0.0) ** 2).sum(axis=0)
        total = np.maximum(self.n + n, 1)[:, None]
        delta = mean - self.mean
        self._m2 += m2 + delta**2 * (self.n * n)[:, None] / total
        self.mean += delta * n[:, None] / total
        self.n += n

    def values(self) -> DoubleArray:
        """Means (P, M); NaN where no unit was seen."""
        return np.where(self.n[:, None] > 0, self.mean, np.nan)

    def stderr(self) -> DoubleArray:
        """Standard errors of the means (P, M); NaN where no unit was seen, infinite where only one was."""
        n = self.n[:, None]
        spread = np.sqrt(self._m2 / np.maximum(n - 1, 1) / np.maximum(n, 1))
        return np.where(n > 1, spread, np.where(n == 1, np.inf, np.nan))
