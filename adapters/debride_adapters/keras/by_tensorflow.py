"""Keras on TensorFlow -> ONNX: the traced graph is frozen, every constant put into it, and translated by tf2onnx."""

from __future__ import annotations

import logging
from typing import Any

from debride_adapters.keras.signature import IMAGE, Signature, call
from debride_adapters.tensorflow.runtime import no_reshapes

MAX_OPSET = 18
"""The newest that tf2onnx writes."""


def export(model: Any, signature: Signature, opset: int) -> bytes:
    """The Keras `model` in inference mode as a serialized ModelProto of `opset`, or 18 where that is less.

    Its input is `IMAGE`, its outputs are `signature.outputs`; the batch is free.
    """
    import onnx
    import tensorflow as tf
    import tf2onnx
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    spec = tf.TensorSpec((None, *signature.shape), tf.float32, name=IMAGE)
    traced = _traced(tf.function(lambda image: call(model, image), autograph=False), spec)
    frozen = convert_variables_to_constants_v2(traced, lower_control_flow=False, aggressive_inlining=True)
    graph = frozen.graph.as_graph_def(add_shapes=True)
    # Constants that a layer keeps outside of its weights (Normalization does) come as further inputs of the graph.
    _fill(graph, {inner.op.name: outer for outer, inner in traced.graph.captures if outer.dtype != tf.resource})
    _without_erfc(graph)
    image, outputs = f"{IMAGE}:0", [tensor.name for tensor in frozen.outputs]
    with no_reshapes():
        proto, _ = tf2onnx.convert.from_graph_def(
            graph,
            name=model.name,
            input_names=[image],
            output_names=outputs,
            opset=min(opset, MAX_OPSET),
            tensors_to_rename={image: IMAGE, **dict(zip(outputs, signature.outputs, strict=True))},
        )
    # tf2onnx counts the free dimensions of all models that a process converts.
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    missing = sorted({node.op_type for node in proto.graph.node if not onnx.defs.has(node.op_type, node.domain)})
    if missing:
        raise NotImplementedError(f"tf2onnx knows no ONNX operator for {', '.join(missing)}")
    data: bytes = proto.SerializeToString()
    return data


def _traced(function: Any, spec: Any) -> Any:
    """The graph of `function`, with all functions that it calls written into it.

    Keras compiles some convolutions (grouped ones) by XLA, as functions that nothing takes apart afterwards.
    """
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        return function.get_concrete_function(spec)
    finally:
        tf.config.run_functions_eagerly(before)


def _fill(graph: Any, constants: dict[str, Any]) -> None:
    """Puts `constants`, tensors by name, in the place of the graph's placeholders of these names."""
    import tensorflow as tf

    for node in graph.node:
        if node.op == "Placeholder" and node.name in constants:
            value = constants[node.name].numpy()
            node.op = "Const"
            node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
            for key in set(node.attr) - {"dtype", "value"}:
                del node.attr[key]


def _without_erfc(graph: Any) -> None:
    """Writes erfc(x), which gelu is made of and ONNX has not, as 1 - erf(x)."""
    import numpy as np
    import tensorflow as tf

    for node in [n for n in graph.node if n.op == "Erfc"]:
        dtype = node.attr["T"].type
        one = graph.node.add(op="Const", name=f"{node.name}/one")
        one.attr["dtype"].type = dtype
        one.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.ones((), tf.as_dtype(dtype).as_numpy_dtype)))
        erf = graph.node.add(op="Erf", name=f"{node.name}/erf", input=node.input)
        erf.attr["T"].type = dtype
        node.op = "Sub"
        node.input[:] = [one.name, erf.name]
