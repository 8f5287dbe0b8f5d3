"""Which groups go next: proposals from hand-made values, and the choice among cuts whose payoffs are known."""

from __future__ import annotations

import numpy as np

from debride import prune
from debride.prune import Cut, Limits, choose, coalitions, idle, propose
from debride.types import ShapleyValues

NONE = np.zeros(0, np.int64)
FREE = Limits(utility=0.9, groups=5)


def values(pairs, counts=None):
    """Values (attack, utility) per player, all of them played unless `counts` says otherwise."""
    table = np.array(pairs, np.float64)
    return ShapleyValues(
        values=table,
        stderr=np.zeros_like(table),
        counts=np.full(len(table), 4) if counts is None else np.array(counts),
        empty=np.zeros(2),
        grand=np.ones(2),
        evaluations=10,
        passes=0,
        seed=0,
        converged=True,
        estimator="hand",
    )


def cut(*players):
    return Cut(players=players, weight=0.0)


def asked(payoffs, seen=None):
    """The utility column of `payoffs`, as it is asked for; the rows are noted in `seen`."""

    def utility(rows):
        if seen is not None:
            seen.extend(rows.tolist())
        return payoffs[rows, 1]

    return utility


def choice(cuts, payoffs, limits, seen=None):
    return choose(cuts, payoffs[:, 0], asked(payoffs, seen), limits)


def returning(payoffs, seen=None):
    return idle(payoffs[:, 0], asked(payoffs, seen))


def proposed(*args, **kwargs):
    return {c.players for c in propose(*args, **kwargs)}


def test_leaders_are_proposed_alone_and_together():
    found = proposed(values([(0.5, 0), (0.3, 0), (0.2, 0), (-0.1, 0)]), FREE, gone=NONE)
    assert found == {(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)}


def test_the_weight_decides_who_leads():
    cuts = propose(values([(0.5, 0.4), (0.3, 0.0)]), FREE, gone=NONE)
    assert cuts[0] == Cut(players=(0,), weight=0.0)
    assert (1,) in {c.players for c in cuts}
    # Under weight 1 and above only the second one's score is highest: nothing new is left to propose.
    assert {c.weight for c in cuts} == {0.0}


def test_each_cut_is_proposed_once():
    cuts = propose(values([(0.5, 0.1), (0.4, 0), (0.3, 0), (0.2, 0)]), FREE, gone=NONE)
    assert len({c.players for c in cuts}) == len(cuts)


def test_who_is_gone_is_never_proposed():
    found = proposed(values([(0.5, 0), (0.3, 0), (0.2, 0)]), FREE, gone=np.array([0, 2]))
    assert found == {(1,)}


def test_who_was_only_screened_is_never_proposed():
    found = proposed(values([(0.9, 0), (0.3, 0)], counts=[0, 4]), FREE, gone=NONE)
    assert found == {(1,)}


def test_values_are_not_changed_by_proposing():
    given = values([(0.5, 0), (0.3, 0)])
    propose(given, FREE, gone=np.array([0]))
    assert given.counts.tolist() == [4, 4]


def test_no_more_groups_are_proposed_together_than_may_go():
    given = values([(0.5, 0), (0.3, 0), (0.2, 0)])
    assert max(map(len, proposed(given, Limits(utility=0.9, groups=2), gone=NONE))) == 2
    assert proposed(given, Limits(utility=0.9, groups=0), gone=NONE) == set()


def test_coalitions_hold_everybody_then_everybody_but_each_cut():
    rows = coalitions((cut(1), cut(0, 2)), 3)
    assert rows.astype(int).tolist() == [[1, 1, 1], [1, 0, 1], [0, 1, 0]]


def test_a_cut_below_the_utility_floor_is_never_chosen():
    payoffs = np.array([[1.0, 1.0], [0.0, 0.89], [0.8, 0.99]])
    assert choice((cut(0), cut(1)), payoffs, FREE) == (cut(1), "")


def test_a_cheap_cut_is_taken_before_a_strong_dear_one():
    # At price 5 the first gains 0.4 - 0.5 < 0 and the second 0.1.
    payoffs = np.array([[1.0, 1.0], [0.6, 0.9], [0.9, 1.0]])
    assert choice((cut(0), cut(1)), payoffs, FREE) == (cut(1), "")


def test_a_dear_cut_is_taken_when_nothing_cheaper_is_there():
    # 0.4 - 5 * 0.1 < 0, but 0.4 - 2 * 0.1 > 0.
    assert choice((cut(0),), np.array([[1.0, 1.0], [0.6, 0.9]]), FREE) == (cut(0), "")


def test_of_two_equal_cuts_the_smaller_is_taken():
    payoffs = np.array([[1.0, 1.0], [0.5, 1.0], [0.5, 1.0]])
    assert choice((cut(0, 1), cut(2)), payoffs, FREE) == (cut(2), "")


def test_a_gain_of_utility_is_worth_nothing_in_itself():
    payoffs = np.array([[1.0, 0.95], [1.0, 1.0]])
    chosen, reason = choice((cut(0),), payoffs, FREE)
    assert chosen is None and "no further cut lowers" in reason


def test_the_reason_says_why_nothing_is_cut():
    assert choice((), np.array([[1.0, 1.0]]), FREE) == (None, "no channel group has a positive share of the attack")
    chosen, reason = choice((cut(0),), np.array([[1.0, 1.0], [0.0, 0.5]]), FREE)
    assert chosen is None and "utility budget" in reason
    chosen, reason = choice((cut(0),), np.array([[1.0, 1.0], [0.98, 0.95]]), FREE)
    assert chosen is None and "more than it costs" in reason


def test_no_lower_price_is_taken_than_the_limits_allow():
    payoffs = np.array([[1.0, 1.0], [0.94, 0.95]])
    assert choice((cut(0),), payoffs, FREE) == (cut(0), "")
    assert choice((cut(0),), payoffs, Limits(utility=0.9, groups=5, price=2.0))[0] is None


def exhaustive(cuts, payoffs, limits):
    """The cut by the definition: at the highest price at which one gains, the one that gains most."""
    loss = np.maximum(0.0, payoffs[0, 1] - payoffs[1:, 1])
    fixed = prune._GROUP_PRICE * np.array([len(cut.players) for cut in cuts])
    for price in (p for p in prune.PRICES if p >= limits.price):
        gain = payoffs[0, 0] - payoffs[1:, 0] - price * loss - fixed
        gain[payoffs[1:, 1] < limits.utility] = -np.inf
        if gain.max() > 0:
            return cuts[int(np.argmax(gain))]
    return None


def test_the_choice_is_that_of_all_payoffs_though_few_are_asked():
    rng, seen, cuts = np.random.default_rng(0), [], tuple(cut(i) for i in range(30))
    for _ in range(300):
        spread = rng.choice([0.01, 0.1, 1.0], 2)
        payoffs = np.clip(0.9 - spread * rng.random((31, 2)), 0, 1)
        payoffs[0] = 0.9 - spread / 4
        limits = Limits(utility=float(rng.uniform(0.5, 0.9)), groups=5, price=float(rng.choice(prune.PRICES)))
        assert choice(cuts, payoffs, limits, seen)[0] == exhaustive(cuts, payoffs, limits)
    assert len(seen) < 0.5 * 300 * 31


def test_no_utility_is_asked_of_what_lowers_the_attack_by_nothing():
    seen, payoffs = [], np.array([[0.5, 1.0], [0.6, 1.0], [0.499, 1.0], [0.1, 1.0], [0.3, 1.0]])
    assert choice((cut(0), cut(1), cut(2), cut(3)), payoffs, FREE, seen) == (cut(2), "")
    assert set(seen) == {0, 3, 4}


def test_a_group_that_does_nothing_returns_and_the_idlest_first():
    # Groups a, b, c are gone; b's return costs nothing, a's little, c's brings the attack back.
    assert returning(np.array([[0.1, 0.9], [0.102, 0.9], [0.1, 0.9], [0.7, 0.9]])) == 1
    assert returning(np.array([[0.1, 0.9], [0.15, 0.9], [0.12, 0.9]])) is None


def test_a_group_does_not_return_where_that_costs_utility():
    assert returning(np.array([[0.1, 0.9], [0.1, 0.89]])) is None


def test_no_utility_is_asked_of_a_group_that_brings_the_attack_back():
    seen = []
    assert returning(np.array([[0.1, 0.9], [0.5, 0.9], [0.1, 0.9]]), seen) == 1 and seen == [0, 2]
    assert returning(np.array([[0.1, 0.9], [0.5, 0.9]]), seen) is None and seen == [0, 2]
