"""An image's size from its first bytes, so that a decompression bomb is refused before it is decoded."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from .errors import ImagesError

# As OpenCV reads it: a carriage return ends a comment too, and what follows a number at once is lost. Another reading
# would let a file show us one size and OpenCV another. Compiled when first needed: importing this is measured.
_PNM = rb"P[1-6](?:\s|#[^\r\n]*[\r\n])+(\d{1,10})\s(?:\s|#[^\r\n]*[\r\n])*(\d{1,10})\s"
# A colour profile takes 255 segments at most; each is walked here, and a file could hold millions.
_MAX_SEGMENTS = 1 << 14


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) as the header of a PNG, JPEG, BMP, WebP or PNM file says, before EXIF rotation.

    Raises `ImagesError` naming `name` for another format or a broken header.
    """
    try:
        size = _parse(data)
    except (struct.error, IndexError):
        size = None
    if size is None or min(size) < 1:
        raise ImagesError(f"{name}: no readable PNG, JPEG, BMP, WebP or PNM image; remove it or save it again as PNG")
    return size


def _parse(data: bytes) -> tuple[int, int] | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    if data[:2] == b"\xff\xd8":
        return _jpeg(data)
    if data[:2] == b"BM":
        return _bmp(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    match = re.match(_PNM, data[:4096])
    return (int(match[2]), int(match[1])) if match else None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    """The first frame header (SOFn) of the segments; ITU-T T.81, B.2."""
    for marker, at in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 3)
            return height, width
    return None


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """The markers of a JPEG up to the first scan's (SOS, 0xDA), and where the lengths that follow them lie."""
    at, marker = 2, 0
    for _ in range(_MAX_SEGMENTS):
        if data[at] != 0xFF or marker == 0xDA:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        yield marker, at + 2
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])


def _bmp(data: bytes) -> tuple[int, int]:
    if struct.unpack_from("<I", data, 14)[0] == 12:  # OS/2 header: 16-bit sizes
        width, height = struct.unpack_from("<HH", data, 18)
    else:
        width, height = struct.unpack_from("<ii", data, 18)
    return abs(height), width  # a negative height means rows from the top


def _webp(data: bytes) -> tuple[int, int] | None:
    """RFC 9649: lossy (VP8), lossless (VP8L) or extended (VP8X)."""
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":
        bits = int(struct.unpack_from("<I", data, 21)[0])
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8X":
        width = int.from_bytes(data[24:27], "little") + 1
        return int.from_bytes(data[27:30], "little") + 1, width
    return None
