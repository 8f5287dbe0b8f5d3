"""Graphs in fewer bits: what they still compute, what stays exactly zero, what overflows, what is refused."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from debride.errors import ModelError
from debride.export.half import LARGEST, halved
from debride.export.integer import quantised
from debride.export.prepare import float_graph
from debride.export.quiet import quiet
from debride.export.rounding import rounded
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import zero
from export_helpers import ONE, SAMPLE, batch, quantised_already, read, scores_of, with_softmax
from graph_models import Builder, classifiers
from graph_models import run as outputs_of


def in_eight_bits(model, inputs, folder, *, output="scores", name="x", fixed=None, method="minmax"):
    graph = float_graph(model, "int8")
    return quantised(graph, output, inputs, name=name, method=method, fixed=fixed, folder=folder)


def in_half(model, inputs, folder, *, name="x", fixed=None):
    graph = float_graph(model, "fp16")
    return halved(graph, inputs, name=name, fixed=fixed, runtime=ONE, folder=folder)


@settings(max_examples=40, deadline=None)
@given(proto=classifiers())
def test_random_classifiers_say_nearly_the_same_in_fewer_bits(proto, tmp_path_factory):
    model, inputs = read(proto), batch()
    fixed = model.graph.inputs[0].shape[0]
    fed = inputs[:fixed] if fixed else inputs
    expected = scores_of(proto, fed)
    spread = float(np.ptp(expected)) + 1e-6
    integer = in_eight_bits(model, inputs, tmp_path_factory.mktemp("int8"), fixed=fixed)
    half, kept = in_half(model, inputs, tmp_path_factory.mktemp("fp16"), fixed=fixed)
    # Measured over 400 of these: at most 0.14 and 0.0035.
    for made, tolerance in ((integer, 0.25), (half, 0.01)):
        onnx.checker.check_model(made)
        ends = [value.type.tensor_type.elem_type for value in (*made.graph.input, *made.graph.output)]
        assert ends == [TensorProto.FLOAT, TensorProto.FLOAT]
        assert np.abs(scores_of(made, fed) - expected).max() <= tolerance * spread
    assert not kept
    assert any(t.data_type == TensorProto.FLOAT16 for t in half.graph.initializer) or any(
        a.t.data_type == TensorProto.FLOAT16 for n in half.graph.node for a in n.attribute
    )
    assert any(t.data_type == TensorProto.INT8 for t in integer.graph.initializer)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_probabilities_still_sum_to_1_and_are_no_eighths_of_a_bit(method, tmp_path):
    proto = with_softmax()
    found = scores_of(in_eight_bits(read(proto), batch(40), tmp_path, method=method), batch(40))
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=0, atol=1e-6)
    # In eight bits they would be multiples of 1/256, and 40 images would share few values.
    assert len(np.unique(found)) > 190
    np.testing.assert_allclose(found, scores_of(proto, batch(40)), rtol=0, atol=0.02)


def test_the_scores_are_left_in_float_behind_a_product_with_an_added_bias(tmp_path):
    b = Builder(13)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    b.op("Add", b.op("MatMul", flat, b.weight(4, 5)), b.const(np.arange(5, dtype=np.float32)))
    found = scores_of(in_eight_bits(read(b.model(["n", 3, 8, 8], "scores", ["n", 5])), batch(60), tmp_path), batch(60))
    assert len(np.unique(found)) > 256


@pytest.mark.parametrize("shape", [(1, 5), (1,), (1, 1), (5,)])
def test_a_bias_of_any_shape_is_taken(shape, tmp_path):
    b = Builder(13)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    bias = b.const(np.linspace(-1, 1, int(np.prod(shape))).astype(np.float32).reshape(shape))
    b.op("Gemm", flat, b.weight(4, 5), bias)
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 5])
    found = scores_of(in_eight_bits(read(proto), batch(), tmp_path), batch())
    np.testing.assert_allclose(found, scores_of(proto, batch()), rtol=0, atol=0.05)


def test_a_bias_for_every_image_of_a_fixed_batch_stays_in_float(tmp_path):
    b = Builder(13)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    bias = b.const(np.arange(10, dtype=np.float32).reshape(2, 5))
    proto_nodes = b.op("Gemm", flat, b.weight(4, 5), bias)
    assert proto_nodes
    proto = b.model([2, 3, 8, 8], "scores", [2, 5])
    found = scores_of(in_eight_bits(read(proto), batch(5), tmp_path, fixed=2), batch(2))
    np.testing.assert_allclose(found, scores_of(proto, batch(2)), rtol=0, atol=0.05)


def test_what_is_pruned_stays_exactly_zero_in_eight_bits_and_in_half(tmp_path):
    model = read_model(SAMPLE, free=False)
    groups, _ = find_groups(model.graph, "scores")
    layer = groups[0].layer
    cut = read(zero(model, [g for g in groups if g.channel in (1, 3, 6)]))
    inputs = batch(64, shape=(1, 28, 28))
    integer = in_eight_bits(cut, inputs, tmp_path, name="image")
    tensors = {t.name: numpy_helper.to_array(t) for t in integer.graph.initializer}
    dequantised, biases = {}, {}
    for node in integer.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            values, scale = tensors[node.input[0]], tensors[node.input[1]]
            point = tensors[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
            axes = (slice(None), *[None] * (values.ndim - 1)) if scale.ndim else ()
            dequantised[node.output[0]] = (values.astype(np.float64) - point[axes]) * scale[axes]
    checked = 0
    for node in integer.graph.node:
        if node.op_type == "Conv":
            weight, biases = (dequantised[name] for name in node.input[1:3])
            for channel in (c for c in (1, 3, 6) if not np.any(scores_weight(cut, node)[c])):
                assert not weight[channel].any() and biases[channel] == 0
                checked += 1
            assert np.count_nonzero(weight) > 0.5 * weight.size
    assert checked >= 3 and layer
    half, _ = in_half(cut, inputs, tmp_path, name="image")
    for tensor in half.graph.initializer:
        old = next((t for t in cut.proto.graph.initializer if t.name == tensor.name), None)
        if old is not None:
            assert np.array_equal(numpy_helper.to_array(tensor) == 0, numpy_helper.to_array(old) == 0)


def scores_weight(model, node):
    """The float weight of the convolution that `node` was made of."""
    by_name = {n.name: n for n in model.proto.graph.node}
    tensors = {t.name: numpy_helper.to_array(t) for t in model.proto.graph.initializer}
    return tensors[by_name[node.name].input[1]]


def overflowing(scale=1e6, opset=13):
    """Activations far beyond half precision between two convolutions, and scores of usual size."""
    b = Builder(opset)
    wide = b.op("Mul", b.op("Relu", b.conv("x", 3, 4)), b.const(np.array(scale, np.float32)))
    narrow = b.op("Div", b.conv(wide, 4, 4), b.const(np.array(scale, np.float32)))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", narrow))), b.weight(4, 5), b.weight(5))
    return b.model(["n", 3, 8, 8], "scores", ["n", 5])


@pytest.mark.parametrize("scale", [1e6, 3e4])
def test_what_overflows_in_half_precision_stays_in_float32(scale, tmp_path):
    proto = overflowing(scale)
    expected = scores_of(proto, batch())
    half, kept = in_half(read(proto), batch(), tmp_path)
    assert 3 <= len(kept) < len(proto.graph.node)
    found = scores_of(half, batch())
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.005 * np.ptp(expected))
    onnx.checker.check_model(half)
    # No detour over half precision is left between two nodes that stay.
    casts = {n.output[0]: n for n in half.graph.node if n.op_type == "Cast"}
    assert not [n for n in casts.values() if n.input[0] in casts]
    # The same, computed in half precision throughout.
    twin = scores_of(rounded(float_graph(read(proto), "fp16"), kept), batch())
    np.testing.assert_allclose(twin, expected, rtol=0, atol=0.005 * np.ptp(expected))
    # With nothing kept it overflows, which onnxruntime's own sessions on a CPU would not show.
    assert not np.isfinite(scores_of(rounded(float_graph(read(proto), "fp16"), ()), 1000 * batch())).all()


@settings(max_examples=30, deadline=None)
@given(proto=classifiers())
def test_the_twin_rounds_every_value_between_operators(proto):
    fed = batch()[: read(proto).graph.inputs[0].shape[0] or 7]
    twin = rounded(float_graph(read(proto), "fp16"), ())
    onnx.checker.check_model(twin)
    found, expected = scores_of(twin, fed), scores_of(proto, fed)
    assert np.array_equal(found, found.astype(np.float16).astype(np.float32))
    assert 0 < np.abs(found - expected).max() <= 0.02 * (np.ptp(expected) + 1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_twin_says_what_onnxs_reference_says_of_the_graph_in_halves(seed, tmp_path):
    b = Builder(17, seed=seed)
    x = b.op("Relu", b.bn(b.conv("x", 3, 8), 8))
    x = b.op("Relu", b.op("Add", b.conv(b.op("Sigmoid", b.conv(x, 8, 8)), 8, 8), x))
    b.op("Softmax", b.op("Gemm", b.op("Flatten", b.op("MaxPool", x, kernel_shape=[8, 8])), b.weight(8, 5), b.weight(5)))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 5])
    half, kept = in_half(read(proto), batch(), tmp_path)
    expected = ReferenceEvaluator(half).run(None, {"x": batch()})[0]
    found = scores_of(rounded(float_graph(read(proto), "fp16"), kept), batch())
    # The reference adds up in halves too.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.005)
    assert np.abs(expected - scores_of(proto, batch())).max() > 1e-5


def test_a_weight_beyond_half_precision_is_seen_without_images(tmp_path):
    _, kept = in_half(read(overflowing(1e6)), None, tmp_path)
    by_name = {node.name: node.op_type for node in overflowing(1e6).graph.node}
    assert sorted(by_name[name] for name in kept) == ["Div", "Mul"]
    b = Builder(13, store="constant")
    wide = b.op("Mul", b.op("Relu", b.conv("x", 3, 4)), b.const(np.array(2 * LARGEST, np.float32)))
    b.op("Flatten", b.op("GlobalAveragePool", b.op("Mul", wide, b.const(np.array(1e-5, np.float32)))))
    half, kept = in_half(read(b.model(["n", 3, 8, 8], "scores", ["n", 4])), None, tmp_path)
    assert {n.op_type for n in half.graph.node if n.name in kept} == {"Constant", "Mul"}


def test_the_models_own_detour_over_half_precision_is_kept(tmp_path):
    b = Builder(13)
    low = b.op("Cast", b.op("Cast", b.op("Relu", b.conv("x", 3, 4)), to=TensorProto.FLOAT16), to=TensorProto.FLOAT)
    b.op("Flatten", b.op("GlobalAveragePool", low))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 4])
    half, _ = in_half(read(proto), batch(), tmp_path)
    np.testing.assert_allclose(scores_of(half, batch()), scores_of(proto, batch()), rtol=0, atol=0.002)


@pytest.mark.parametrize("target", ["int8", "fp16"])
def test_fewer_bits_twice_are_refused_with_the_node(target):
    with pytest.raises(ModelError, match=r"^model\.onnx: node '\w+' is a QuantizeLinear, so .*--target ort$"):
        float_graph(read(quantised_already()), target)


@pytest.mark.parametrize("target", ["int8", "fp16"])
@pytest.mark.parametrize(("dtype", "word"), [(np.float16, "half"), (np.float64, "double")])
def test_floats_that_are_no_float32_are_refused(dtype, word, target):
    proto = with_softmax()
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    with pytest.raises(ModelError, match=rf"is in {word} precision, and only float32 is .*--target ort$"):
        float_graph(read(proto), target)


def test_a_quantiser_that_fails_is_an_error_that_names_the_mend(monkeypatch, tmp_path):
    def fails(*_, **__):
        raise AssertionError("no way")

    monkeypatch.setattr("debride.export.integer.quantize_static", fails)
    with pytest.raises(ModelError, match=r"quantiser fails \(AssertionError: no way\); take --target fp16 or ort$"):
        in_eight_bits(read(with_softmax()), batch(), tmp_path)


def test_silence_leaves_the_root_logger_and_stdout_as_they_were(capsys):
    root, level = logging.getLogger(), logging.root.manager.disable
    handlers = list(root.handlers)
    with quiet():
        root.handlers[:] = []
        logging.warning("noise that brings a handler with it")
        print("noise")
        added = list(root.handlers)
        root.handlers[:] = handlers + added
    assert root.handlers == handlers and logging.root.manager.disable == level
    assert capsys.readouterr() == ("", "")


def test_ops_of_a_subgraph_count_as_quantised():
    inner = quantised_already().graph
    branch = helper.make_graph(list(inner.node), "then", [], list(inner.output), list(inner.initializer))
    node = helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    from debride.export.prepare import _is_quantised, _nodes

    assert any(map(_is_quantised, _nodes(helper.make_graph([node], "g", [], []))))


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 70), fixed=st.sampled_from([None, 1, 4]))
def test_every_calibration_image_is_fed_and_every_batch_is_full(n, fixed):
    from debride.export.integer import _Batches

    reader = _Batches("x", np.arange(n), fixed or min(32, n))
    fed = []
    for number in range(len(reader)):
        reader.set_range(number, number + 1)
        fed.append(reader.get_next()["x"])
        assert reader.get_next() is None
    assert {len(part) for part in fed} == {fixed or min(32, n)}
    assert set(np.concatenate(fed)) == set(range(n))


def test_outputs_of_runs_are_those_of_plain_onnxruntime():
    """`scores_of` uses optimised sessions; the reference without optimisations says the same."""
    proto = with_softmax()
    np.testing.assert_allclose(scores_of(proto, batch()), outputs_of(proto, {"x": batch()})[0], rtol=0, atol=1e-6)
