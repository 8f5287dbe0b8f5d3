"""Graphs in fewer bits: what they still compute, what stays exactly zero, what overflows, what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from debride.errors import ImagesError, ModelError, ReportError, UsageError
from debride.export.attacks import Attack, report_beside, reported_attacks
from debride.export.grade import graded, shortfalls
from debride.export.half import LARGEST, halved
from debride.export.integer import quantised
from debride.export.prepare import float_graph
from debride.export.quiet import quiet
from debride.export.rounding import rounded
from debride.export.types import ExportOptions, Graded
from debride.graph.channels import find_groups
from debride.graph.read import model_of, read_model
from debride.graph.surgery import zero
from debride.sessions import Runtime, Session
from debride.stakes import STRENGTHS
from debride.triggers import save_trigger
from debride.types import Evaluation, Rate, Samples, Trigger, TriggerEvaluation
from graph_models import Builder, classifiers
from graph_models import run as outputs_of

SAMPLE = Path(__file__).parents[1] / "samples" / "fashion-backdoored.onnx"
ONE = Runtime(threads=1)


def read(proto):
    return model_of(proto.SerializeToString(), Path("model.onnx"), free=False)


def batch(n=7, seed=0, shape=(3, 8, 8)):
    return np.random.default_rng(seed).random((n, *shape), np.float32)


def in_eight_bits(model, inputs, folder, *, output="scores", name="x", fixed=None, method="minmax"):
    graph = float_graph(model, "int8")
    return quantised(graph, output, inputs, name=name, method=method, fixed=fixed, folder=folder)


def in_half(model, inputs, folder, *, name="x", fixed=None):
    graph = float_graph(model, "fp16")
    return halved(graph, inputs, name=name, fixed=fixed, runtime=ONE, folder=folder)


def scores_of(proto, inputs, name="x"):
    return Session(proto.SerializeToString(), ONE).run({name: inputs})[0]


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


def with_softmax(opset=13):
    b = Builder(opset)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    b.op("Softmax", b.op("Gemm", flat, b.weight(4, 5), b.weight(5)), axis=1)
    return b.model(["n", 3, 8, 8], "scores", ["n", 5])


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


def quantised_already(opset=13):
    b = Builder(opset)
    scale, zero_point = b.const(np.array(0.01, np.float32)), b.const(np.array(0, np.uint8))
    low = b.op("QuantizeLinear", b.op("Relu", b.conv("x", 3, 4)), scale, zero_point)
    b.op("Flatten", b.op("GlobalAveragePool", b.op("DequantizeLinear", low, scale, zero_point)))
    return b.model(["n", 3, 8, 8], "scores", ["n", 4])


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


# What counts as good


def evaluation(clean, *triggers, kind="accuracy", n=1000):
    tried = tuple(
        TriggerEvaluation(target=1, asr=Rate(a, n), robust=Rate(0, n), mistakes=Rate(m, n)) for a, m in triggers
    )
    return Evaluation(kind=kind, clean=Rate(clean, n), triggers=tried)


def missed(before, after, **options):
    found = Graded(before=before, after=after, attacks=("t.npz",) * len(before.triggers), images=before.clean.n)
    return shortfalls(found, ExportOptions(**{"target": "int8", **options}))


def test_an_export_that_loses_nothing_is_good():
    assert missed(evaluation(900, (30, 20)), evaluation(900, (30, 20))) == ()
    assert missed(evaluation(900, (30, 20)), evaluation(950, (10, 20))) == ()


def test_accuracy_lost_beyond_noise_is_missed_and_a_few_images_are_not():
    assert missed(evaluation(900), evaluation(885)) == ()  # 1.5 %, whose interval begins at 0.9 %
    (said,) = missed(evaluation(900), evaluation(875))
    assert said.startswith("accuracy fell by 2.5%, more than --max-loss; try --calibration entropy or percentile")
    assert missed(evaluation(900), evaluation(875), max_loss=0.03) == ()
    assert missed(evaluation(29, n=30), evaluation(28, n=30)) == ()
    assert "agreement" in missed(evaluation(900, kind="agreement"), evaluation(800, kind="agreement"))[0]


def test_a_backdoor_that_comes_back_is_missed_however_good_the_accuracy():
    (said,) = missed(evaluation(900, (20, 10)), evaluation(900, (90, 10)))
    assert said.startswith("t.npz sends 9.0% of images to class 1, and 2.0% before; try --calibration")
    # Below --target-asr, but grown by far more than noise.
    assert missed(evaluation(900, (10, 10)), evaluation(900, (50, 10)))
    assert missed(evaluation(900, (10, 10)), evaluation(900, (15, 10))) == ()
    # Mistakes that grow alike are no attack.
    assert missed(evaluation(900, (20, 10)), evaluation(900, (90, 80))) == ()


def test_a_trigger_that_works_in_the_model_itself_asks_for_sanitize():
    (said,) = missed(evaluation(900, (990, 10)), evaluation(900, (20, 10)), target="fp16")
    assert said.startswith("t.npz sends 99.0% of images to class 1 in the model itself; clean it with debride sanitize")


def test_the_mend_is_that_of_the_target():
    assert "--target ort" in missed(evaluation(900), evaluation(500), target="fp16")[0]
    assert "minmax or percentile" in missed(evaluation(900), evaluation(500), method="entropy")[0]


def trigger(target):
    mask = np.zeros((1, 2, 2), np.float32)
    mask[0, 0, 0] = 0.5
    return Trigger(target=target, mask=mask, pattern=np.ones((1, 2, 2), np.float32), l1=0.5, success=Rate(1, 1))


def two_classes(images):
    bright = images.mean(axis=(1, 2, 3))
    return np.stack([1 - bright, bright], axis=1)


def test_a_trigger_without_an_image_to_try_it_on_cannot_be_graded():
    samples = Samples(images=np.full((3, 1, 2, 2), 0.9, np.float32), labels=np.array([1, 1, 1]))
    with pytest.raises(ImagesError, match=r"every held-out image is of the target class of t\.npz"):
        graded(two_classes, two_classes, samples, (Attack(name="t.npz", trigger=trigger(1)),))


def test_without_labels_the_model_itself_is_the_truth():
    levels = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]
    samples = Samples(images=np.tile(levels, (1, 1, 2, 2)))
    found = graded(two_classes, lambda images: two_classes(images) + np.array([0.3, 0]), samples, ())
    assert found.before.kind == found.after.kind == "agreement"
    assert (found.before.clean, found.after.clean) == (Rate(8, 8), Rate(7, 8))


# Triggers of a report


def report(folder, model="0" * 64, output=None, suspects=(1,), files=True):
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"name": "m.onnx", "size": 1}
    document = {
        "schema": "debride.report/1",
        "command": "sanitize",
        "verdict": "sanitized",
        "reason": "",
        "model": {**facts, "sha256": model},
        "output": {**facts, "sha256": output} if output else None,
        "suspects": list(suspects),
    }
    (folder / "report.json").write_text(str(document).replace("'", '"').replace("None", "null"))
    for target in suspects if files else ():
        save_trigger(folder / f"trigger-{target}.npz", trigger(target))
    return folder


def test_a_reports_triggers_are_tried_as_found_and_opaquer(tmp_path):
    first, second = reported_attacks(report(tmp_path))
    assert (first.name, second.name) == ("trigger-1.npz", f"trigger-1.npz, {STRENGTHS[-1]:g} times opaquer")
    assert (first.trigger.mask.max(), second.trigger.mask.max()) == (0.5, 1.0)


def test_a_report_without_its_triggers_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"trigger-1\.npz: not there, and the report's suspect 1 needs it"):
        reported_attacks(report(tmp_path, files=False))
    with pytest.raises(ReportError, match=r"report\.json: cannot be read"):
        reported_attacks(tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["clean.report", "clean-report", "clean.onnx.report", "report", "."])
def test_the_report_beside_a_model_is_found_by_the_models_hash(place, tmp_path):
    model, own = tmp_path / "clean.onnx", "a" * 64
    assert report_beside(model, own) is None
    report(tmp_path / place, output="b" * 64)
    assert report_beside(model, own) is None
    report(tmp_path / place, output=own)
    assert report_beside(model, own) == tmp_path / place
    report(tmp_path / place, model=own)
    assert report_beside(model, own) == tmp_path / place
    (tmp_path / place / "report.json").write_text("{")
    assert report_beside(model, own) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_loss": 1.5},
        {"target_asr": -0.1},
        {"per_class": 0},
        {"seed": -1},
        {"native": True},
        {"target": "fp16", "method": "entropy"},
    ],
)
def test_options_out_of_range_or_at_odds_are_wrong_usage(wrong):
    with pytest.raises(UsageError):
        ExportOptions(**{"target": "int8", **wrong})


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
