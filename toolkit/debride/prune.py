"""Shapley values + limits -> which groups go next. Arrays in, a decision out; nothing is run here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from debride.types import BoolArray, DoubleArray, IntArray, ShapleyValues

WEIGHTS = (0.0, 1.0, 3.0, 10.0)
"""The lambdas tried in attack - lambda * utility."""
_TOGETHER = 3
"""Up to so many leaders go at once; every subset of them is tried, since one may go along for nothing."""
_SINGLES = 16
"""How many leaders under a weight are tried alone."""
PRICES = (5.0, 2.0, 1.0, 0.5)
"""What a share of utility costs in shares of attack; a lower one is taken when nothing is worth a higher one."""
_GROUP_PRICE = 0.003
"""What one more group costs: of two equal cuts the smaller is taken."""
_AT_ONCE = 4
"""Of so many cuts the utility is asked together."""

Utility = Callable[[IntArray], DoubleArray]
"""The utility payoffs (R,) of some rows (R,) of the coalitions at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Players to remove together, and the weight under which they ranked first."""

    players: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The floor under the utility payoff, how many more groups may go, and the lowest of `PRICES` that may be taken."""

    utility: float
    groups: int
    price: float = PRICES[-1]


def propose(values: ShapleyValues, limits: Limits, *, gone: IntArray) -> tuple[Cut, ...]:
    """The leaders under each weight, up to three at a time, as cuts to be played exactly; each cut once.

    Only players whose values were decided on the game itself are proposed, by attack - weight * utility, and only
    where that is positive (step 4 of the method: prune by weight).
    """
    decided = values.counts > 0
    decided[gone] = False
    cuts: dict[tuple[int, ...], float] = {}
    for weight in WEIGHTS:
        score = np.where(decided, values.values[:, 0] - weight * values.values[:, 1], -np.inf)
        order = np.argsort(-score, kind="stable")
        order = order[score[order] > 0]
        for count in range(1, min(_TOGETHER, limits.groups) + 1):
            for players in combinations(order[:_TOGETHER].tolist(), count):
                cuts.setdefault(tuple(sorted(players)), weight)
        # Each of the leaders alone, too: the best single cut need not be the highest-valued player.
        for player in order[:_SINGLES] if limits.groups else ():
            cuts.setdefault((int(player),), weight)
    return tuple(Cut(players=players, weight=weight) for players, weight in cuts.items())


def coalitions(cuts: tuple[Cut, ...], n_players: int) -> BoolArray:
    """Everybody, then everybody but each cut: (1 + len(cuts), P)."""
    rows = np.ones((1 + len(cuts), n_players), np.bool_)
    for row, cut in enumerate(cuts, start=1):
        rows[row, list(cut.players)] = False
    return rows


def choose(cuts: tuple[Cut, ...], attack: DoubleArray, utility: Utility, limits: Limits) -> tuple[Cut | None, str]:
    """The cut that buys most attack for its utility within `limits`, or None and why there is none.

    `attack` (1 + len(cuts),) are payoffs of `coalitions`, the uncut model's first; `utility` gives that payoff of some
    of these and is asked only of those that it decides about: a cut gains no more than it lowers the attack. The price
    of utility falls, greedily, only when no cut is worth a higher one.
    """
    if not cuts:
        return None, "no channel group has a positive share of the attack"
    fixed = _GROUP_PRICE * np.array([len(cut.players) for cut in cuts])
    lowered = attack[0] - attack[1:]
    most = lowered - fixed
    order = np.argsort(-most, kind="stable")
    order = order[most[order] > 0]
    loss = np.full(len(cuts), np.nan)
    for price in (p for p in PRICES if p >= limits.price):
        gain = np.full(len(cuts), -np.inf)
        for first in range(0, len(order), _AT_ONCE):
            some = order[first : first + _AT_ONCE]
            if most[some[0]] < gain.max():
                break
            new = some[np.isnan(loss[some])]
            if len(new):
                loss[new] = _losses(utility(np.array([0, *(1 + new)])), limits.utility)
            gain[some] = lowered[some] - price * loss[some] - fixed[some]
        if gain.max() > 0:
            return cuts[int(np.argmax(gain))], ""
    if len(order) and not np.isfinite(loss).any():
        return None, "every further cut would cost more than the utility budget"
    return None, "no further cut lowers the attack by more than it costs"


def _losses(utility: DoubleArray, floor: float) -> DoubleArray:
    """By how much the payoffs `utility` are below the first of them; infinite where they are below `floor`."""
    return np.where(utility[1:] >= floor, np.maximum(0.0, utility[0] - utility[1:]), np.inf)


def idle(attack: DoubleArray, utility: Utility) -> int | None:
    """Which of the groups that are gone may return, as its place among them, or None.

    `attack` (1 + G,) are payoffs with all G groups gone, then with each one back; `utility` gives that payoff of some
    of these. The one whose return costs least goes back where that is less than its going was worth by itself
    (`_GROUP_PRICE`): with others gone since, or chosen by noise, it does nothing.
    """
    near = np.flatnonzero(attack[1:] - attack[0] <= _GROUP_PRICE)
    if not len(near):
        return None
    loss = _losses(utility(np.array([0, *(1 + near)])), -np.inf)
    cost = attack[1 + near] - attack[0] + PRICES[0] * loss
    best = int(np.argmin(cost))
    return int(near[best]) if cost[best] <= _GROUP_PRICE else None
