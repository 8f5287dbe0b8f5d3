"""Masks as a graph input: ones change nothing, zeros are zeroed weights, one row is one coalition."""

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from debride.errors import SurgeryError
from debride.graph.channels import find_groups
from debride.graph.gates import MASK, gate
from debride.graph.parts import gated_parts
from debride.graph.read import parse, read_model
from debride.graph.seen import seen
from debride.graph.surgery import working_zero
from debride.sessions import Runtime
from debride.slimming.observe import observe
from debride.types import ChannelGroup
from graph_models import VENDOR, Builder, assert_close, classifiers, images, run

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def read(proto, tmp_path):
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(tmp_path / "m.onnx")


@QUICK
@given(proto=classifiers(), data=st.data())
def test_a_masked_channel_equals_a_zeroed_one(tmp_path, proto, data):
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    gone = sorted(data.draw(st.sets(st.integers(0, len(groups) - 1), max_size=5)))
    gated, x = gate(model.working, groups), images(model)
    onnx.checker.check_model(gated)
    mask = np.ones((3, len(groups)), np.float32)
    assert_close(run(gated, {**x, MASK: mask})[0], run(model.working, x)[0])
    mask[:, gone] = 0
    masked = run(gated, {**x, MASK: mask})[0]
    assert_close(masked, run(working_zero(model, [groups[p] for p in gone]), x)[0])
    assert_close(run(gated, {**x, MASK: mask[:1]})[0], masked)


@QUICK
@given(proto=classifiers(), seed=st.integers(0, 99))
def test_a_large_batch_holds_many_coalitions_and_players_may_be_any_subset_in_any_order(tmp_path, proto, seed):
    model = read(proto, tmp_path)
    groups, _ = find_groups(model.graph, "scores")
    rng = np.random.default_rng(seed)
    players = [groups[p] for p in rng.permutation(len(groups))[: rng.integers(1, len(groups) + 1)]]
    coalitions = rng.random((4, len(players))) < 0.7
    x = images(model, 2)["x"]
    feeds = {"x": np.concatenate([x] * 4), MASK: np.repeat(coalitions, 2, axis=0).astype(np.float32)}
    together = run(gate(model.working, players), feeds)[0].reshape(4, 2, -1)
    for row, scores in zip(coalitions, together, strict=True):
        absent = [p for p, here in zip(players, row, strict=True) if not here]
        assert_close(scores, run(working_zero(model, absent), {"x": x})[0])


def test_all_readers_and_the_graph_outputs_see_the_masked_tensor():
    b = Builder()
    y = b.conv("x", 3, 2)
    b.op("Add", b.op("Relu", y), y)
    extra = [helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 2, 8, 8])]
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 2, 8, 8], outputs=extra)
    group = ChannelGroup(layer="n", channel=1, edge=y, axis=1, slices=())
    x = {"x": np.ones((1, 3, 8, 8), np.float32), MASK: np.zeros((1, 1), np.float32)}
    scores, edge = run(gate(proto, [group]), x)
    assert not scores[:, 1].any() and not edge[:, 1].any()
    assert scores[:, 0].any() and edge[:, 0].any()


def test_masks_lie_along_the_last_axis_where_the_rank_is_unknown_to_the_player():
    b = Builder(13)
    y = b.op("MatMul", b.op("Reshape", "x", b.const(np.array([0, 24, 8]))), b.weight(8, 5))
    b.op("ReduceMean", b.op("MatMul", y, b.weight(5, 3)), axes=[1], keepdims=0)
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    groups, _ = find_groups(parse(proto), "scores")
    assert {g.edge for g in groups} == {y}
    x = np.ones((2, 3, 8, 8), np.float32)
    mask = np.array([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], np.float32)
    scores = run(gate(proto, groups), {"x": x, MASK: mask})[0]
    assert scores[0].any() and not scores[1].any()


def test_double_precision_graphs_are_gated_by_the_same_float_mask():
    b = Builder(13)
    wide = b.op("Cast", "x", to=TensorProto.DOUBLE)
    y = b.op("MatMul", b.op("Flatten", wide), b.const(b.rng.standard_normal((192, 4))))
    b.op("Cast", b.op("MatMul", y, b.const(b.rng.standard_normal((4, 3)))), to=TensorProto.FLOAT)
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    groups, _ = find_groups(parse(proto), "scores")
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32), MASK: np.zeros((1, 4), np.float32)}
    assert not run(gate(proto, groups), feeds)[0].any()


def test_gating_nothing_or_a_tensor_that_nobody_makes_is_refused():
    b = Builder()
    b.op("Flatten", b.op("GlobalAveragePool", "x"))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    with pytest.raises(SurgeryError, match="no players"):
        gate(proto, [])
    for edge, words in (("nowhere", "unknown"), ("x", "no node makes")):
        with pytest.raises(SurgeryError, match=words):
            gate(proto, [ChannelGroup(layer="n", channel=0, edge=edge, axis=1, slices=())])


@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
def test_vendor_models_masked_equal_vendor_models_zeroed():
    for path in sorted(VENDOR.glob("*.onnx")):
        model = read_model(path)
        scores = model.graph.outputs[0].name
        groups, _ = find_groups(model.graph, scores)
        gone = np.random.default_rng(1).permutation(len(groups))[:25]
        mask = np.ones((1, len(groups)), np.float32)
        mask[:, gone] = 0
        x = images(model)
        masked = run(gate(model.working, groups), {**x, MASK: mask}, [scores])[0]
        assert_close(masked, run(working_zero(model, [groups[p] for p in gone]), x, [scores])[0])


def test_a_rank_that_inference_loses_is_taken_from_the_run():
    b = Builder(11)
    y = b.conv("x", 3, 4)
    rows = b.op("Unsqueeze", b.op("Gather", b.op("Shape", y), b.const(np.int64(0)), axis=0), axes=[0])
    tokens = b.op("Reshape", y, b.op("Concat", rows, b.const(np.array([4, 64])), axis=0))
    z = b.op("MatMul", b.op("Transpose", tokens, perm=[0, 2, 1]), b.weight(4, 5))
    b.op("Gemm", b.op("Flatten", z), b.weight(320, 3), b.weight(3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    graph = parse(proto)
    with pytest.raises(SurgeryError, match="rank"):
        gate(proto, find_groups(graph, "scores")[0])
    shown = observe(proto, graph, None, Runtime(threads=1), "m")
    groups, _ = find_groups(graph, "scores", {name: len(shape) for name, shape in shown.shapes.items()})
    assert {g.axis for g in groups if g.edge == z} == {2}
    parts = gated_parts(proto, groups[4:], "scores", seen(shown.open_shapes(), shown.dtypes))
    x = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
    prefix = run(onnx.load_model_from_string(parts.prefix), {"x": x}, list(parts.frontier))
    mask = np.array([[1, 0, 1, 1, 0]], np.float32)
    found = run(
        onnx.load_model_from_string(parts.suffix), {**dict(zip(parts.frontier, prefix, strict=True)), MASK: mask}
    )[0]
    dead = next(t for t in proto.graph.initializer if list(t.dims) == [4, 5])
    dead.raw_data = (numpy_helper.to_array(dead) * mask).astype(np.float32).tobytes()
    assert_close(found, run(proto, {"x": x})[0])
