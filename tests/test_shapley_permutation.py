from time import sleep

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from debride.errors import ModelError, UsageError
from debride.shapley import Budget, exact_values, permutation
from shapley_games import Played, Polynomial, additive, unanimity, voting


def of(evaluations):
    return Budget(evaluations=evaluations)


def same(a, b):
    for name in ("values", "stderr", "counts", "empty", "grand"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert (a.evaluations, a.converged) == (b.evaluations, b.converged)


random_games = given(
    seed=st.integers(0, 2**32 - 1),
    players=st.integers(2, 12),
    evaluations=st.integers(30, 300),
    epsilon=st.sampled_from([0.0, 0.3, 1.0]),
    walkers=st.sampled_from([2, 4, 8]),
)


@settings(max_examples=40, deadline=None)
@random_games
def test_whole_walks_sum_to_grand_minus_empty(seed, players, evaluations, epsilon, walkers):
    game = Polynomial.random(seed, players, 12)
    found = permutation(game, budget=of(evaluations), seed=seed, epsilon=epsilon, walkers=walkers)
    np.testing.assert_allclose(found.values.sum(axis=0), found.grand - found.empty, rtol=0, atol=1e-9)
    assert (found.counts == found.counts[0]).all() and found.counts[0] >= 1


@settings(max_examples=40, deadline=None)
@given(
    players=st.integers(1, 9),
    evaluations=st.integers(2, 60),
    walkers=st.sampled_from([2, 6]),
    batch=st.sampled_from([None, 1, 7, 50]),
    discard=st.sampled_from([0.0, 0.4]),
    epsilon=st.sampled_from([0.0, 1.0]),
)
def test_the_budget_of_evaluations_is_never_exceeded(players, evaluations, walkers, batch, discard, epsilon):
    game = voting(np.arange(1.0, players + 1), players)
    options = {"walkers": walkers, "batch": batch, "discard": discard, "epsilon": epsilon}
    found = permutation(game, budget=of(evaluations), seed=0, **options)
    assert found.evaluations == game.coalitions <= evaluations
    assert max(len(b) for b in game.batches[1:] or [[]]) <= max(walkers, batch or 0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), players=st.integers(2, 10))
def test_a_dummy_gets_exactly_nothing_and_an_additive_player_exactly_its_worth(seed, players):
    worth = np.random.default_rng(seed).normal(size=players)
    worth[0] = 0.0
    found = permutation(additive(worth), budget=of(100), seed=seed)
    np.testing.assert_allclose(found.values[:, 0], worth, rtol=0, atol=1e-12)
    assert (found.stderr[:, 0] < 1e-12).all()


@pytest.mark.parametrize("antithetic", [True, False])
def test_values_lie_within_their_standard_errors_of_the_exact_ones(antithetic):
    game = Polynomial.random(3, 10, 20)
    found = permutation(game, budget=of(20_000), seed=1, antithetic=antithetic)
    error = np.abs(found.values - exact_values(game).values)
    moved = found.stderr > 1e-12
    ratio = error[moved] / found.stderr[moved]
    assert ratio.max() < 3.5
    assert ratio.mean() > 0.4  # 0.8 for a normal error: the standard errors are no larger than they must be
    assert error.max() < 0.05


def test_values_are_unbiased_over_seeds_and_stderr_is_their_spread():
    game = voting(np.array([4.0, 3, 2, 1]), 6)
    exact = exact_values(game).values[:, 0]
    runs = [permutation(game, budget=of(50), seed=s) for s in range(400)]
    values = np.array([r.values[:, 0] for r in runs])
    spread = values.std(axis=0)
    np.testing.assert_allclose(values.mean(axis=0), exact, atol=4 * spread.max() / 20)
    np.testing.assert_allclose(np.mean([r.stderr[:, 0] ** 2 for r in runs], axis=0), spread**2, rtol=0.25)


def test_orders_and_their_reverses_vary_less_than_independent_orders():
    # The marginal of a player in z -> (number present) ** 2 is linear in its place: a pair cancels it altogether.
    game = Played(12, lambda z: z.sum(axis=1) ** 2)
    plain = permutation(game, budget=of(1000), seed=0, antithetic=False)
    paired = permutation(game, budget=of(1000), seed=0)
    np.testing.assert_allclose(paired.values, 12.0, rtol=0, atol=1e-9)
    assert paired.stderr.max() < 1e-9 < 0.1 < plain.stderr.min()


def test_walkers_move_in_lockstep_from_the_grand_coalition_down():
    game = additive(np.arange(20.0))
    permutation(game, budget=of(2 + 4 * 19), seed=0, walkers=4)
    assert game.batches[0].sum(axis=1).tolist() == [0, 20]
    assert [set(b.sum(axis=1)) for b in game.batches[1:]] == [{n} for n in range(19, 0, -1)]
    assert all(len(b) <= 4 for b in game.batches[1:])
    for before, after in zip(game.batches[2:4], game.batches[3:5], strict=True):
        assert (before >= after).all()


def test_a_larger_batch_plays_the_same_coalitions_in_fewer_calls():
    stepwise, ahead = (voting(np.arange(20.0), 90) for _ in range(2))
    options = {"budget": of(500), "seed": 5}
    same(permutation(stepwise, **options), permutation(ahead, **options, batch=64))
    assert len(ahead.batches) < len(stepwise.batches) / 5
    assert ahead.coalitions == stepwise.coalitions


def test_a_coalition_that_comes_twice_in_a_batch_is_played_once():
    game = additive(np.array([1.0, 2.0]))
    found = permutation(game, budget=of(40), seed=0, walkers=8)
    assert all(len(np.unique(b, axis=0)) == len(b) <= 2 for b in game.batches)
    assert found.counts[0] > 100 - 2


def test_the_same_seed_gives_the_same_values_bit_for_bit_and_another_one_others():
    game = Polynomial.random(8, 15, 30)
    options = {"budget": of(700), "epsilon": 0.2, "discard": 0.01, "top": 2}
    first, again, other = (permutation(game, seed=s, **options) for s in (4, 4, 5))
    same(first, again)
    assert (first.values != other.values).any()


def test_discarding_saves_evaluations_and_keeps_the_large_values():
    # Three players carry nearly all of it, the other 97 next to nothing.
    worth = np.concatenate([[5.0, 3.0, 2.0], np.full(97, 1e-4)])
    full, short = additive(worth), additive(worth)
    options = {"seed": 0, "walkers": 4, "epsilon": 0.1}
    whole = permutation(full, budget=Budget(evaluations=2 + 8 * 99), **options)
    cut = permutation(short, budget=Budget(evaluations=2 + 8 * 99), discard=0.02, **options)
    per_walk = [(r.evaluations - 2) / r.counts.max() for r in (whole, cut)]
    assert per_walk[0] == pytest.approx(99, rel=0.02)
    assert per_walk[1] < 60
    np.testing.assert_allclose(cut.values[:3, 0], worth[:3], rtol=0, atol=0.02)
    assert cut.values.sum() == pytest.approx((cut.grand - cut.empty)[0], abs=0.02)


def test_greedy_orders_with_discarding_pay_a_few_evaluations_a_walk():
    game = unanimity(200, [17])
    found = permutation(game, budget=of(2 + 2 * 199 + 60), seed=0, epsilon=0.0, discard=0.5, walkers=2)
    assert found.values[:, 0].argmax() == 17 and found.values[17, 0] == 1.0
    assert found.counts[17] > 40  # the first round looks for the player, all later ones start with it


@pytest.mark.parametrize("seed", range(5))
def test_epsilon_greedy_orders_find_the_leader(seed):
    game = Polynomial.random(seed, 30, 40, payoffs=1)
    leader = game.values()[:, 0].argmax()
    found = permutation(game, budget=of(1500), seed=seed, epsilon=0.3)
    assert found.values[:, 0].argsort()[-3:].tolist().count(leader) == 1


def test_sampling_stops_when_the_leaders_part():
    game = additive(np.concatenate([[2.0, 1.5], np.full(28, 0.1)]))
    found = permutation(game, budget=of(100_000), seed=0, top=2)
    assert found.converged and found.evaluations < 2 + 8 * 29 + 1


def test_leaders_that_tie_use_up_the_budget():
    game = voting(np.ones(9), 5)
    found = permutation(game, budget=of(2000), seed=0, top=1)
    assert not found.converged and 1900 < found.evaluations <= 2000


def test_only_the_named_players_are_sampled_and_the_others_stay():
    game = Polynomial.random(2, 14, 30)
    players = np.array([9, 3, 11, 4])
    found = permutation(game, budget=of(3000), seed=0, players=players, top=None)

    def restricted(z):
        whole = np.ones((len(z), 14), bool)
        whole[:, players] = z
        return game(whole)

    exact = exact_values(Played(4, restricted))
    others = np.setdiff1d(np.arange(14), players)
    assert np.isnan(found.values[others]).all() and np.isnan(found.stderr[others]).all()
    assert not found.counts[others].any() and (found.counts[players] > 100).all()
    np.testing.assert_allclose(found.empty, exact.empty, atol=1e-12)
    np.testing.assert_allclose(found.values[players], exact.values, atol=0.15)


def test_with_less_than_one_walk_the_players_not_reached_are_nan():
    found = permutation(additive(np.arange(1.0, 51.0)), budget=of(22), seed=0)
    reached = found.counts > 0
    assert reached.sum() == 20 and found.evaluations == 22
    np.testing.assert_allclose(found.values[reached, 0], np.arange(1.0, 51.0)[reached], atol=1e-9)
    assert np.isnan(found.values[~reached]).all() and np.isnan(found.stderr[~reached]).all()
    assert np.isinf(found.stderr[reached]).all()  # seen once: the spread is unknown


def test_a_budget_for_the_two_ends_alone_samples_nobody():
    found = permutation(additive(np.ones(4)), budget=of(2), seed=0)
    assert np.isnan(found.values).all() and found.grand[0] == 4 and found.evaluations == 2


def test_one_player_is_known_after_the_two_ends():
    found = permutation(additive(np.array([7.0])), budget=Budget(seconds=5.0), seed=0)
    assert found.values[0, 0] == 7 and found.evaluations == 2


def test_seconds_end_the_sampling_after_at_most_one_batch_more():
    def slow(coalitions):
        sleep(0.005)
        return coalitions.sum(axis=1)

    game = Played(6, slow)
    found = permutation(game, budget=Budget(seconds=0.1), seed=0)
    assert 2 <= len(game.batches) <= 0.1 / 0.005 + 1
    assert found.evaluations == game.coalitions


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"epsilon": 1.5}, "epsilon"),
        ({"discard": -1.0}, "discard"),
        ({"walkers": 0}, "walkers"),
        ({"walkers": 3}, "even"),
        ({"top": 0}, "top"),
        ({"batch": 0}, "batch"),
        ({"budget": Budget()}, "bound"),
        ({"budget": Budget(evaluations=1)}, "raise the budget"),
        ({"players": np.array([1, 1])}, "distinct"),
        ({"players": np.array([5])}, "index 5"),
        ({"players": np.array([-1])}, "index -1"),
        ({"players": np.zeros(0, int)}, "one or more"),
    ],
)
def test_arguments_out_of_range_are_named(wrong, match):
    with pytest.raises(UsageError, match=match):
        permutation(additive(np.ones(5)), **({"budget": of(50), "seed": 0} | wrong))


def test_a_payoff_that_is_not_finite_is_an_error():
    with pytest.raises(ModelError, match="not a finite number"):
        permutation(Played(3, lambda z: np.where(z.sum(axis=1) == 2, np.inf, 0.0)), budget=of(50), seed=0)


@pytest.mark.parametrize("wrong", [{"evaluations": -1}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_a_budget_out_of_range_is_refused(wrong):
    with pytest.raises(UsageError, match="budget"):
        Budget(**wrong)


def test_error_at_an_equal_budget_is_no_larger_than_shapiqs():
    shapiq = pytest.importorskip("shapiq", reason="shapiq is the rival here: install the test extra")
    game = Polynomial.random(11, 12, 40, payoffs=1)
    exact, budget, ours, theirs = game.values()[:, 0], 500, [], []
    for seed in range(20):
        ours.append(permutation(game, budget=of(budget), seed=seed).values[:, 0])
        rival = shapiq.PermutationSamplingSV(n=12, random_state=seed)
        found = rival.approximate(budget, lambda z: game(np.atleast_2d(z))[:, 0])
        theirs.append([found[(p,)] for p in range(12)])
    ours_error, their_error = (np.sqrt(np.mean((np.array(x) - exact) ** 2)) for x in (ours, theirs))
    assert ours_error <= their_error
