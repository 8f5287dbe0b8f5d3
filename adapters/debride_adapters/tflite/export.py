"""An audited TFLite model -> ONNX in float32, with a free batch."""

from __future__ import annotations

import tempfile
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from debride.errors import ModelError
from debride_adapters.common import one_line, output_names
from debride_adapters.tensorflow.export import OPSETS, serialized
from debride_adapters.tensorflow.runtime import no_reshapes
from debride_adapters.tflite.model import FLOAT32, graph_of, write_tflite

INPUT = "image"


def in_floats(model: Any) -> Any:
    """A copy of `model` whose ends are float32 tensors named "image" and "scores", with a free batch.

    8-bit numbers inside are turned to floats by tf2onnx; those at the ends, and weights that quantise what they meet,
    it would leave.
    """
    copy = deepcopy(model)
    graph = graph_of(copy)
    copy.signatureDefs, copy.metadata, copy.description = [], [], b""
    _skip_last_quantisation(copy, graph)
    ends = [(number, INPUT) for number in graph.inputs]
    ends += [(number, name) for number, name in zip(graph.outputs, output_names(len(graph.outputs)), strict=True)]
    for number, name in ends:
        tensor = graph.tensors[number]
        tensor.name, tensor.type, tensor.quantization = name.encode(), FLOAT32, None
    for operator in graph.operators:
        if getattr(operator.builtinOptions, "asymmetricQuantizeInputs", False):
            operator.builtinOptions.asymmetricQuantizeInputs = False
    _free_batch(copy, graph)
    return copy


def to_onnx(tf2onnx: Any, model: Any, opset: int, path: Path) -> bytes:
    """What `in_floats` gave, as a serialized ONNX model of operator set `opset` or the nearest that tf2onnx writes.

    Raises `ModelError` naming what cannot be translated.
    """
    from tf2onnx import optimizer, tfonnx

    opset = min(max(opset, OPSETS[0]), OPSETS[-1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.tflite"
        file.write_bytes(write_tflite(model))
        handlers: dict[str, Any] = {"TFL_GELU": (_gelu, [])}
        try:
            # tf2onnx's own `from_tflite` offers no way to ask for floats.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the interpreter will move to another package one day
                graph = tfonnx.process_tf_graph(
                    None, opset=opset, tflite_path=str(file), dequantize=True, custom_op_handlers=handlers
                )
            with no_reshapes():
                converted = optimizer.optimize_graph(graph, True).make_model("model")
        except Exception as error:  # tf2onnx raises whatever its handlers stumble over
            raise ModelError(f"{path}: tf2onnx cannot translate it ({one_line(error)}); export it to ONNX") from error
    return serialized(converted, opset, path)


def _skip_last_quantisation(model: Any, graph: Any) -> None:
    """Takes out a last QUANTIZE, which turns scores from one kind of bytes to another: in floats they are the same."""
    from tensorflow.lite.python import schema_py_generated as schema

    for place, number in enumerate(graph.outputs):
        maker = next((operator for operator in graph.operators if number in operator.outputs), None)
        if maker is None:
            continue
        code = model.operatorCodes[maker.opcodeIndex]
        if schema.BuiltinOperator.QUANTIZE in (code.builtinCode, code.deprecatedBuiltinCode):
            graph.outputs[place] = int(maker.inputs[0])
            graph.operators.remove(maker)


def _free_batch(model: Any, graph: Any) -> None:
    """Let whatever is computed with a first dimension of 1 have any, Reshapes to such a shape included."""
    from tensorflow.lite.python import schema_py_generated as schema

    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if schema.BuiltinOperator.RESHAPE in (code.builtinCode, code.deprecatedBuiltinCode):
            _free_reshape(model, graph, operator)
    given = {number for operator in graph.operators for number in operator.outputs} | set(graph.inputs)
    for number in given:
        tensor = graph.tensors[number]
        if tensor.shape is not None and len(tensor.shape) > 1 and tensor.shape[0] == 1:
            rest = tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature
            tensor.shapeSignature = np.asarray([-1, *rest[1:]], np.int32)


def _free_reshape(model: Any, graph: Any, operator: Any) -> None:
    """The target (1, a, b) of a batch of one becomes (-1, a, b), in a buffer of its own: buffers may be shared."""
    source = graph.tensors[operator.inputs[0]].shape
    if len(operator.inputs) < 2 or source is None or len(source) < 2 or source[0] != 1:
        return
    target = graph.tensors[operator.inputs[1]]
    data = model.buffers[target.buffer].data
    if data is None or len(data) == 0:
        return
    shape = np.frombuffer(bytes(bytearray(data)), np.int32)
    if len(shape) > 1 and shape[0] == 1 and (shape > 0).all():
        buffer = type(model.buffers[0])()
        buffer.data = np.frombuffer(np.asarray([-1, *shape[1:]], np.int32).tobytes(), np.uint8)
        model.buffers.append(buffer)
        target.buffer = len(model.buffers) - 1
        if getattr(operator.builtinOptions, "newShape", None) is not None:
            operator.builtinOptions.newShape = np.asarray([-1, *shape[1:]], np.int32)


def _gelu(ctx: Any, node: Any, name: str, args: Any) -> None:
    """GELU by the error function or by tanh, in ONNX's operators of set 13."""
    source, (target,) = node.input[0], node.output
    dtype, shape = ctx.get_dtype(target), ctx.get_shape(target)
    rough = bool(node.get_attr_value("approximate", 0))
    ctx.remove_node(node.name)

    def const(value: float) -> str:
        return str(ctx.make_const(f"{node.name}_{value:.4f}", np.asarray(value, np.float32)).output[0])

    def make(op: str, *inputs: str, **more: Any) -> str:
        return str(ctx.make_node(op, list(inputs), dtypes=[dtype], shapes=[shape], **more).output[0])

    if rough:
        cube = make("Mul", make("Mul", source, source), source)
        inner = make("Add", source, make("Mul", cube, const(0.044715)))
        gate = make("Tanh", make("Mul", inner, const(0.7978845608)))
    else:
        gate = make("Erf", make("Mul", source, const(0.7071067812)))
    half = make("Mul", source, const(0.5))
    make("Mul", half, make("Add", gate, const(1.0)), outputs=[target])
