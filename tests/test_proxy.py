"""The proxy against onnxruntime, finite differences and closed forms."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ModelError, ParityError, UnsupportedOpError
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.proxy.interpreter import Proxy
from debride.proxy.parity import check_parity
from debride.proxy.plan import Request
from debride.proxy.runner import GraphRunner
from debride.sessions import Runtime, Session, predictor
from debride.types import Compute, InputSpec

SHARED = Path(__file__).parents[2] / "shared"
SPEC = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
IMAGES = np.random.default_rng(7).random((6, 3, 8, 8), np.float32)
DOUBLE = 11


def _model(nodes, constants, opset, *, shape=("n", 3, 8, 8), out=("n", 4), listed=False):
    rng = np.random.default_rng(3)
    tensors = [
        numpy_helper.from_array(rng.normal(size=v).astype(np.float32) if isinstance(v, tuple) else v, k)
        for k, v in constants.items()
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    if listed:
        inputs += [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3 if listed else 8)
    onnx.checker.check_model(model)
    return model


def _predict(model, spec=SPEC):
    return predictor(Session(model.SerializeToString(), Runtime(threads=1)), spec)


def _node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name=f"the_{outputs[0]}", **attributes)


def _body(*, softmax=True):
    return [
        _node("Conv", ["x", "w1", "b1"], ["c"], pads=[1, 1, 1, 1]),
        _node("BatchNormalization", ["c", "s", "o", "m", "v"], ["n"]),
        _node("Relu", ["n"], ["r"]),
        _node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        _node("Flatten", ["p"], ["f"]),
        _node("Gemm", ["f", "w2", "b2"], ["z" if softmax else "y"], transB=1),
        *([_node("Softmax", ["z"], ["y"], axis=1)] if softmax else []),
    ]


WEIGHTS = {"w1": (5, 3, 3, 3), "b1": (5,), "s": (5,), "o": (5,), "m": (5,), "w2": (4, 80), "b2": (4,)}
WEIGHTS["v"] = np.array([0.5, 1.0, 2.0, 0.3, 0.8], np.float32)


@pytest.mark.parametrize("opset", range(7, 24))
def test_small_classifier_agrees_with_onnxruntime_at_every_opset(opset):
    model = _model(_body(), WEIGHTS, opset, listed=opset < 9)
    assert check_parity(Proxy(parse(model), SPEC), _predict(model), IMAGES) < 1e-5


def _i(*values):
    return np.array(values, np.int64)


def test_nhwc_input_with_bgr_colours_agrees_with_onnxruntime():
    nodes = [_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), *_body()]
    nodes[1].input[0] = "t"
    model = _model(nodes, WEIGHTS, 13, shape=("n", 8, 8, 3))
    spec = replace(SPEC, layout="NHWC", channels="BGR", range=(0.0, 255.0), mean=(103.9, 116.8, 123.7), std=())
    assert check_parity(Proxy(parse(model), spec), _predict(model, spec), IMAGES) < 1e-5


def test_fixed_batch_is_run_in_portions_with_masks_and_starts_along():
    model = _model(_body(), WEIGHTS, 13, shape=(4, 3, 8, 8), out=(4, 4))
    fixed = Proxy(parse(model), SPEC)
    free = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    images, masks = torch.from_numpy(IMAGES), {"r": torch.rand(6, 5, 1, 1), "c": torch.rand(1, 5, 1, 1)}
    torch.testing.assert_close(fixed(images, masks), free(images, masks))
    start = {"r": torch.rand(6, 5, 8, 8)}
    torch.testing.assert_close(fixed(images, start=start), free(images, start=start))
    assert check_parity(fixed, _predict(model), IMAGES) < 1e-5


def test_final_softmax_is_left_off_and_scores_keep_it():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    bare = Proxy(parse(_model(_body(softmax=False), WEIGHTS, 13)), SPEC)
    images = torch.from_numpy(IMAGES)
    torch.testing.assert_close(proxy(images), bare(images))
    torch.testing.assert_close(proxy.scores(images), bare(images).softmax(1))
    assert (proxy.logits, bare.logits, proxy.probabilities, bare.probabilities) == ("z", "y", False, False)


def test_probabilities_made_without_softmax_become_logarithms():
    body = _body(softmax=False)
    body[-1].output[0] = "z"
    nodes = [
        *body,
        _node("Exp", ["z"], ["e"]),
        _node("ReduceSum", ["e"], ["total"], axes=[1]),
        _node("Div", ["e", "total"], ["y"]),
    ]
    small = {k: np.float32(0.02) * np.ones(v, np.float32) if k in ("w2",) else v for k, v in WEIGHTS.items()}
    proxy = Proxy(parse(_model(nodes, small, 11)), SPEC)
    images = torch.from_numpy(IMAGES)
    logits = proxy.run({"x": proxy.encode(images)}, ["z"])["z"]
    assert proxy.probabilities
    torch.testing.assert_close(proxy(images), torch.log_softmax(logits, 1), rtol=1e-4, atol=1e-4)


def _central(function, at, entries, step=1e-6):
    slopes = []
    for entry in entries:
        shifted = [at.clone(), at.clone()]
        shifted[0].view(-1)[entry] += step
        shifted[1].view(-1)[entry] -= step
        slopes.append((function(shifted[0]) - function(shifted[1])).item() / (2 * step))
    return torch.tensor(slopes, dtype=torch.float64)


@pytest.mark.parametrize("what", ["image", "parameter", "mask"])
def test_gradient_agrees_with_finite_differences_in_float64(what):
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC).double()
    images, weight = torch.from_numpy(IMAGES).double(), proxy.tensors["w1"]
    mask = torch.linspace(0.2, 1.0, 5, dtype=torch.float64).reshape(1, 5, 1, 1)
    encoded = proxy.encode(images)

    def loss(value):
        if what == "image":
            return proxy.run({"x": proxy.encode(value)}, ["z"])["z"].logsumexp(1).sum()
        if what == "parameter":
            return proxy.run({"x": encoded, "w1": value}, ["z"])["z"].logsumexp(1).sum()
        return proxy.run({"x": encoded}, ["z"], {"r": value})["z"].logsumexp(1).sum()

    at = {"image": images, "parameter": weight, "mask": mask}[what].detach().clone().requires_grad_()
    loss(at).backward()
    entries = list(range(0, at.numel(), max(at.numel() // 12, 1)))
    with torch.no_grad():
        expected = _central(loss, at.detach(), entries)
    torch.testing.assert_close(at.grad.reshape(-1)[entries], expected, rtol=1e-5, atol=1e-6)


def test_gradient_reaches_a_parameter_that_asks_for_it_by_its_name():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    assert set(proxy.tensors) == set(WEIGHTS)
    assert not any(t.requires_grad for t in proxy.tensors.values())
    proxy.tensors["w2"].requires_grad_()
    proxy(torch.from_numpy(IMAGES)).sum().backward()
    assert proxy.tensors["w2"].grad.abs().sum() > 0


def test_mask_on_a_tensor_equals_multiplying_it_there():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    images = torch.from_numpy(IMAGES)
    mask = (torch.rand(6, 5, 1, 1, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    relu = proxy.run({"x": proxy.encode(images)}, ["r"])["r"]
    expected = proxy.run({"r": relu * mask}, ["z"])["z"]
    torch.testing.assert_close(proxy(images, {"r": mask}), expected)
    torch.testing.assert_close(proxy(images, {"r": mask}, start={"r": relu}), expected)
    torch.testing.assert_close(proxy(images, {"c": torch.ones(1)}), proxy(images))


def test_start_leaves_out_everything_before_it():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    images = torch.from_numpy(IMAGES)
    relu = proxy.run({"x": proxy.encode(images)}, ["r"])["r"]
    torch.testing.assert_close(proxy(torch.full_like(images, float("nan")), start={"r": relu}), proxy(images))


def test_intermediate_tensors_are_freed_after_their_last_use():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    request = Request(outputs=("z",), feeds=frozenset({"x"}), masks=frozenset())
    freed = [name for step in proxy._plan(request).steps for name in step.frees]
    assert freed == ["x", "c", "n", "r", "p", "f"]


def test_integer_arithmetic_on_shapes_is_folded_and_exact():
    nodes = [
        _node("Concat", ["big", "one"], ["both"], axis=0),
        _node("ReduceSum", ["both"], ["total"], keepdims=0),
        _node("Cast", ["total"], ["y"], to=DOUBLE),
    ]
    constants = {"big": np.array([2**53], np.int64), "one": np.array([1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("y", DOUBLE, [])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    runner = GraphRunner(parse(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])))
    assert runner.run({}, ["total"])["total"].item() == 2**53 + 1
    assert runner._plan(Request(outputs=("y",), feeds=frozenset(), masks=frozenset())).steps == ()


def test_quantised_weights_and_activations_let_the_gradient_straight_through():
    nodes = [
        _node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        _node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    constants = {"scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    runner = GraphRunner(parse(_model(nodes, constants, 13, shape=(3,), out=(3,))))
    x = torch.tensor([0.26, -3.0, 20.0], requires_grad=True)
    y = runner.run({"x": x}, ["y"])["y"]
    y.sum().backward()
    torch.testing.assert_close(y.detach(), torch.tensor([0.3, -3.0, 12.7]))
    torch.testing.assert_close(x.grad, torch.tensor([1.0, 1.0, 0.0]))  # 20 is clipped


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_stays_near_float32_and_has_gradients(precision):
    graph = parse(_model(_body(), WEIGHTS, 13))
    images = torch.from_numpy(IMAGES).requires_grad_()
    proxy = Proxy(graph, SPEC, compute=Compute(precision=precision))
    fast, exact = proxy(images), Proxy(graph, SPEC)(images)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().max() < 0.03 * exact.abs().max()
    (gradient,) = proxy.gradients(fast.sum(), [images])
    (wanted,) = torch.autograd.grad(exact.sum(), images)
    assert (gradient - wanted).abs().max() < 0.1 * wanted.abs().max()


def test_unknown_operator_is_named_with_node_and_opset():
    nodes = [_node("Einsum", ["x"], ["t"], equation="nchw->nc"), _node("Unknown", ["t"], ["y"], domain="vendor.ops")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ("n", 4))],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("vendor.ops", 2)]
    with pytest.raises(UnsupportedOpError, match=r"'the_y'.*vendor\.ops\.Unknown \(version 2, opset 13\)"):
        Proxy(parse(helper.make_model(graph, opset_imports=opsets)), SPEC)


def test_unknown_version_of_a_known_operator_is_refused():
    graph = parse(_model(_body(), WEIGHTS, 13))
    nodes = tuple(replace(n, since_version=99) if n.op == "Relu" else n for n in graph.nodes)
    with pytest.raises(UnsupportedOpError, match=r"'the_r'.*Relu \(version 99, opset 13\).*6, 13, 14"):
        Proxy(replace(graph, nodes=nodes), SPEC)


def test_control_flow_is_refused_by_name():
    branch = helper.make_graph(
        [_node("Constant", [], ["k"], value=numpy_helper.from_array(np.zeros((1, 4), np.float32)))],
        "branch",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, (1, 4))],
    )
    nodes = [_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    model = _model(nodes, {"flag": np.array(True)}, 13)
    with pytest.raises(UnsupportedOpError, match="If"):
        Proxy(parse(model), SPEC)


def test_error_inside_a_node_names_node_operator_and_shapes():
    body = _body()
    model = _model(body, {**WEIGHTS, "w2": (4, 81)}, 13)
    with pytest.raises(ModelError, match=r"'the_z' \(Gemm\) fails on inputs \(\d+, 80\) torch.float32, \(4, 81\)"):
        Proxy(parse(model), SPEC)


def test_huge_tensor_from_a_small_file_is_refused():
    nodes = [_node("ConstantOfShape", ["size"], ["huge"]), _node("Identity", ["huge"], ["y"])]
    with pytest.raises(ModelError, match=r"'the_huge'.*limit"):
        Proxy(parse(_model(nodes, {"size": _i(2**20, 2**20)}, 13)), SPEC)


def test_mask_on_a_tensor_that_does_not_exist_is_an_error():
    proxy = Proxy(parse(_model(_body(), WEIGHTS, 13)), SPEC)
    with pytest.raises(ModelError, match="nowhere"):
        proxy(torch.from_numpy(IMAGES), {"nowhere": torch.ones(1)})


def test_parity_fails_on_different_scores_and_on_nan():
    model = _model(_body(softmax=False), WEIGHTS, 13)
    proxy, predict = Proxy(parse(model), SPEC), _predict(model)
    with pytest.raises(ParityError, match="differ"):
        check_parity(proxy, lambda images: predict(images) * np.float32(1.01), IMAGES)
    with pytest.raises(ParityError, match="NaN"):
        check_parity(proxy, lambda images: predict(images) * np.float32("nan"), IMAGES)
    with pytest.raises(ParityError, match="scores"):
        check_parity(proxy, lambda images: predict(images)[:, :3], IMAGES)


def test_parity_returns_the_difference_that_there_is():
    model = _model(_body(softmax=False), WEIGHTS, 13)
    predict = _predict(model)
    found = check_parity(Proxy(parse(model), SPEC), lambda images: predict(images) * np.float32(1.0005), IMAGES)
    assert found == pytest.approx(0.0005 / 1.0005, rel=0.02)


def _vendor():
    if not (SHARED / "vendor" / "manifest.json").is_file():
        return [pytest.param(None, marks=pytest.mark.skip(reason="no vendor models beside the checkout"))]
    entries = json.loads((SHARED / "vendor" / "manifest.json").read_text())
    return [pytest.param(e, id=k, marks=pytest.mark.vendor) for k, e in entries.items() if e["file"].endswith(".onnx")]


@pytest.mark.parametrize("entry", _vendor())
@pytest.mark.parametrize("free", [True, False])
def test_vendor_model_agrees_with_onnxruntime(entry, free):
    model = read_model(SHARED / "vendor" / entry["file"], free=free)
    shape = model.graph.inputs[0].shape
    nhwc = entry["layout"] == "NHWC"
    size, depth = (shape[1:3], shape[3]) if nhwc else (shape[2:], shape[1])
    spec = InputSpec(
        name=model.graph.inputs[0].name,
        layout=entry["layout"],
        channels="L" if depth == 1 else "RGB",
        size=size,
        range=tuple(entry["range"]),
        mean=tuple(np.ravel(entry["mean"])) if entry["mean"] else (),
        std=tuple(np.ravel(entry["std"])) if entry["std"] else (),
    )
    images = np.random.default_rng(1).random((5, depth, *size), np.float32)
    session = Session(model.working.SerializeToString(), Runtime(threads=1))
    assert check_parity(Proxy(model.graph, spec), predictor(session, spec), images) < 1e-5
