"""Jitter: every image moves on its own, stays in range, and is the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from debride.jitter import jitter, mixed, patched


def rng(seed=0):
    return np.random.default_rng(seed)


def points(n):
    """Images with one bright pixel in the middle of 32 x 32."""
    images = np.zeros((n, 3, 32, 32), np.float32)
    images[:, :, 16, 16] = 0.5
    return images


def moves(images):
    """Where each image's brightest pixel went, (N, 2)."""
    flat = images[:, 0].reshape(len(images), -1).argmax(1)
    return np.stack([flat // 32, flat % 32], 1) - 16


def test_each_image_moves_by_its_own_few_pixels():
    found = moves(jitter(points(200), rng()))
    assert np.abs(found).max() == 2
    assert len({tuple(move) for move in found}) == 25


def test_channels_move_together_and_nothing_is_lost():
    moved = jitter(points(50), rng())
    np.testing.assert_array_equal(moved[:, 0], moved[:, 2])
    assert (np.count_nonzero(moved[:, 0], axis=(1, 2)) == 1).all()


def test_light_changes_by_a_tenth_and_stays_in_range():
    peaks = jitter(points(200), rng()).max(axis=(1, 2, 3))
    assert 0.45 <= peaks.min() < 0.47 and 0.53 < peaks.max() <= 0.55
    bright = jitter(np.ones((50, 1, 8, 8), np.float32), rng())
    assert bright.max() == 1 and bright.dtype == np.float32


def test_marked_images_stay_in_place():
    still = np.arange(2000) % 4 == 0
    stays = (moves(jitter(points(2000), rng(), still=still)) == 0).all(axis=1)
    assert stays[still].all()
    assert stays[~still].mean() == pytest.approx(1 / 25, abs=0.03)


def test_the_seed_decides_and_the_images_given_are_not_changed():
    images = points(9)
    np.testing.assert_array_equal(jitter(images, rng(1)), jitter(images, rng(1)))
    assert (jitter(images, rng(1)) != jitter(images, rng(2))).any()
    np.testing.assert_array_equal(images, points(9))


def flat(values):
    """Images (N, 2, 16, 12), each of one value."""
    return np.tile(np.float32(values)[:, None, None, None], (1, 2, 16, 12))


def test_a_mixed_image_is_mostly_its_own():
    found = mixed(flat(np.zeros(500)), flat([1.0]), rng())
    assert found.shape == (500, 2, 16, 12) and found.dtype == np.float32
    shares = found[:, 0, 0, 0]
    np.testing.assert_array_equal(found, flat(shares))
    assert 0 <= shares.min() < 0.01 and 0.49 < shares.max() <= 0.5


def test_a_mixed_image_takes_from_a_random_one_of_the_pool():
    pool = flat([0.25, 0.5, 1.0])
    found = mixed(flat(np.zeros(900)), pool, rng(3))[:, 0, 0, 0]
    assert found.max() > 0.49 and np.mean(found <= 0.25) == pytest.approx((1 + 1 + 0.5) / 3, abs=0.05)
    own = rng(2).random((5, 2, 16, 12), dtype=np.float32)
    np.testing.assert_allclose(mixed(own, own[:1], rng())[0], own[0], rtol=0, atol=1e-6)


def boxes(n=400, values=(1.0,), seed=0):
    """Where each of `n` black images shows another, (N, 16, 12)."""
    found = patched(flat(np.zeros(n)), flat(values), rng(seed))
    np.testing.assert_array_equal(found[:, 0], found[:, 1])
    assert found.dtype == np.float32
    return found[:, 0]


def test_a_patched_image_shows_one_rectangle_of_another():
    shown = boxes() == 1
    rows, columns = shown.any(axis=2), shown.any(axis=1)
    np.testing.assert_array_equal(shown, rows[:, :, None] & columns[:, None, :])
    for sides, length in ((rows, 16), (columns, 12)):
        counts = sides.sum(axis=1)
        assert counts.min() == length // 4 and counts.max() == int(0.7 * length - 1e-9)
        # One stretch: it begins once.
        np.testing.assert_array_equal((np.diff(sides.astype(int), axis=1, prepend=0) == 1).sum(axis=1), 1)
        assert sides[:, 0].any() and sides[:, -1].any()
    assert shown.mean(axis=(1, 2)).max() < 0.5


def test_each_patch_comes_from_its_own_image_of_the_pool():
    peaks = boxes(values=(0.25, 0.5, 1.0)).max(axis=(1, 2))
    values, counts = np.unique(peaks, return_counts=True)
    assert values.tolist() == [0.25, 0.5, 1.0] and counts.min() > 100


def test_an_image_of_one_pixel_can_be_patched():
    single = np.zeros((3, 1, 1, 1), np.float32)
    np.testing.assert_array_equal(patched(single, single + 1, rng()), single + 1)


@pytest.mark.parametrize("vary", [mixed, patched])
def test_variations_follow_the_seed_and_leave_what_they_were_given(vary):
    own, pool = rng(1).random((9, 3, 8, 8), np.float32), rng(2).random((4, 3, 8, 8), np.float32)
    before = own.copy(), pool.copy()
    np.testing.assert_array_equal(vary(own, pool, rng(1)), vary(own, pool, rng(1)))
    assert (vary(own, pool, rng(1)) != vary(own, pool, rng(2))).any()
    np.testing.assert_array_equal(own, before[0])
    np.testing.assert_array_equal(pool, before[1])
