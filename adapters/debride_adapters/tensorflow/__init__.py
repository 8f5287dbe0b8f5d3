"""TensorFlow's SavedModel folders and frozen graphs: parsed, audited, and only then given to TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions
from debride_adapters.tensorflow.runtime import require, versions

_MARKER = "saved_model.pb"


@dataclass(frozen=True, slots=True)
class TensorFlowAdapter:
    """Reads SavedModel folders, known by the `saved_model.pb` in them, and frozen graphs (`.pb`)."""

    name: str = "TensorFlow"
    suffixes: tuple[str, ...] = (".pb", _MARKER)

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The serving signature of a folder, or a frozen graph, as ONNX with an input "image:0" in the file's layout.

        Bytes (uint8) as input become floats in 0..255. Of the outputs only those of floats are kept.

        Raises:
            ModelError: damaged, no single image input with float scores, operators that must not run or that have no
                translation, or TensorFlow is not installed.
            UsageError: the file does not state its input's shape and `options.input_shape` does not either.
        """
        if not path.exists():
            raise ModelError(f"{path}: no such file or folder; give a SavedModel folder or a frozen .pb file")
        tf, tf2onnx = require(path)
        # These need protobuf classes that only TensorFlow brings.
        from debride_adapters.tensorflow.export import INPUT, freeze, output_names, reference, to_onnx
        from debride_adapters.tensorflow.frozen import read_frozen
        from debride_adapters.tensorflow.saved import read_saved_model
        from debride_adapters.tensorflow.settle import free_reshapes
        from debride_adapters.tensorflow.signature import stated

        if path.name == _MARKER:
            path = path.parent
        source = read_saved_model(path, options) if path.is_dir() else read_frozen(path, options)
        frozen = freeze(tf, source.graph, source.signature, source.variables, path)
        outputs = output_names(len(source.signature.outputs))
        single = source.signature.single
        spec = {"name": f"{INPUT}:0", **stated(source.signature)}
        if len(outputs) == 1:
            spec["output"] = outputs[0]
        return Converted(
            onnx=to_onnx(tf2onnx, free_reshapes(frozen) if single else frozen, outputs, options.opset, path),
            spec=spec,
            notes=(*source.notes, *source.signature.remarks()),
            packages=versions(tf, tf2onnx),
            reference=reference(tf, frozen, outputs, single=single),
        )


adapter = TensorFlowAdapter()
