"""What the proxy does once instead of every time, or as one operator instead of nine: same results, same gradients."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import architectures
import exports
from debride.graph.parse import parse
from debride.proxy import steps
from debride.proxy.runner import GraphRunner
from debride.sessions import Runtime, Session

RNG = np.random.default_rng(5)
X = RNG.normal(size=(3, 5, 6)).astype(np.float32)
ROOT2 = float(np.sqrt(2))


def _model(nodes, constants, *, shape=("n", 5, 6), out=("n", 5, 6), opset=13):
    graph = helper.make_graph(
        [helper.make_node(op, ins, [out], name=out, **attributes) for op, ins, out, attributes in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def _f(value):
    return np.float32(value)


NUMBERS = {"root": _f(ROOT2), "inverse": _f(1 / ROOT2), "one": _f(1), "half": _f(0.5)}
GELUS = {
    "torchscript": [
        ("Div", ["x", "root"], "a", {}),
        ("Erf", ["a"], "b", {}),
        ("Add", ["b", "one"], "c", {}),
        ("Mul", ["x", "c"], "d", {}),
        ("Mul", ["d", "half"], "y", {}),
    ],
    "dynamo": [
        ("Div", ["x", "root"], "a", {}),
        ("Erf", ["a"], "b", {}),
        ("Add", ["b", "one"], "c", {}),
        ("Mul", ["half", "c"], "d", {}),
        ("Mul", ["x", "d"], "y", {}),
    ],
    "keras": [
        ("Mul", ["x", "half"], "d", {}),
        ("Mul", ["x", "inverse"], "a", {}),
        ("Erf", ["a"], "b", {}),
        ("Add", ["one", "b"], "c", {}),
        ("Mul", ["d", "c"], "y", {}),
    ],
}
NORM = [
    ("ReduceMean", ["x"], "m", {"axes": [-1]}),
    ("Sub", ["x", "m"], "s", {}),
    ("Pow", ["s", "two"], "p", {}),
    ("ReduceMean", ["p"], "v", {"axes": [-1]}),
    ("Add", ["v", "epsilon"], "e", {}),
    ("Sqrt", ["e"], "r", {}),
    ("Div", ["s", "r"], "q", {}),
    ("Mul", ["q", "scale"], "w", {}),
    ("Add", ["w", "bias"], "y", {}),
]
SCALES = {
    "two": _f(2),
    "epsilon": _f(1e-3),
    "scale": RNG.uniform(0.5, 2, 6).astype(np.float32),
    "bias": RNG.normal(size=6).astype(np.float32),
}


def _graphs():
    return {**{k: _model(n, NUMBERS) for k, n in GELUS.items()}, "norm": _model(NORM, SCALES)}


@pytest.fixture
def counted(monkeypatch):
    """The operators computed, in order."""
    ops, compute = [], steps.compute
    monkeypatch.setattr(steps, "compute", lambda o, n, i: (ops.append(n.op), compute(o, n, i))[1])
    return ops


def _plainly(runner, feeds, outputs, masks=None):
    """Node by node."""
    fused, steps_of = {}, runner._plan

    def unfused(request):
        return steps_of(type(request)(**{**{k: getattr(request, k) for k in request.__slots__}, **fused}))

    fused["fused"] = False
    runner._plan = unfused
    try:
        return runner.run(feeds, outputs, masks)
    finally:
        del runner._plan


@pytest.mark.parametrize("name", ["torchscript", "dynamo", "keras", "norm"])
def test_a_chain_is_one_operator_with_the_chains_results_and_gradient(name, counted):
    model = _graphs()[name]
    runner = GraphRunner(parse(model))
    expected = Session(model.SerializeToString(), Runtime(threads=1)).run({"x": X})[0]
    found = runner.run({"x": torch.from_numpy(X)}, ["y"])["y"]
    assert counted == ["LayerNormalization" if name == "norm" else "Gelu"]
    assert np.abs(found.numpy() - expected).max() <= 2e-6 * np.abs(expected).max()
    runner, x = runner.double(), torch.from_numpy(X).double().requires_grad_()
    slopes = []
    for run in (runner.run, lambda *given: _plainly(runner, *given)):
        y = run({"x": x}, ["y"])["y"]
        slopes.append(torch.autograd.grad((y * y.detach().cos()).sum(), x)[0])
    assert len(counted) == 2 + len(model.graph.node)
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["torchscript", "dynamo", "keras", "norm"])
def test_a_chain_is_left_alone_where_an_inner_tensor_is_masked_asked_for_fed_or_read(name, counted):
    model = _graphs()[name]
    runner, x = GraphRunner(parse(model)), torch.from_numpy(X)
    inner = [node.output[0] for node in model.graph.node[:-1]]
    for tensor in inner:
        masked = runner.run({"x": x}, ["y"], {tensor: torch.tensor(0.5)})["y"]
        torch.testing.assert_close(masked, _plainly(runner, {"x": x}, ["y"], {tensor: torch.tensor(0.5)})["y"])
        asked = runner.run({"x": x}, ["y", tensor])
        again = runner.run({"x": x, tensor: asked[tensor] * 2}, ["y"])["y"]
        torch.testing.assert_close(again, _plainly(runner, {"x": x, tensor: asked[tensor] * 2}, ["y"])["y"])
    assert not {"Gelu", "LayerNormalization"} & set(counted)
    for tensor in inner:
        longer = onnx.ModelProto()
        longer.CopyFrom(model)
        longer.graph.node[-1].output[0] = "before"
        longer.graph.node.append(helper.make_node("Add", ["before", tensor], ["y"], name="longer"))
        expected = Session(longer.SerializeToString(), Runtime(threads=1)).run({"x": X})[0]
        found = GraphRunner(parse(longer)).run({"x": x}, ["y"])["y"].numpy()
        assert np.abs(found - expected).max() <= 2e-6 * np.abs(expected).max()
    assert not {"Gelu", "LayerNormalization"} & set(counted)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *(("torchscript", {k: _f(v)}) for k, v in (("root", 1.5), ("one", 0.9), ("half", 0.6))),
        *(("norm", {k: v}) for k, v in (("two", _f(4)), ("scale", X[0]), ("bias", X[0]))),
    ],
)
def test_a_chain_with_other_numbers_or_shapes_is_what_it_says(name, changes, counted):
    nodes, constants = (NORM, SCALES) if name == "norm" else (GELUS[name], NUMBERS)
    model = _model(nodes, {**constants, **changes})
    x = np.abs(X)
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]  # onnxruntime fuses whatever the exponent is
    found = GraphRunner(parse(model)).run({"x": torch.from_numpy(x)}, ["y"])["y"].numpy()
    assert len(counted) == len(nodes)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["written", "trained", "fed"])
def test_a_constant_within_a_chain_can_be_written_trained_and_fed(how):
    runner, x = GraphRunner(parse(_graphs()["torchscript"])), torch.from_numpy(X)
    before = runner.run({"x": x}, ["y"])["y"]
    if how == "written":
        with torch.no_grad():
            runner.tensors["half"].mul_(2)
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], 2 * before)
    elif how == "fed":
        torch.testing.assert_close(runner.run({"x": x, "half": torch.tensor(1.0)}, ["y"])["y"], 2 * before)
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], before)
    else:
        half = runner.tensors["half"].requires_grad_()
        runner.run({"x": x}, ["y"])["y"].sum().backward()
        torch.testing.assert_close(half.grad, 2 * before.sum())


def test_scale_and_bias_of_a_chain_are_trained():
    runner, x = GraphRunner(parse(_graphs()["norm"])), torch.from_numpy(X)
    bias = runner.tensors["bias"].requires_grad_()
    runner.run({"x": x}, ["y"])["y"].sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((6,), 15.0))


@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 13), ("torchscript", 17), ("dynamo", 18)])
def test_transformer_asks_its_shapes_once_per_batch(exporter, opset, counted):
    name = "deit"
    net, shape = architectures.network(name).eval(), architectures.shape_of(name)
    runner = GraphRunner(parse(exports.export(net, shape, exporter=exporter, opset=opset)))
    lengths = []
    for batch in (4, 4, 3, 4):
        x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(batch))
        counted.clear()
        with torch.no_grad():
            torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], net(x), rtol=1e-4, atol=1e-6)
        lengths.append(len(counted))
    assert lengths[0] == lengths[2] > lengths[1] == lengths[3]
    assert not {"Shape", "Unsqueeze", "Erf", "Pow"} & set(counted)


def _measured(nodes, constants=None):
    """`nodes` make `t` of x, and y is x times the size of t's first axis."""
    scale = [
        ("Shape", ["t"], "h", {}),
        ("Gather", ["h", "zero"], "g", {}),
        ("Cast", ["g"], "c", {"to": TensorProto.FLOAT}),
        ("Mul", ["c", "factor"], "k", {}),
        ("Mul", ["x", "k"], "y", {}),
    ]
    made = {"zero": np.int64(0), "factor": _f(1), **(constants or {})}
    return _model([*nodes, *scale], made, shape=("n", 2), out=("n", 2))


def test_shapes_that_hang_on_the_values_are_never_those_of_the_last_run(counted):
    nodes = [("NonZero", ["x"], "z", {}), ("Transpose", ["z"], "t", {})]
    runner = GraphRunner(parse(_measured(nodes)))
    for x in ([[1.0, 2], [3, 4]], [[1.0, 0], [0, 0]], [[0.0, 1], [1, 1]], [[0.0, 1], [2, 1]]):
        x = torch.tensor(x)
        counted.clear()
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], x * (x != 0).sum())
    assert counted == ["NonZero", "Transpose", "Mul"]


@pytest.mark.parametrize("how", ["written", "trained", "fed", "masked", "asked", "double"])
def test_what_was_made_of_shapes_is_never_stale(how):
    runner = GraphRunner(parse(_measured([("Identity", ["x"], "t", {})])))
    x = torch.tensor([[1.0, 2], [3, 4], [5, 6]])
    for _ in range(2):
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], 3 * x)
    if how == "written":
        with torch.no_grad():
            runner.tensors["factor"].mul_(2)
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], 6 * x)
    elif how == "trained":
        factor = runner.tensors["factor"].requires_grad_()
        runner.run({"x": x}, ["y"])["y"].sum().backward()
        torch.testing.assert_close(factor.grad, 3 * x.sum())
    elif how == "fed":
        torch.testing.assert_close(runner.run({"x": x, "g": torch.tensor(7)}, ["y"])["y"], 7 * x)
    elif how == "masked":
        torch.testing.assert_close(runner.run({"x": x}, ["y"], {"c": torch.tensor(0.5)})["y"], 1.5 * x)
    elif how == "asked":
        assert runner.run({"x": x}, ["h"])["h"].tolist() == [3, 2]
        assert runner.run({"x": x}, ["h"])["h"].tolist() == [3, 2]
    else:
        wide = runner.double().run({"x": x.double()}, ["y", "c"])
        assert wide["c"].dtype == wide["y"].dtype == torch.float64
    if how in ("fed", "masked", "asked"):
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], 3 * x)


def test_what_was_made_of_shapes_in_inference_mode_serves_a_gradient_later():
    runner = GraphRunner(parse(_measured([("Identity", ["x"], "t", {})])))
    with torch.inference_mode():
        runner.run({"x": torch.ones(3, 2)}, ["y"])
    x = torch.ones(3, 2, requires_grad=True)
    for _ in range(2):
        (slope,) = torch.autograd.grad(runner.run({"x": x}, ["y"])["y"].sum(), x)
        assert slope.tolist() == [[3.0, 3.0]] * 3


@pytest.mark.parametrize("to", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_casts_of_a_proxy_made_double_round_nothing(to):
    nodes = [("Cast", ["x"], "c", {"to": to}), ("Cast", ["c"], "y", {"to": TensorProto.FLOAT})]
    runner = GraphRunner(parse(_model(nodes, {}, shape=(2,), out=(2,))))
    x = torch.tensor([1 / 3, 2**-30 + 1], dtype=torch.float64)
    rounded = x.float().to({1: torch.float32, 10: torch.float16, 16: torch.bfloat16}[to]).float()
    torch.testing.assert_close(runner.run({"x": x.float()}, ["y"])["y"], rounded, rtol=0, atol=0)
    torch.testing.assert_close(runner.double().run({"x": x}, ["y"])["y"], x, rtol=0, atol=0)
    torch.testing.assert_close(runner.float().run({"x": x.float()}, ["y"])["y"], rounded, rtol=0, atol=0)
