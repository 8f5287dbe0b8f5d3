"""Weights that are computed from constants alone: folded where channels are looked for, and where one is pruned."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from architectures import network, shape_of
from debride.graph import folding
from debride.graph.channels import find_groups
from debride.graph.folding import folded
from debride.graph.hollow import LARGE
from debride.graph.read import read_model
from debride.graph.surgery import check_written, editable, zero
from exports import export
from graph_models import Builder, assert_close, images, run
from zoo_checks import Subject

OPSETS = (9, 13, 18)


def standardised(b, weight):
    """`weight` less its mean, over its deviation, by output channel, as PyTorch's older exporter writes it."""
    axes = {"axes": [1, 2, 3]} if b.opset < 18 else {}
    extra = () if b.opset < 18 else (b.const(np.array([1, 2, 3])),)
    centred = b.op("Sub", weight, b.op("ReduceMean", weight, *extra, keepdims=1, **axes))
    spread = b.op("ReduceMean", b.op("Mul", centred, centred), *extra, keepdims=1, **axes)
    return b.op("Div", centred, b.op("Sqrt", b.op("Add", spread, b.const(np.float32(1e-5)))))


def two_layers(opset, store="initializer", width=8):
    b = Builder(opset, store=store)
    y = b.op("Relu", b.op("Conv", "x", standardised(b, b.weight(width, 3, 3, 3)), b.weight(width)))
    second = standardised(b, b.weight(8, width, 3, 3))
    y = b.op("Relu", b.op("Conv", y, second, b.op("Mul", b.weight(8), b.const(np.float32(0.5)))))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(8, 3), b.weight(3))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def read(proto, folder):
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(folder / "m.onnx")


def same(model):
    onnx.checker.check_model(model.working)
    feed = images(model)
    assert_close(run(model.working, feed)[0], run(model.proto, feed)[0])


@pytest.mark.parametrize("store", ["initializer", "constant"])
@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("width", [8, 700])
def test_pruning_one_layer_writes_its_weight_as_numbers_and_leaves_the_others(opset, store, width, tmp_path):
    model = read(two_layers(opset, store, width), tmp_path)
    assert [n.op for n in model.graph.nodes] == ["Conv", "Relu", "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert (8 * width * 9 >= LARGE) == (width > 8)
    same(model)
    groups, _ = find_groups(model.graph, "scores")
    assert len(groups) == width + 8
    for layer, ops in ((model.graph.nodes[0].name, 1), (model.graph.nodes[2].name, 1)):
        chosen = [g for g in groups if g.layer == layer][:3]
        before, after = editable(model, chosen), zero(model, chosen)
        check_written(before, after, chosen)
        onnx.checker.check_model(after)
        assert [n.op_type for n in after.graph.node].count("Sqrt") == ops
        masked = run_masked(model, chosen)
        found = run(after, images(model))[0]
        assert_close(found, masked)
        assert np.abs(found - run(model.proto, images(model))[0]).max() > 1e-3
    assert "Sqrt" not in [n.op_type for n in editable(model, groups).graph.node]


def run_masked(model, groups):
    """The scores with the channels of `groups`, of one layer, set to zero in the delivered graph, by a product."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    place = next(i for i, n in enumerate(copy.graph.node) if n.name == groups[0].layer)
    width = sum(g.layer == groups[0].layer for g in find_groups(model.graph, "scores")[0])
    mask = np.ones((1, width, 1, 1), np.float32)
    mask[:, [g.channel for g in groups]] = 0
    conv = copy.graph.node[place]
    edge, conv.output[0] = conv.output[0], "unmasked"
    copy.graph.initializer.append(onnx.numpy_helper.from_array(mask, "mask"))
    copy.graph.node.insert(place + 1, helper.make_node("Mul", ["unmasked", "mask"], [edge]))
    return run(copy, images(model))[0]


def test_a_weight_that_two_layers_read_is_zeroed_for_one_alone(tmp_path):
    b = Builder(13)
    weight = standardised(b, b.weight(3, 3, 3, 3))
    y = b.op("Relu", b.op("Conv", "x", weight, pads=[1, 1, 1, 1]))
    y = b.op("Relu", b.op("Conv", y, weight, pads=[1, 1, 1, 1]))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(3, 3))
    model = read(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path)
    first = model.graph.nodes[0].name
    chosen = [g for g in find_groups(model.graph, "scores")[0] if g.layer == first][:1]
    after = zero(model, chosen)
    check_written(editable(model, chosen), after, chosen)
    assert_close(run(after, images(model))[0], run_masked(model, chosen))


def head(b, y, width=4):
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(width, 3), b.weight(3))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def of_the_image(b):
    peak = b.op("ReduceMax", "x", keepdims=0)
    return head(b, b.op("Conv", "x", b.op("Mul", b.weight(4, 3, 3, 3), peak)))


def quantised(b):
    weight = b.op("DequantizeLinear", b.const(np.full((4, 3, 3, 3), 3, np.int8)), b.const(np.float32(0.1)))
    return head(b, b.op("Conv", "x", b.op("Mul", weight, b.const(np.float32(2)))))


def grown(b):
    """More numbers than went in."""
    weight = b.op("Mul", b.const(np.ones((4, 1, 3, 3), np.float32)), b.const(np.ones((1, 3, 1, 1), np.float32)))
    return head(b, b.op("Conv", "x", weight))


def infinite(b):
    weight = b.op("Div", b.weight(4, 3, 3, 3), b.const(np.float32(0)))
    return head(b, b.op("Conv", "x", weight))


def turned_only(b):
    b.op("MatMul", b.op("Flatten", "x"), b.op("Transpose", b.weight(3, 192), perm=[1, 0]))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def an_output(b):
    weight = b.op("Neg", b.weight(4, 3, 3, 3))
    proto = head(b, b.op("Conv", "x", weight))
    proto.graph.output.append(helper.make_tensor_value_info(weight, TensorProto.FLOAT, [4, 3, 3, 3]))
    return proto


def a_loop(b):
    flags = [helper.make_tensor_value_info(n, t, []) for n, t in (("i", TensorProto.INT64), ("on", TensorProto.BOOL))]
    ends = [helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
    ends.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, None))
    nodes = [helper.make_node("Identity", ["on"], ["go"]), helper.make_node("Neg", ["w"], ["w2"])]
    body = helper.make_graph(nodes, "b", [*flags, helper.make_tensor_value_info("w", TensorProto.FLOAT, None)], ends)
    weight = b.op("Loop", b.const(np.int64(10**12)), "", b.weight(4, 3, 3, 3), body=body)
    return head(b, b.op("Conv", "x", weight))


@pytest.mark.parametrize("case", [of_the_image, quantised, grown, infinite, turned_only, an_output, a_loop])
def test_other_weights_are_left(case):
    proto = case(Builder(13))
    assert folded(proto) is proto


def test_a_computation_that_another_node_reads_stays_for_it():
    b = Builder(13)
    base = b.op("Neg", b.weight(4, 3, 3, 3))
    y = b.op("Conv", "x", b.op("Mul", base, b.const(np.float32(2))))
    y = b.op("Add", y, b.op("ReduceMax", base, keepdims=0))
    found = folded(head(b, y))
    assert [n.op_type for n in found.graph.node][:4] == ["Neg", "Conv", "ReduceMax", "Add"]
    onnx.checker.check_model(found)


def test_a_file_cannot_ask_for_any_number_of_evaluations(monkeypatch):
    proto = two_layers(13)
    monkeypatch.setattr(folding, "_EVALUATIONS", 6)  # a standardised weight takes seven nodes
    assert [n.op_type for n in folded(proto).graph.node].count("Sqrt") == 2
    monkeypatch.setattr(folding, "_EVALUATIONS", 7)
    assert [n.op_type for n in folded(proto).graph.node].count("Sqrt") == 1


@pytest.mark.parametrize("ir", [3, 8])
def test_in_old_models_folded_weights_are_inputs_too(ir):
    b = Builder(8, ir)
    proto = head(b, b.op("Conv", "x", b.op("Neg", b.weight(4, 3, 3, 3))))
    found = folded(proto)
    onnx.checker.check_model(found)
    x = {"x": np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)}
    np.testing.assert_array_equal(run(found, x)[0], run(proto, x)[0])


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", ["bit", "nfnet"])
def test_standardised_weights_of_pytorchs_older_exporter_have_channels(name, opset, tmp_path):
    subject = Subject(export(network(name), shape_of(name), exporter="torchscript", opset=opset), tmp_path)
    assert subject.refused == ()
    assert subject.parity() < 1e-5
    chosen = subject.chosen()
    assert subject.masked_difference(chosen) < 1e-5
    check_written(editable(subject.model, chosen), zero(subject.model, chosen), chosen)
