"""Small ONNX classifiers made on the spot, and the sessions that say what they compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

VENDOR = Path(__file__).parents[2] / "shared" / "vendor"
OPSETS = (7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22, 23)


def run(proto: onnx.ModelProto, feeds: dict, outputs: list[str] | None = None) -> list[np.ndarray]:
    """What onnxruntime computes, without its optimisations (they reorder sums)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def images(model, n: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """A feed of `n` random images for a `Model`."""
    value = model.graph.inputs[0]
    return {value.name: np.random.default_rng(seed).random((n, *value.shape[1:]), dtype=np.float32)}


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal within 1e-5 of the largest score (at least 1): float32 sums of several layers, taken in another order."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


class Builder:
    """Lays one operator after another; weights are drawn from one seed and stored in several ways."""

    def __init__(self, opset: int = 13, ir: int = 8, seed: int = 0, store: str = "initializer") -> None:
        self.opset, self.ir, self.store = opset, ir, store
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.count, self.fixed = 0, False

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def op(self, op: str, *inputs: str, **attributes) -> str:
        out = self.name("t")
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"n_{out}", **attributes))
        return out

    def const(self, array, store: str | None = None) -> str:
        """A constant stored as an initializer, in a Constant node, or turned about by Identity or Transpose."""
        array, store = np.asarray(array), store or self.store
        name = self.name("c")
        if store == "transpose" and array.ndim == 2:
            return self.op("Transpose", self.const(array.T.copy(), "initializer"), perm=[1, 0])
        if store == "identity":
            return self.op("Identity", self.const(array, "constant"))
        if store == "constant":
            self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, "")))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int) -> str:
        scale = 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        return self.const((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def conv(self, x: str, cin: int, cout: int, group: int = 1, bias: bool | str = True) -> str:
        weight = self.weight(cout, cin // group, 3, 3)
        extra = [bias] if isinstance(bias, str) else [self.weight(cout)] if bias else []
        return self.op("Conv", x, weight, *extra, group=group, pads=[1, 1, 1, 1])

    def bn(self, x: str, c: int) -> str:
        var = self.const((self.rng.random(c) + 0.5).astype(np.float32), "initializer")
        mean = self.const(self.rng.standard_normal(c).astype(np.float32), "initializer")
        return self.op("BatchNormalization", x, self.weight(c), self.weight(c), mean, var)

    def model(
        self, x_shape, out: str, out_shape, *, listed: bool = False, outputs=(), check: bool = True
    ) -> onnx.ModelProto:
        """The finished model; `listed` names its initializers among the inputs too, as IR version 3 demands."""
        self.nodes[-1].output[0] = out
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x_shape)]
        if listed or self.ir < 4:
            inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in self.initializers]
        ends = [helper.make_tensor_value_info(out, TensorProto.FLOAT, out_shape), *outputs]
        graph = helper.make_graph(self.nodes, "g", inputs, ends, self.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        proto = helper.make_model(graph, opset_imports=opsets, ir_version=self.ir)
        if check:
            onnx.checker.check_model(proto)
        return proto


def with_function():
    """A model whose convolution lies in a local function."""
    inner = [helper.make_node("Conv", ["a", "w"], ["m"]), helper.make_node("Relu", ["m"], ["b"])]
    block = helper.make_function("local", "Block", ["a", "w"], ["b"], inner, [helper.make_opsetid("", 13)])
    b = Builder(13)
    b.nodes.append(helper.make_node("Block", ["x", b.weight(4, 3, 1, 1)], ["h"], name="block", domain="local"))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", "h")), b.weight(4, 3), b.weight(3))
    graph = b.model(["n", 3, 8, 8], "scores", ["n", 3], check=False).graph
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=[block], ir_version=8)


@st.composite
def classifiers(draw, fixed_batch: bool | None = None) -> onnx.ModelProto:
    """Random classifiers of 8x8 images in 3 classes: stems, residuals, joins, pools and heads in many spellings."""
    opset = draw(st.sampled_from(OPSETS))
    ir = draw(st.sampled_from([3, 4, 7])) if opset <= 8 else draw(st.sampled_from([4, 8]))
    ir = max(ir, 10 if opset > 20 else ir)
    store = draw(st.sampled_from(["initializer", "constant", "identity", "transpose"]))
    b = Builder(opset, ir, draw(st.integers(0, 999)), store)
    b.fixed = draw(st.booleans()) if fixed_batch is None else fixed_batch
    x, c = b.conv("x", 3, 4, bias=draw(st.booleans())), 4
    for block in draw(st.lists(st.sampled_from(_BLOCKS), min_size=1, max_size=4)):
        x, c = block(b, x, c)
    out = draw(st.sampled_from(_HEADS))(b, x, c)
    if draw(st.booleans()):
        b.op("Softmax", out, axis=1)
    size = 1 if b.fixed else "batch"
    return b.model([size, 3, 8, 8], "scores", [size, 3], listed=draw(st.booleans()))


def _relu(b, x, c):
    return b.op("Relu", x), c


def _norm(b, x, c):
    return b.op("Relu", b.bn(x, c)), c


def _residual(b, x, c):
    bias = b.const(b.rng.standard_normal(c).astype(np.float32), "initializer")  # one bias for two layers
    y = b.op("Relu", b.conv(x, c, c, bias=bias))
    return b.op("Relu", b.op("Add", b.conv(y, c, c, bias=bias), x)), c


def _tied(b, x, c):
    weight = b.const(b.rng.standard_normal((c, c, 1, 1)).astype(np.float32) / c, "initializer")
    y = b.op("Relu", b.op("Conv", x, weight))
    return b.op("Tanh", b.op("Conv", y, weight)), c


def _dense(b, x, c):
    y = b.op("Relu", b.bn(b.conv(x, c, 2, bias=False), 2))
    return b.op("Concat", x, y, axis=1), c + 2


def _grouped(b, x, c):
    return b.op("Relu", b.conv(x, c, 2 * c, group=2 - c % 2)), 2 * c


def _depthwise(b, x, c):
    return b.op("Sigmoid", b.conv(x, c, c, group=c)), c


def _upsampling(b, x, c):
    y = b.op("ConvTranspose", x, b.weight(c, 3, 2, 2), b.weight(3), strides=[2, 2])
    return b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 3


def _shifted(b, x, c):
    y = b.op("Mul", b.conv(x, c, 3, bias=False), b.weight(3, 1, 1))
    return b.op("Relu", b.op("Add", y, b.weight(1, 3, 1, 1))), 3


def _gap_gemm(b, x, c):
    flat = b.op("Flatten", b.op("GlobalAveragePool", x), axis=1)
    return b.op("Gemm", flat, b.weight(3, c), b.weight(3), transB=1)


def _two_gemms(b, x, c):
    flat = b.op("Flatten", b.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    hidden = b.op("Relu", b.op("Gemm", flat, b.weight(16 * c, 5), b.weight(5)))
    return b.op("Gemm", hidden, b.weight(5, 3), b.weight(1, 3))


def _matmuls(b, x, c):
    target = b.const(np.array([1 if b.fixed else -1, 16 * c], np.int64))
    flat = b.op("Reshape", b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), target)
    hidden = b.op("Relu", b.op("Add", b.op("MatMul", flat, b.weight(16 * c, 4)), b.weight(4)))
    return b.op("Add", b.weight(3), b.op("MatMul", hidden, b.weight(4, 3)))


_BLOCKS = (_relu, _norm, _residual, _tied, _dense, _grouped, _depthwise, _upsampling, _shifted)
_HEADS = (_gap_gemm, _two_gemms, _matmuls)
