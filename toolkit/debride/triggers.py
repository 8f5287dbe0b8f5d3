"""Stamping a trigger on images, and trigger files (`.npz`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import ReportError
from .npz import read_npz, write_npz
from .types import FloatArray, Rate, Trigger

_FIELDS = ("target", "mask", "pattern", "l1", "hits", "n", "restarts", "steps", "seed")
_MAX_BYTES = 64 << 20


def stamp(images: FloatArray, trigger: Trigger) -> FloatArray:
    """`(1 - mask) * x + mask * pattern` on images (N, C, H, W) in 0..1; a new array, again in 0..1.

    Neural Cleanse, Wang et al. 2019, equation 2. A convex mixture stays in range without clipping. Raises
    `ReportError` where the trigger has another size or depth than the images.
    """
    if trigger.pattern.shape != images.shape[1:] or trigger.mask.shape != (1, *images.shape[2:]):
        raise ReportError(
            f"the trigger for class {trigger.target} is {trigger.pattern.shape} and the images are "
            f"{images.shape[1:]}; use a trigger made for this model"
        )
    stamped = images * (1 - trigger.mask) + trigger.mask * trigger.pattern
    return stamped.astype(np.float32, copy=False)


def opaque(trigger: Trigger, strength: float) -> Trigger:
    """`trigger` with its mask made `strength` times opaquer, at most opaque."""
    mask = np.minimum(trigger.mask * np.float32(strength), np.float32(1))
    return replace(trigger, mask=mask, l1=float(mask.sum(dtype=np.float64)))


def save_trigger(path: Path, trigger: Trigger) -> None:
    """Writes `trigger` as `.npz` with the keys target, mask, pattern, l1, hits, n, restarts, steps, seed."""
    scalars = {
        "target": trigger.target,
        "l1": trigger.l1,
        "hits": trigger.success.hits,
        "n": trigger.success.n,
        "restarts": trigger.restarts,
        "steps": trigger.steps,
        "seed": trigger.seed,
    }
    arrays = {key: np.asarray(value) for key, value in scalars.items()}
    write_npz(path, {**arrays, "mask": trigger.mask, "pattern": trigger.pattern})


def load_trigger(path: Path) -> Trigger:
    """Reads what `save_trigger` wrote; of the keys, only target, mask and pattern must be there.

    Raises `ReportError` naming the file where a key is missing, or a shape, dtype or range is wrong.
    """
    arrays = read_npz(path, _FIELDS, ReportError, _MAX_BYTES)
    missing = [key for key in ("target", "mask", "pattern") if key not in arrays]
    if missing:
        raise ReportError(f"{path}: no {missing[0]!r} in this trigger file; it needs target, mask and pattern")
    mask, pattern = _plane(path, "mask", arrays), _plane(path, "pattern", arrays)
    if mask.shape[0] != 1 or pattern.shape[0] not in (1, 3) or mask.shape[1:] != pattern.shape[1:]:
        raise ReportError(
            f"{path}: mask {mask.shape} and pattern {pattern.shape} do not fit; want (1, H, W) and (1 or 3, H, W)"
        )
    l1 = float(_scalar(path, "l1", arrays, "fiu", mask.sum(dtype=np.float64)))
    if not 0 <= l1 <= mask.size:
        raise ReportError(f"{path}: l1 is {l1}, outside 0..{mask.size}; leave it out to have it computed")
    whole = {
        key: int(_scalar(path, key, arrays, "iu", 0)) for key in ("target", "hits", "n", "restarts", "steps", "seed")
    }
    negative = [key for key, value in whole.items() if value < 0]
    if negative or whole["hits"] > whole["n"]:
        raise ReportError(f"{path}: {(negative or ['hits'])[0]!r} is out of range in this trigger file")
    return Trigger(
        target=whole["target"],
        mask=mask,
        pattern=pattern,
        l1=l1,
        success=Rate(whole["hits"], whole["n"]),
        restarts=whole["restarts"],
        steps=whole["steps"],
        seed=whole["seed"],
    )


def _plane(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]]) -> FloatArray:
    array = arrays[key]
    if array.ndim != 3 or array.dtype.kind != "f" or not array.size:
        raise ReportError(f"{path}: {key} is {array.dtype} {array.shape}; want float (C, H, W)")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise ReportError(f"{path}: {key} leaves the range 0..1; scale it by 1/255 if it is in bytes")
    return array.astype(np.float32)


def _scalar(path: Path, key: str, arrays: dict[str, npt.NDArray[Any]], kinds: str, default: float) -> float:
    array = arrays.get(key)
    if array is None:
        return default
    if array.shape != () or array.dtype.kind not in kinds:
        raise ReportError(f"{path}: {key} is {array.dtype} {array.shape}; want one number")
    return float(array) if array.dtype.kind == "f" else int(array)
