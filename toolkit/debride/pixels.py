"""Image files to pixels (OpenCV), and pixels in 0..1 to a model's input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from .errors import ImagesError
from .framing import fitted
from .imagecheck import checked
from .imagesize import image_size
from .types_input import FloatArray, InputSpec

MAX_PIXELS = 1 << 26
_MAX_FILE_BYTES = 256 << 20


def encode(images: FloatArray, spec: InputSpec) -> FloatArray:
    """Images (N, C, H, W) in 0..1, RGB or grey, as the model's float32 input in its channel order and layout.

    Raises `ImagesError` where channels or size are not those of `spec`.
    """
    if images.ndim != 4 or images.shape[1:] != (spec.depth, *spec.size):
        raise ImagesError(
            f"images of shape {images.shape} do not fit the model's (N, {spec.depth}, {spec.size[0]}, {spec.size[1]})"
        )
    scale, shift = spec.affine()
    ordered = images[:, ::-1] if spec.channels == "BGR" else images
    scaled = ordered * scale + shift
    return np.ascontiguousarray(scaled.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else scaled, dtype=np.float32)


def read_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
    """An image file's bytes as uint8 or uint16, (H, W) or (H, W, 3), RGB, at its own size; may be a view.

    EXIF orientation is honoured, alpha dropped (what is transparent shows the colour stored beneath), and of several
    images the first is taken. Raises `ImagesError` naming `name` where the bytes are no PNG, JPEG, BMP, WebP or PNM
    image, are broken or not whole, or where their header says more than `max_pixels` pixels.
    """
    height, width = image_size(data, name)
    if height * width > max_pixels:
        raise ImagesError(f"{name}: {width}x{height} pixels exceed the limit of {max_pixels}; scale it down first")
    data = checked(data, name)
    try:
        # Not IMREAD_UNCHANGED: that one ignores the EXIF orientation.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        pixels = None
    # Another size than the header's was refused for would be another reading of the file than ours.
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16) or {height, width} != set(pixels.shape[:2]):
        raise ImagesError(f"{name}: cannot be decoded as an image; is it truncated? Save it again as PNG")
    found: npt.NDArray[Any] = pixels if pixels.ndim == 2 else pixels[:, :, ::-1]
    return found


def decode(data: bytes, spec: InputSpec, name: str) -> FloatArray:
    """`read_pixels` as float32 (C, H, W) in 0..1, grey or RGB as `spec` wants, at the image's own size."""
    pixels = read_pixels(data, name)
    return fitted(pixels, spec.depth, (pixels.shape[0], pixels.shape[1]))


def read_file(file: Path) -> bytes:
    """The bytes of an image file. Raises `ImagesError` naming it where it is too large or cannot be read."""
    try:
        if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
            raise ImagesError(f"{file}: no regular file below {_MAX_FILE_BYTES} bytes; remove it or scale it down")
        return file.read_bytes()
    except OSError as error:
        raise ImagesError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
