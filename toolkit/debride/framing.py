"""Pixels of any size to planes of the model's: scaled, cut from the centre, and in its number of colours (OpenCV).

Pixels become floats one plane at a time: a photograph of 67 megapixels would fill 2 GB otherwise.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import ImagesError
from .types_input import FloatArray

_MAX_ENLARGED = 1 << 24


def fitted(
    pixels: npt.NDArray[Any],
    depth: int,
    size: tuple[int, int],
    short_side: int | None = None,
    name: str = "image",
) -> FloatArray:
    """`pixels` as float32 (`depth`, *`size`) in 0..1.

    `pixels` are (H, W) or (H, W, 1 or 3), RGB: uint8, uint16, or float in 0..1. What is of `size` (height, width)
    already is only converted; else it is scaled straight to `size`, or, where `short_side` is given, so that its short
    side has that length, and `size` is cut from the centre, as torchvision's Resize and CenterCrop do. Scaling is by
    area average down, bilinear up. Raises `ImagesError` where an image is so elongated that it cannot be scaled.
    """
    found = (pixels.shape[0], pixels.shape[1])
    scaled = scaled_size(found, size, short_side, name)
    # Half a pixel goes to the even one: torchvision's arithmetic, as the rounding down of the long side.
    corner = round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)
    return in_depth(np.stack([_framed(plane, scaled, corner, size) for plane in _planes(pixels)]), depth)


def scaled_size(
    found: tuple[int, int], size: tuple[int, int], short_side: int | None = None, name: str = "image"
) -> tuple[int, int]:
    """The size to which `fitted` scales what is of size `found`, before it cuts `size` from it.

    Raises `ImagesError` naming `name` where that would be too large.
    """
    if short_side is None or found == size:
        return size
    short = min(found)
    height, width = (short_side * side // short for side in found)
    if height * width > max(found[0] * found[1], _MAX_ENLARGED):
        raise ImagesError(f"{name}: {found[1]}x{found[0]} pixels are too elongated to be scaled; cut the image first")
    return height, width


def unit(pixels: npt.NDArray[Any]) -> FloatArray:
    """`pixels` (uint8, uint16, or float in 0..1) of any shape and strides as float32 in 0..1."""
    if pixels.dtype.kind == "f":
        return pixels.astype(np.float32)
    scaled = np.empty(pixels.shape, np.float32)
    np.divide(pixels, np.float32(np.iinfo(pixels.dtype).max), out=scaled)
    return scaled


def in_depth(image: FloatArray, depth: int) -> FloatArray:
    """`image` (1 or 3, H, W) with `depth` channels: grey repeated, colour weighted as in ITU-R BT.601."""
    if image.shape[0] == depth:
        return image
    if depth == 3:
        return np.repeat(image, 3, axis=0)
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.tensordot(weights, image, axes=1)[None].astype(np.float32)


def resized(plane: FloatArray, size: tuple[int, int]) -> FloatArray:
    """`plane` (H, W) in 0..1 at `size` (height, width): area average when shrinking, else bilinear."""
    if plane.shape == size:
        return plane
    smaller = size[0] <= plane.shape[0] and size[1] <= plane.shape[1]
    flags = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    scaled = np.asarray(cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=flags), np.float32)
    np.clip(scaled, 0, 1, out=scaled)
    return scaled


def _planes(pixels: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    return [pixels] if pixels.ndim == 2 else [pixels[:, :, c] for c in range(pixels.shape[2])]


def _framed(
    plane: npt.NDArray[Any], scaled: tuple[int, int], corner: tuple[int, int], size: tuple[int, int]
) -> FloatArray:
    top, left = corner
    return resized(unit(plane), scaled)[top : top + size[0], left : left + size[1]].copy()
