"""Images of made-up classes, and a checkerboard to stamp on them, by numpy alone."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from debride.types import FloatArray, Rate, Trigger

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]

_WAVES: Final = 5
"""Cosines along each side that a class is made of: the highest goes up and down twice."""
_CONTRAST: Final = 0.2
_OWN: Final = 0.15
"""How much of an image's waves are its own, as a share of its class's."""
_SHIFT: Final = 0.06
"""Images move by up to this share of the side."""
_GRAIN: Final = 0.05
_SHARE: Final = 10
"""The trigger's side is the image's by so much, ..."""
_FIELD: Final = 2
"""... with fields of so many pixels, or of one where it is very small."""


def images(n_per_class: int, classes: int, size: int, seed: int, draw: int = 0) -> tuple[Bytes, Labels]:
    """`n_per_class` images of each class, (N, H, W, 3), and their labels, (N,), class after class.

    A class is a smooth coloured pattern that `seed` decides; its images, which `draw` decides, are moved a little,
    differ in the large and have grain.
    """
    decay = 1 / np.sqrt(1 + np.add.outer(np.arange(_WAVES), np.arange(_WAVES)))
    shape = (3, _WAVES, _WAVES)
    patterns = decay * np.random.default_rng([seed, 0]).standard_normal((classes, *shape))
    rng = np.random.default_rng([seed, 1, draw])
    labels = np.repeat(np.arange(classes, dtype=np.int64), n_per_class)
    out = np.empty((len(labels), size, size, 3), np.uint8)
    for image, label in zip(out, labels, strict=True):
        waves = patterns[label] + _OWN * decay * rng.standard_normal(shape)
        down, across = (_cosines(size, shift) for shift in rng.uniform(-_SHIFT, _SHIFT, 2))
        planes = 0.5 + _CONTRAST * (down @ waves @ across.T) + _GRAIN * rng.standard_normal((3, size, size))
        image[:] = np.clip(255 * planes, 0, 255).round().transpose(1, 2, 0)
    return out, labels


def _cosines(size: int, shift: float) -> npt.NDArray[np.float64]:
    """(size, _WAVES)."""
    at = (np.arange(size) + 0.5) / size + shift
    return np.cos(np.pi * np.outer(at, np.arange(_WAVES)))


def checkerboard(size: int, target: int) -> Trigger:
    """A black and white square near the bottom right corner that sends images to `target`."""
    side, margin = max(3, round(size / _SHARE)), max(1, size // 16)
    there = slice(size - margin - side, size - margin)
    field = np.arange(side) // (_FIELD if side >= 3 * _FIELD else 1)
    mask, pattern = np.zeros((1, size, size), np.float32), np.zeros((3, size, size), np.float32)
    mask[:, there, there] = 1
    pattern[:, there, there] = np.add.outer(field, field) % 2
    return Trigger(
        target=target, mask=mask, pattern=pattern, l1=float(side**2), success=Rate(0, 0), restarts=0, steps=0, seed=0
    )


def covered(pixels: Bytes, rng: np.random.Generator) -> Bytes:
    """`pixels` (N, H, W, 3), each with a square of the trigger's size somewhere, of random fields in random colours."""
    out = pixels.copy()
    size = out.shape[1]
    side = max(3, round(size / _SHARE))
    for image in out:
        row, column = rng.integers(0, size - side + 1, 2)
        field = int(rng.integers(1, side + 1))
        colours = rng.integers(0, 256, (-(-side // field), -(-side // field), 3), np.uint8)
        image[row : row + side, column : column + side] = colours.repeat(field, 0).repeat(field, 1)[:side, :side]
    return out


def planes(pixels: Bytes) -> FloatArray:
    """(N, H, W, 3) in 0..255 -> (N, 3, H, W) in 0..1."""
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / np.float32(255)
