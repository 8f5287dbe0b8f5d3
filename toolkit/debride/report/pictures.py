"""A picture of one trigger: its mask, its pattern, and clean examples before and after it is stamped on them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from debride.report import canvas
from debride.report.canvas import GREY, LARGE, SMALL, Picture
from debride.report.words import class_label, number, rate
from debride.triggers import stamp
from debride.types import FloatArray, IntArray, Samples, Trigger

MARGIN, GAP, TITLE, CAPTION, LABEL = 28, 14, 62, 26, 24
TILE, MOST_TILE, LEAST_WIDTH = 128, 192, 560
FAINT = 0.5


def trigger_picture(
    trigger: Trigger,
    samples: Samples | None,
    *,
    class_names: Sequence[str] = (),
    anomaly: float | None = None,
    examples: int = 6,
) -> Picture:
    """uint8 (H, W, 3) in BGR: mask, pattern and their product; below them `examples` clean images, plain and stamped.

    Examples come from other classes than the target where `samples` has labels; without samples only the top row is
    drawn. Raises ValueError where the images' shape is not the pattern's.
    """
    if samples is not None and samples.images.shape[1:] != trigger.pattern.shape:
        raise ValueError(f"images {samples.images.shape[1:]} do not fit the trigger's pattern {trigger.pattern.shape}")
    shown = samples.take(example_rows(samples, trigger.target, examples)) if samples is not None else None
    tile_h, tile_w = _zoom(_bgr(trigger.pattern)).shape[:2]
    top = MARGIN + TITLE + CAPTION
    room = LABEL if shown is not None and shown.labels is not None else 0
    tops = (top, top + tile_h + GAP + CAPTION, top + 2 * (tile_h + GAP + CAPTION) + room)
    bottom = tops[2 if shown is not None and len(shown) else 0] + tile_h
    columns = max(examples, 4)
    width = max(2 * MARGIN + columns * (tile_w + GAP) - GAP, LEAST_WIDTH)
    picture = canvas.blank(width, bottom + MARGIN)
    _title(picture, trigger, class_names, anomaly)
    _parts(picture, trigger, tops[0])
    if shown is not None and len(shown):
        _row(picture, "clean examples", shown.images, tops[1])
        _labels(picture, shown.labels, class_names, tops[1] + tile_h + 17, tile_w)
        _row(picture, "the same with the trigger stamped", stamp(shown.images, trigger), tops[2])
    return picture


def example_rows(samples: Samples, target: int, count: int) -> IntArray:
    """Rows of up to `count` images: of other classes than `target`, as many classes as can be, spread evenly."""
    if samples.labels is None:
        rows = np.arange(len(samples))
    else:
        others = np.flatnonzero(samples.labels != target)
        # The n-th image of its class comes before every (n+1)-th one.
        turn = np.zeros(len(others), np.int64)
        for label in np.unique(samples.labels[others]):
            mine = samples.labels[others] == label
            turn[mine] = np.arange(mine.sum())
        order = np.lexsort((samples.labels[others], turn))
        first = int((turn == 0).sum())
        rows = others[order][: max(first, count)]
    picks = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(np.int64)
    return np.asarray(rows[picks], np.int64)


def _title(picture: Picture, trigger: Trigger, names: Sequence[str], anomaly: float | None) -> None:
    room = picture.shape[1] - 2 * MARGIN
    title = f"Trigger found for class {class_label(trigger.target, names)}"
    facts = [
        f"L1 {number(trigger.l1)} of {trigger.mask.size} pixels",
        f"success on held-out images {rate(trigger.success)}",
    ]
    if anomaly is not None:
        facts.insert(1, f"anomaly index {number(anomaly)}")
    canvas.write(picture, canvas.fit(title, room, LARGE, True), (MARGIN, MARGIN + 18), scale=LARGE, bold=True)
    canvas.write(picture, canvas.fit(",  ".join(facts), room), (MARGIN, MARGIN + 44), colour=GREY)


def _parts(picture: Picture, trigger: Trigger, top: int) -> None:
    """Mask (with its scale beside it), pattern, and what shows of the pattern under the mask."""
    peak = max(float(trigger.mask.max()), 1e-6)
    heat = _heat(np.rint(trigger.mask[0] / peak * 255).clip(0, 255).astype(np.uint8))
    # A faint blend times its pattern is black on a screen: show it as strong as it would be with a full mask.
    faint = peak < FAINT
    product = trigger.mask * trigger.pattern / (peak if faint else 1.0)
    tiles = (
        (0, "mask", heat),
        (2, "pattern", _bgr(trigger.pattern)),
        (3, f"mask x pattern / {peak:.2f}" if faint else "mask x pattern", _bgr(product)),
    )
    for column, caption, image in tiles:
        tile = _zoom(image)
        height, width = tile.shape[:2]
        x = MARGIN + column * (width + GAP)
        canvas.write(picture, canvas.fit(caption, width + MARGIN), (x, top - 9))
        canvas.paste(picture, tile, (x, top))
    _scale(picture, peak, (MARGIN + width + GAP, top), height)


def _scale(picture: Picture, peak: float, corner: tuple[int, int], height: int) -> None:
    """The mask's colour scale: a ramp from 0 to `peak` with three ticks."""
    x, top = corner
    ramp = np.linspace(255, 0, height).round().astype(np.uint8)
    canvas.paste(picture, _heat(np.repeat(ramp[:, None], 12, axis=1)), (x, top))
    for share in (0.0, 0.5, 1.0):
        y = top + round((1 - share) * (height - 1))
        canvas.box(picture, (x + 13, y), (4, 1), GREY)
        canvas.write(
            picture, f"{share * peak:.2f}", (x + 21, min(max(y + 4, top + 9), top + height)), scale=SMALL, colour=GREY
        )


def _row(picture: Picture, caption: str, images: FloatArray, top: int) -> None:
    canvas.write(picture, caption, (MARGIN, top - 9))
    for column, image in enumerate(images):
        tile = _zoom(_bgr(image))
        canvas.paste(picture, tile, (MARGIN + column * (tile.shape[1] + GAP), top))


def _labels(picture: Picture, labels: IntArray | None, names: Sequence[str], baseline: int, tile_w: int) -> None:
    for column, label in enumerate([] if labels is None else labels.tolist()):
        text = canvas.fit(class_label(label, names), tile_w, SMALL)
        middle = MARGIN + column * (tile_w + GAP) + tile_w // 2
        canvas.write(picture, text, (middle, baseline), scale=SMALL, colour=GREY, anchor="middle")


def _bgr(image: FloatArray) -> Picture:
    """(C, H, W) in 0..1, RGB or grey, as BGR bytes (H, W, 3)."""
    pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
    planes = np.broadcast_to(pixels, (3, *pixels.shape[1:])) if len(pixels) == 1 else pixels[::-1]
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _heat(levels: Picture) -> Picture:
    return np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), np.uint8)


def _zoom(image: Picture) -> Picture:
    """`image` near `TILE` pixels a side by a whole factor, each pixel a square; shrunk only above `MOST_TILE`."""
    side = max(image.shape[:2])
    if side > MOST_TILE:
        factor = MOST_TILE / side
        new = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        return np.asarray(cv2.resize(image, new, interpolation=cv2.INTER_AREA), np.uint8)
    factor = max(1, round(TILE / side))
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST), np.uint8)
