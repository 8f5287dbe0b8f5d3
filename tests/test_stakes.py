"""Stakes: payoffs by hand, and which images are stamped with what."""

from __future__ import annotations

import numpy as np
import pytest

from debride.stakes import STRENGTHS, Stake, attack_stake, log_odds, utility_stake, variations
from debride.triggers import opaque, stamp
from debride.types import Rate, Samples, Trigger


def trigger(target=1, opacity=0.3, size=(4, 4)):
    mask = np.zeros((1, *size), np.float32)
    mask[0, 0, 0] = opacity
    return Trigger(target=target, mask=mask, pattern=np.ones((1, *size), np.float32), l1=opacity, success=Rate(9, 10))


def samples(n=12, n_classes=3, size=(4, 4), seed=0):
    images = 0.5 * np.random.default_rng(seed).random((n, 1, *size), dtype=np.float32)
    return Samples(images=images, labels=np.arange(n) % n_classes)


def blank(n):
    return np.zeros((n, 1, 2, 2), np.float32)


def test_with_a_one_hot_wish_the_payoff_is_the_probability_of_the_class():
    stake = Stake(images=blank(2), wanted=np.array([[0, 1], [1, 0]], np.float32))
    chances = np.array([[[0.9, 0.1], [0.4, 0.6]], [[0.5, 0.5], [1.0, 0.0]]], np.float32)
    np.testing.assert_allclose(stake.payoff(chances), [(0.1 + 0.4) / 2, (0.5 + 1.0) / 2], atol=1e-7)


def test_the_payoff_is_one_minus_the_total_variation_distance():
    rng = np.random.default_rng(1)
    wanted, chances = (rng.dirichlet(np.ones(5), (3,)).astype(np.float32) for _ in range(2))
    distance = 0.5 * np.abs(wanted - chances).sum(axis=1)
    found = Stake(images=blank(3), wanted=wanted).payoff(chances[None])
    np.testing.assert_allclose(found, [1 - distance.mean()], atol=1e-6)
    np.testing.assert_allclose(Stake(images=blank(3), wanted=wanted).payoff(wanted[None]), [1.0], atol=1e-6)


def test_utility_counts_a_new_mistake_as_a_loss_and_a_mended_one_as_none():
    images = Samples(images=blank(2), labels=np.array([0, 0]))
    delivered = np.array([[1, 0, 0], [0, 1, 0]], np.float32)  # right, and wrong
    stake = utility_stake(images, delivered)
    as_delivered, mended, spoilt = (
        stake.payoff(np.array([rows], np.float32))[0]
        for rows in (delivered, [[1, 0, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]])
    )
    np.testing.assert_allclose([as_delivered, mended, spoilt], [0.75, 0.75, 0.25], atol=1e-6)


@pytest.mark.parametrize(
    ("odds", "payoff"), [(-2.0, 0.0), (0.0, 0.5), (1.0, 0.75), (2.0, 1.0), (-5.0, 0.0), (9.0, 1.0)]
)
def test_a_span_makes_the_payoff_linear_in_the_log_odds_and_clips_it(odds, payoff):
    chance = 1 / (1 + np.exp(-odds))
    stake = Stake(images=blank(1), wanted=np.array([[1, 0]], np.float32), span=(-2.0, 2.0))
    found = stake.payoff(np.array([[[chance, 1 - chance]]], np.float32))
    np.testing.assert_allclose(found, [payoff], atol=1e-5)


def test_a_thinned_stake_keeps_images_from_end_to_end_with_what_is_wanted_of_them():
    images = np.linspace(0, 1, 9, dtype=np.float32).reshape(9, 1, 1, 1)
    stake = Stake(images=images, wanted=np.eye(9, dtype=np.float32), span=(-1.0, 1.0))
    thin = stake.thinned(3)
    np.testing.assert_array_equal(thin.images.ravel(), images[[0, 4, 8]].ravel())
    np.testing.assert_array_equal(thin.wanted.argmax(axis=1), [0, 4, 8])
    assert thin.span == stake.span and len(stake.thinned(100)) == 9


def test_log_odds_are_finite_at_the_ends():
    np.testing.assert_allclose(log_odds(np.array([0.0, 0.5, 1.0])), [-16.118, 0.0, 16.118], atol=1e-3)


def test_a_stake_cannot_be_changed():
    stake = Stake(images=blank(1), wanted=np.ones((1, 1), np.float32))
    with pytest.raises(ValueError, match="read-only"):
        stake.images[0] = 1


def test_an_opaque_trigger_is_stronger_and_at_most_opaque():
    assert opaque(trigger(opacity=0.3), 2.0).mask.max() == pytest.approx(0.6)
    full = opaque(trigger(opacity=0.3), 5.0)
    assert full.mask.max() == 1.0 and full.l1 == pytest.approx(1.0)
    assert np.count_nonzero(full.mask) == 1
    np.testing.assert_array_equal(opaque(trigger(), 1.0).mask, trigger().mask)


def test_triggers_share_the_attack_equally_and_spare_their_own_class():
    data = samples(n=60)
    found = attack_stake(data, [trigger(1), trigger(2)], 3, 48, seed=0)
    assert len(found) == 48
    assert found.wanted.sum(axis=0).tolist() == [0, 24, 24]
    allowed = [
        stamp(data.images[data.labels != t], opaque(trigger(t), strength)) for t in (1, 2) for strength in STRENGTHS
    ]
    for part, pool in zip(np.split(found.images, 6), allowed, strict=True):
        assert all((pool == image).all(axis=(1, 2, 3)).any() for image in part)


def test_few_images_are_used_once_per_trigger_and_strength():
    found = attack_stake(samples(n=6), [trigger(1)], 3, 1000, seed=0)
    assert len(found) == 4 * len(STRENGTHS)


def test_the_seed_decides_the_attack():
    data = samples(n=60)
    first, again, other = (attack_stake(data, [trigger(1)], 3, 12, seed=s).images for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_variations_begin_with_the_images_themselves_and_stay_in_range():
    data = samples(n=5)
    found, again = (variations(data, 20, seed=0).images for _ in range(2))
    assert found.shape == (20, 1, 4, 4) and found.min() >= 0 and found.max() <= 1
    assert {image.tobytes() for image in found[:5]} == {image.tobytes() for image in data.images}
    np.testing.assert_array_equal(found, again)


def test_variations_carry_the_label_of_what_they_show_most_of():
    planes = np.repeat([0.0, 1.0], 8).astype(np.float32)[:, None, None, None] * np.ones((1, 4, 4), np.float32)
    found = variations(Samples(images=planes, labels=np.repeat([0, 1], 8)), 200, seed=0)
    shown = found.images.mean((1, 2, 3))
    clear = np.abs(shown - 0.5) > 0.06  # half and half, and a tenth darker, shows neither
    assert clear.sum() > 150
    np.testing.assert_array_equal(shown[clear] > 0.5, found.labels[clear] == 1)
