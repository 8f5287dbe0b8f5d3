"""The few strokes that the pictures are drawn with; images are uint8 (H, W, 3), colours BGR, places (x, y)."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]
Anchor = Literal["left", "middle", "right"]

INK: Colour = (40, 36, 33)
GREY: Colour = (120, 114, 108)
LINE: Colour = (222, 218, 214)
RED: Colour = (40, 39, 214)
BLUE: Colour = (180, 150, 118)
GREEN: Colour = (76, 138, 36)
SMALL, NORMAL, LARGE = 0.42, 0.48, 0.7


def blank(width: int, height: int) -> Picture:
    """A white picture."""
    return np.full((height, width, 3), 255, np.uint8)


def width_of(text: str, scale: float = NORMAL, bold: bool = False) -> int:
    """Pixels that `text` takes from left to right."""
    (width, _), _ = cv2.getTextSize(text, _face(bold), scale, 1)
    return int(width)


def write(
    picture: Picture,
    text: str,
    place: tuple[int, int],
    *,
    scale: float = NORMAL,
    colour: Colour = INK,
    anchor: Anchor = "left",
    bold: bool = False,
) -> None:
    """Write `text` with its baseline at `place`, which is its left end, middle or right end."""
    width = width_of(text, scale, bold)
    x = place[0] - {"left": 0, "middle": width // 2, "right": width}[anchor]
    cv2.putText(picture, text, (x, place[1]), _face(bold), scale, colour, 1, cv2.LINE_AA)


def fit(text: str, width: int, scale: float = NORMAL, bold: bool = False) -> str:
    """`text`, cut and marked with ".." where it is wider than `width` pixels."""
    if width_of(text, scale, bold) <= width:
        return text
    keep = len(text)
    while keep and width_of(text[:keep] + "..", scale, bold) > width:
        keep -= 1
    return text[:keep].rstrip() + ".."


def box(picture: Picture, corner: tuple[int, int], size: tuple[int, int], colour: Colour) -> None:
    """Fill the rectangle of `size` (width, height) whose top left pixel is `corner`."""
    (x, y), (w, h) = corner, size
    picture[max(0, y) : y + h, max(0, x) : x + w] = colour


def dashes(picture: Picture, x: int, top: int, bottom: int, colour: Colour) -> None:
    """A dashed vertical line."""
    for y in range(top, bottom, 8):
        box(picture, (x, y), (2, min(5, bottom - y)), colour)


def paste(picture: Picture, tile: Picture, corner: tuple[int, int]) -> None:
    """Lay `tile` at `corner` with a hairline around it, so that a white image has an edge."""
    (x, y), (h, w) = corner, tile.shape[:2]
    box(picture, (x - 1, y - 1), (w + 2, h + 2), LINE)
    picture[y : y + h, x : x + w] = tile


def _face(bold: bool) -> int:
    return cv2.FONT_HERSHEY_DUPLEX if bold else cv2.FONT_HERSHEY_SIMPLEX
