"""One bar per class: how large a trigger each class needs, and which class needs abnormally little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

import numpy as np

from debride.report import canvas
from debride.report.canvas import BLUE, GREEN, GREY, INK, LARGE, LINE, RED, SMALL, Picture
from debride.report.words import class_label, number, plural
from debride.types import Detection, DoubleArray, Finding

WIDTH, MARGIN, HEAD, FOOT, ROW, BAR = 960, 28, 118, 58, 20, 12
LABELS, VALUES = 190, 140
MOST_BARS = 60
LOG_SPREAD = 20.0
MAD_SCALE = 1.4826


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Where a value lies between the pixels `left` and `right`; `low` > 0 where the axis is logarithmic."""

    low: float
    high: float
    left: int
    right: int
    log: bool
    ticks: tuple[float, ...]

    def x(self, value: float) -> int:
        """The column of `value`, kept between the ends of the axis."""
        if self.log:
            share = log10(max(value, self.low) / self.low) / log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.left + round(min(max(share, 0.0), 1.0) * (self.right - self.left))


def norms_chart(detection: Detection, class_names: Sequence[str] = ()) -> Picture:
    """uint8 (H, W, 3) in BGR: every class's trigger L1 norm as a bar, smallest on top, suspects in red.

    Dashed lines mark the median and, where it is above zero, the norm at which the anomaly index reaches the
    threshold. More than 60 classes: the 60 smallest. The axis is logarithmic where the norms spread over 20 to 1.
    """
    first = sorted(detection.findings, key=lambda f: (not f.suspect, _norm(f)))
    shown = sorted(first[:MOST_BARS], key=_norm)
    median, edge = _lines(detection)
    values = [v for v in (*map(_norm, shown), median or 0.0) if isfinite(v)]
    axis = _axis(np.array(values), MARGIN + LABELS, WIDTH - MARGIN - VALUES)
    bottom = HEAD + ROW * max(len(shown), 1)
    picture = canvas.blank(WIDTH, bottom + FOOT)
    _head(picture, detection, len(shown))
    _grid(picture, axis, bottom)
    for row, finding in enumerate(shown):
        _bar(picture, axis, finding, class_names, HEAD + row * ROW)
    if median is not None:
        _line(picture, axis.x(median), f"median {number(median)}", HEAD - 8, bottom, GREY)
    if edge is not None:
        text = f"threshold {number(edge)}  (index {number(detection.threshold)})"
        _line(picture, axis.x(edge), text, HEAD - 24, bottom, GREEN)
    return picture


def _norm(finding: Finding) -> float:
    """The class's L1 norm; infinite where none was found, so that it sorts last."""
    return finding.trigger.l1 if finding.trigger.l1 >= 0 else float("inf")


def _lines(detection: Detection) -> tuple[float | None, float | None]:
    """The median norm, and the norm below it whose anomaly index is the threshold.

    The index is the distance from the median in units of 1.4826 MAD (Wang et al. 2019, section IV), of the norms or of
    their logarithms: the one which explains the indices found; no threshold line where neither does.
    """
    held = set(detection.compared) or {f.trigger.target for f in detection.findings}
    found = [f for f in detection.findings if f.trigger.target in held and isfinite(_norm(f))]
    if not found:
        return None, None
    norms, index = np.array([_norm(f) for f in found]), np.array([f.anomaly for f in found])
    median = float(np.median(norms))
    for forth, back in ((np.asarray, float), (np.log, np.exp)):
        places = forth(np.maximum(norms, 1e-9))
        centre = float(np.median(places))
        unit = MAD_SCALE * float(np.median(np.abs(places - centre)))
        if unit > 0 and np.allclose((centre - places) / unit, index, rtol=0.05, atol=0.05):
            edge = float(back(centre - detection.threshold * unit))
            return median, edge if 0 < edge < median else None
    return median, None


def _axis(values: DoubleArray, left: int, right: int) -> Axis:
    high = float(values.max()) if len(values) and values.max() > 0 else 1.0
    positive = values[values > 0]
    low = float(positive.min()) if len(positive) else high
    if high / low <= LOG_SPREAD:
        step = _nice(high / 6)
        top = step * ceil(high / step - 1e-9)
        ticks = tuple(step * i for i in range(round(top / step) + 1))
        return Axis(low=0.0, high=top, left=left, right=right, log=False, ticks=ticks)
    # A bar needs some length even for the smallest norm, so the axis starts a step of 1, 2, 5 below it.
    powers = [10.0**e for e in range(floor(log10(low)) - 1, ceil(log10(high)) + 1)]
    marks = [m * p for p in powers for m in (1, 2, 5)]
    start, end = max(m for m in marks if m < low * 0.999), min(m for m in marks if m >= high * 0.999)
    inside = [m for m in marks if start <= m <= end]
    ticks = tuple(inside if len(inside) <= 12 else [p for p in powers if start <= p <= end])
    return Axis(low=start, high=end, left=left, right=right, log=True, ticks=ticks)


def _nice(step: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `step`."""
    power = 10.0 ** floor(log10(step))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= step * 0.999)


def _head(picture: Picture, detection: Detection, shown: int) -> None:
    total, suspects = len(detection.findings), len(detection.suspects)
    canvas.write(picture, "Smallest trigger found for each class", (MARGIN, MARGIN + 18), scale=LARGE, bold=True)
    what = plural(total, "class") if shown == total else f"the {shown} smallest of {total} classes"
    x = MARGIN
    canvas.write(picture, f"L1 norm of the mask in pixels,  {what}", (x, MARGIN + 44), colour=GREY)
    x = WIDTH - MARGIN
    for column, text in ((62, "L1"), (0, "index")):
        canvas.write(picture, text, (x - column, HEAD - 8), scale=SMALL, colour=GREY, anchor="right")
    for text, colour in (("other class", BLUE), (plural(suspects, "suspect"), RED)):
        x -= canvas.width_of(text)
        canvas.write(picture, text, (x, MARGIN + 44))
        canvas.box(picture, (x - 18, MARGIN + 34), (BAR, BAR), colour)
        x -= 38


def _grid(picture: Picture, axis: Axis, bottom: int) -> None:
    for tick in axis.ticks:
        x = axis.x(tick)
        canvas.box(picture, (x, HEAD), (1, bottom - HEAD + 5), LINE)
        canvas.write(picture, f"{tick:g}", (x, bottom + 20), scale=SMALL, colour=GREY, anchor="middle")
    canvas.box(picture, (axis.left, bottom), (axis.right - axis.left, 1), GREY)
    name = "L1 norm, pixels" + (" (logarithmic)" if axis.log else "")
    canvas.write(picture, name, ((axis.left + axis.right) // 2, bottom + 42), scale=SMALL, colour=GREY, anchor="middle")


def _bar(picture: Picture, axis: Axis, finding: Finding, names: Sequence[str], top: int) -> None:
    middle, norm = top + ROW // 2, _norm(finding)
    colour = RED if finding.suspect else BLUE
    label = canvas.fit(class_label(finding.trigger.target, names), LABELS - 10)
    ink = RED if finding.suspect else INK
    canvas.write(picture, label, (axis.left - 8, middle + 5), anchor="right", colour=ink)
    if not isfinite(norm):
        canvas.write(picture, "no trigger found", (axis.left + 6, middle + 5), colour=GREY, scale=SMALL)
        return
    length = max(axis.x(norm) - axis.left, 2)
    canvas.box(picture, (axis.left, middle - BAR // 2), (length, BAR), colour)
    canvas.write(picture, number(norm), (WIDTH - MARGIN - 62, middle + 4), scale=SMALL, colour=ink, anchor="right")
    canvas.write(
        picture, number(finding.anomaly), (WIDTH - MARGIN, middle + 4), scale=SMALL, colour=ink, anchor="right"
    )


def _line(picture: Picture, x: int, text: str, baseline: int, bottom: int, colour: canvas.Colour) -> None:
    """A dashed line from its label down to the axis; the label keeps within the picture."""
    canvas.dashes(picture, x, baseline + 3, bottom, colour)
    half = canvas.width_of(text, SMALL) // 2
    middle = min(max(x, MARGIN + half), WIDTH - MARGIN - half)
    canvas.write(picture, text, (middle, baseline), scale=SMALL, colour=colour, anchor="middle")
