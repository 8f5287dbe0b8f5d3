"""The orders in which players are removed: uniformly random, or epsilon-greedy on what is known so far."""

from __future__ import annotations

import numpy as np

from debride.types import DoubleArray, IntArray


def draw_orders(
    rng: np.random.Generator, estimates: DoubleArray, n: int, *, epsilon: float, antithetic: bool
) -> IntArray:
    """`n` orders of all players, int64 (n, P): first in a row is first removed.

    `estimates` (P,) are the present values, NaN where unknown. With probability `epsilon` an order is uniformly random,
    else greedy. With `antithetic`, orders 2i and 2i + 1 belong together: the reverse of a random order, but another
    draw of a greedy one, whose reverse would remove the worthless first and never be discarded early.
    """
    orders: list[IntArray] = []
    while len(orders) < n:
        greedy = rng.random() >= epsilon
        order = _greedy(rng, estimates, epsilon) if greedy else rng.permutation(len(estimates))
        orders.append(order)
        if antithetic:
            orders.append(_greedy(rng, estimates, epsilon) if greedy else order[::-1])
    return np.stack(orders[:n])


def _greedy(rng: np.random.Generator, estimates: DoubleArray, epsilon: float) -> IntArray:
    """Most valuable first, ties at random, unknown before known; an `epsilon` share of places is drawn at random."""
    shuffled = rng.permutation(len(estimates))
    known = np.where(np.isnan(estimates), np.inf, estimates)[shuffled]
    ranked = shuffled[np.argsort(-known, kind="stable")]
    places = rng.random(len(ranked)) < epsilon
    picked = np.zeros(len(ranked), np.bool_)
    picked[rng.permutation(len(ranked))[: places.sum()]] = True
    order = np.empty_like(ranked)
    order[places] = rng.permutation(ranked[picked])
    order[~places] = ranked[~picked]
    return order
