"""What goes into a Keras model and what comes out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debride.errors import ModelError, UsageError
from debride.types import ConvertOptions
from debride_adapters.common import output_names

IMAGE = "image"
"""The name of the graph's input."""


@dataclass(frozen=True, slots=True)
class Signature:
    """One image's `shape` as the model takes it, None where a side is free, and the outputs' names.

    The graph's input is float32 even where the model wants another `dtype`: the cast is part of the graph.
    """

    shape: tuple[int | None, ...]
    dtype: str
    outputs: tuple[str, ...]


def signature_of(model: Any, options: ConvertOptions, path: Path | str) -> Signature:
    """The signature of the Keras `model`; `options.input_shape` fixes what the model leaves open.

    Raises:
        ModelError: no single image input.
        UsageError: `options.input_shape` is missing where the model does not say it, or contradicts the model.
    """
    inputs = _ends(model, "inputs")
    if len(inputs) > 1:
        raise ModelError(f"{path}: has {len(inputs)} inputs; debride takes classifiers of one image")
    if not inputs:
        if options.input_shape is None:
            raise UsageError(f"{path}: does not say the shape of its images; give it, as in --input-shape 32,32,3")
        return Signature(options.input_shape, "float32", _named(_outputs(model, options.input_shape)))
    said = tuple(inputs[0].shape[1:])
    if len(said) != 3:
        raise ModelError(f"{path}: its input has shape {tuple(inputs[0].shape)}; debride takes classifiers of images")
    return Signature(_agreed(said, options.input_shape, path), str(inputs[0].dtype), _named(_ends(model, "outputs")))


def _agreed(said: tuple[int | None, ...], given: tuple[int, ...] | None, path: Path | str) -> tuple[int | None, ...]:
    if given is None:
        return said
    if len(given) != len(said) or any(a not in (None, b) for a, b in zip(said, given, strict=True)):
        raise UsageError(f"{path}: takes images of shape {said}, not {given}; leave the input shape out, or give this")
    return given


def _ends(model: Any, which: str) -> list[Any]:
    """The symbolic `inputs` or `outputs`; none where the model was not built from them."""
    try:
        return list(getattr(model, which, None) or ())
    except (AttributeError, ValueError):
        return []


def _outputs(model: Any, shape: tuple[int, ...]) -> list[Any]:
    import numpy as np

    return call(model, np.zeros((1, *shape), np.float32))


def call(model: Any, image: Any) -> list[Any]:
    """The outputs of the Keras `model` for the float32 batch `image` in inference mode, in the order of the graph's."""
    import keras

    inputs = _ends(model, "inputs")
    if inputs:
        image = keras.ops.cast(image, inputs[0].dtype)
    with warnings.catch_warnings():
        # Models of one image may call their input a list of one; Keras takes the bare image too, but says so.
        warnings.filterwarnings("ignore", message="The structure of `inputs` doesn't match")
        return list(keras.tree.flatten(model(image, training=False)))


def _named(outputs: list[Any]) -> tuple[str, ...]:
    return tuple(output_names(len(outputs)))
