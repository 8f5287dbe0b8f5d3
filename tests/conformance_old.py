"""Single nodes in their older meanings, and what ONNX's node cases leave out: the cases that are ours."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from conformance import Case
from debride.sessions import Runtime, Session


def _i(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


# Older meanings of operators, and what ONNX's node cases leave out: (opset, node, constants, input shape).
OLD = {
    "softmax flattened from axis 1": (11, ("Softmax", {"axis": 1}), {}, (2, 3, 4)),
    "softmax flattened by default": (7, ("Softmax", {}), {}, (2, 3, 4)),
    "softmax from negative axis": (11, ("Softmax", {"axis": -2}), {}, (2, 3, 4)),
    "softmax from 13 on": (13, ("Softmax", {"axis": 1}), {}, (2, 3, 4)),
    "log softmax flattened": (9, ("LogSoftmax", {}), {}, (2, 3, 4)),
    "hardmax flattened": (11, ("Hardmax", {}), {}, (2, 3, 4)),
    "clip by attributes": (7, ("Clip", {"min": -0.5, "max": 0.25}), {}, (3, 4)),
    "clip by one attribute": (9, ("Clip", {"min": 0.0}), {}, (3, 4)),
    "slice by attributes": (7, ("Slice", {"starts": [1, -3], "ends": [9, -1], "axes": [0, 2]}), {}, (2, 3, 4)),
    "slice backwards": (10, ("Slice", {}), {"a": _i(-1), "b": _i(-99), "c": _i(1), "d": _i(-2)}, (2, 5)),
    "pad by attributes": (7, ("Pad", {"pads": [0, 1, 2, -1], "value": 1.5}), {}, (3, 4)),
    "pad reflected by attributes": (7, ("Pad", {"pads": [1, 1, 2, 2], "mode": "reflect"}), {}, (3, 4)),
    "pad at the edge by input": (11, ("Pad", {"mode": "edge"}), {"a": _i(1, 1, 2, 2)}, (3, 4)),
    "squeeze by attribute": (7, ("Squeeze", {"axes": [1]}), {}, (2, 1, 1)),
    "squeeze by negative attribute": (11, ("Squeeze", {"axes": [-1]}), {}, (2, 1, 1)),
    "unsqueeze by attribute": (7, ("Unsqueeze", {"axes": [0, 2]}), {}, (2, 3)),
    "reduce sum by attribute": (7, ("ReduceSum", {"axes": [1], "keepdims": 0}), {}, (2, 3, 4)),
    "reduce mean by negative attribute": (11, ("ReduceMean", {"axes": [-1, -2]}), {}, (2, 3, 4)),
    "reduce mean by input": (18, ("ReduceMean", {}), {"a": _i(1, 2)}, (2, 3, 4)),
    "reduce mean over all": (9, ("ReduceMean", {"keepdims": 0}), {}, (2, 3)),
    "reduce l2": (13, ("ReduceL2", {"axes": [2]}), {}, (2, 3, 4)),
    "upsample by attribute": (7, ("Upsample", {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}), {}, (1, 2, 3, 4)),
    "upsample by input": (9, ("Upsample", {}), {"a": np.array([1, 1, 2, 2], np.float32)}, (1, 2, 3, 4)),
    "resize of version 10": (10, ("Resize", {}), {"a": np.array([1, 1, 1.5, 2], np.float32)}, (1, 2, 4, 4)),
    "dropout of version 7": (7, ("Dropout", {"ratio": 0.7}), {}, (3, 4)),
    "dropout of version 10": (10, ("Dropout", {}), {}, (3, 4)),
    "global lp pool": (7, ("GlobalLpPool", {"p": 3}), {}, (2, 3, 4, 5)),
    "lp pool": (11, ("LpPool", {"kernel_shape": [2, 3], "p": 1, "pads": [0, 1, 1, 0]}), {}, (1, 2, 6, 7)),
    "max pool with a ceiling": (
        10,
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        {},
        (1, 2, 6, 6),
    ),
    "max pool padded on one side": (
        8,
        ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
        {},
        (1, 2, 6, 6),
    ),
    "average pool with a ceiling": (
        10,
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}),
        {},
        (1, 2, 6, 6),
    ),
    "average pool counting pads": (
        7,
        ("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
        {},
        (1, 2, 6, 6),
    ),
    "average pool as large as can be": (
        7,
        ("AveragePool", {"kernel_shape": [2, 2], "auto_pad": "SAME_LOWER"}),
        {},
        (1, 2, 5, 5),
    ),
    "conv in tensorflow's padding": (
        9,
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
        {"a": (4, 2, 3, 3)},
        (1, 2, 6, 7),
    ),
    "grouped and dilated conv": (
        11,
        ("Conv", {"group": 2, "dilations": [2, 1]}),
        {"a": (4, 1, 3, 3), "b": (4,)},
        (1, 2, 7, 7),
    ),
    "conv over one axis": (11, ("Conv", {"pads": [1, 0]}), {"a": (4, 2, 3), "b": (4,)}, (2, 2, 7)),
    "transposed conv": (
        11,
        ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 0, 1], "output_padding": [1, 1]}),
        {"a": (2, 3, 3, 3), "b": (3,)},
        (1, 2, 4, 5),
    ),
    "gemm scaled": (7, ("Gemm", {"alpha": 0.5, "beta": 2.0, "transA": 1}), {"a": (3, 4), "b": (1, 4)}, (3, 2)),
    "group norm per group": (18, ("GroupNormalization", {"num_groups": 2}), {"a": (2,), "b": (2,)}, (2, 4, 3, 3)),
    "group norm per channel": (21, ("GroupNormalization", {"num_groups": 2}), {"a": (4,), "b": (4,)}, (2, 4, 3, 3)),
    "layer norm over two axes": (17, ("LayerNormalization", {"axis": 1}), {"a": (3, 4), "b": (3, 4)}, (2, 3, 4)),
    "local response norm": (7, ("LRN", {"size": 5, "alpha": 0.1}), {}, (2, 6, 3, 3)),
    "scatter": (9, ("Scatter", {"axis": 1}), {"a": np.array([[2, 0]], np.int64), "b": (1, 2)}, (2, 3)),
    "power": (7, ("Pow", {}), {"a": np.array(2, np.float32)}, (2, 3)),
    "parametric relu": (7, ("PRelu", {}), {"a": (3, 1, 1)}, (2, 3, 2, 2)),
    "reshape keeping axes": (7, ("Reshape", {}), {"a": _i(0, -1, 2)}, (2, 3, 4)),
    "depth to space of version 1": (7, ("DepthToSpace", {"blocksize": 2}), {}, (1, 8, 2, 3)),
    "mean and variance": (9, ("MeanVarianceNormalization", {}), {}, (2, 3, 4, 4)),
    "max unpool": (
        9,
        ("MaxUnpool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        {"a": np.array([[[[5, 7], [13, 10]], [[16, 18], [29, 31]]]], np.int64)},
        (1, 2, 2, 2),
    ),
    "resize of version 11": (
        11,
        ("Resize", {"mode": "linear"}),
        {"a": np.zeros(0, np.float32), "b": np.array([1, 1, 1.5, 2], np.float32)},
        (1, 2, 4, 4),
    ),
    "top k by attribute": (7, ("TopK", {"k": 2, "axis": 1}), {}, (2, 5)),
    "split in equal parts": (7, ("Split", {"axis": 1}), {}, (2, 4, 3)),
    "split by attribute": (11, ("Split", {"axis": -1, "split": [1, 3]}), {}, (2, 4)),
    "lower triangle": (14, ("Trilu", {"upper": 0}), {"a": np.array(-1, np.int64)}, (3, 4)),
    "batch norm of version 7": (
        7,
        ("BatchNormalization", {}),
        {"a": (3,), "b": (3,), "c": (3,), "d": np.array([0.5, 1, 2], np.float32)},
        (2, 3, 2, 2),
    ),
    "cast to double": (9, ("Cast", {"to": TensorProto.DOUBLE}), {}, (2, 3)),
    "cast like a double": (15, ("CastLike", {}), {"a": np.zeros(1)}, (2, 3)),
    "quantise per tensor": (
        13,
        ("QuantizeLinear", {}),
        {"a": np.array(0.1, np.float32), "b": np.array(5, np.uint8)},
        (2, 3),
    ),
}

for _op in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"):
    OLD[f"Reduce{_op} of version 1"] = (7, (f"Reduce{_op}", {"axes": [0, 2], "keepdims": 0}), {}, (2, 3, 4))

_KINDS = {
    "QuantizeLinear": [TensorProto.UINT8],
    "Cast": [TensorProto.DOUBLE],
    "CastLike": [TensorProto.DOUBLE],
    "Split": [TensorProto.FLOAT, TensorProto.FLOAT],
    "TopK": [TensorProto.FLOAT, TensorProto.INT64],
}
"""Types of the outputs, where it is not one float."""


@cache
def old_case(name: str) -> Case:
    """The case `name` of `OLD`: float data from a fixed seed (positive under a logarithm), constants as initializers.

    Its expected values are those of onnxruntime.
    """
    opset, (op, attributes), constants, shape = OLD[name]
    rng = np.random.default_rng(5)
    arrays = {k: rng.normal(size=v).astype(np.float32) if isinstance(v, tuple) else v for k, v in constants.items()}
    data = rng.normal(size=shape).astype(np.float32)
    data = np.abs(data) + np.float32(0.1) if "Log" in op else data
    kinds = _KINDS.get(op, [TensorProto.FLOAT])
    outputs = [f"y{i}" for i in range(len(kinds))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *arrays], outputs, **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, k, None) for n, k in zip(outputs, kinds, strict=True)],
        [numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    expected = Session(model.SerializeToString(), Runtime(threads=1)).run({"x": data})
    for value, array in zip(model.graph.output, expected, strict=True):
        for size in array.shape:  # ONNX's checker wants outputs with a shape
            value.type.tensor_type.shape.dim.add().dim_value = size
    return Case(name=name, model=model, feeds={"x": data}, expected=tuple(expected))
