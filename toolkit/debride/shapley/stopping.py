"""When to stop sampling: as soon as it is clear who leads."""

from __future__ import annotations

import numpy as np

from debride.types import DoubleArray, IntArray

# Plain 95 % intervals, not Bonferroni's. Two intervals of equal width that do not touch mean a difference of
# 1.96 * sqrt(2) = 2.77 standard errors (one-sided p = 0.003), and only a rival whose true value is above a leader's can
# make the verdict wrong. To divide by the hundreds of players who are nowhere near would double the evaluations and buy
# nothing.
Z = 1.96

# Four antithetic pairs: fewer give a standard error that is itself a guess.
MINIMUM_UNITS = 4


def leaders_part(
    values: DoubleArray, stderr: DoubleArray, units: IntArray, top: int, *, z: float = Z, minimum: int = MINIMUM_UNITS
) -> bool:
    """Whether the `top` largest of `values` (P,) are told from the rest: no `mean ± z * stderr` of the two overlap.

    `units` (P,) counts the independent draws behind each value; all need `minimum` of them. True with P <= `top` then.
    """
    if (units < minimum).any():
        return False
    order = np.argsort(-values, kind="stable")
    leaders, rest = order[:top], order[top:]
    if not len(rest):
        return True
    floor = (values[leaders] - z * stderr[leaders]).min()
    return bool(floor > (values[rest] + z * stderr[rest]).max())
