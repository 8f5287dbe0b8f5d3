"""An image goes into the model, a class comes out: the serving end, as light as onnxruntime is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImagesError, ModelError
from ..pixels import decode, in_depth, read_file, resized
from ..sessions import Runtime, Session, predictor, probabilities
from ..spec import resolve_spec, sidecar_of
from ..types import FloatArray, InputSpec

Image = str | Path | bytes | npt.NDArray[Any]
"""A path, an image file's bytes, or an array (H, W) or (H, W, 1 or 3), RGB: uint8, or float in 0..1."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One class of one image: its name (its index as text where the model names none) and its probability."""

    label: str
    index: int
    probability: float


class Classifier:
    """An ONNX classifier, ready to serve.

    `spec` says how pixels become the model's input; left out, it is read from the side-car `MODEL.json` beside a
    `MODEL.onnx`, else from the model's metadata. Raises `ModelError` where the model cannot be loaded or is no image
    classifier, `SpecError` where nothing states its input, `RuntimeMissingError` without onnxruntime.
    """

    def __init__(
        self,
        model: Path | str | bytes,
        *,
        spec: InputSpec | None = None,
        runtime: Runtime | None = None,
        batch: int = 32,
    ) -> None:
        source = model if isinstance(model, bytes) else Path(model)
        if isinstance(source, Path) and not source.is_file():
            raise ModelError(f"{source}: no such file; give the path of an .onnx model")
        self._session = Session(source, runtime, str(source) if isinstance(source, Path) else "model")
        if spec is None:
            sidecar = sidecar_of(source) if isinstance(source, Path) else None
            spec = resolve_spec(self._session, sidecar=sidecar).spec
        self.spec = spec
        self._batch = batch
        self._predict = predictor(self._session, spec, batch=batch)

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""
        return self._session.provider

    def classify(self, images: Iterable[Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` classes of every image, most probable first (ties by index).

        Images of another size are scaled to the model's (area average down, bilinear up), grey and colour converted.
        `images` may be a generator: it is consumed in small batches. Raises `ImagesError` naming the image.
        """
        prepared = (self._prepare(image, f"image {row}") for row, image in enumerate(images))
        found: list[list[Prediction]] = []
        for batch in _batches(prepared, self._batch):
            found += [self._best(row, top) for row in probabilities(self._predict(batch))]
        return found

    def _prepare(self, image: Image, name: str) -> FloatArray:
        if isinstance(image, str | Path):
            planes = decode(read_file(Path(image)), self.spec, str(image))
        elif isinstance(image, bytes):
            planes = decode(image, self.spec, name)
        else:
            planes = in_depth(_planes(image, name), self.spec.depth)
        return resized(planes, self.spec.size)

    def _best(self, row: FloatArray, top: int) -> list[Prediction]:
        names = self.spec.class_names
        order = np.argsort(-row, kind="stable")[: max(top, 0)]
        return [Prediction(names[i] if i < len(names) else str(i), int(i), float(row[i])) for i in order]


def _batches(images: Iterator[FloatArray], size: int) -> Iterator[FloatArray]:
    while chunk := list(islice(images, size)):
        yield np.stack(chunk)


def _planes(image: npt.NDArray[Any], name: str) -> FloatArray:
    """An array as float32 (C, H, W) in 0..1."""
    pixels = image[..., None] if image.ndim == 2 else image
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or not pixels.size:
        raise ImagesError(f"{name}: an array of shape {image.shape}; want (H, W) or (H, W, 1 or 3), RGB")
    if pixels.dtype == np.uint8:
        pixels = pixels.astype(np.float32) / np.float32(255)
    elif pixels.dtype.kind != "f" or not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise ImagesError(f"{name}: {image.dtype} values outside what is understood; give uint8, or float in 0..1")
    planes: FloatArray = np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32)
    return planes
