"""Prefix and suffix together are the whole; the closed form is used only where it is exact."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from debride.errors import SurgeryError
from debride.graph.channels import find_groups
from debride.graph.cut import linear_tail, split_at
from debride.graph.gates import MASK, gate
from debride.graph.parse import parse
from debride.graph.read import read_model
from graph_models import VENDOR, Builder, assert_close, classifiers, images, run

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def read(proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(tmp_path / "m.onnx")


def run_parts(proto, edges, x, mask, scores=None):
    prefix, suffix, frontier = split_at(proto, edges, scores)
    for part in (prefix, suffix):
        onnx.checker.check_model(part, full_check=proto.opset_import[0].version > 8)  # Constants of integers
    live = dict(zip(frontier, run(prefix, x, list(frontier)), strict=True))
    return run(suffix, {**live, **mask})[0]


@QUICK
@given(proto=classifiers(), data=st.data())
def test_prefix_then_suffix_of_a_gated_graph_is_the_whole(tmp_path, proto, data):
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    every = list(dict.fromkeys(g.edge for g in groups))
    edges = data.draw(st.sets(st.sampled_from(every), min_size=1))
    players = [g for g in groups if g.edge in edges]
    gated, x = gate(model.working, players), images(model)
    mask = {MASK: np.asarray(np.random.default_rng(0).random((3, len(players))) < 0.6, np.float32)}
    assert_close(run_parts(gated, edges, x, mask), run(gated, {**x, **mask})[0])


@QUICK
@given(proto=classifiers(), data=st.data())
def test_prefix_then_suffix_of_an_ungated_graph_is_the_whole(tmp_path, proto, data):
    model = read(proto, tmp_path)
    node = data.draw(st.sampled_from(model.graph.nodes))
    x = images(model)
    try:
        scores = run_parts(model.working, {node.outputs[0]}, x, {})
    except SurgeryError as error:  # a turned weight in Identity or Transpose may feed no prefix
        assert "cannot be inferred" in str(error)
        return
    assert_close(scores, run(model.working, x)[0])


def test_a_cut_inside_a_residual_block_has_all_live_tensors_in_its_frontier():
    b = Builder()
    a = b.op("Relu", b.conv("x", 3, 4))
    inner = b.op("Relu", b.conv(a, 4, 4))
    y = b.conv(inner, 4, 4)
    b.op("Add", y, a)
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 4, 8, 8])
    prefix, suffix, frontier = split_at(proto, {y})
    assert frontier == (a, inner)
    assert [n.op_type for n in prefix.graph.node] == ["Conv", "Relu", "Conv", "Relu"]
    assert [n.op_type for n in suffix.graph.node] == ["Conv", "Add"]


def test_what_feeds_the_gates_stays_in_the_prefix_and_weights_go_where_they_are_read(tmp_path):
    b = Builder()
    a = b.op("Relu", b.conv("x", 3, 4))
    y = b.op("Relu", b.conv(a, 4, 4))
    z = b.op("Add", y, a)
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", z)), b.weight(4, 3), b.weight(3))
    model = read(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    last = [g for g in groups if g.edge == groups[-1].edge]
    prefix, suffix, frontier = split_at(gate(model.working, last), {last[0].edge})
    assert frontier == (a, f"{last[0].edge}.ungated")
    assert [n.op_type for n in prefix.graph.node] == ["Conv", "Relu", "Conv"]
    assert {len(t.dims) for t in prefix.graph.initializer} == {4, 1}
    assert not [t for t in suffix.graph.initializer if len(t.dims) == 4]


def test_shapes_are_computed_where_they_are_read_so_that_the_suffix_may_have_another_batch():
    b = Builder(15)
    a = b.op("Relu", b.conv("x", 3, 4))
    n = b.op("Shape", a, start=0, end=1)
    y = b.op("Relu", b.conv(a, 4, 4))
    flat = b.op("Reshape", b.op("GlobalAveragePool", y), b.op("Concat", n, b.const(np.array([4])), axis=0))
    b.op("Gemm", flat, b.weight(4, 3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    edge = find_groups(parse(proto), "scores")[0][-1].edge
    prefix, suffix, frontier = split_at(proto, {edge})
    assert frontier == (a,)
    live = run(prefix, {"x": np.ones((2, 3, 8, 8), np.float32)})[0]
    assert run(suffix, {a: np.concatenate([live] * 3)})[0].shape == (6, 3)


def test_an_image_that_the_suffix_reads_is_part_of_the_frontier():
    b = Builder()
    y = b.op("Relu", b.conv("x", 3, 3))
    b.op("Add", b.op("Relu", b.conv(y, 3, 3)), "x")
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3, 8, 8])
    edges = {find_groups(parse(proto), "scores")[0][-1].edge}
    x = {"x": np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)}
    assert split_at(proto, edges)[2][0] == "x"
    assert_close(run_parts(proto, edges, x, {}), run(proto, x)[0])


def test_scores_that_depend_on_no_gated_tensor_are_refused():
    b = Builder()
    y = b.conv("x", 3, 2)
    b.op("Flatten", "x")
    value = onnx.helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 2, 8, 8])
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 192], outputs=[value])
    with pytest.raises(SurgeryError, match="depends on none"):
        split_at(proto, {y})


def closed_form(model, groups, tail, x, mask):
    """Scores of each coalition as a sum over its players, from P + 1 runs."""
    gated = gate(model.working, groups)
    edges = {g.edge for g in groups}
    count = len(groups)

    def logits(row):
        return run_parts(gated, edges, x, {MASK: np.tile(row, (3, 1)).astype(np.float32)}, tail.logits)

    nobody = logits(np.zeros(count))
    alone = [logits(np.eye(count)[c]) - nobody for c in range(count)]
    return nobody + sum(m * d for m, d in zip(mask, alone, strict=True))


@QUICK
@given(proto=classifiers(), seed=st.integers(0, 99))
def test_the_closed_form_equals_the_graph_wherever_it_is_offered(tmp_path, proto, seed):
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    x = images(model)
    for edge in dict.fromkeys(g.edge for g in groups):
        tail = linear_tail(model.graph, edge, "scores", groups[0].axis)
        if tail is None:
            continue
        players = [g for g in groups if g.edge == edge]
        mask = np.random.default_rng(seed).integers(0, 2, len(players))
        row = {MASK: np.tile(mask, (3, 1)).astype(np.float32)}
        whole = run_parts(gate(model.working, players), {edge}, x, row, tail.logits)
        found = closed_form(model, players, tail, x, mask)
        np.testing.assert_allclose(found, whole, rtol=0, atol=1e-5 * max(1, np.abs(whole).max()))


def tail_of(b, edge, **kwargs):
    proto = b.model(["n", 3, 8, 8], "scores", None, check=False)
    return linear_tail(parse(proto), edge, "scores", **kwargs)


def test_the_last_layer_before_pooling_has_a_closed_form_past_a_residual_add_and_a_relu():
    b = Builder()
    a = b.op("Relu", b.conv("x", 3, 4))
    y = b.conv(a, 4, 4)
    z = b.op("Relu", b.bn(b.op("Add", a, y), 4))
    out = b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", z)), b.weight(4, 3))
    b.op("Softmax", out, axis=1)
    tail = tail_of(b, y)
    assert tail.logits == out and tail.softmax


def test_a_function_of_a_mixture_has_no_closed_form():
    b = Builder()
    y = b.conv("x", 3, 4)
    b.op("Gemm", b.op("Flatten", b.op("Relu", b.conv(b.op("Relu", y), 4, 4))), b.weight(256, 3))
    assert tail_of(b, y) is None


def test_channels_that_meet_in_a_product_have_no_closed_form():
    b = Builder()
    y = b.conv("x", 3, 4)
    pooled = b.op("Flatten", b.op("GlobalAveragePool", y))
    b.op("Mul", b.op("Gemm", pooled, b.weight(4, 3)), b.op("Gemm", pooled, b.weight(4, 3)))
    assert tail_of(b, y) is None


def test_a_channel_meeting_itself_keeps_the_closed_form():
    b = Builder()
    y = b.conv("x", 3, 4)
    swish = b.op("Mul", y, b.op("Sigmoid", y))
    b.op("Gemm", b.op("Flatten", b.op("ReduceMean", swish, axes=[2, 3])), b.weight(4, 3))
    assert tail_of(b, y) is not None


def test_a_maximum_over_channels_has_no_closed_form_but_one_over_places_has():
    for axes, fits in (([2, 3], True), ([-1, -2], True), ([1], False), ([-3], False)):
        b = Builder()
        y = b.conv("x", 3, 4)
        b.op("Flatten", b.op("ReduceMax", y, axes=axes))
        assert (tail_of(b, y) is not None) == fits


def test_a_squeeze_and_excite_block_has_no_closed_form():
    b = Builder()
    y = b.conv("x", 3, 4)
    gatew = b.op("Sigmoid", b.op("Conv", b.op("GlobalAveragePool", y), b.weight(4, 4, 1, 1)))
    b.op("Flatten", b.op("GlobalAveragePool", b.op("Mul", y, gatew)))
    assert tail_of(b, y) is None


@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
@pytest.mark.parametrize("name", ["cifar-wrn-grid5", "gtsrb-vgg-blend", "cifar-badnet-white1"])
def test_the_last_layer_of_vendor_models_has_an_exact_closed_form(name):
    model = read_model(VENDOR / f"{name}.onnx")
    scores = model.graph.outputs[0].name
    groups, _ = find_groups(model.graph, scores)
    players = [g for g in groups if g.edge == groups[-1].edge][:12]
    tail = linear_tail(model.graph, players[0].edge, scores)
    mask = np.random.default_rng(0).integers(0, 2, len(players))
    x, row = images(model), {MASK: np.tile(mask, (3, 1)).astype(np.float32)}
    whole = run_parts(gate(model.working, players), {players[0].edge}, x, row, tail.logits)
    np.testing.assert_allclose(closed_form(model, players, tail, x, mask), whole, atol=2e-5)
