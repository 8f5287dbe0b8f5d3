"""What a decoder gets of an image file: all of it is there, and decoding takes no longer than its pixels are worth.

The number of pixels does not bound the time: a PNG of 28x28 may inflate to gigabytes, a JPEG of 256x256 go over its
pixels a million times. WebP, BMP and PNM have no such way: what they hold beside their pixels is passed over once.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from .errors import ImagesError

# Encoders write 8 KiB of pixels a chunk or more.
_MAX_CHUNKS = 1 << 16
# A colour profile takes 255 at most; each is walked here and kept by the decoder, and a file could hold millions.
_MAX_SEGMENTS = 1 << 14
# Encoders write about ten, and jpegtran takes no script of more.
_MAX_SCANS = 100
# What is no marker after 0xFF: 0 (the byte itself), a fill byte, and the markers without a length that scans may hold.
_MARKER = rb"\xff[^\x00\x01\xd0-\xd7\xff]"
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
# Read at once: a search holds the interpreter until it is through.
_SEARCHED = 1 << 20
_INFLATED = 1 << 14
# Ancillary chunks that OpenCV's pixels depend on.
_KEPT = (b"eXIf", b"tRNS")
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
# Deflate packs no tighter; and as much more than its pixels as an image may inflate to, which takes a few milliseconds.
_RATIO, _SLACK = 1032, 1 << 20


def checked(data: bytes, name: str) -> bytes:
    """The bytes of an image file that are to be decoded: `data`, of a PNG without text, profiles and animation.

    Raises `ImagesError` naming `name` where a PNG or JPEG lacks its end mark (it may decode, the rest left grey), where
    a PNG inflates to more than its pixels, and where a JPEG has more scans or segments than any encoder writes. Bytes
    after the end are let be, as decoders do. The other formats state their length, which decoders heed.
    """
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _png(data, name)
        if data[:2] == b"\xff\xd8":
            _check_jpeg(data, name)
        return data
    except (struct.error, IndexError):
        raise _cut(name) from None


def _png(data: bytes, name: str) -> bytes:
    """Refuses and leaves out what takes time for no pixels; PNG, third edition, 5.3 and 10.1."""
    packed: list[tuple[int, int]] = []
    kept: list[bytes] = []
    begin, end, seen = 0, 8, set()
    for kind, at in _chunks(data, name):
        start, end = end, at
        if kind == b"IDAT":
            packed.append((start + 8, end - 4))
        # The fifth bit of the first letter: ancillary. Of several of a kind the first counts, and the others are warned
        # of, a line each.
        elif kind[0] & 0x20 and (kind not in _KEPT or kind in seen):
            kept.append(data[begin:start])
            begin = end
        seen.add(kind)
    width, height, depth, colour, _, _, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    raw = _raw_bytes(width, height, depth * _SAMPLES.get(colour, 4), _ADAM7 if interlace else _WHOLE)
    if sum(stop - start for start, stop in packed) * _RATIO > raw + _SLACK and _inflates(data, packed, raw + _SLACK):
        raise ImagesError(f"{name}: inflates to more than the {raw} bytes of {width}x{height} pixels; save it again")
    return b"".join([*kept, data[begin:end]]) if kept else data


def _chunks(data: bytes, name: str) -> Iterator[tuple[bytes, int]]:
    """Each chunk's kind and where it ends, up to IEND's.

    OpenCV sets memory aside for what a chunk's length says, up to 4 GB: so all of them lie within `data`, or it is
    refused.
    """
    at = 8
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            raise _cut(name)
        yield kind, at
        if kind == b"IEND":
            return
    raise ImagesError(f"{name}: has more than {_MAX_CHUNKS} chunks; save it again as PNG")


def _raw_bytes(width: int, height: int, bits: int, passes: tuple[tuple[int, int, int, int], ...]) -> int:
    """The bytes of all rows with their filter types, in the passes (x, y, step across, step down) of an interlace."""
    total = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _inflates(data: bytes, packed: list[tuple[int, int]], most: int) -> bool:
    """Whether the stream in the parts `packed` goes beyond `most` bytes; what is broken is left to the decoder."""
    stream = zlib.decompressobj()
    try:
        for start, end in packed:
            for at in range(start, end, _INFLATED):
                most -= len(stream.decompress(data[at : min(at + _INFLATED, end)], most + 1))
                if most < 0:
                    return True
                if stream.eof:
                    return False
    except zlib.error:
        return False
    return False


def _check_jpeg(data: bytes, name: str) -> None:
    """Walks the segments and scans up to the end of the image as libjpeg does; ITU-T T.81, B.1 and B.2."""
    marker = re.compile(_MARKER)  # cached; when first needed, since importing this is measured
    at, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        while not (found := marker.search(data, at, at + _SEARCHED)):
            # Its last byte may be the first of a marker.
            at += _SEARCHED - 1
            if at >= len(data):
                raise _cut(name)
        at = found.end()
        kind = data[at - 1]
        if kind == _JPEG_END:
            return
        scans += kind == _JPEG_SCAN
        if scans > _MAX_SCANS:
            raise ImagesError(f"{name}: has more than {_MAX_SCANS} scans; save it again with fewer, or as PNG")
        at += int(struct.unpack_from(">H", data, at)[0])
    raise ImagesError(f"{name}: has more than {_MAX_SEGMENTS} segments; save it again")


def _cut(name: str) -> ImagesError:
    return ImagesError(f"{name}: ends before the image does; get the whole file, or save it again as PNG")
