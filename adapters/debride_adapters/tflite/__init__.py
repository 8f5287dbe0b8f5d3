"""TFLite files: parsed and audited in Python, converted to float32 by tf2onnx, measured against the interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debride.errors import ModelError, UsageError
from debride.types import Converted, ConvertOptions
from debride_adapters.tensorflow.runtime import require, versions

TOLERANCE = 0.05
"""What rounding to 8 bits may do to the scores, as a part of their size: 0.022 measured on the 53 layers of a
MobileNetV2, below 0.01 on small networks."""


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
        from debride_adapters.tflite.export import INPUT, in_floats, output_names, to_onnx
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
            spec={"name": INPUT, **_stated(sides), **({"output": outputs[0]} if len(outputs) == 1 else {})},
            notes=_notes(image, quantised(model)),
            packages=versions(tf, tf2onnx),
            reference=run,
            tolerance=TOLERANCE if quantised(model) else None,
        )


def _stated(sides: tuple[int, ...]) -> dict[str, Any]:
    if (sides[2] in (1, 3)) == (sides[0] in (1, 3)):
        return {}
    return {"layout": "NHWC", "size": sides[:2]} if sides[2] in (1, 3) else {"layout": "NCHW", "size": sides[1:]}


def _notes(image: Any, is_quantised: bool) -> tuple[str, ...]:
    if not is_quantised:
        return ()
    notes = [
        "quantised to 8 bits; converted to float32, and the rounding that is gone may change scores "
        f"by up to {TOLERANCE:.0%} of their size"
    ]
    if image.quantization is not None and image.quantization.scale is not None and len(image.quantization.scale):
        scale, zero = float(image.quantization.scale[0]), int(image.quantization.zeroPoint[0])
        lowest = -128 if image.type == 9 else 0
        low, high = (lowest - zero) * scale, (lowest + 255 - zero) * scale
        notes.append(f"its 8-bit input holds values from {low:.4g} to {high:.4g}")
    return tuple(notes)


adapter = TFLiteAdapter()
