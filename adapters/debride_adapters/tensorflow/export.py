"""An audited TensorFlow graph with its variables -> frozen graph -> ONNX, and the frozen graph as the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.types import FloatArray, Reference
from debride_adapters.common import one_line
from debride_adapters.tensorflow.runtime import no_reshapes
from debride_adapters.tensorflow.settle import settle
from debride_adapters.tensorflow.signature import Signature

INPUT = "image"
OPSETS = range(13, 19)  # what tf2onnx 1.17 writes and debride reads


def freeze(tf: Any, graph: Any, signature: Signature, variables: Mapping[str, npt.NDArray[Any]], path: Path) -> Any:
    """A GraphDef without variables and calls, whose placeholder is a float32 "image" (N, ...).

    An input of bytes becomes one of floats in 0..255: nothing can be searched by gradient in whole numbers.

    Raises `ModelError` where TensorFlow finds the graph inconsistent.
    """
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    held = {name: tf.Variable(value) for name, value in variables.items()}
    settle(graph, variables)
    handles = {node.name for node in graph.node if node.op == "VarHandleOp"}

    def run(image: Any) -> list[Any]:
        here = tf.compat.v1.get_default_graph()
        given = {signature.feed: image}
        for name in handles:
            here.watch_variable(held[name])
            given[f"{name}:0"] = here.capture(held[name].handle)
        found = tf.graph_util.import_graph_def(graph, input_map=given, return_elements=signature.outputs, name="")
        return [tf.identity(scores) for scores in found]

    kind = tf.uint8 if signature.is_bytes else tf.float32
    try:
        function = tf.function(run, autograph=False).get_concrete_function(
            tf.TensorSpec(signature.shape, kind, name=INPUT)
        )
        frozen = convert_variables_to_constants_v2(function).graph.as_graph_def()
    except Exception as error:  # a graph may be inconsistent in more ways than TensorFlow has words for
        raise ModelError(f"{path}: TensorFlow refuses its graph ({one_line(error)}); export it again") from error
    if signature.is_bytes:
        _feed_floats(tf, frozen, path)
    return frozen


def output_names(count: int) -> list[str]:
    """The tensors that `freeze` ends in, in the signature's order."""
    return [f"Identity_{number}:0" if number else "Identity:0" for number in range(count)]


def to_onnx(tf2onnx: Any, frozen: Any, outputs: Sequence[str], opset: int, path: Path) -> bytes:
    """`frozen` as a serialized ONNX model of operator set `opset` or the nearest that tf2onnx writes.

    Raises `ModelError` naming what cannot be translated.
    """
    opset = min(max(opset, OPSETS[0]), OPSETS[-1])
    handlers: dict[str, Any] = {"Erfc": (_erfc, [])}
    try:
        with no_reshapes():
            model, _ = tf2onnx.convert.from_graph_def(
                frozen,
                name="model",
                input_names=[f"{INPUT}:0"],
                output_names=list(outputs),
                opset=opset,
                custom_op_handlers=handlers,
            )
    except Exception as error:  # tf2onnx raises whatever its handlers stumble over
        raise ModelError(f"{path}: tf2onnx cannot translate it ({one_line(error)}); export it to ONNX") from error
    return serialized(model, opset, path)


def serialized(model: Any, opset: int, path: Path) -> bytes:
    """`model` (a ModelProto) as bytes, its free first dimensions named "batch".

    Raises `ModelError` for an operator that ONNX lacks: tf2onnx leaves those that it cannot translate as they are.
    """
    import onnx

    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, opset):
            raise ModelError(f"{path}: tf2onnx has no translation for the operator {node.op_type}; export it to ONNX")
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "batch"
    return bytes(model.SerializeToString())


def reference(tf: Any, frozen: Any, outputs: Sequence[str], *, single: bool) -> Reference:
    """Runs `frozen` in TensorFlow, image by image where `single`: an image batch -> one float32 array per output."""

    def build(image: Any) -> list[Any]:
        given = {f"{INPUT}:0": image}
        return list(tf.graph_util.import_graph_def(frozen, input_map=given, return_elements=list(outputs), name=""))

    placeholder = next(node for node in frozen.node if node.name == INPUT)
    shape = tf.TensorShape(placeholder.attr["shape"].shape)
    function = tf.compat.v1.wrap_function(build, [tf.TensorSpec(shape, tf.float32)])

    def run(batch: FloatArray) -> list[FloatArray]:
        return [np.asarray(scores, np.float32) for scores in function(tf.constant(batch, tf.float32))]

    def one_by_one(batch: FloatArray) -> list[FloatArray]:
        return [np.concatenate(rows) for rows in zip(*(run(image[None]) for image in batch), strict=True)]

    return one_by_one if single else run


def _feed_floats(tf: Any, frozen: Any, path: Path) -> None:
    """Let the placeholder give floats to the Casts that turned its bytes into floats."""
    number = tf.float32.as_datatype_enum
    image = next(node for node in frozen.node if node.name == INPUT)
    image.attr["dtype"].type = number
    todo = [INPUT]
    while todo:
        name = todo.pop()
        for node in frozen.node:
            if name not in (tensor.removesuffix(":0") for tensor in node.input):
                continue
            if node.op == "Identity":  # left over from calls
                node.attr["T"].type = number
                todo.append(node.name)
            elif node.op == "Cast" and node.attr["DstT"].type == number:
                node.attr["SrcT"].type = number
            else:
                raise ModelError(f"{path}: computes on its input as bytes ({node.op}); export it with a float32 input")


def _erfc(ctx: Any, node: Any, name: str, args: Any) -> None:
    """erfc(x) = 1 - erf(x), which loses nothing that a GELU shows: ONNX has only Erf."""
    source, (target,) = node.input[0], node.output
    dtype, shape = ctx.get_dtype(target), ctx.get_shape(target)
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", [source], dtypes=[dtype], shapes=[shape])
    one = ctx.make_const(f"{node.name}_one", np.ones((), np.float32))
    ctx.make_node("Sub", [one.output[0], erf.output[0]], outputs=[target], dtypes=[dtype], shapes=[shape])
