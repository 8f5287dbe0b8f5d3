"""Jitter: every image moves on its own, stays in range, and is the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from debride.jitter import jitter


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


@pytest.mark.parametrize("still", [0.0, 0.25, 1.0])
def test_so_many_images_stay_in_place(still):
    share = np.mean((moves(jitter(points(2000), rng(), still=still)) == 0).all(axis=1))
    assert share == pytest.approx(still + (1 - still) / 25, abs=0.03)


def test_the_seed_decides_and_the_images_given_are_not_changed():
    images = points(9)
    np.testing.assert_array_equal(jitter(images, rng(1)), jitter(images, rng(1)))
    assert (jitter(images, rng(1)) != jitter(images, rng(2))).any()
    np.testing.assert_array_equal(images, points(9))
