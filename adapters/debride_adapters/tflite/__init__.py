"""TFLite files: parsed and audited in Python, converted to float32 by tf2onnx, measured against the interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debride.errors import ModelError, UsageError
from debride.types import Converted, ConvertOptions
from debride_adapters.common import output_names, stated_by
from debride_adapters.tensorflow.runtime import require, versions

TOLERANCE = 0.2
"""What rounding to 8 bits may do to the scores, as a part of their spread on noise: 0.01 to 0.04 measured on small
networks, 0.09 on one whose scores hardly differ. On clean images the classes are held to each other as well."""
_CLOSE = 0.02
"""How far, as a part of it, the values seen when a model was quantised may fall short of a range of pixels."""


@dataclass(frozen=True, slots=True)
class TFLiteAdapter:
    """Reads `.tflite` files of one graph with built-in operators, in float32 or quantised to 8 bits."""

    name: str = "TFLite"
    suffixes: tuple[str, ...] = (".tflite",)

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The model as ONNX in float32, with an input "image" in the file's layout and a free batch.

        Raises:
            ModelError: damaged, not one image input with float scores, custom or untranslatable operators, or
                TensorFlow is not installed.
            UsageError: `options.input_shape` contradicts the file.
        """
        if not path.is_file():
            raise ModelError(f"{path}: no such file; give a .tflite file")
        tf, tf2onnx = require(path)
        # These need the schema that only TensorFlow brings.
        from debride_adapters.tflite.export import INPUT, in_floats, to_onnx
        from debride_adapters.tflite.model import graph_of, quantised, read_tflite
        from debride_adapters.tflite.reference import reference

        model = read_tflite(path)
        graph = graph_of(model)
        image = graph.tensors[graph.inputs[0]]
        sides = tuple(int(side) for side in image.shape[1:])
        if options.input_shape is not None and tuple(options.input_shape) != sides:
            raise UsageError(f"{path}: takes images of {sides}, not {tuple(options.input_shape)}; correct the shape")
        try:
            run = reference(tf, model)
        except (RuntimeError, ValueError) as error:
            raise ModelError(f"{path}: the TFLite interpreter refuses it; convert the model again") from error
        outputs = output_names(len(graph.outputs))
        return Converted(
            onnx=to_onnx(tf2onnx, in_floats(model), options.opset, path),
            spec={
                **{"name": INPUT, **stated_by(sides), **_range(image)},
                **({"output": outputs[0]} if len(outputs) == 1 else {}),
            },
            notes=_notes(image, quantised(model)),
            packages=versions(tf, tf2onnx),
            reference=run,
            tolerance=TOLERANCE if quantised(model) else None,
        )


def _held(image: Any) -> tuple[float, float] | None:
    """The least and the largest value that the bytes of a quantised input stand for."""
    quantization = image.quantization
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return None
    scale, zero, lowest = float(quantization.scale[0]), int(quantization.zeroPoint[0]), -128 if image.type == 9 else 0
    return (lowest - zero) * scale, (lowest + 255 - zero) * scale


def _range(image: Any) -> dict[str, Any]:
    """The usual range of pixels that the bytes of a quantised input cover, if they cover one and no more."""
    held = _held(image)
    if held is None:
        return {}
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        if max(abs(held[0] - low), abs(held[1] - high)) <= _CLOSE * (high - low):
            return {"range": (low, high)}
    return {}


def _notes(image: Any, is_quantised: bool) -> tuple[str, ...]:
    if not is_quantised:
        return ()
    notes = [
        "quantised to 8 bits; converted to float32, and the rounding that is gone may change scores "
        f"by up to {TOLERANCE:.0%} of their spread"
    ]
    if held := _held(image):
        notes.append(f"its 8-bit input holds values from {held[0]:.4g} to {held[1]:.4g}")
    return tuple(notes)


adapter = TFLiteAdapter()
