"""Slimming on small graphs whose answer is known: what leaves, what stays and why, and the same outputs."""

from __future__ import annotations

import sys

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper, numpy_helper

from debride.errors import ModelError
from debride.graph.channels import find_groups
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.graph.surgery import zero
from debride.sessions import Runtime
from debride.slimming import slim
from debride.types import InputSpec
from graph_models import Builder, run, with_function

ONE = Runtime(threads=1)


def classifier(b, hidden, size, *, outputs=(), shape=("n", 3, 8, 8), **more):
    """`hidden` (N, size, H, W) pooled into three scores."""
    flat = b.op("Flatten", b.op("GlobalAveragePool", hidden))
    b.op("Gemm", flat, b.weight(size, 3), b.weight(3))
    return b.model(list(shape), "scores", [shape[0], 3], outputs=outputs, **more)


def layers_of(model):
    """The layers that have players, by their place in the graph."""
    groups, _ = find_groups(model.graph, model.graph.outputs[0].name)
    return list(dict.fromkeys(g.layer for g in groups)), groups


def zeroed(proto, tmp_path, dead):
    """`proto` with the channels `dead` zeroed: {place of the layer: channels}."""
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = read_model(path)
    layers, groups = layers_of(model)
    chosen = [g for g in groups if g.channel in dead.get(layers.index(g.layer), ())]
    path.write_bytes(zero(model, chosen).SerializeToString())
    return read_model(path)


def slimmed(proto, tmp_path, dead, **more):
    """(slimmed protobuf, facts); the outputs are compared here, apart from what `slim` does itself."""
    model = zeroed(proto, tmp_path, dead)
    found = slim(model, runtime=ONE, **more)
    assert found.facts.reason == ""
    onnx.checker.check_model(found.proto, full_check=True)
    value = parse(model.proto).inputs[0]
    for batch in (1, 4) if value.shape[0] is None else (value.shape[0],):
        x = np.random.default_rng(batch).standard_normal((batch, *[s or 8 for s in value.shape[1:]]))
        feeds = {value.name: x.astype(value.dtype)}
        for before, after in zip(run(model.proto, feeds), run(found.proto, feeds), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=2e-6 * max(1, np.abs(before).max()))
    return found.proto, found.facts


def weights(proto, op="Conv"):
    """The shapes of the weights of all nodes `op`, in order."""
    stored = {t.name: tuple(t.dims) for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            stored[node.output[0]] = tuple(node.attribute[0].t.dims)
    return [stored[n.input[1]] for n in proto.graph.node if n.op_type == op and n.input[1] in stored]


def reasons(facts):
    return {r.reason for r in facts.stayed}


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_a_zeroed_channel_leaves_the_layer_that_makes_it_and_those_that_read_it(tmp_path, store):
    b = Builder(store=store)
    x = b.op("Relu", b.bn(b.conv("x", 3, 6), 6))
    x = b.op("Relu", b.conv(x, 6, 4))
    proto, facts = slimmed(classifier(b, x, 4), tmp_path, {0: [1, 4], 1: [0]})
    assert weights(proto) == [(4, 3, 3, 3), (3, 4, 3, 3)]
    assert weights(proto, "Gemm") == [(3, 3)]
    assert (facts.dead, facts.left, facts.channels, facts.stayed) == (3, 3, 3, ())
    # 8x8 places, 9 taps, and the layer of three scores.
    assert facts.before.macs == 64 * 9 * (3 * 6 + 6 * 4) + 4 * 3
    assert facts.after.macs == 64 * 9 * (3 * 4 + 4 * 3) + 3 * 3
    assert facts.before.parameters - facts.after.parameters == 2 * 27 + 2 * 5 + 6 * 4 * 9 - 4 * 3 * 9 + 1 + 3


def test_a_channel_that_nobody_reads_leaves_though_it_is_not_zero(tmp_path):
    b = Builder()
    weight = b.rng.standard_normal((4, 5, 1, 1)).astype(np.float32)
    weight[:, [0, 3]] = 0
    x = b.op("Conv", b.op("Sigmoid", b.conv("x", 3, 5)), b.const(weight))
    proto, facts = slimmed(classifier(b, x, 4), tmp_path, {})
    assert weights(proto)[0] == (3, 3, 3, 3)
    assert (facts.dead, facts.left, facts.channels) == (0, 0, 2)


def test_what_is_added_up_leaves_together_only(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    y = b.conv(b.op("Relu", b.conv(x, 4, 5)), 5, 4)
    proto, facts = slimmed(classifier(b, b.op("Add", y, x), 4), tmp_path, {0: [1, 2], 1: [0], 2: [2, 3]})
    assert weights(proto) == [(3, 3, 3, 3), (4, 3, 3, 3), (3, 4, 3, 3)]
    assert (facts.dead, facts.left) == (5, 3)
    assert {(r.channel, r.layer == facts.stayed[0].layer) for r in facts.stayed} == {(1, True), (3, False)}
    assert all("added to what is alive before" in reason for reason in reasons(facts))


def test_joined_split_and_cut_channels_are_counted_anew(tmp_path):
    b = Builder(13)
    x, y = b.conv("x", 3, 4), b.conv("x", 3, 5)
    joined = b.op("Relu", b.op("Concat", x, y, axis=1))
    sizes = b.const(np.array([3, 6], np.int64))
    outs = [b.name("s"), b.name("s")]
    b.nodes.append(helper.make_node("Split", [joined, sizes], outs, axis=1, name="split"))
    cut = b.op("Slice", outs[1], *(b.const(np.array([v], np.int64)) for v in (-4, 9999, 1)))
    first = b.op("Slice", outs[1], *(b.const(np.array([v], np.int64)) for v in (0, 3, 1)))
    z = b.op("Concat", outs[0], cut, first, axis=1)
    proto, facts = slimmed(classifier(b, z, 10), tmp_path, {0: [1, 3], 1: [0, 4]})
    assert facts.stayed == ()
    assert weights(proto) == [(2, 3, 3, 3), (3, 3, 3, 3)]
    assert facts.left == 4
    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    split = next(n for n in proto.graph.node if n.op_type == "Split")
    assert stored[split.input[1]].tolist() == [2, 3]


def test_a_depthwise_convolution_leaves_with_the_layer_in_front_of_it(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 6))
    x = b.op("Relu", b.conv(x, 6, 12, group=6))
    proto, facts = slimmed(classifier(b, x, 12), tmp_path, {1: [2, 3, 6, 9]})
    # Both of a channel's outputs must be dead: 2 and 3 are those of channel 1.
    assert weights(proto) == [(5, 3, 3, 3), (10, 1, 3, 3)]
    conv = [n for n in proto.graph.node if n.op_type == "Conv"][1]
    assert next(a.i for a in conv.attribute if a.name == "group") == 5
    assert (facts.dead, facts.left, facts.channels) == (4, 2, 3)


def test_groups_lose_as_many_channels_as_each_other(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 8))
    x = b.op("Relu", b.conv(x, 8, 6, group=2))
    proto, facts = slimmed(classifier(b, x, 6), tmp_path, {0: [0, 2, 5], 1: [1, 4, 5]})
    assert weights(proto) == [(6, 3, 3, 3), (4, 3, 3, 3)]
    assert (facts.dead, facts.left) == (6, 4)
    assert all("more of them than others" in reason for reason in reasons(facts))


def test_flattened_channels_leave_with_all_their_places(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    flat = b.op("Reshape", x, b.const(np.array([0, 4 * 64], np.int64)))
    hidden = b.op("Relu", b.op("Add", b.op("MatMul", flat, b.weight(256, 5)), b.weight(5)))
    b.op("Gemm", hidden, b.weight(3, 5), b.weight(3), transB=1)
    proto, _ = slimmed(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path, {0: [2], 1: [0, 4]})
    assert weights(proto, "MatMul") == [(192, 3)]
    assert weights(proto, "Gemm") == [(3, 3)]


@pytest.mark.parametrize(("pads", "left", "first"), [([0, 0, 0, 0], 3, 3), ([1, 1, 1, 1], 2, 4)])
def test_a_constant_goes_into_the_bias_and_beside_padding_into_one_channel(tmp_path, pads, left, first):
    b = Builder()
    x = b.op("Sigmoid", b.op("Mul", b.conv("x", 3, 6), b.const(np.float32(2))))
    x = b.op("Add", x, b.const(np.arange(6, dtype=np.float32).reshape(6, 1, 1)))
    x = b.op("Conv", x, b.weight(4, 6, 3, 3), b.weight(4), pads=pads)
    proto, facts = slimmed(classifier(b, x, 4), tmp_path, {0: [0, 1, 5]})
    assert weights(proto)[1] == (4, first, 3, 3)
    assert facts.left == left


def test_a_bias_is_made_where_there_was_none_and_copied_where_others_read_it(tmp_path):
    b = Builder()
    x = b.op("Sigmoid", b.conv("x", 3, 5))
    shared = b.weight(4)
    y = b.op("Conv", x, b.weight(4, 5, 1, 1), shared)
    z = b.op("Conv", "x", b.weight(4, 3, 1, 1), shared)
    w = b.op("Conv", x, b.weight(4, 5, 1, 1))
    proto, facts = slimmed(classifier(b, b.op("Sum", y, z, w), 4), tmp_path, {0: [0, 1]})
    assert facts.left == 2
    convs = [n for n in proto.graph.node if n.op_type == "Conv"]
    assert len(convs[3].input) == 3
    assert convs[1].input[2] != convs[2].input[2] == shared


def test_a_bias_that_layers_share_is_cut_for_each_as_it_needs(tmp_path):
    b = Builder()
    shared = b.const(np.zeros(4, np.float32), "initializer")
    x = b.op("Relu", b.conv("x", 3, 4, bias=shared))
    x = b.op("Relu", b.conv(x, 4, 4, bias=shared))
    x = b.op("Relu", b.conv(x, 4, 4, bias=shared))
    model = zeroed(classifier(b, x, 4), tmp_path, {0: [1], 1: [1], 2: [0, 3]})
    for node in model.proto.graph.node:  # as an exporter writes it that merges equal constants
        if node.op_type == "Conv":
            node.input[2] = shared
    proto, facts = slimmed(model.proto, tmp_path, {})
    assert weights(proto) == [(3, 3, 3, 3), (3, 3, 3, 3), (2, 3, 3, 3)]
    biases = [node.input[2] for node in proto.graph.node if node.op_type == "Conv"]
    assert biases[0] == biases[1] != biases[2]
    assert facts.left == 4
    assert shared not in {t.name for t in proto.graph.initializer}


@pytest.mark.parametrize("store", ["initializer", "identity"])
def test_a_gemm_with_factors_takes_constants_into_its_bias(tmp_path, store):
    b = Builder()
    x = b.op("Sigmoid", b.op("Flatten", b.op("GlobalAveragePool", b.conv("x", 3, 6))))
    b.store = store
    b.op("Gemm", x, b.weight(6, 3), b.weight(3), alpha=0.5, beta=2.0)
    proto, facts = slimmed(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path, {0: [0, 4]})
    assert weights(proto) == [(4, 3, 3, 3)]
    assert facts.left == 2


def test_a_gate_leaves_with_its_channels(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 6))
    squeezed = b.op("Relu", b.op("Conv", b.op("GlobalAveragePool", x), b.weight(2, 6, 1, 1), b.weight(2)))
    gate = b.op("HardSigmoid", b.op("Conv", squeezed, b.weight(6, 2, 1, 1), b.weight(6)))
    proto, _ = slimmed(classifier(b, b.op("Mul", x, gate), 6), tmp_path, {0: [0, 5]})
    assert weights(proto) == [(4, 3, 3, 3), (2, 4, 1, 1), (4, 2, 1, 1)]


def attention(b, tokens, heads=4, each=3, wide=12):
    """Fused queries, keys and values: (N, L, wide) -> (N, L, wide)."""
    parts = b.op(
        "Reshape", b.op("MatMul", tokens, b.weight(wide, 3 * heads * each)), b.const(np.array([0, 0, 3, heads, each]))
    )
    moved = b.op("Transpose", parts, perm=[2, 0, 3, 1, 4])
    q, k, v = (b.op("Gather", moved, b.const(np.int64(i)), axis=0) for i in range(3))
    scores = b.op("Softmax", b.op("MatMul", q, b.op("Transpose", k, perm=[0, 1, 3, 2])), axis=-1)
    mixed = b.op("Transpose", b.op("MatMul", scores, v), perm=[0, 2, 1, 3])
    flat = b.op("Reshape", mixed, b.const(np.array([0, 0, heads * each])))
    return b.op("Add", b.op("MatMul", flat, b.weight(heads * each, wide)), tokens)


def test_an_attention_head_leaves_whole_once_its_values_are_dead(tmp_path):
    b = Builder(17)
    conv = b.op("Conv", "x", b.weight(12, 3, 2, 2), b.weight(12), strides=[2, 2])
    tokens = b.op("Transpose", b.op("Reshape", conv, b.const(np.array([0, 12, -1]))), perm=[0, 2, 1])
    out = attention(b, tokens)
    hidden = b.op("Gelu" if b.opset > 19 else "Relu", b.op("Add", b.op("MatMul", out, b.weight(12, 8)), b.weight(8)))
    out = b.op("Add", b.op("MatMul", hidden, b.weight(8, 12)), out)
    b.op("Gemm", b.op("ReduceMean", out, axes=[1], keepdims=0), b.weight(12, 3), b.weight(3))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    values = [24 + head * 3 + i for head in (0, 2) for i in range(3)]
    slim_proto, facts = slimmed(proto, tmp_path, {1: values, 3: [0, 7]})
    # Queries and keys of the two heads were never zeroed, and go with them.
    assert weights(slim_proto, "MatMul")[0] == (12, 18)
    assert weights(slim_proto, "MatMul")[-2:] == [(12, 6), (6, 12)]
    assert (facts.dead, facts.left, facts.channels) == (8, 8, 20)
    some, facts = slimmed(proto, tmp_path, {1: values[:5]})
    assert weights(some, "MatMul")[0] == (12, 27)
    assert facts.left == 3


def test_a_shuffle_of_fewer_channels_is_a_gather(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 6))
    split = b.op("Reshape", x, b.const(np.array([0, 2, 3, 8, 8])))
    x = b.op("Reshape", b.op("Transpose", split, perm=[0, 2, 1, 3, 4]), b.const(np.array([0, 6, 8, 8])))
    proto, facts = slimmed(classifier(b, b.conv(x, 6, 4), 4), tmp_path, {0: [1, 3]})
    assert [n.op_type for n in proto.graph.node][:3] == ["Conv", "Relu", "Gather"]
    assert weights(proto) == [(4, 3, 3, 3), (4, 4, 3, 3)]
    untouched, _ = slimmed(classifier(_shuffling(), "h", 4), tmp_path, {1: [0]})
    assert [n.op_type for n in untouched.graph.node][2:5] == ["Reshape", "Transpose", "Reshape"]
    assert facts.left == 2


def _shuffling():
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 6))
    split = b.op("Reshape", x, b.const(np.array([0, 2, 3, 8, 8])))
    x = b.op("Reshape", b.op("Transpose", split, perm=[0, 2, 1, 3, 4]), b.const(np.array([0, 6, 8, 8])))
    b.nodes.append(helper.make_node("Relu", [b.conv(x, 6, 4)], ["h"], name="relu"))
    return b


def test_a_parameter_that_two_nodes_share_changes_for_one(tmp_path):
    b = Builder()
    shape = b.const(np.array([0, 4, 64], np.int64))
    x = b.op("Reshape", b.op("Relu", b.conv("x", 3, 4)), shape)
    y = b.op("Reshape", b.op("Relu", b.conv("x", 3, 4)), shape)
    both = b.op("Reshape", b.op("Concat", x, y, axis=1), b.const(np.array([0, -1, 8, 8], np.int64)))
    proto, _ = slimmed(classifier(b, both, 8), tmp_path, {0: [1]})
    stored = {t.name: numpy_helper.to_array(t).tolist() for t in proto.graph.initializer}
    targets = [stored[n.input[1]] for n in proto.graph.node if n.op_type == "Reshape"]
    assert targets == [[0, 3, 64], [0, 4, 64], [0, -1, 8, 8]]


def test_tied_weights_leave_only_where_both_layers_can_do_without(tmp_path):
    b = Builder()
    weight = b.const(b.rng.standard_normal((5, 5, 1, 1)).astype(np.float32), "initializer")
    x = b.op("Relu", b.conv("x", 3, 5))
    x = b.op("Conv", b.op("Relu", b.op("Conv", x, weight)), weight)
    proto = classifier(b, x, 5)
    alone, facts = slimmed(proto, tmp_path, {0: [2]})
    assert weights(alone)[1:] == [(5, 5, 1, 1)] * 2
    assert len(facts.stayed) == 1
    array = numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == weight)).copy()
    array[2] = array[:, 2] = 0
    next(t for t in proto.graph.initializer if t.name == weight).raw_data = array.tobytes()
    both, _ = slimmed(proto, tmp_path, {0: [2]})
    assert weights(both) == [(4, 3, 3, 3), (4, 4, 1, 1), (4, 4, 1, 1)]


def test_initializers_listed_as_inputs_change_there_too(tmp_path):
    b = Builder(8, ir=3)
    x = b.op("Relu", b.conv("x", 3, 5))
    proto, _ = slimmed(classifier(b, b.conv(x, 5, 4), 4, listed=True), tmp_path, {0: [0, 1]})
    listed = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    for tensor in proto.graph.initializer:
        assert listed[tensor.name] == list(tensor.dims)


def test_what_the_file_says_of_inner_shapes_stays_true(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 5))
    proto = classifier(b, b.conv(x, 5, 4), 4)
    proto.graph.value_info.append(helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 5, 8, 8]))
    slim_proto, _ = slimmed(proto, tmp_path, {0: [0, 1]})
    assert [d.dim_value for d in slim_proto.graph.value_info[0].type.tensor_type.shape.dim] == [0, 3, 8, 8]


def test_normalised_channels_stay_and_say_so(tmp_path):
    b = Builder(17)
    x = b.op("Transpose", b.conv("x", 3, 4), perm=[0, 2, 3, 1])
    x = b.op("LayerNormalization", x, b.weight(4), b.weight(4))
    proto, facts = slimmed(classifier(b, b.op("Transpose", x, perm=[0, 3, 1, 2]), 4), tmp_path, {0: [1]})
    assert (facts.dead, facts.left) == (1, 0)
    assert "LayerNormalization" in facts.stayed[0].reason
    assert weights(proto) == [(4, 3, 3, 3)]


@pytest.mark.parametrize(("dead", "left"), [([1], 8), ([1, 2, 3, 4], 4), ([0, 1, 2, 3, 4], 4)])
def test_widths_stay_multiples_where_that_is_asked_for(tmp_path, dead, left):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 8))
    x = b.op("Relu", b.conv(x, 8, 6))  # no multiple from the start
    proto, facts = slimmed(classifier(b, x, 6), tmp_path, {0: dead, 1: [2]}, align=4)
    assert weights(proto) == [(left, 3, 3, 3), (5, left, 3, 3)]
    assert facts.left == 8 - left + 1
    assert not facts.stayed or "multiple of 4" in facts.stayed[0].reason


def test_outputs_keep_their_channels(tmp_path):
    b = Builder()
    b.nodes.append(helper.make_node("Relu", [b.conv("x", 3, 4)], ["features"], name="r"))
    seen = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 4, 8, 8])
    _, facts = slimmed(classifier(b, "features", 4, outputs=[seen]), tmp_path, {0: [1]})
    assert reasons(facts) == {"an output of the graph"}


def test_operators_that_are_not_taken_apart_keep_all(tmp_path):
    b = Builder()
    x = b.op("DepthToSpace", b.conv("x", 3, 8), blocksize=2)
    _, facts = slimmed(classifier(b, b.op("Relu", x), 2), tmp_path, {0: [1]})
    assert "DepthToSpace" in facts.stayed[0].reason


def test_a_layer_that_is_dead_keeps_one_channel(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    y = b.op("Relu", b.conv(b.op("Relu", b.conv(x, 4, 3)), 3, 4))
    proto, facts = slimmed(classifier(b, b.op("Add", x, y), 4), tmp_path, {1: [0, 1, 2]})
    assert weights(proto) == [(4, 3, 3, 3), (1, 4, 3, 3), (4, 1, 3, 3)]
    assert reasons(facts) == {"the last of its layer"}


def test_a_model_without_dead_channels_comes_back_as_it_was(tmp_path):
    b = Builder()
    model = zeroed(classifier(b, b.op("Relu", b.conv("x", 3, 4)), 4), tmp_path, {})
    found = slim(model, runtime=ONE)
    assert found.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)
    assert found.facts.before == found.facts.after
    assert found.facts.channels == 0


def test_slimming_twice_changes_nothing_more(tmp_path):
    b = Builder()
    x = b.op("Sigmoid", b.conv("x", 3, 6))
    proto, facts = slimmed(classifier(b, b.conv(x, 6, 4), 4), tmp_path, {0: [0, 2, 3]})
    again, more = slimmed(proto, tmp_path, {})
    assert (facts.left, more.channels) == (2, 0)
    assert again.SerializeToString() == proto.SerializeToString()


def test_nothing_else_of_the_file_changes(tmp_path):
    b = Builder(15)
    x = b.op("Relu", b.conv("x", 3, 6))
    proto = classifier(b, b.conv(x, 6, 4), 4)
    proto.producer_name, proto.doc_string = "vendor", "words"
    proto.metadata_props.add(key="classes", value="a,b,c")
    proto.graph.node[0].doc_string = "first"
    slim_proto, _ = slimmed(proto, tmp_path, {0: [1]})
    for message in (proto, slim_proto):
        for tensor in message.graph.initializer:
            tensor.ClearField("dims")
            tensor.ClearField("raw_data")
    assert text_format.MessageToString(slim_proto) == text_format.MessageToString(proto)


def test_layers_in_functions_are_slimmed_once_inlined(tmp_path):
    path = tmp_path / "f.onnx"
    path.write_bytes(with_function().SerializeToString())
    model = read_model(path)
    _, groups = layers_of(model)
    path.write_bytes(zero(model, groups[:2]).SerializeToString())
    found = slim(read_model(path), runtime=ONE)
    assert weights(found.proto) == [(2, 3, 1, 1)]
    assert (found.facts.left, found.facts.reason) == (2, "")


def test_a_fixed_batch_stays_fixed(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    flat = b.op("Reshape", x, b.const(np.array([2, 256], np.int64)))
    b.op("Gemm", flat, b.weight(256, 3), b.weight(3))
    proto, facts = slimmed(b.model([2, 3, 8, 8], "scores", [2, 3]), tmp_path, {0: [3]})
    assert facts.left == 1
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_counts_of_channels_are_folded_before_channels_leave(tmp_path):
    b = Builder(13)
    x = b.op("Relu", b.conv("x", 3, 8))
    channels = b.op("Gather", b.op("Shape", x), b.const(np.array([1], np.int64)))
    half = b.op("Div", channels, b.const(np.array([2], np.int64)))
    axis, zero_ = b.const(np.array([1], np.int64)), b.const(np.array([0], np.int64))
    y, z = b.op("Slice", x, zero_, half, axis), b.op("Slice", x, half, channels, axis)
    proto, facts = slimmed(classifier(b, b.op("Mul", y, b.op("Sigmoid", z)), 4), tmp_path, {0: [1, 5, 6]})
    # Dead are 1 with its gate 5; 6 is a gate that is half open.
    assert weights(proto) == [(6, 3, 3, 3)]
    assert facts.left == 2


def test_groups_of_group_normalization_leave_whole(tmp_path):
    b = Builder(21, ir=10)
    x = b.op("GroupNormalization", b.conv("x", 3, 8), b.weight(8), b.weight(8), num_groups=4)
    y = b.op("Conv", b.op("Relu", x), b.weight(4, 8, 1, 1))
    proto, facts = slimmed(classifier(b, y, 4), tmp_path, {0: [2, 3, 4]})
    assert weights(proto) == [(6, 3, 3, 3), (4, 6, 1, 1)]
    norm = next(n for n in proto.graph.node if n.op_type == "GroupNormalization")
    assert next(a.i for a in norm.attribute if a.name == "num_groups") == 3
    assert (facts.dead, facts.left) == (3, 2)


def test_groups_that_are_normalised_leave_whole(tmp_path):
    b = Builder(13)
    x = b.conv("x", 3, 8)
    parts = b.op("Reshape", x, b.const(np.array([0, 4, -1], np.int64)))
    ones, none = b.const(np.ones(4, np.float32)), b.const(np.zeros(4, np.float32))
    y = b.op("Reshape", b.op("InstanceNormalization", parts, ones, none), b.op("Shape", x))
    y = b.op("Relu", b.op("Add", b.op("Mul", y, b.weight(8, 1, 1)), b.weight(8, 1, 1)))
    proto, facts = slimmed(classifier(b, b.op("Conv", y, b.weight(4, 8, 1, 1)), 4), tmp_path, {0: [2, 3, 4]})
    assert weights(proto) == [(6, 3, 3, 3), (4, 6, 1, 1)]
    assert (facts.dead, facts.left) == (3, 2)


def test_a_target_computed_from_a_shape_stands_in_no_ones_way(tmp_path):
    b = Builder(13)
    x = b.op("Transpose", b.op("Relu", b.conv("x", 3, 4)), perm=[0, 2, 3, 1])
    moved = b.op("Gather", b.op("Shape", x), b.const(np.array([0, 3, 1, 2])))
    first = b.op(
        "Slice", b.op("Cast", moved, to=TensorProto.INT32), *(b.const(np.array([v], np.int32)) for v in (0, 1))
    )
    target = b.op("Cast", b.op("Concat", first, b.const(np.array([256], np.int32)), axis=0), to=TensorProto.INT64)
    b.op("Gemm", b.op("Reshape", x, target), b.weight(256, 3), b.weight(3))
    proto, facts = slimmed(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path, {0: [1]})
    assert weights(proto, "Gemm") == [(192, 3)]
    assert "Shape" not in {node.op_type for node in proto.graph.node}
    assert facts.left == 1


def test_an_open_image_size_needs_a_convention(tmp_path):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    model = zeroed(classifier(b, b.conv(x, 4, 4), 4, shape=("n", 3, "h", "w")), tmp_path, {0: [1]})
    with pytest.raises(ModelError, match="leaves its size open"):
        slim(model, runtime=ONE)
    images = np.random.default_rng(0).random((5, 3, 8, 8), np.float32)
    spec = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), range=(0.0, 1.0))
    facts = slim(model, spec=spec, images=images, runtime=ONE).facts
    assert (facts.left, facts.images, facts.reason) == (1, 5, "")
    assert facts.difference < 1e-6


def test_quantised_weights_are_cut_with_their_scales(tmp_path):
    b = Builder(13)
    whole = b.rng.integers(-9, 9, (6, 3, 3, 3)).astype(np.int8)
    whole[[1, 4]] = 0
    scale = b.const((b.rng.random(6) + 0.1).astype(np.float32))
    weight = b.op("DequantizeLinear", b.const(whole), scale, b.const(np.zeros(6, np.int8)), axis=0)
    x = b.op("Relu", b.op("Conv", "x", weight, pads=[1, 1, 1, 1]))
    proto, facts = slimmed(classifier(b, b.conv(x, 6, 4), 4), tmp_path, {})
    shapes = {tuple(t.dims) for t in proto.graph.initializer}
    assert (4, 3, 3, 3) in shapes and (4, 4, 3, 3) in shapes
    assert facts.after.size < facts.before.size


def test_channels_that_are_padding_leave_by_less_of_it(tmp_path):
    b = Builder(13)
    x = b.conv("x", 3, 4)
    wide = b.op("Pad", x, b.const(np.array([0, 1, 0, 0, 0, 3, 0, 0], np.int64)))
    y = b.conv("x", 3, 8)
    proto, facts = slimmed(classifier(b, b.op("Add", wide, y), 8), tmp_path, {0: [0], 1: [0, 1, 6]})
    assert weights(proto) == [(3, 3, 3, 3), (5, 3, 3, 3)]
    assert facts.left == 4


def test_a_difference_leaves_the_model_as_it_was(tmp_path, monkeypatch):
    module = sys.modules[slim.__module__]
    right = module.edited

    def wrong(*arguments):
        result = right(*arguments)
        bias = next(t for t in result.graph.initializer if len(t.dims) == 1)
        bias.raw_data = (numpy_helper.to_array(bias) + np.float32(0.01)).tobytes()
        return result

    monkeypatch.setattr(module, "edited", wrong)
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 4))
    model = zeroed(classifier(b, b.conv(x, 4, 4), 4), tmp_path, {0: [1]})
    found = slim(model, runtime=ONE)
    assert "differ" in found.facts.reason
    assert found.proto.SerializeToString() == model.proto.SerializeToString()
    assert (found.facts.left, found.facts.before) == (0, found.facts.after)


def test_what_a_subgraph_reads_stays(tmp_path):
    b = Builder(13)
    x = b.op("Relu", b.conv("x", 3, 4))
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, [x], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, op in (("then_branch", "Sigmoid"), ("else_branch", "Tanh"))
    }
    total = b.op("ReduceSum", "x", keepdims=0)
    y = b.op("If", b.op("Greater", total, b.const(np.float32(0))), **branches)
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.weight(4, 3), b.weight(3))
    _, facts = slimmed(b.model(["n", 3, 8, 8], "scores", ["n", 3]), tmp_path, {0: [1]})
    assert facts.left == 0


def test_a_large_model_is_run_from_a_file_and_slimmed_the_same(tmp_path, monkeypatch):
    b = Builder()
    x = b.op("Relu", b.conv("x", 3, 6))
    proto = classifier(b, b.conv(x, 6, 4), 4)
    small, _ = slimmed(proto, tmp_path, {0: [1, 2]})
    monkeypatch.setattr("debride.graph.lend._MOST", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    large, facts = slimmed(proto, tmp_path, {0: [1, 2]})
    assert large.SerializeToString() == small.SerializeToString()
    assert (facts.left, facts.reason) == (2, "")
    assert list((tmp_path / "scratch").iterdir()) == []
