"""Pixels in 0..1 to a model's input, and image files to pixels (OpenCV)."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from .errors import ImagesError
from .imagesize import image_size
from .types import FloatArray, InputSpec

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


def decode(data: bytes, spec: InputSpec, name: str) -> FloatArray:
    """An image file's bytes as float32 (C, H, W) in 0..1, grey or RGB as `spec` wants, at its own size.

    EXIF orientation is honoured, alpha dropped, 8 and 16 bits scaled. Raises `ImagesError` naming `name` where the
    bytes are no PNG, JPEG, BMP, WebP or PNM image, are broken, or hold more than `MAX_PIXELS` pixels.
    """
    return in_depth(decode_any(data, name), spec.depth)


def decode_any(data: bytes, name: str) -> FloatArray:
    """As `decode`, with the depth that the file has: (1, H, W) or (3, H, W)."""
    height, width = image_size(data, name)
    if height * width > MAX_PIXELS:
        raise ImagesError(f"{name}: {width}x{height} pixels exceed the limit of {MAX_PIXELS}; scale it down first")
    try:
        # Not IMREAD_UNCHANGED: that one ignores the EXIF orientation.
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        pixels = None
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise ImagesError(f"{name}: cannot be decoded as an image; is it truncated? Save it again as PNG")
    scaled = pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535)
    planes = scaled[None] if scaled.ndim == 2 else scaled[:, :, ::-1].transpose(2, 0, 1)
    return np.ascontiguousarray(planes)


def in_depth(image: FloatArray, depth: int | None) -> FloatArray:
    """`image` (1 or 3, H, W) with `depth` channels: grey repeated, colour weighted as in ITU-R BT.601."""
    if depth is None or image.shape[0] == depth:
        return image
    if depth == 3:
        return np.repeat(image, 3, axis=0)
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.tensordot(weights, image, axes=1)[None].astype(np.float32)


def resized(image: FloatArray, size: tuple[int, int]) -> FloatArray:
    """`image` (C, H, W) at `size` (height, width): area average when shrinking, else bilinear."""
    if image.shape[1:] == size:
        return image
    smaller = size[0] <= image.shape[1] and size[1] <= image.shape[2]
    flags = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    planes = [cv2.resize(np.ascontiguousarray(plane), size[::-1], interpolation=flags) for plane in image]
    return np.clip(np.stack(planes), 0, 1).astype(np.float32)


def read_file(file: Path) -> bytes:
    """The bytes of an image file. Raises `ImagesError` naming it where it is too large or cannot be read."""
    try:
        if not file.is_file() or file.stat().st_size > _MAX_FILE_BYTES:
            raise ImagesError(f"{file}: no regular file below {_MAX_FILE_BYTES} bytes; remove it or scale it down")
        return file.read_bytes()
    except OSError as error:
        raise ImagesError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error
