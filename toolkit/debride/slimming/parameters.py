"""Parameters of operators, whether they are attributes (older opsets) or constant inputs (newer ones)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node

Shape = tuple[int, ...]
Numbers = Sequence[list[int] | None]
"""The whole numbers of each input of a node; None where they are not known or are no whole numbers."""


def _parameter(node: Node, name: str, position: int, parameters: Numbers) -> tuple[bool, list[int] | None]:
    """(whether it is there, its value where known) of an attribute or input."""
    if name in node.attributes:
        return True, [int(v) for v in node.attributes[name]]
    if len(node.inputs) > position and node.inputs[position]:
        return True, parameters[position]
    return False, None


def indices_of(node: Node, shape: Shape, parameters: Numbers) -> dict[int, npt.NDArray[np.int64]] | None:
    """Which indices a Slice takes, per axis that it cuts; None where its bounds are computed (ONNX: Slice)."""
    _, starts = _parameter(node, "starts", 1, parameters)
    _, ends = _parameter(node, "ends", 2, parameters)
    has_axes, axes = _parameter(node, "axes", 3, parameters)
    has_steps, steps = _parameter(node, "steps", 4, parameters)
    if starts is None or ends is None or (has_axes and axes is None) or (has_steps and steps is None):
        return None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    found = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = shape[axis % len(shape)]
        # A negative end with a negative step means "before the first", as in Python's slices of None.
        stop = None if step < 0 and end < -size else end
        found[axis % len(shape)] = np.arange(size)[slice(start, stop, step)]
    return found


def steps_of(node: Node, shape: Shape, parameters: Numbers) -> dict[int, int]:
    """The step of a Slice along each axis that it cuts; 0 where that is computed."""
    starts = _parameter(node, "starts", 1, parameters)[1] or ()
    has_axes, axes = _parameter(node, "axes", 3, parameters)
    has_steps, steps = _parameter(node, "steps", 4, parameters)
    axes = list(range(len(starts))) if not has_axes else axes or []
    steps = [1] * len(axes) if not has_steps else steps or [0] * len(axes)
    return {axis % len(shape): step for axis, step in zip(axes, steps, strict=True)}


def pads_of(node: Node, rank: int, parameters: Numbers) -> list[tuple[int, int]] | None:
    """(before, after) per axis of a Pad; None where they are computed (ONNX: Pad)."""
    _, pads = _parameter(node, "pads", 1, parameters)
    if pads is None and "paddings" in node.attributes:
        pads = [int(v) for v in node.attributes["paddings"]]
    has_axes, axes = _parameter(node, "axes", 3, parameters)
    if pads is None or (has_axes and axes is None):
        return None
    axes = list(range(rank)) if axes is None else [a % rank for a in axes]
    found = [(0, 0)] * rank
    for k, axis in enumerate(axes):
        found[axis] = (pads[k], pads[k + len(axes)])
    return found


def reduced_axes(node: Node, shape: Shape, parameters: Numbers) -> tuple[int, ...] | None:
    """The axes that a Reduce operator takes together; None where they are computed."""
    has_axes, axes = _parameter(node, "axes", 1, parameters)
    if has_axes and axes is None:
        return None
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes", 0) else tuple(range(len(shape)))
    return tuple(sorted({a % len(shape) for a in axes}))
