"""Keras models: `.keras` archives and whole-model HDF5 of Keras 2 and 3, and models in memory."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from debride.errors import DebrideError, ModelError, UsageError
from debride.types import Converted, ConvertOptions, FloatArray, Reference
from debride_adapters.common import one_line
from debride_adapters.keras.load import load_model
from debride_adapters.keras.signature import Signature, call, signature_of
from debride_adapters.keras.spec import stated_spec

_PACKAGES = {"tensorflow": ("tensorflow", "tensorflow-cpu", "tf2onnx"), "torch": ("torch", "onnxscript")}

_DEFAULT = ConvertOptions()


@dataclass(frozen=True, slots=True)
class KerasAdapter:
    """Reads whole Keras models; weights alone are refused, since they say no architecture."""

    name: str = "Keras"
    suffixes: tuple[str, ...] = (".keras", ".h5", ".hdf5")

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The model at `path` in inference mode, with what it states of its images.

        The file is audited before Keras sees it. `options.input_shape` fixes sides that the model leaves open.

        Raises:
            ModelError: Keras is missing, the file is damaged or refused, or the model cannot be exported.
            UsageError: the model does not say the shape of its images, or `options` contradict it.
        """
        _import_keras(path)
        model, saved_with = load_model(path)
        notes = (f"saved with Keras {saved_with}",) if saved_with else ()
        return _converted(model, options, path, notes)


def from_model(model: Any, *, options: ConvertOptions = _DEFAULT) -> Converted:
    """The `keras.Model` in memory as ONNX, on the backend that Keras runs on; see `KerasAdapter.convert`.

    Raises:
        ModelError: it cannot be exported, or Keras runs on a backend other than TensorFlow and torch.
        UsageError: it does not say the shape of its images, or `options` contradict it.
    """
    return _converted(model, options, f"model '{model.name}'", ())


def _import_keras(path: Path) -> None:
    """Sets the backend, before Keras is imported for the first time; then it cannot be changed."""
    for package in ("keras", "h5py"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"{path}: {package} is not installed; install debride[keras]")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", _preferred())
        os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")
    backend = os.environ.get("KERAS_BACKEND", "")
    if backend in _PACKAGES and importlib.util.find_spec(backend) is None:
        raise ModelError(f"{path}: KERAS_BACKEND is {backend}, which is not installed; install debride[{backend}]")
    import keras  # noqa: F401


def _preferred() -> str:
    # Measured on 13 models: both agree with Keras to 1e-5, but TensorFlow's graphs of convolutional networks have half
    # the nodes (transposes cancelled, BatchNormalization merged), come 3 to 5 times sooner, and their attention is
    # made of MatMul, which has channels to cut, where torch writes Einsum.
    tensorflow = all(importlib.util.find_spec(name) is not None for name in ("tensorflow", "tf2onnx"))
    return "tensorflow" if tensorflow else "torch"


def _converted(model: Any, options: ConvertOptions, path: Path | str, notes: tuple[str, ...]) -> Converted:
    import keras

    backend = keras.backend.backend()
    if backend not in _PACKAGES:
        raise ModelError(f"{path}: Keras runs on {backend}; set KERAS_BACKEND=tensorflow or torch")
    _prepare(backend)
    try:
        signature = signature_of(model, options, path)
        onnx = _export(model, signature, options.opset, backend, path)
        spec = stated_spec(model, signature)
    except DebrideError:
        raise
    # Keras, its backend and the exporters raise whatever happened to go wrong inside them.
    except Exception as error:
        other = "torch" if backend == "tensorflow" else "tensorflow"
        raise ModelError(
            f"{path}: cannot be exported by Keras's {backend} backend ({type(error).__name__}: {one_line(error)}); "
            f"set KERAS_BACKEND={other}, or export it as ONNX where it was made"
        ) from error
    return Converted(
        onnx=onnx,
        spec=spec,
        notes=(*notes, f"exported by Keras's {backend} backend"),
        packages=_versions(backend),
        reference=_reference(model),
    )


def _prepare(backend: str) -> None:
    """Keeps TensorFlow off the GPU, whose memory it would take whole; too late where it runs already."""
    if backend == "tensorflow":
        import tensorflow as tf

        tf.get_logger().setLevel("ERROR")
        with suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")


def _export(model: Any, signature: Signature, opset: int, backend: str, path: Path | str) -> bytes:
    if backend == "torch":
        if None in signature.shape:
            raise UsageError(f"{path}: takes images of any size; give one, as in --input-shape 224,224,3")
        from debride_adapters.keras import by_torch

        return by_torch.export(model, signature, opset)
    if importlib.util.find_spec("tf2onnx") is None:
        raise ModelError(f"{path}: tf2onnx is not installed; install debride[tensorflow], or set KERAS_BACKEND=torch")
    from debride_adapters.keras import by_tensorflow

    return by_tensorflow.export(model, signature, opset)


def _reference(model: Any) -> Reference:
    def run(batch: FloatArray) -> Sequence[FloatArray]:
        import keras
        import numpy as np

        outputs = call(model, batch)
        return [np.asarray(keras.ops.convert_to_numpy(output), np.float32) for output in outputs]

    return run


def _versions(backend: str) -> dict[str, str]:
    found = {}
    for package in ("keras", "h5py", *_PACKAGES[backend]):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


adapter = KerasAdapter()
