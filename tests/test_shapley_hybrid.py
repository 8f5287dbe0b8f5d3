import numpy as np
import pytest

from debride.errors import UsageError
from debride.shapley import Budget, exact_values, hybrid, leaders_part, permutation
from shapley_games import Played, Polynomial

STRONG = (41, 123, 260)


def strong_game(noise=0.0):
    """300 players: 3 strong ones that work alone and together, many weak terms; payoff 1 is utility, spread evenly."""
    rng = np.random.default_rng(7)
    terms = rng.random((400, 300)) < 2 / 300
    terms[:3] = False
    for row, player in enumerate(STRONG):
        terms[row, player] = True
    terms[3, :] = False
    terms[3, list(STRONG)] = True
    coefficients = rng.normal(scale=0.01, size=(400, 2))
    coefficients[:4, 0] = [0.5, 0.35, 0.25, 0.1]
    return Polynomial(terms, coefficients, noise)


def run(game, **options):
    given = {"screen": strong_game(noise=0.3), "budget": Budget(evaluations=2000), "seed": 0, "top": 3}
    return hybrid(game, **(given | options))


def test_the_leaders_of_300_players_take_far_fewer_evaluations_than_permutations():
    game = strong_game()
    found = run(game)
    assert set(found.values[:, 0].argsort()[-3:]) == set(STRONG)
    assert found.converged and found.evaluations == game.evaluations < 150
    rival = permutation(strong_game(), budget=Budget(evaluations=100_000), seed=0, top=3)
    assert rival.converged and set(rival.values[:, 0].argsort()[-3:]) == set(STRONG)
    assert rival.evaluations > 15 * found.evaluations
    early = permutation(strong_game(), budget=Budget(evaluations=found.evaluations), seed=0)
    assert np.isnan(early.values[:, 0]).any()


def test_decided_players_have_counts_and_the_others_keep_their_screened_values():
    found = run(strong_game(), shortlist=10)
    assert (found.counts > 0).sum() == 10 and (found.counts[list(STRONG)] > 0).all()
    assert np.isfinite(found.values).all() and np.isfinite(found.stderr).all()
    assert found.passes == 20 and found.estimator == "hybrid" and found.values.shape == (300, 2)
    assert (found.stderr[found.counts == 0] > 0).all()


def test_decided_values_are_those_of_the_restricted_game():
    game = strong_game()
    found = run(game, shortlist=6, budget=Budget(evaluations=3000), seed=3, top=6)
    listed = np.flatnonzero(found.counts)

    def restricted(z):
        whole = np.ones((len(z), 300), bool)
        whole[:, listed] = z
        return game(whole)

    exact = exact_values(Played(6, restricted))
    np.testing.assert_allclose(found.values[listed], exact.values, atol=0.05)
    np.testing.assert_allclose(found.empty, exact.empty, atol=1e-12)
    np.testing.assert_allclose(found.values[listed].sum(axis=0), found.grand - found.empty, atol=1e-9)


def test_the_weight_keeps_players_that_utility_needs_off_the_lead():
    # Player 0 carries the most attack and all the utility, player 1 a little less attack and nothing else.
    worth = np.zeros((30, 2))
    worth[0], worth[1] = (1.0, 1.0), (0.8, 0.0)
    game = Polynomial(np.eye(30, dtype=bool), worth)
    options = {"screen": game, "budget": Budget(evaluations=200), "seed": 0, "shortlist": 1, "walkers": 2}
    assert np.flatnonzero(hybrid(game, **options).counts).tolist() == [0]
    assert np.flatnonzero(hybrid(game, **options, weight=0.5).counts).tolist() == [1]


def test_the_leaders_part_in_the_weighted_score_not_in_attack_alone():
    # In attack the two tie and would never part; in the score one leads.
    worth = np.zeros((20, 2))
    worth[0], worth[1] = (1.0, 0.5), (1.0, 0.0)
    game = Polynomial(np.eye(20, dtype=bool), worth)
    options = {"screen": game, "budget": Budget(evaluations=500), "seed": 0, "shortlist": 4}
    assert not hybrid(game, **options).converged
    assert hybrid(game, **options, weight=0.5).converged


def test_the_same_seed_gives_the_same_values_bit_for_bit():
    first, again = run(strong_game()), run(strong_game())
    np.testing.assert_array_equal(first.values, again.values)
    np.testing.assert_array_equal(first.counts, again.counts)


def test_without_evaluations_for_a_walk_the_screened_values_stand():
    found = run(strong_game(), budget=Budget(evaluations=2))
    assert not found.counts.any() and np.isfinite(found.values).all() and not found.converged
    assert set(found.values[:, 0].argsort()[-3:]) == set(STRONG)


def test_a_shortlist_longer_than_the_players_takes_them_all():
    game = Polynomial.random(0, 5, 8)
    found = hybrid(game, screen=game, budget=Budget(evaluations=400), seed=0)
    assert (found.counts > 0).all()


def test_seconds_bound_both_stages():
    found = run(strong_game(), budget=Budget(seconds=1e-6))
    assert found.passes == 1 and not found.counts.any()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"top": 0}, "1 <= top"),
        ({"top": 13}, "shortlist"),
        ({"screen": Polynomial.random(0, 5, 8)}, "5 players are screened"),
    ],
)
def test_arguments_out_of_range_are_named(wrong, match):
    with pytest.raises(UsageError, match=match):
        run(strong_game(), **wrong)


def test_a_weight_needs_a_second_payoff():
    game = Polynomial.random(0, 5, 8, payoffs=1)
    with pytest.raises(UsageError, match="one payoff"):
        hybrid(game, screen=game, budget=Budget(evaluations=50), seed=0, weight=1.0)


def test_games_of_different_payoffs_are_refused():
    game, screen = Polynomial.random(0, 5, 8, payoffs=1), Polynomial.random(0, 5, 8, payoffs=2)
    with pytest.raises(UsageError, match="2 payoffs are screened and 1 played"):
        hybrid(game, screen=screen, budget=Budget(evaluations=50), seed=0)


def parted(values, stderr, top=1, units=8):
    values = np.array(values, float)
    return leaders_part(values, np.full(len(values), stderr), np.full(len(values), units), top)


def test_leaders_part_when_no_interval_of_theirs_overlaps_one_of_the_rest():
    assert parted([3.0, 1.0, 0.0], 0.5)
    assert not parted([3.0, 1.0, 0.0], 0.52)
    assert parted([0.0, 3.0, 1.0, 2.9], 0.4, top=2)
    assert not parted([0.0, 3.0, 1.0, 2.9], 0.5, top=2)


def test_leaders_never_part_on_few_draws_unknown_errors_or_ties():
    assert not parted([3.0, 1.0], 0.0, units=3)
    assert not parted([3.0, 1.0], np.inf)
    assert not parted([3.0, np.nan], 0.1)
    assert not parted([1.0, 1.0], 0.0)
    assert parted([1.0, 1.0], 0.1, top=2)
