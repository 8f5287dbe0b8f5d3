"""Noise to run a graph on: of several sizes, since nothing may say which one the model wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.graph.ir import Graph, Value
from debride.images import encode
from debride.types import InputSpec

Feeds = Mapping[str, npt.NDArray[Any]]

DRAWS = 4
"""Kinds of noise: as `spec` wants images (else in 0..1), in 0..1, normal with a deviation of 3, and in 0..255."""


def random_feeds(graph: Graph, spec: InputSpec | None, batch: int, seed: int, draw: int = 0) -> Feeds:
    """Noise of the kind `draw` for every input of `graph`, `batch` images where it leaves the batch open.

    Bytes take all their values; other whole numbers are 0 or 1, which are also indices into anything.

    Raises:
        ModelError: a dimension that is no batch is open and `spec` does not say it.
    """
    rng = np.random.default_rng((seed, draw))
    return {value.name: _noise(value, spec, _sizes(value, spec, batch), rng, draw) for value in graph.inputs}


def _noise(
    value: Value, spec: InputSpec | None, sizes: Sequence[int], rng: np.random.Generator, draw: int
) -> npt.NDArray[Any]:
    if spec is not None and value.name == spec.name and len(sizes) == 4 and draw == 0:
        images = rng.random((sizes[0], spec.depth, *spec.size), np.float32)
        return encode(images, spec).astype(value.dtype)
    if value.dtype.kind == "f":
        noise = rng.standard_normal(sizes) * 3 if draw == 2 else rng.random(sizes) * (255 if draw == 3 else 1)
        return noise.astype(value.dtype)
    if value.dtype in (np.uint8, np.int8):
        limits = np.iinfo(value.dtype)
        return rng.integers(limits.min, limits.max, sizes, value.dtype, endpoint=True)
    return rng.integers(0, 2, sizes).astype(value.dtype)


def _sizes(value: Value, spec: InputSpec | None, batch: int) -> list[int]:
    if value.shape is None:
        raise ModelError(f"input '{value.name}' has no shape; export the model with one")
    image: Sequence[int] = ()
    if spec is not None and value.name == spec.name and len(value.shape) == 4:
        channels_first = (spec.depth, *spec.size)
        image = (batch, *(channels_first if spec.layout == "NCHW" else (*spec.size, spec.depth)))
    sizes = []
    for axis, size in enumerate(value.shape):
        if size is None and axis and not image:
            raise ModelError(f"input '{value.name}' leaves its size open; give --images, or a side-car that says it")
        sizes.append(size or (image[axis] if image else batch))
    return sizes
