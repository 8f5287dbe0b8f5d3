"""Sums of products of partly known arrays: a sum is known where no unknown number takes part in it with a weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.graph.ir import Node
from debride.graph.letters import Letters, einsum_of

Array = npt.NDArray[Any]
Shape = tuple[int, ...]
_MOST = 2**24
_ROWS = 256


def sum_of_products(node: Node, values: Sequence[Array | None], shapes: Sequence[Shape]) -> Array | None:
    """What is known of the product that `node` (MatMul, Gemm, Einsum) makes of two partly known inputs."""
    letters = einsum_of(node, shapes)
    if letters is None or len(letters.terms) != 2:
        return None
    sizes = letters.sizes(shapes)
    specs, arrays = zip(*(_squeezed(letters, term, values[place], sizes) for place, term in letters.terms), strict=True)
    # Letters along which all are alike have one entry in the result as well.
    pairs = zip(specs, arrays, strict=True)
    present = {letter: size for spec, array in pairs for letter, size in zip(spec, array.shape, strict=True)}
    out = "".join(letter for letter in letters.out if letter in present)
    found = _product(specs, arrays, out)
    return None if found is None else found.reshape([present.get(letter, 1) for letter in letters.out])


def _squeezed(letters: Letters, term: str, value: Array | None, sizes: dict[str, int]) -> tuple[str, Array]:
    """(letters, array) without axes of one entry, but for those summed over: there every index counts."""
    value = np.full((1,) * len(term), np.nan) if value is None else value
    full = [sizes[c] if c not in letters.out else s for c, s in zip(term, value.shape, strict=True)]
    value = np.broadcast_to(value, full)
    kept = [axis for axis, size in enumerate(full) if size > 1]
    return "".join(term[axis] for axis in kept), value.reshape([full[axis] for axis in kept])


def _product(specs: Sequence[str], arrays: Sequence[Array], out: str) -> Array | None:
    for k in (0, 1):
        # A vector against a weight: the usual case, and the one where weights may be large.
        letter = specs[k]
        if len(letter) == 1 and letter not in out and letter in specs[1 - k]:
            rows = np.moveaxis(arrays[1 - k], specs[1 - k].index(letter), 0)
            rest = specs[1 - k].replace(letter, "")
            found = _weighed(arrays[k], rows)
            return np.asarray(np.einsum(f"{rest}->{out}", found)) if sorted(rest) == sorted(out) else None
    pairs = zip(specs, arrays, strict=True)
    sizes = {letter: size for spec, array in pairs for letter, size in zip(spec, array.shape, strict=True)}
    if prod(sizes.values()) > _MOST:
        return None
    spec = f"{specs[0]},{specs[1]}->{out}"
    live = [np.asarray(x != 0) for x in arrays]  # NaN counts as live
    sure = [np.asarray(mask & ~np.isnan(x)) for mask, x in zip(live, arrays, strict=True)]
    total = np.einsum(spec, *(np.nan_to_num(x).astype(np.float64) for x in arrays))
    counts = [np.einsum(spec, *(x.astype(np.float32) for x in masks)) for masks in (live, sure)]
    return np.where(counts[0] > counts[1], np.nan, total)


def _weighed(vector: Array, rows: Array) -> Array:
    """sum_j vector[j] * rows[j], NaN where a NaN meets a weight; `rows` is never copied whole."""
    total = np.zeros(rows.shape[1:])
    unknown = np.zeros(rows.shape[1:], np.bool_)
    for start in range(0, len(rows), _ROWS):
        part, block = vector[start : start + _ROWS], rows[start : start + _ROWS]
        open_ = np.isnan(part)
        unknown |= ((block != 0) & open_.reshape(-1, *(1 for _ in rows.shape[1:]))).any(axis=0)
        known = ~open_ & (part != 0)
        if known.any():
            unknown |= np.isnan(block[known]).any(axis=0)
            total += np.tensordot(
                part[known].astype(np.float64), np.nan_to_num(block[known]).astype(np.float64), axes=1
            )
    return np.where(unknown, np.nan, total)
