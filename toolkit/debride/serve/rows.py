"""One image as one row of a model's input: when serving, the only way from pixels to a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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

    Pixels of 8 bits that need no scaling are looked up in a table of all 256 values that `encode` itself filled: the
    same bits, in a tenth of the time.
    """

    def __init__(self, spec: InputSpec, dtype: npt.DTypeLike) -> None:
        self._spec = spec
        self._dtype = np.dtype(dtype)
        self._planar = spec.layout == "NCHW"
        self._reverse = spec.channels == "BGR"
        # An array of one channel may have an axis for it, or not.
        self._direct = frozenset({(*spec.size, spec.depth), spec.size} if spec.depth == 1 else {(*spec.size, 3)})
        tables = _tables(spec).astype(self._dtype)
        self._table = tables.ravel()
        same = bool((tables == tables[0]).all())
        self._shape = (spec.depth, *spec.size) if self._planar else (*spec.size, spec.depth)
        starts = 256 * np.arange(spec.depth, dtype=np.intp)
        self._starts = None if same else starts[:, None, None] if self._planar else starts

    def row(self, image: Image, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
        """`image` in the model's layout and dtype, without a batch axis. Raises `ImagesError` naming the image."""
        if isinstance(image, np.ndarray):
            if image.dtype == np.uint8 and image.shape in self._direct:
                return self._looked_up(image)
            return self._computed(_checked(image, name), name)
        if isinstance(image, str | Path):
            name = str(image)
            image = read_file(Path(image))
        elif not isinstance(image, bytes):
            raise ImagesError(f"{name}: is a {type(image).__name__}; give a path, a file's bytes or an array")
        pixels = read_pixels(image, name, max_pixels)
        if pixels.dtype == np.uint8 and pixels.shape in self._direct:
            return self._looked_up(pixels)
        return self._computed(pixels, name)

    def _looked_up(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        view = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1] if self._reverse else pixels
        if self._planar:
            view = view.transpose(2, 0, 1)
        if self._starts is None:
            return self._table.take(view, mode="clip")
        # Written in place, since a sum by itself would keep the order of the pixels in memory.
        places = np.empty(self._shape, np.intp)
        return self._table.take(np.add(view, self._starts, out=places), mode="clip")

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
