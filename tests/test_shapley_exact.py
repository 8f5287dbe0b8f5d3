import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debride.errors import ModelError, UsageError
from debride.shapley import exact_values
from debride.shapley.moments import Moments
from shapley_games import Played, Polynomial, additive, glove, unanimity, voting


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_an_additive_game_pays_everyone_its_own_worth_in_each_payoff():
    worth = np.array([[1.0, -2.0], [0.5, 0.0], [-3.0, 4.0]])
    values = exact_values(additive(worth))
    close(values.values, worth)
    assert values.evaluations == 8 and values.converged and values.estimator == "exact"
    assert not values.stderr.any()


def test_unanimity_is_shared_equally_by_the_carrier():
    close(exact_values(unanimity(5, [1, 3, 4])).values[:, 0], [0, 1 / 3, 0, 1 / 3, 1 / 3])


def test_weighted_voting_has_shapley_and_shubiks_powers():
    close(exact_values(voting(np.array([50, 49, 1]), 51)).values[:, 0], [4 / 6, 1 / 6, 1 / 6])


def test_simple_majority_is_symmetric():
    close(exact_values(voting(np.ones(7), 4)).values[:, 0], np.full(7, 1 / 7))


def test_the_scarce_glove_takes_most():
    close(exact_values(glove(1, 2)).values[:, 0], [4 / 6, 1 / 6, 1 / 6])


def test_one_player_takes_all():
    close(exact_values(Played(1, lambda z: 3 + 2 * z[:, 0])).values, [[2.0]])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), players=st.integers(2, 9), terms=st.integers(1, 15))
def test_a_multilinear_polynomial_shares_each_term_equally(seed, players, terms):
    game = Polynomial.random(seed, players, terms)
    found = exact_values(game)
    close(found.values, game.values())
    close(found.values.sum(axis=0), found.grand - found.empty)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), players=st.integers(3, 8))
def test_any_game_obeys_dummy_symmetry_and_efficiency(seed, players):
    table = np.random.default_rng(seed).normal(size=2**players)

    def payoff(z):
        z = z.copy()
        z[:, 0] = False  # player 0 changes nothing
        z[:, 1:3].sort(axis=1)  # players 1 and 2 are alike
        return table[z @ (1 << np.arange(players))]

    found = exact_values(Played(players, payoff))
    close(found.values[0], 0)
    close(found.values[1], found.values[2])
    close(found.values.sum(axis=0), found.grand - found.empty)


def test_sixteen_players_are_enumerated_and_seventeen_refused():
    assert exact_values(additive(np.arange(16.0))).evaluations == 2**16
    with pytest.raises(UsageError, match="17 players"):
        exact_values(additive(np.arange(17.0)))


def test_a_payoff_that_is_not_finite_is_an_error():
    with pytest.raises(ModelError, match="NaN"):
        exact_values(Played(2, lambda z: np.where(z[:, 0], np.nan, 0.0)))


def test_payoffs_of_the_wrong_shape_are_an_error():
    class Flat:
        n_players = 2

        def __call__(self, coalitions):
            return np.zeros(len(coalitions))

    with pytest.raises(UsageError, match="shape"):
        exact_values(Flat())


def test_a_game_of_nobody_is_an_error():
    with pytest.raises(UsageError, match="without players"):
        exact_values(additive(np.zeros(0)))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_running_moments_are_those_of_all_draws_at_once(seed, sizes):
    rng = np.random.default_rng(seed)
    moments, draws, marks = Moments(3, 2), [], []
    for size in sizes:
        draws.append(1e6 + rng.normal(size=(size, 3, 2)))
        marks.append(rng.random((size, 3)) < 0.7)
        moments.add(draws[-1], marks[-1])
    for player in range(3):
        seen = np.concatenate(draws)[np.concatenate(marks)[:, player], player]
        assert moments.n[player] == len(seen)
        if len(seen):
            np.testing.assert_allclose(moments.values()[player], seen.mean(axis=0), rtol=1e-14)
        if len(seen) > 1:
            stderr = seen.std(axis=0, ddof=1) / np.sqrt(len(seen))
            np.testing.assert_allclose(moments.stderr()[player], stderr, rtol=1e-6)
