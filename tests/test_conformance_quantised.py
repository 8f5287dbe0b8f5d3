"""Quantised graphs: what onnxruntime's quantiser and runtime make of them, and a gradient that reaches the image."""

from __future__ import annotations

import logging
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import exports
from debride.errors import ParityError
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.loading import _parity
from debride.proxy.interpreter import Proxy
from debride.proxy.parity import check_parity
from debride.proxy.runner import GraphRunner
from debride.sessions import Runtime, Session, predictor
from debride.settings import Settings
from debride.types import InputSpec

VENDOR = "com.microsoft"
SHAPE = (3, 16, 16)
FORMS = [(form, per) for form in ("QDQ", "QOperator") for per in (False, True)]
RNG = np.random.default_rng(4)


def _u8(*shape):
    return RNG.integers(0, 256, shape).astype(np.uint8)


def _i8(*shape):
    return RNG.integers(-127, 128, shape).astype(np.int8)


def _f(*values):
    return np.array(values[0] if len(values) == 1 else values, np.float32)


X, ZX = (_f(0.0319), np.array(117, np.uint8)), np.array(90, np.uint8)
Y = (_f(0.1137), np.array(131, np.uint8))

# (operator, domain, attributes, data as inputs, the rest as initializers in their places, type of the output)
SINGLE = {
    "conv per tensor": (
        "QLinearConv",
        "",
        {"pads": [1, 1, 1, 1]},
        ["x", *X, _i8(4, 3, 3, 3), _f(0.02), np.int8(3), *Y],
    ),
    "conv per channel with bias": (
        "QLinearConv",
        "",
        {"strides": [2, 2], "kernel_shape": [3, 3]},
        [
            "x",
            *X,
            _i8(4, 3, 3, 3),
            _f(0.02, 0.01, 0.03, 0.05),
            np.zeros(4, np.int8),
            *Y,
            np.array([900, -70, 5, 0], np.int32),
        ],
    ),
    "grouped conv of unsigned weights": (
        "QLinearConv",
        "",
        {"group": 3},
        ["x", *X, _u8(6, 1, 3, 3), _f(0.02), np.uint8(120), *Y],
    ),
    "conv to integers": ("ConvInteger", "", {"pads": [1, 0, 1, 0]}, ["x", _u8(4, 3, 3, 3), ZX, np.array(7, np.uint8)]),
    "dequantise": ("DequantizeLinear", "", {}, ["x", *X]),
    "dequantise per axis": (
        "DequantizeLinear",
        "",
        {"axis": 1},
        ["x", _f(0.1, 0.2, 0.3), np.array([1, 2, 3], np.uint8)],
    ),
    "add": ("QLinearAdd", VENDOR, {}, ["x", *X, _u8(3, 1, 1), _f(0.0487), np.uint8(9), *Y]),
    "multiply": ("QLinearMul", VENDOR, {}, ["x", *X, _u8(3, 1, 1), _f(0.0487), np.uint8(9), *Y]),
    "sigmoid": ("QLinearSigmoid", VENDOR, {}, ["x", *X, _f(1 / 256), np.uint8(0)]),
    "leaky relu": ("QLinearLeakyRelu", VENDOR, {"alpha": 0.2}, ["x", *X, *Y]),
    "concat": ("QLinearConcat", VENDOR, {"axis": 1}, [*Y, "x", *X, _u8(2, 2, 8, 8), _f(0.0487), np.uint8(9)]),
    "global average": ("QLinearGlobalAveragePool", VENDOR, {}, ["x", *X, *Y]),
    "average": ("QLinearAveragePool", VENDOR, {"kernel_shape": [2, 2], "strides": [2, 2]}, ["x", *X, *Y]),
    "softmax": ("QLinearSoftmax", VENDOR, {"axis": 1, "opset": 13}, ["x", *X, _f(1 / 256), np.uint8(0)]),
}
MATRICES = {
    "product": ("QLinearMatMul", "", {}, ["x", *X, _i8(8, 5), _f(0.02), np.int8(-4), *Y]),
    "product per column": (
        "QLinearMatMul",
        "",
        {},
        ["x", *X, _i8(8, 3), _f(0.02, 0.04, 0.01), np.array([1, 0, -3], np.int8), *Y],
    ),
    "product to integers": ("MatMulInteger", "", {}, ["x", _i8(8, 5), ZX, np.int8(3)]),
    "gemm": (
        "QGemm",
        VENDOR,
        {"transB": 1},
        ["x", *X, _i8(5, 8), _f(0.02), np.int8(0), np.array([90, -8, 0, 4, 1], np.int32), *Y],
    ),
    "gemm to floats": ("QGemm", VENDOR, {"transB": 1}, ["x", *X, _i8(5, 8), _f(0.02), np.int8(0)]),
}
ONES = {**dict.fromkeys(SINGLE, (2, 3, 8, 8)), **dict.fromkeys(MATRICES, (4, 8))}


def _model(nodes, tensors, shape, kind, out):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", out, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(VENDOR, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _run(model, x):
    return Session(model.SerializeToString(), Runtime(threads=1)).run({"x": x})[0]


def single(name):
    """A model of the one node `name`, with the input `x` and the output `y`."""
    op, domain, attributes, inputs = {**SINGLE, **MATRICES}[name]
    names = [v if isinstance(v, str) else f"c{i}" for i, v in enumerate(inputs)]
    tensors = {k: v for k, v in zip(names, inputs, strict=True) if k != "x"}
    floats = op in ("DequantizeLinear",) or name == "gemm to floats"
    out = TensorProto.FLOAT if floats else TensorProto.INT32 if "Integer" in op else TensorProto.UINT8
    node = helper.make_node(op, names, ["y"], domain=domain, name="it", **attributes)
    return _model([node], tensors, ONES[name], TensorProto.UINT8, out)


@pytest.mark.parametrize("name", ONES)
def test_integer_operator_agrees_with_onnxruntime_and_passes_a_gradient(name):
    model = single(name)
    x = _u8(*ONES[name])
    expected = _run(model, x).astype(np.float64)
    runner = GraphRunner(parse(model))
    # Fed as floats that hold integers, as the proxy's own QuantizeLinear makes them.
    at = torch.from_numpy(x).float().requires_grad_()
    y = runner.run({"x": at}, ["y"])["y"]
    assert y.shape == expected.shape
    np.testing.assert_allclose(y.detach().numpy(), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(runner.run({"x": torch.from_numpy(x)}, ["y"])["y"].numpy(), y.detach().numpy())
    y.sum().backward()
    assert at.grad.abs().sum() > 0


@pytest.mark.parametrize("low", [-3.0, 0.5])
def test_dynamic_quantisation_agrees_with_onnxruntime_and_lets_the_gradient_through(low):
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"]),
        helper.make_node("Mul", ["f", "both"], ["y"]),
    ]
    weights = _i8(6, 4)
    model = _model(nodes, {"w": weights, "ws": _f(0.02)}, (5, 6), TensorProto.FLOAT, TensorProto.FLOAT)
    x = RNG.uniform(low, 4, (5, 6)).astype(np.float32)
    at = torch.from_numpy(x).requires_grad_()
    y = GraphRunner(parse(model)).run({"x": at}, ["y"])["y"]
    np.testing.assert_allclose(y.detach().numpy(), _run(model, x), rtol=1e-5, atol=1e-5)
    y.sum().backward()
    # Straight through the rounding, the gradient is that of x @ (weights * scale).
    expected = torch.from_numpy(weights.astype(np.float32) * np.float32(0.02)).sum(1).expand(5, 6)
    torch.testing.assert_close(at.grad, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantise_and_back_agrees_with_onnxruntime(kind, axis):
    n = 1 if axis is None else 3
    scale = np.array([0.05, 0.1, 0.02], np.float32)[:n]
    zero = np.array([3, 100, 20], kind)[:n]
    scale, zero = (scale[0], zero[0]) if axis is None else (scale, zero)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    model = _model(nodes, {"s": scale, "z": zero}, (2, 3, 4, 4), TensorProto.FLOAT, TensorProto.FLOAT)
    x = (6 * RNG.normal(size=(2, 3, 4, 4))).astype(np.float32)
    at = torch.from_numpy(x).requires_grad_()
    y = GraphRunner(parse(model)).run({"x": at}, ["y"])["y"]
    np.testing.assert_allclose(y.detach().numpy(), _run(model, x), rtol=1e-6, atol=1e-6)
    y.sum().backward()
    places = x / np.reshape(scale, (-1, 1, 1)) + np.reshape(zero, (-1, 1, 1)).astype(np.float32)
    within = (places > np.iinfo(kind).min) & (places < np.iinfo(kind).max)
    assert 0.05 < within.mean() < 0.95
    np.testing.assert_allclose(at.grad.numpy(), within, atol=1e-6)  # 1 within the range, 0 beyond


class _Net(nn.Module):
    """Two convolutions, a residual sum, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x) + x)
        return self.last(x.mean((2, 3)))


@cache
def _files(tmp):
    """The float model and its quantised forms."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            rng = np.random.default_rng(0)
            self.batches = iter([{"x": rng.random((16, *SHAPE), np.float32)} for _ in range(4)])

        def get_next(self):
            return next(self.batches, None)

    torch.manual_seed(5)
    plain = tmp / "plain.onnx"
    onnx.save(exports.export(_Net().eval(), SHAPE, exporter="torchscript", opset=13), plain)
    logging.disable(logging.WARNING)
    for form, per in FORMS:
        quantize_static(
            plain,
            tmp / f"{form}-{per}.onnx",
            Reader(),
            quant_format=QuantFormat[form],
            per_channel=per,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    logging.disable(logging.NOTSET)
    return tmp


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return _files(tmp_path_factory.mktemp("quantised"))


def _proxy(path):
    return Proxy(read_model(path).graph, InputSpec(name="x", layout="NCHW", channels="RGB", size=SHAPE[1:]))


@pytest.mark.parametrize(("form", "per"), FORMS)
def test_quantised_network_agrees_with_onnxruntime_to_a_step_of_its_scores(form, per, files):
    path = files / f"{form}-{per}.onnx"
    graph = read_model(path).graph
    assert ("QLinearConv" in {n.op for n in graph.nodes}) == (form == "QOperator")
    images = np.random.default_rng(1).random((8, *SHAPE), np.float32)
    expected = Session(path, Runtime(threads=1)).run({"x": images})[0]
    with torch.no_grad():
        actual = _proxy(path).scores(torch.from_numpy(images)).numpy()
    step = np.unique(np.abs(np.diff(np.unique(expected)))).min()  # the scores are multiples of one
    assert np.abs(actual - expected).max() <= 1.01 * step
    assert (np.abs(actual - expected) > 0.5 * step).mean() <= 0.1


@pytest.mark.parametrize(("form", "per"), FORMS)
def test_gradient_of_a_quantised_network_is_near_that_of_its_float_model(form, per, files):
    images = torch.from_numpy(np.random.default_rng(1).random((8, *SHAPE), np.float32))
    gradients = []
    for path in (files / "plain.onnx", files / f"{form}-{per}.onnx"):
        at = images.clone().requires_grad_()
        torch.nn.functional.cross_entropy(_proxy(path)(at), torch.arange(8) % 4).backward()
        gradients.append(at.grad.flatten(1))
    assert torch.nn.functional.cosine_similarity(*gradients).min() > 0.9


def _plain(path):
    """onnxruntime without its graph optimisations, which move the rounding."""
    spec = InputSpec(name="x", layout="NCHW", channels="RGB", size=SHAPE[1:])
    return predictor(Session(path, Runtime(threads=1, optimised=False)), spec)


IMAGES = np.random.default_rng(1).random((8, *SHAPE), np.float32)


def test_parity_allows_a_rounding_step_of_a_few_scores_to_quantised_models_alone(files):
    for name, allowed in (("plain", False), ("QDQ-False", True)):
        path = files / f"{name}.onnx"
        proxy, predict = _proxy(path), _plain(path)
        assert proxy.rounds is allowed

        def off(x, every, predict=predict):
            y = predict(x).copy()
            y.reshape(-1)[::every] += np.float32(0.008) * np.abs(y).max()
            return y

        if allowed:
            assert check_parity(proxy, lambda x: off(x, 8), IMAGES) > 0.005
            with pytest.raises(ParityError, match="on average"):
                check_parity(proxy, lambda x: off(x, 2), IMAGES)
        else:
            with pytest.raises(ParityError, match="differ"):
                check_parity(proxy, lambda x: off(x, 8), IMAGES)


@pytest.mark.parametrize(("form", "per"), FORMS)
def test_parity_of_a_quantised_network_fails_where_one_layers_scale_is_wrong(form, per, files, tmp_path):
    path = files / f"{form}-{per}.onnx"
    assert check_parity(_proxy(path), _plain(path), IMAGES) <= 1e-2
    model = onnx.load(path)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    missed, tried = [], 0
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if not name.endswith("_scale"):
                continue
            # Read wrongly by this node alone: by all, it would be another grid for the same numbers.
            model.graph.initializer.append(numpy_helper.from_array((tensors[name] * 1.2).astype(np.float32), "wrong"))
            node.input[place] = "wrong"
            onnx.save(model, tmp_path / "wrong.onnx")
            try:
                check_parity(_proxy(tmp_path / "wrong.onnx"), _plain(path), IMAGES)
                missed.append((node.name, name))
            except ParityError:
                pass
            node.input[place], tried = name, tried + 1
            del model.graph.initializer[-1]
    assert tried > 10
    assert missed == []


def test_loading_compares_a_quantised_model_with_onnxruntime_as_it_is_written(files):
    def fusing(images):
        raise AssertionError("a session that fuses nodes was asked")

    spec, settings = InputSpec(name="x", layout="NCHW", channels="RGB", size=SHAPE[1:]), Settings(threads=1)
    model = read_model(files / "QDQ-True.onnx")
    assert _parity(model, spec, fusing, IMAGES, settings) <= 1e-2
    with pytest.raises(AssertionError, match="fuses"):
        _parity(read_model(files / "plain.onnx"), spec, fusing, IMAGES, settings)
