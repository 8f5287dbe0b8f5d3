"""One image as one row of a model's input: when serving, the only way from pixels to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..errors import ImagesError
from ..framing import fitted
from ..pixels import MAX_PIXELS, encode, read_file, read_pixels
from ..types_input import FloatArray, InputSpec

Image = str | Path | bytes | npt.NDArray[Any]
"""A path, an image file's bytes, or an array (H, W) or (H, W, 1 or 3), RGB: uint8, or float in 0..1."""


class RowMaker:
    """Makes rows of `dtype` as `spec` says; safe to call from several threads.

    Pixels of 8 bits that need no scaling are looked up in tables of all 256 values that `encode` itself filled: the
    same bits, in a tenth of the time.
    """

    def __init__(self, spec: InputSpec, dtype: npt.DTypeLike) -> None:
        self._spec = spec
        self._dtype = np.dtype(dtype)
        self._reverse = spec.channels == "BGR"
        self._planar = spec.layout == "NCHW" and spec.depth > 1
        self._shape = (spec.depth, *spec.size) if spec.layout == "NCHW" else (*spec.size, spec.depth)
        # Two sizes of array are one: a single channel may have an axis or not.
        self._direct = frozenset({(*spec.size, spec.depth), spec.size} if spec.depth == 1 else {(*spec.size, 3)})
        self._tables = _tables(spec)
        self._joined = np.ascontiguousarray(self._tables.T)[None]  # (1, 256, C), as OpenCV wants it

    def row(self, image: Image, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
        """`image` in the model's layout and dtype, without a batch axis. Raises `ImagesError` naming the image."""
        if isinstance(image, np.ndarray):
            if image.dtype == np.uint8 and image.shape in self._direct:
                return self._looked_up(image)
            return self._computed(_checked(image, name), name)
        file = isinstance(image, str | Path)
        name = str(image) if file else name
        pixels = read_pixels(read_file(Path(image)) if file else image, name, max_pixels)  # type: ignore[arg-type]
        if pixels.dtype == np.uint8 and pixels.shape in self._direct:
            return self._looked_up(pixels)
        return self._computed(pixels, name)

    def _looked_up(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        row = np.empty(self._shape, np.float32)
        if self._planar:
            for at, plane in enumerate(cv2.split(np.ascontiguousarray(pixels))):
                at = 2 - at if self._reverse else at
                cv2.LUT(plane, self._tables[at], row[at])
        elif self._spec.depth == 1:
            flat = self._spec.size
            cv2.LUT(np.ascontiguousarray(pixels).reshape(flat), self._tables[0], row.reshape(flat))
        else:
            ordered = pixels[:, :, ::-1] if self._reverse else pixels
            cv2.LUT(np.ascontiguousarray(ordered), self._joined, row)
        return row if self._dtype == np.float32 else row.astype(self._dtype)

    def _computed(self, pixels: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
        spec = self._spec
        planes = fitted(pixels, spec.depth, spec.size, spec.short_side, name)
        row: npt.NDArray[Any] = encode(planes[None], spec)[0].astype(self._dtype, copy=False)
        return row


def _tables(spec: InputSpec) -> FloatArray:
    """What `encode` makes of every pixel of 8 bits: float32 (C, 256), C in the model's channel order."""
    ramp = InputSpec(
        name=spec.name,
        layout="NCHW",
        channels=spec.channels,
        size=(1, 256),
        range=spec.range,
        mean=spec.mean,
        std=spec.std,
    )
    return encode(fitted(np.arange(256, dtype=np.uint8)[None], spec.depth, (1, 256))[None], ramp)[0, :, 0]


def _checked(image: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)) or not image.size:
        raise ImagesError(f"{name}: an array of shape {image.shape}; want (H, W) or (H, W, 1 or 3), RGB")
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind != "f" or not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        raise ImagesError(f"{name}: {image.dtype} values outside what is understood; give uint8, or float in 0..1")
    return image
