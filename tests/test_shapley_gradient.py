import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debride.errors import ModelError, UsageError
from debride.shapley import Budget, exact_values, gradient
from debride.shapley.gradient import draw_coalitions
from shapley_games import Polynomial


def test_on_a_multilinear_game_the_values_are_shapleys_within_their_errors():
    game = Polynomial.random(5, 12, 30)
    found = gradient(game, passes=200, batch=64, seed=0)
    error = np.abs(found.values - exact_values(game).values)
    moved = found.stderr > 1e-12
    assert (error[moved] / found.stderr[moved]).max() < 4
    assert error.max() < 0.05
    assert (found.passes, found.evaluations, found.estimator) == (200, 2, "gradient")
    assert (found.counts == 200 * 64).all() and not found.converged


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), players=st.integers(1, 10))
def test_an_additive_game_is_known_after_one_pass(seed, players):
    worth = np.random.default_rng(seed).normal(size=(players, 2))
    game = Polynomial(np.eye(players, dtype=bool), worth)
    np.testing.assert_allclose(gradient(game, passes=1, batch=2, seed=seed).values, worth, rtol=0, atol=1e-12)


def test_other_bounds_give_the_semivalue():
    # A product of two: the expected marginal of either is q, whose mean over [low, high] is (low + high) / 2.
    game = Polynomial(np.array([[True, True]]), np.array([[1.0]]))
    for low, high in [(0.0, 1.0), (0.5, 1.0), (0.2, 0.4)]:
        found = gradient(game, passes=100, batch=100, low=low, high=high, seed=0)
        np.testing.assert_allclose(found.values, (low + high) / 2, atol=0.02)


def test_noise_of_single_images_averages_out_and_shows_in_the_standard_error():
    game = Polynomial(np.eye(4, dtype=bool), np.ones((4, 1)), noise=1.0)
    found = gradient(game, passes=100, batch=16, seed=0)
    np.testing.assert_allclose(found.stderr, 1 / np.sqrt(1600), rtol=0.3)
    assert np.abs(found.values - 1).max() < 0.1


def test_coalitions_come_in_complementary_pairs_on_the_whole_interval():
    drawn = draw_coalitions(np.random.default_rng(0), 30, 8, 0.0, 1.0)
    rows = {r.tobytes() for r in drawn}
    assert drawn.shape == (16, 30)
    assert {(~r).tobytes() for r in drawn} == rows


def test_inclusion_probabilities_are_stratified_over_the_interval():
    drawn = draw_coalitions(np.random.default_rng(0), 200_000, 5, 0.5, 1.0)
    shares = np.sort(drawn.mean(axis=1))
    edges = 0.5 + 0.05 * np.arange(10)
    assert (shares > edges - 0.005).all() and (shares < edges + 0.055).all()


def test_antithetic_pairs_vary_less_than_independent_coalitions():
    game = Polynomial(np.array([[True, True]]), np.array([[1.0]]))
    found = gradient(game, passes=500, batch=2, seed=0)
    # One pair has a marginal of 0 and one of 1 for each player: their mean never moves.
    assert (found.values == 0.5).all() and not found.stderr.any()


def test_the_same_seed_gives_the_same_values_bit_for_bit():
    first, again, other = (gradient(Polynomial.random(1, 9, 20), passes=3, batch=8, seed=s) for s in (2, 2, 3))
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.stderr, again.stderr)
    assert (first.values != other.values).any()


def test_an_odd_batch_is_rounded_down_to_pairs_and_one_pass_has_no_known_error():
    found = gradient(Polynomial.random(1, 9, 20), passes=1, batch=7, seed=0)
    assert (found.counts == 6).all() and np.isinf(found.stderr).all()


def test_seconds_end_the_passes_but_one_is_always_made():
    found = gradient(Polynomial.random(1, 9, 20), passes=10**9, batch=2, seed=0, budget=Budget(seconds=1e-6))
    assert found.passes == 1


def test_marginals_that_are_not_finite_or_of_another_shape_are_errors():
    game = Polynomial.random(1, 4, 6)
    game.marginals = lambda z: np.full((len(z), 2, 4), np.nan)
    with pytest.raises(ModelError, match="not a finite number"):
        gradient(game, passes=1, batch=2, seed=0)
    game.marginals = lambda z: np.zeros((len(z), 4))
    with pytest.raises(UsageError, match="shape"):
        gradient(game, passes=1, batch=2, seed=0)


@pytest.mark.parametrize(
    "wrong", [{"low": 0.5, "high": 0.5}, {"low": -0.1}, {"high": 1.1}, {"passes": 0}, {"batch": 0}]
)
def test_arguments_out_of_range_are_named(wrong):
    with pytest.raises(UsageError, match="give"):
        gradient(Polynomial.random(1, 4, 6), **({"passes": 1, "batch": 2, "seed": 0} | wrong))
