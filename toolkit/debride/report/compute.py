"""What a report says of how the proxy computed, and of what the search cost in image passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from debride.types import Compute, Meter

_NAMES = {"float32": "float32", "tf32": "float32 rounded to TF32", "bfloat16": "bfloat16", "float16": "float16"}


def compute_fields(compute: Compute) -> dict[str, Any]:
    """`compute` as a JSON object."""
    return {
        "device": compute.device,
        "precision": compute.precision,
        "channels_last": compute.channels_last,
        "batch": compute.batch,
        "reason": compute.reason,
        "timings": [
            {
                "precision": timing.precision,
                "channels_last": timing.channels_last,
                "seconds": timing.seconds,
                "difference": timing.difference,
            }
            for timing in compute.timings
        ],
    }


def compute_words(compute: Compute) -> str:
    """How the proxy computes and why, as `bfloat16 on cpu, 1.8 times as fast as float32`."""
    told = f"{_NAMES[compute.precision]} on {compute.device}"
    seconds = {timing.precision: timing.seconds for timing in reversed(compute.timings)}
    match compute.reason:
        case "default":
            return told
        case "asked":
            return f"{told}, as asked for"
        case "inexact":
            return f"{told}; what is faster here is too far from onnxruntime's scores"
    if compute.precision != "float32":
        return f"{told}, {seconds['float32'] / seconds[compute.precision]:.1f} times as fast as float32"
    slower = {name: took for name, took in seconds.items() if name != "float32"}
    if not slower:
        return f"{told}, by far the fastest here"
    name = min(slower, key=lambda name: slower[name])
    return f"{told}; {_NAMES[name]} would take {slower[name] / seconds['float32']:.1f} times as long"


def cost_fields(cost: Mapping[str, Meter]) -> dict[str, Any]:
    """Image passes per stage as a JSON object, without stages that took none."""
    return {
        stage: {"passes": spent.passes, "forwards": spent.forwards}
        for stage, spent in cost.items()
        if spent.passes or spent.forwards
    }


def cost_words(cost: Mapping[str, Meter], classes: int) -> str:
    """The image passes, forward and backward, of each stage; "" where there were none."""
    told = [f"{stage} {spent.passes:,}" for stage, spent in cost.items() if spent.passes]
    searched = cost["inversion"].passes / classes if "inversion" in cost and classes else 0
    each = f" (inversion {searched:,.0f} per class)" if searched else ""
    return ", ".join(told) + each if told else ""
