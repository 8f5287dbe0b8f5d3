"""Channels, games on them, their values, and what was cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .types_input import BoolArray, DoubleArray, IntArray, frozen_array


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Entries `indices` along `axis` of the constant that is input number `position` of node `node`."""

    node: str
    position: int
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """One player: the slices that make one output channel of one layer, and where a mask on it acts.

    Zeroing all `slices` equals multiplying channel `channel` (along `axis`) of the tensor `edge` by zero.
    """

    layer: str
    channel: int
    edge: str
    axis: int
    slices: tuple[Slice, ...]


class Game(Protocol):
    """A cooperative game in M payoffs. Coalitions say who is present; absent players' channels are zero."""

    @property
    def n_players(self) -> int:
        """P, how many players there are."""
        ...

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, M) of the coalitions (B, P)."""
        ...


class DifferentiableGame(Game, Protocol):
    """A game whose multilinear extension can be differentiated, at the price of noise."""

    def marginals(self, coalitions: BoolArray) -> DoubleArray:
        """First-order marginals (B, M, P) of every player at each coalition (B, P).

        Each coalition is played on one image only (images are taken in turn), so a row is a noisy, cheap draw.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapleyValues:
    """Estimated values: `values` and `stderr` float64 (P, M), `counts` int64 (P,); NaN where never sampled.

    `empty` and `grand` are the payoffs (M,) of nobody and of everybody; `evaluations` counts coalitions played and
    `passes` backward passes; `converged` says whether the leaders' intervals parted before the budget ran out.
    """

    values: DoubleArray
    stderr: DoubleArray
    counts: IntArray
    empty: DoubleArray
    grand: DoubleArray
    evaluations: int
    passes: int
    seed: int
    converged: bool
    estimator: str

    def __post_init__(self) -> None:
        for name in ("values", "stderr", "counts", "empty", "grand"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """One group cut out, with its valued share of the attack and of the utility when it was chosen."""

    group: ChannelGroup
    attack: float
    utility: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One group (or layer) left alone, and the reason."""

    layer: str
    channel: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of the loop: which class, how many groups went, and the payoffs on the images that were fitted to.

    `attack_*` is the attack payoff before, after random and after the chosen cuts: no success rate, but the target's
    log-odds from 0 (as clean images) to 1 (as delivered). `utility` is the overlap with labels and
    delivered probabilities, in equal parts, on varied clean images.
    """

    target: int
    trigger: int
    removed: int
    attack_before: float
    attack_random: float
    attack_after: float
    utility: float
    weight: float
    evaluations: int
    passes: int
