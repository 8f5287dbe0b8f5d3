"""An audited TFLite model run by TensorFlow's own TFLite interpreter."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.types import FloatArray, Reference
from debride_adapters.tflite.model import write_tflite


def reference(tf: Any, model: Any) -> Reference:
    """Runs `model` image by image, without accelerating delegates: an image batch -> one float32 array per output.

    8-bit ends are quantised and turned back to floats by their own scales, so it takes what the ONNX graph takes.
    """
    plain = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the interpreter will move to another package one day
        interpreter = tf.lite.Interpreter(
            model_content=write_tflite(model), experimental_op_resolver_type=plain, num_threads=1
        )
    entry = interpreter.get_input_details()[0]
    if entry["shape"][0] != 1:
        interpreter.resize_tensor_input(entry["index"], [1, *entry["shape"][1:]])
    interpreter.allocate_tensors()
    ends = interpreter.get_output_details()

    def one(image: FloatArray) -> list[FloatArray]:
        interpreter.set_tensor(entry["index"], _to_bytes(image[None], entry))
        interpreter.invoke()
        return [_to_floats(interpreter.get_tensor(end["index"]), end) for end in ends]

    def run(batch: FloatArray) -> list[FloatArray]:
        rows = [one(image) for image in batch]
        return [np.concatenate(column) for column in zip(*rows, strict=True)]

    return run


def _to_bytes(values: FloatArray, detail: dict[str, Any]) -> npt.NDArray[Any]:
    kind = np.dtype(detail["dtype"])
    if kind == np.float32:
        return values.astype(np.float32)
    scale, zero = detail["quantization"]
    limits = np.iinfo(kind)
    return np.asarray(np.clip(np.rint(values / scale) + zero, limits.min, limits.max), kind)


def _to_floats(values: npt.NDArray[Any], detail: dict[str, Any]) -> FloatArray:
    if values.dtype == np.float32:
        return values.copy()
    scale, zero = detail["quantization"]
    return ((values.astype(np.float32) - np.float32(zero)) * np.float32(scale)).astype(np.float32)
