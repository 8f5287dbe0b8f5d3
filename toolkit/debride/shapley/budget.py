"""What an estimate may cost, what it has cost so far, and the one door through which a game is played."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import maxsize
from time import monotonic

import numpy as np

from debride.errors import ModelError, UsageError
from debride.types import BoolArray, DoubleArray, Game, IntArray

_LEAST_SECONDS = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The most that an estimate may cost: coalitions played and wall-clock seconds; None means no bound.

    `evaluations` (>= 0) is never exceeded; `seconds` (> 0) may be overshot by one batch. Raises `UsageError` for
    values out of range.
    """

    evaluations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.evaluations is not None and self.evaluations < 0:
            raise UsageError(f"a budget of {self.evaluations} evaluations: give 0 or more, or None for no bound")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"a budget of {self.seconds} seconds: give more than 0, or None for no bound")


class Ledger:
    """The running account of one `Budget`; its clock starts when it is made."""

    def __init__(self, budget: Budget, clock: Callable[[], float] = monotonic) -> None:
        self.budget = budget
        self.spent = 0
        self._clock = clock
        self._start = clock()

    @property
    def left(self) -> int:
        """Evaluations left; more than anyone can play where they are not bounded."""
        return maxsize if self.budget.evaluations is None else self.budget.evaluations - self.spent

    @property
    def expired(self) -> bool:
        """Whether the seconds are used up."""
        return self.budget.seconds is not None and self._clock() - self._start >= self.budget.seconds

    def remaining(self) -> Budget:
        """What is left, as a budget of its own; where no time is, as little as a budget can hold."""
        evaluations = None if self.budget.evaluations is None else self.budget.evaluations - self.spent
        seconds = self.budget.seconds
        return Budget(
            evaluations=evaluations,
            seconds=None if seconds is None else max(seconds - (self._clock() - self._start), _LEAST_SECONDS),
        )

    def charge(self, evaluations: int) -> None:
        """Book `evaluations` coalitions; raises `UsageError` where the budget does not cover them."""
        if evaluations > self.left:
            raise UsageError(f"{evaluations} more evaluations with {self.left} left: raise the budget of evaluations")
        self.spent += evaluations


class CountedGame:
    """A game whose every coalition is booked in a `Ledger`; one that comes twice in a batch is played once.

    Raises `UsageError` where the budget does not cover a batch or payoffs are not (B, M) with M >= 1, and
    `ModelError` where a payoff is not finite.
    """

    def __init__(self, game: Game, ledger: Ledger) -> None:
        if game.n_players < 1:
            raise UsageError("a game without players has no values: the model has no channel group to remove")
        self._game = game
        self.ledger = ledger

    @property
    def n_players(self) -> int:
        """Number of players P."""
        return self._game.n_players

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, M) of the coalitions (B, P)."""
        index, firsts = _distinct(coalitions)
        self.ledger.charge(len(firsts))
        if len(firsts) == len(coalitions):
            return checked_payoffs(self._game(coalitions), len(coalitions))
        return checked_payoffs(self._game(coalitions[firsts]), len(firsts))[index]


def checked_payoffs(payoffs: DoubleArray, rows: int) -> DoubleArray:
    """`payoffs` as float64 (rows, M), or the error that `CountedGame` names."""
    payoffs = np.asarray(payoffs, np.float64)
    if payoffs.ndim != 2 or len(payoffs) != rows or not payoffs.shape[1]:
        raise UsageError(
            f"{rows} coalitions got payoffs of shape {payoffs.shape}: a game returns (coalitions, payoffs)"
        )
    if not np.isfinite(payoffs).all():
        raise ModelError("a payoff is not a finite number: check the model for NaN weights and its input range")
    return payoffs


def _distinct(coalitions: BoolArray) -> tuple[IntArray, IntArray]:
    """Which distinct row each row is, (B,), and where each distinct row comes first, (D,) ascending."""
    packed = np.packbits(coalitions, axis=1)
    width, data = packed.shape[1], packed.tobytes()
    seen: dict[bytes, int] = {}
    firsts: list[int] = []
    index: list[int] = []
    for row in range(len(coalitions)):
        known = seen.setdefault(data[row * width : (row + 1) * width], len(seen))
        if known == len(firsts):
            firsts.append(row)
        index.append(known)
    return np.array(index, np.int64), np.array(firsts, np.int64)
