"""Shapley values of games on coalitions: exact, by permutations, by gradients, and by both.

An estimator sees a `Game` (or `DifferentiableGame`), a budget and a seed, and returns `ShapleyValues`; it knows nothing
of networks.
"""

from debride.shapley.budget import Budget
from debride.shapley.exact import exact_values
from debride.shapley.gradient import gradient
from debride.shapley.hybrid import hybrid
from debride.shapley.permutation import permutation
from debride.shapley.stopping import leaders_part

__all__ = ["Budget", "exact_values", "gradient", "hybrid", "leaders_part", "permutation"]
