"""An image goes into the model, a class comes out: the serving end, as light as onnxruntime is."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ImagesError, ModelError, UsageError
from ..pixels import MAX_PIXELS
from ..sessions import Runtime, Session
from ..spec import resolve_spec, sidecar_of
from ..types_input import FloatArray, InputSpec
from .ahead import prepared
from .probe import splits, try_out
from .ranking import Prediction, checked, ranked, shaped, softmax
from .rows import Image, RowMaker


class Classifier:
    """An ONNX classifier, ready to serve; safe to call from several threads.

    `model` is a path, the file's bytes, or a `Session` that is loaded already (`runtime` is then not looked at).
    `spec` says how pixels become the model's input; left out, it is read from the side-car `MODEL.json` beside a
    `MODEL.onnx`, else from the model's metadata. The model is run on three images at once: whether it holds a softmax
    is decided there, for good. Raises `ModelError` where the model cannot be loaded or run or is no image classifier,
    `SpecError` where nothing states its input, `UsageError` where `batch`, the most images that run together, is below
    1, `RuntimeMissingError` without onnxruntime.
    """

    def __init__(
        self,
        model: Path | str | bytes | Session,
        *,
        spec: InputSpec | None = None,
        runtime: Runtime | None = None,
        batch: int = 32,
    ) -> None:
        if batch < 1:
            raise UsageError(f"batch is {batch}; give 1 or more images that run together")
        source = Path(model) if isinstance(model, str) else model
        self.session = source if isinstance(source, Session) else _opened(source, runtime)
        if spec is None:
            sidecar = sidecar_of(source) if isinstance(source, Path) else None
            spec = resolve_spec(self.session, sidecar=sidecar).spec
        self.spec = spec
        self._batch = batch
        entry = self.session.input_named(spec.name)
        self._fixed = (entry.shape[0] if entry.shape else None) or 0
        self._rows = RowMaker(spec, entry.dtype)
        self._run = self.session.runner(spec.name, spec.output or self.session.outputs[0].name)
        self.n_classes, given = try_out(self._run, self._rows, spec, self._fixed or 1, self.session.name)
        self.softmax = not given
        named = spec.class_names[: self.n_classes]
        self._labels = (*named, *map(str, range(len(named), self.n_classes)))

    n_classes: int
    """K, the number of classes."""
    softmax: bool
    """Whether a softmax is applied to the scores: the graph has none."""

    @property
    def provider(self) -> str:
        """The execution provider that really runs."""
        return self.session.provider

    @cached_property
    def splits(self) -> bool:
        """Whether images may share a batch: each one's scores depend on it alone. Tried when first asked."""
        return splits(self._run, self._rows, self.spec, self._fixed, self._batch)

    def splits_output(self, output: str, most: int) -> bool:
        """As `splits`, of any output of the graph, in batches of up to `most`; tried on every call."""
        return splits(self.session.runner(self.spec.name, output), self._rows, self.spec, self._fixed, most)

    def classify(self, images: Iterable[Image], top: int = 5) -> list[list[Prediction]]:
        """The `top` classes of every image, most probable first (ties by index).

        Images of another size are scaled to the model's, or scaled and cut, as the spec says (area average down,
        bilinear up), grey and colour converted. `images` may be a generator: it is consumed a few batches ahead at
        most; an array is taken as a batch, (N, H, W, 1 or 3). Raises `ImagesError` naming the image, or where `images`
        is a single one, `ModelError` where the model gives no finite scores.
        """
        if isinstance(images, str | bytes | Path) or (isinstance(images, np.ndarray) and _is_one(images)):
            raise ImagesError("classify takes several images, and one was given: write classify([image])")
        if isinstance(images, list | tuple) and len(images) == 1:
            # What the way of the many takes by itself shows beside a small model's run.
            return self._ranked(self._scores(self._rows.row(images[0], "image 0")[None]), top)
        found: list[list[Prediction]] = []
        rows = prepared(self._rows.row, images, self._batch)
        while batch := list(islice(rows, self._batch)):
            found += self._ranked(self._scores(np.array(batch)), top)
        return found

    def prepare(self, image: Image, name: str, *, max_pixels: int = MAX_PIXELS) -> npt.NDArray[Any]:
        """One image as the model's input row, in its layout and dtype, without the batch axis.

        Raises `ImagesError` naming it (a path by itself, anything else by `name`) where it cannot be used or has more
        than `max_pixels` pixels.
        """
        return self._rows.row(image, name, max_pixels)

    def scores(self, rows: npt.NDArray[Any]) -> FloatArray:
        """Scores float32 (N, K), as the graph gives them, of `prepare`d rows (N >= 1, ...).

        They run together, or one by one where the model does not split batches; where its batch is fixed, the last is
        padded with repeats. Raises `ModelError` where scores have another shape or are not finite.
        """
        return checked(self._scores(rows), len(rows), self.session.name)

    def probabilities(self, scores: FloatArray) -> FloatArray:
        """Class probabilities float32 (N, K) of the graph's scores: softmaxed unless the graph did it."""
        return softmax(scores).astype(np.float32) if self.softmax else np.maximum(scores, 0)

    def ranked(self, scores: npt.NDArray[Any], top: int) -> list[list[Prediction]]:
        """The `top` classes of each row of scores (N, K), as `classify` gives them.

        Raises `ModelError` where `scores` are not finite or not (N, K).
        """
        return self._ranked(shaped(scores, len(scores) if scores.ndim else 0, self.session.name), top)

    def _ranked(self, scores: FloatArray, top: int) -> list[list[Prediction]]:
        if scores.shape[1] != self.n_classes:
            raise ModelError(f"{self.session.name}: {scores.shape[1]} scores an image, where it gave {self.n_classes}")
        return ranked(scores, top, self._labels, by_softmax=self.softmax, name=self.session.name)

    def _scores(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        n = len(rows)
        if not self._fixed and (n == 1 or self.splits):
            return shaped(self._run(rows), n, self.session.name)
        step = self._fixed if self.splits and self._fixed else 1
        return np.concatenate([self._padded(rows[start : start + step]) for start in range(0, n, step)])

    def _padded(self, rows: npt.NDArray[Any]) -> FloatArray:
        n, size = len(rows), self._fixed or len(rows)
        full = rows if n == size else np.concatenate([rows, np.repeat(rows[-1:], size - n, axis=0)])
        return shaped(self._run(full), size, self.session.name)[:n]


def _is_one(array: npt.NDArray[Any]) -> bool:
    """Whether an array is one image, (H, W) or (H, W, 1 or 3), whose rows would else be taken for images."""
    return array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3))


def _opened(source: Path | bytes, runtime: Runtime | None) -> Session:
    if isinstance(source, Path) and not source.is_file():
        raise ModelError(f"{source}: no such file; give the path of an .onnx model")
    return Session(source, runtime, str(source) if isinstance(source, Path) else "model")
