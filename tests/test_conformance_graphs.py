"""Whole graphs: functions inlined, constants folded, control flow refused, and the light models of the onnx package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import architectures
import exports
from debride.errors import UnsupportedOpError
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.proxy.interpreter import Proxy
from debride.proxy.runner import GraphRunner
from debride.proxy.table import TABLE
from debride.sessions import Runtime, Session
from debride.types import InputSpec

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))


def _value(name, shape=None, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def _graph(nodes, tensors, *, shape=("n", 4), out=("n", 3), opset=17, functions=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [_value("x", shape)],
        [_value("y", out)],
        [numpy_helper.from_array(v, k) for k, v in tensors.items()],
    )
    opsets = [helper.make_opsetid(domain, 1) for domain in {f.domain for f in functions}]
    opsets.append(helper.make_opsetid("", opset))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def _agree(model, runner, x, tolerance=1e-5):
    expected = Session(model.SerializeToString(), Runtime(threads=1)).run({"x": x})[0]
    actual = runner.run({"x": torch.from_numpy(x)}, ["y"])["y"].detach().numpy()
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("path", LIGHT, ids=lambda path: path.stem)
def test_light_model_of_the_onnx_package_is_read_and_agrees_with_onnxruntime(path):
    model = read_model(path)
    session = Session(path, Runtime(threads=1))
    images = np.random.default_rng(2).random([n or 1 for n in session.inputs[0].shape], np.float32)
    expected = session.run({session.inputs[0].name: images})[0]
    output = model.graph.outputs[0].name
    with torch.no_grad():
        actual = GraphRunner(model.graph).run({model.graph.inputs[0].name: torch.from_numpy(images)}, [output])[output]
    assert np.abs(actual.numpy() - expected).max() < 1e-4 * (np.abs(expected).max() + 1e-6)


def test_functions_that_call_functions_are_inlined(tmp_path):
    node = helper.make_node
    opset = [helper.make_opsetid("", 17)]
    inner = helper.make_function(
        "local", "Halved", ["a"], ["b"],
        [node("Constant", [], ["half"], value_float=0.5), node("Mul", ["a", "half"], ["b"])], opset,
    )  # fmt: skip
    outer = helper.make_function(
        "local", "Gated", ["a", "w"], ["c"],
        [node("MatMul", ["a", "w"], ["m"]), node("Halved", ["m"], ["h"], domain="local"), node("Sigmoid", ["h"], ["s"]),
         node("Mul", ["m", "s"], ["c"])],
        [*opset, helper.make_opsetid("local", 1)],
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tensors = {"w1": rng.normal(size=(4, 5)).astype(np.float32), "w2": rng.normal(size=(5, 3)).astype(np.float32)}
    nodes = [node("Gated", ["x", "w1"], ["t"], domain="local"), node("Gated", ["t", "w2"], ["y"], domain="local")]
    model = _graph(nodes, tensors, functions=[inner, outer])
    onnx.save(model, tmp_path / "m.onnx")
    graph = read_model(tmp_path / "m.onnx").graph
    assert {n.op for n in graph.nodes} == {"MatMul", "Mul", "Sigmoid"}
    runner = GraphRunner(graph)
    assert set(tensors) <= set(runner.tensors)  # the initializers keep their names, to be written back
    x = rng.normal(size=(6, 4)).astype(np.float32)
    _agree(model, runner, x)
    at = torch.from_numpy(x).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: runner.double().run({"x": v}, ["y"])["y"], at)


def _still():
    """A kernel that is stored transposed, in int8: what onnxruntime folds before it runs the model."""
    node = helper.make_node
    rng = np.random.default_rng(1)
    tensors = {
        "q": rng.integers(-127, 127, (3, 4)).astype(np.int8),
        "scale": np.float32(0.02).reshape(()),
        "more": rng.normal(size=(4, 1)).astype(np.float32),
    }
    nodes = [
        node("DequantizeLinear", ["q", "scale"], ["d"], name="dequantise"),
        node("Transpose", ["d"], ["t"], name="turn"),
        node("Mul", ["t", "more"], ["w"], name="stretch"),
        node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    return _graph(nodes, tensors)


def _counted(monkeypatch):
    """The names of the nodes that the proxy computes, as it computes them."""
    from debride.proxy import steps as module

    names, compute = [], module.compute
    monkeypatch.setattr(module, "compute", lambda o, n, i: (names.append(n.name), compute(o, n, i))[1])
    return names


def test_what_constants_alone_decide_is_computed_once(monkeypatch):
    model = _still()
    runner, names = GraphRunner(parse(model)), _counted(monkeypatch)
    x = np.random.default_rng(2).normal(size=(2, 4)).astype(np.float32)
    _agree(model, runner, x)
    assert names == ["dequantise", "turn", "stretch", "product"]
    _agree(model, runner, x)
    assert names[4:] == ["product"]


def test_what_constants_alone_decide_may_be_read_last_by_what_they_decide_too():
    node = helper.make_node
    nodes = [
        node("Transpose", ["w"], ["t"]),
        node("MatMul", ["x", "t"], ["a"]),
        node("Neg", ["t"], ["u"]),
        node("MatMul", ["x", "u"], ["b"]),
        node("Concat", ["a", "b"], ["y"], axis=1),
    ]
    rng = np.random.default_rng(3)
    model = _graph(nodes, {"w": rng.normal(size=(3, 4)).astype(np.float32)}, out=("n", 6))
    _agree(model, GraphRunner(parse(model)), rng.normal(size=(2, 4)).astype(np.float32))


@pytest.mark.parametrize("how", ["written", "double", "fed", "masked", "trained"])
def test_kept_constants_are_never_stale(how):
    runner = GraphRunner(parse(_still()))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    before = runner.run({"x": x}, ["y"])["y"]
    if how == "written":
        with torch.no_grad():
            runner.tensors["more"].mul_(2)
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], 2 * before)
    elif how == "double":
        assert runner.double().run({"x": x.double()}, ["y"])["y"].dtype == torch.float64
    elif how == "fed":
        torch.testing.assert_close(runner.run({"x": x, "more": 3 * runner.tensors["more"]}, ["y"])["y"], 3 * before)
    elif how == "masked":
        torch.testing.assert_close(runner.run({"x": x}, ["y"], {"t": torch.tensor(0.5)})["y"], 0.5 * before)
    else:
        runner.tensors["more"].requires_grad_()
        runner.run({"x": x}, ["y"])["y"].sum().backward()
        assert runner.tensors["more"].grad.abs().sum() > 0
    if how in ("fed", "masked"):
        torch.testing.assert_close(runner.run({"x": x}, ["y"])["y"], before)


def test_constants_kept_in_inference_mode_serve_a_gradient_later():
    runner = GraphRunner(parse(_still()))
    x = torch.randn(2, 4)
    with torch.inference_mode():
        runner.run({"x": x}, ["y"])
    image = x.clone().requires_grad_()
    runner.run({"x": image}, ["y"])["y"].sum().backward()
    assert image.grad.abs().sum() > 0


def _branch(name):
    return helper.make_graph([helper.make_node("Neg", ["x"], [name])], name, [], [_value(name, ("n", 4))])


def _flow(op):
    node = helper.make_node
    if op == "If":
        nodes = [
            node("ReduceMax", ["x"], ["m"], keepdims=0),
            node("Greater", ["m", "zero"], ["c"]),
            node("If", ["c"], ["y"], name="fork", then_branch=_branch("a"), else_branch=_branch("b")),
        ]
    elif op == "Loop":
        carried = [_value("i", (), TensorProto.INT64), _value("c", (), TensorProto.BOOL), _value("s", ("n", 4))]
        steps = [node("Identity", ["c"], ["d"]), node("Neg", ["s"], ["t"])]
        body = helper.make_graph(steps, "body", carried, [_value("d", (), TensorProto.BOOL), _value("t", ("n", 4))])
        nodes = [node("Loop", ["three", "", "x"], ["y"], name="again", body=body)]
    elif op == "Scan":
        ends = [_value("t", (4,)), _value("u", (4,))]
        steps = [node("Add", ["s", "r"], ["t"]), node("Identity", ["t"], ["u"])]
        body = helper.make_graph(steps, "body", [_value("s", (4,)), _value("r", (4,))], ends)
        nodes = [node("Scan", ["start", "x"], ["last", "y"], name="rows", body=body, num_scan_inputs=1)]
    else:
        nodes = [node("SequenceConstruct", ["x"], ["s"], name="list"), node("SequenceAt", ["s", "none"], ["y"])]
    tensors = {
        "zero": np.float32(0).reshape(()),
        "three": np.array(3, np.int64),
        "start": np.zeros(4, np.float32),
        "none": np.array(0, np.int64),
    }
    read = {name for n in nodes for name in n.input}
    return _graph(nodes, {k: v for k, v in tensors.items() if k in read}, out=("n", 4), opset=16)


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ("If", r"'fork': operator If \(version 16, opset 16\).*evaluation mode.*condition folded"),
        ("Loop", r"'again': operator Loop \(version 16, opset 16\).*loops unrolled"),
        ("Scan", r"'rows': operator Scan \(version 16, opset 16\).*loops unrolled"),
        ("SequenceConstruct", r"operator SequenceAt \(version 11, opset 16\).*by tracing"),
    ],
)
def test_control_flow_and_lists_are_refused_with_the_mend(op, said, tmp_path):
    onnx.save(_flow(op), tmp_path / "m.onnx")
    graph = read_model(tmp_path / "m.onnx").graph
    assert (op in {n.op for n in graph.nodes}) and not any(key[1] == op for key in TABLE)
    with pytest.raises(UnsupportedOpError, match=said):
        GraphRunner(graph).run({"x": torch.zeros(2, 4)}, ["y"])


@pytest.mark.parametrize("name", ["se_resnet", "mobilenet_v3", "swin"])
def test_gradient_of_a_whole_network_agrees_with_finite_differences_in_float64(name):
    torch.manual_seed(0)
    shape = architectures.shape_of(name)
    model = exports.export(architectures.network(name).eval(), shape, exporter="torchscript", opset=17)
    spec = InputSpec(name="x", layout="NCHW", channels="RGB", size=shape[1:])
    proxy = Proxy(parse(model), spec).double()
    draw = torch.Generator().manual_seed(3)
    image = torch.rand((1, *shape), generator=draw, dtype=torch.float64).requires_grad_()
    proxy(image).logsumexp(1).sum().backward()
    noise = [torch.randn(image.shape, generator=draw, dtype=torch.float64) for _ in range(2)]
    for direction in (image.grad / image.grad.norm(), *noise):
        with torch.no_grad():
            high, low = (proxy(image + k * direction).logsumexp(1).sum() for k in (1e-6, -1e-6))
        slope, ours = float(high - low) / 2e-6, float((image.grad * direction).sum())
        assert abs(slope - ours) <= 1e-6 * float(image.grad.norm() * direction.norm())
