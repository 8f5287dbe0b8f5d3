"""Images a little moved and a little brighter or darker: what a few images stand for besides themselves."""

from __future__ import annotations

import numpy as np

from debride.types import FloatArray

_REACH = 16
"""Images move by up to one part in so many of their size."""
_LIGHT = 0.1
"""How much brighter or darker they become at most."""


def jitter(images: FloatArray, rng: np.random.Generator, *, still: float = 0.0) -> FloatArray:
    """Images (N, C, H, W) in 0..1, each rolled by its own few pixels and scaled by its own light; a new array.

    A share `still` of them (drawn for each image) stays in place.
    """
    count, depth, height, width = images.shape
    reach = max(1, round(min(height, width) / _REACH))
    shifts = rng.integers(-reach, reach + 1, (count, 2, 1)) * (rng.random((count, 1, 1)) >= still)
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
