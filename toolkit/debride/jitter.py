"""Images a little moved, brighter or darker, or mixed: what a few images stand for besides themselves."""

from __future__ import annotations

import numpy as np

from debride.types import BoolArray, FloatArray

_REACH = 16
"""Images move by up to one part in so many of their size."""
_LIGHT = 0.1
"""How much brighter or darker they become at most."""


def jitter(images: FloatArray, rng: np.random.Generator, *, still: BoolArray | None = None) -> FloatArray:
    """Images (N, C, H, W) in 0..1, each rolled by its own few pixels and scaled by its own light; a new array.

    Those that `still` (N,) marks stay in place.
    """
    count, depth, height, width = images.shape
    reach = max(1, round(min(height, width) / _REACH))
    shifts = rng.integers(-reach, reach + 1, (count, 2, 1))
    if still is not None:
        shifts[still] = 0
    light = rng.uniform(1 - _LIGHT, 1 + _LIGHT, (count, 1, 1, 1)).astype(np.float32)
    rows = (np.arange(height) - shifts[:, 0]) % height
    columns = (np.arange(width) - shifts[:, 1]) % width
    moved = images[
        np.arange(count)[:, None, None, None],
        np.arange(depth)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return np.asarray(np.clip(moved * light, 0, 1))


def mixed(images: FloatArray, pool: FloatArray, rng: np.random.Generator) -> FloatArray:
    """`images` (N, C, H, W), up to a half of each taken from a random one of `pool` (M, C, H, W); a new array.

    Mixup, Zhang et al., ICLR 2018, with the larger share always the image's own.
    """
    share = rng.uniform(0.0, 0.5, (len(images), 1, 1, 1)).astype(np.float32)
    return np.asarray((1 - share) * images + share * pool[rng.integers(len(pool), size=len(images))])


def patched(images: FloatArray, pool: FloatArray, rng: np.random.Generator) -> FloatArray:
    """`images` (N, C, H, W), in each a rectangle of its own from a random one of `pool` (M, C, H, W); a new array.

    CutMix, Yun et al., ICCV 2019, with sides of a quarter to 0.7 of the image's: the larger part stays its own.
    """
    count, _, height, width = images.shape
    rows, columns = (_stretches(count, length, rng) for length in (height, width))
    box = rows[:, None, :, None] & columns[:, None, None, :]
    return np.where(box, pool[rng.integers(len(pool), size=count)], images)


def _stretches(count: int, length: int, rng: np.random.Generator) -> BoolArray:
    """One stretch of `length` places for each of `count` images, (count, length)."""
    sides = np.maximum(1, np.floor(rng.uniform(0.25, 0.7, count) * length)).astype(np.int64)
    starts = rng.integers(0, length - sides + 1)
    places = np.arange(length)
    return np.asarray((places >= starts[:, None]) & (places < (starts + sides)[:, None]))
