"""Slimming graphs that mislead: sizes and numbers that one run shows and another changes, odd spellings, edges."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from debride.graph.read import read_model
from debride.slimming import slim
from debride.types import InputSpec
from graph_models import Builder, run
from test_slimming import ONE, classifier, reasons, slimmed, weights

SMALL = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), range=(0.0, 1.0))


def ints(b, *values):
    return b.const(np.array(values, np.int64))


def layer(b, x, cin, cout, dead=(), *, bias=None):
    """A padded 3x3 convolution whose filters `dead` are zero; their biases are those of the mapping `bias`, or zero."""
    weight = (b.rng.standard_normal((cout, cin, 3, 3)) * 0.3).astype(np.float32)
    shift = b.rng.standard_normal(cout).astype(np.float32)
    weight[list(dead)] = shift[list(dead)] = 0
    for channel, value in (bias or {}).items():
        shift[channel] = value
    return b.op("Conv", x, b.const(weight), b.const(shift), pads=[1, 1, 1, 1])


def pointwise(b, x, cin, cout):
    return b.op("Conv", x, b.weight(cout, cin, 1, 1), b.weight(cout))


def assert_same(old, new, batch=3, size=8):
    """Equal outputs on noise in 0..1, around zero, and in 0..255."""
    for low, high in ((0, 1), (-3, 3), (0, 255)):
        x = np.random.default_rng(batch).uniform(low, high, (batch, 3, size, size)).astype(np.float32)
        for before, after in zip(run(old, {"x": x}), run(new, {"x": x}), strict=True):
            np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * max(1, np.abs(before).max()))


def laid_out(b, kind, x, batch):
    """(tensor, its channels): `x` (N, 6, H, W), changed as numbers say that are computed from its H and W."""
    sides = b.op("Slice", b.op("Shape", x), ints(b, 2), ints(b, 4))
    whole = b.op("Concat", batch, ints(b, 6), sides, axis=0)
    if kind == "Expand":
        return b.op("Concat", x, b.op("Expand", b.op("GlobalAveragePool", x), whole), axis=1), 12
    if kind == "Resize":
        half = b.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        return b.op("Concat", x, b.op("Resize", half, "", "", whole, mode="nearest"), axis=1), 12
    if kind == "Slice":
        ends = b.op("Concat", ints(b, 5), b.op("Sub", sides, ints(b, 1, 1)), axis=0)
        return b.op("Slice", x, ints(b, 0, 0, 0), ends, ints(b, 1, 2, 3)), 5
    if kind == "Pad":
        more = b.op("Sub", sides, ints(b, 3, 3))
        return b.op("Pad", x, b.op("Concat", ints(b, 0, 2, 0, 0, 0, 0), more, axis=0)), 8
    if kind == "Tile":
        means = b.op("GlobalAveragePool", x)
        return b.op("Concat", x, b.op("Tile", means, b.op("Concat", ints(b, 1, 1), sides, axis=0)), axis=1), 12
    area = b.op("ReduceProd", sides, axes=[0], keepdims=1)
    return b.op("Reshape", x, b.op("Concat", batch, ints(b, 6), area, ints(b, 1), axis=0)), 6


@pytest.mark.parametrize("batch", [1, "n"])
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("Expand", "repeated as a computed shape says"),
        ("Resize", "scaled to a computed size"),
        ("Slice", "cut at computed bounds"),
        ("Pad", "padded by"),
        ("Tile", "repeated as often as computed"),
        ("Reshape", "laid out by a computed shape"),
    ],
)
def test_a_size_computed_from_the_image_holds_for_images_of_another_size(tmp_path, kind, reason, batch):
    b = Builder(13)
    x = b.op("Relu", layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 6, [1, 4]))
    count = ints(b, 1) if batch == 1 else b.op("Slice", b.op("Shape", x), ints(b, 0), ints(b, 1))
    y, channels = laid_out(b, kind, x, count)
    y = b.op("Relu", pointwise(b, y, channels, 5))
    proto = classifier(b, y, 5, shape=(batch, 3, "h", "w"))
    slim_proto, facts = slimmed(proto, tmp_path, {}, spec=SMALL)
    assert_same(proto, slim_proto, 1 if batch == 1 else 4, 12)
    assert weights(slim_proto)[:2] == [(4, 3, 3, 3), (6, 4, 3, 3)]
    assert facts.left == 1
    assert all(text.startswith(reason) for text in reasons(facts))


@pytest.mark.parametrize("kind", ["a quarter", "more than five", "all but one by five"])
def test_a_number_that_small_batches_share_is_not_taken_for_one_of_every_batch(tmp_path, kind):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 6, [1, 4]))
    count = b.op("Slice", b.op("Shape", x), ints(b, 0), ints(b, 1))
    if kind == "a quarter":
        number = b.op("Div", count, ints(b, 4))
    elif kind == "more than five":
        number = b.op("Cast", b.op("Greater", count, ints(b, 5)), to=TensorProto.INT64)
    else:
        number = b.op("Div", b.op("Sub", count, ints(b, 1)), ints(b, 5))
    y = b.op("Add", b.op("Relu", b.conv(x, 6, 5)), b.op("Cast", number, to=TensorProto.FLOAT))
    proto = classifier(b, y, 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 2
    for batch in (4, 6, 11):
        assert_same(proto, slim_proto, batch)


@pytest.mark.parametrize("by", ["value", "count"])
def test_a_shape_that_the_image_decides_holds_what_hangs_on_it(tmp_path, by):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 6, [1, 4]))
    bright = b.op("Greater", b.op("ReduceMax", "x", keepdims=1), b.const(np.full((1, 1, 1, 1), 2, np.float32)))
    if by == "value":
        one = b.op("Cast", b.op("Reshape", bright, ints(b, 1)), to=TensorProto.INT64)
    else:
        places = b.op("Transpose", b.op("NonZero", bright))
        one = b.op("Slice", b.op("Shape", places), ints(b, 0), ints(b, 1))
    high = b.op("Add", b.op("Mul", one, ints(b, 8)), ints(b, 8))  # 16 where an image is bright, else 8
    target = b.op("Concat", ints(b, -1, 6), high, b.op("Div", ints(b, 64), high), axis=0)
    y = b.op("Relu", layer(b, b.op("Reshape", x, target), 6, 5, [2]))
    proto = classifier(b, b.op("Concat", b.op("GlobalMaxPool", y), b.op("GlobalMaxPool", b.conv(x, 6, 4)), axis=1), 9)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    for batch in (1, 3):
        assert_same(proto, slim_proto, batch)
    assert (facts.dead, facts.left) == (3, 0)
    why = {(r.channel, r.reason.split(" ('")[0]) for r in facts.stayed}
    assert why == {
        (1, "laid out by a computed shape"),
        (4, "laid out by a computed shape"),
        (2, "of a size that the image decides"),
    }


@pytest.mark.parametrize("form", ["convolution", "product"])
def test_a_bias_listed_as_floats_takes_constants(tmp_path, form):
    b = Builder(13)
    x = b.op("Sigmoid", layer(b, "x", 3, 6, [1, 4]))
    bias = b.name("c")
    b.nodes.append(helper.make_node("Constant", [], [bias], value_floats=[0.1, 0.2, 0.3, 0.4]))
    if form == "convolution":
        proto = classifier(b, b.op("Relu", b.op("Conv", x, b.weight(4, 6, 1, 1), bias)), 4)
    else:
        flat = b.op("Flatten", b.op("GlobalAveragePool", x))
        hidden = b.op("Relu", b.op("Add", b.op("MatMul", flat, b.weight(6, 4)), bias))
        b.op("Gemm", hidden, b.weight(4, 3), b.weight(3))
        proto = b.model(["n", 3, 8, 8], "scores", ["n", 3])
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 2
    assert_same(proto, slim_proto)


def test_a_batch_normalization_with_numbers_for_every_place_holds_its_channels(tmp_path):
    b = Builder(7)
    x = b.op("Relu", layer(b, "x", 3, 4, [1]))
    places = [b.const((b.rng.random((4, 8, 8)) + 0.5).astype(np.float32)) for _ in range(4)]
    proto = classifier(b, b.op("BatchNormalization", x, *places, spatial=0), 4)
    _, facts = slimmed(proto, tmp_path, {})
    assert (facts.dead, facts.left) == (1, 0)
    assert "read in several ways" in facts.stayed[0].reason


@pytest.mark.parametrize("reader", ["Concat", "Reshape", "nobody"])
def test_tensors_without_elements_stop_nothing_but_what_they_join(tmp_path, reader):
    b = Builder(14)
    x = b.op("Relu", layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 4, [1]))
    empty = b.op("Slice", x, ints(b, 0), ints(b, 0), ints(b, 1 if reader == "nobody" else 2))
    if reader == "Concat":
        y = b.op("Relu", b.op("Concat", x, empty, axis=2))
    elif reader == "Reshape":
        moved = b.op("Transpose", empty, perm=[2, 0, 1, 3])
        bare = b.op("Reshape", moved, ints(b, 2, 4, 0), allowzero=1)
        y = b.op("Add", x, b.op("ReduceSum", bare, ints(b, 0, 1, 2), keepdims=0))
    else:
        y = x
    proto = classifier(b, y, 4)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == (2 if reader == "nobody" else 1)
    assert weights(slim_proto)[0] == (4, 3, 3, 3)
    assert_same(proto, slim_proto)


def test_numbers_of_a_type_that_numpy_lacks_are_no_hindrance(tmp_path):
    b = Builder(13)
    x = b.op("Relu", layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 6, [1, 4]))
    short = b.op("Cast", x, to=TensorProto.BFLOAT16)
    proto = classifier(b, b.op("Relu", b.conv(b.op("Cast", short, to=TensorProto.FLOAT), 6, 5)), 5)
    slim_proto, _ = slimmed(proto, tmp_path, {})
    assert weights(slim_proto)[0] == (4, 3, 3, 3)
    assert_same(proto, slim_proto)


def test_a_grouped_convolution_that_nobody_reads_holds_nothing(tmp_path):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 8, [1, 2, 5]))
    b.conv(x, 8, 8, group=2)
    proto, facts = slimmed(classifier(b, b.op("Relu", b.conv(x, 8, 5)), 5), tmp_path, {})
    assert facts.left == 3
    assert weights(proto) == [(5, 3, 3, 3), (5, 5, 3, 3)]


def _branches(b, tensor):
    """An If that reads `tensor` from outside in both branches."""
    ends = {
        name: helper.make_graph(
            [helper.make_node(op, [tensor], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    bright = b.op("Greater", b.op("ReduceMax", "x", keepdims=0), b.const(np.float32(0.5)))
    return b.op("If", bright, **ends)


def _rounds(b, tensor, start):
    """A Loop that adds `tensor` from outside to `start` three times."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["sum", tensor], ["more"])],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("sum", TensorProto.FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("more", TensorProto.FLOAT, None)],
    )
    return b.op("Loop", b.const(np.array(3, np.int64)), "", start, body=body)


@pytest.mark.parametrize("op", ["If", "Loop"])
def test_a_layer_that_only_a_subgraph_reads_loses_its_inputs_and_keeps_its_outputs(tmp_path, op):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 6, [1, 4]))
    inner = b.conv(x, 6, 5)
    y = _branches(b, inner) if op == "If" else _rounds(b, inner, b.conv("x", 3, 5))
    proto = classifier(b, b.op("Concat", y, b.op("Relu", b.conv(x, 6, 4)), axis=1), 9)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 2
    assert {(4, 3, 3, 3), (5, 4, 3, 3), (4, 4, 3, 3)} <= set(weights(slim_proto))
    assert_same(proto, slim_proto)


@pytest.mark.parametrize(("op", "bias"), [("Sigmoid", -12.0), ("Silu", -9.0)])
def test_a_constant_too_small_to_carry_others_does_not(tmp_path, op, bias):
    b = Builder(13)
    made = layer(b, "x", 3, 6, [1, 4], bias={1: bias, 4: 1.0})
    x = b.op("Mul", made, b.op("Sigmoid", made)) if op == "Silu" else b.op("Sigmoid", made)
    alone = b.op("Slice", x, ints(b, 1), ints(b, 2), ints(b, 1))  # channel 1 stays, as it is read here
    y = b.op("Add", b.op("Relu", b.conv(x, 6, 5)), b.op("ReduceMax", alone, axes=[1]))
    proto = classifier(b, y, 5)
    slim_proto, _ = slimmed(proto, tmp_path, {})
    assert weights(slim_proto)[:2] == [(6, 3, 3, 3), (5, 6, 3, 3)]


@pytest.mark.parametrize("op", ["InstanceNormalization", "GroupNormalization"])
@pytest.mark.parametrize(("constant", "left"), [(0.0, 2), (0.7, 0)])
def test_only_zero_is_its_own_mean_for_sure(tmp_path, op, constant, left):
    b = Builder(21, ir=10)
    x = layer(b, "x", 3, 8, [2, 3], bias={2: constant, 3: constant})
    more = {"num_groups": 4} if op == "GroupNormalization" else {}
    x = b.op(op, x, b.weight(8), b.weight(8), **more)
    proto = classifier(b, b.op("Relu", pointwise(b, x, 8, 5)), 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.channels == left
    assert weights(slim_proto)[0] == (8 - left, 3, 3, 3)
    assert_same(proto, slim_proto, 1)


@pytest.mark.parametrize(("start", "end", "step"), [(-1, -3, -2), (7, 100, 3), (-1, 6, -1)])
def test_a_slice_of_one_channel_in_steps_holds_all(tmp_path, start, end, step):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 8, [1, 2]))
    last = b.op("Slice", x, *(ints(b, v) for v in (start, end, 1, step)))
    proto = classifier(b, b.op("Mul", last, x), 8)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert {text.split(" '")[0] for text in reasons(facts)} == {"cut in steps by"}
    assert_same(proto, slim_proto)


def test_an_output_of_words_is_compared_as_such(tmp_path):
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 4, [1]))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.weight(4, 3), b.weight(3))
    b.nodes[-1].output[0] = "scores"
    b.initializers.append(helper.make_tensor("words", TensorProto.STRING, [3], [b"cat", b"dog", b"owl"]))
    b.op("Gather", "words", b.op("ArgMax", "scores", axis=1, keepdims=0))
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])
    proto = b.model(["n", 3, 8, 8], "word", ["n"], outputs=[scores], check=False)
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    path = tmp_path / "words.onnx"
    path.write_bytes(proto.SerializeToString())
    found = slim(read_model(path), runtime=ONE)
    assert (found.facts.left, found.facts.reason) == (1, "")
    rng = np.random.default_rng(0)
    feeds = {"x": (9 * rng.standard_normal((20, 3, 1, 1)) * np.ones((1, 1, 8, 8))).astype(np.float32)}
    old, new = run(proto, feeds), run(found.proto, feeds)
    assert old[0].tolist() == new[0].tolist()
    assert len(set(old[0])) > 1


@pytest.mark.parametrize(("op", "factor"), [("Ceil", 10), ("Floor", 30), ("Round", 15), ("Round", 25)])
def test_a_constant_at_an_edge_of_rounding_is_not_known(tmp_path, op, factor):
    b = Builder(13)
    made = layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 6, [1, 4], bias={1: 0.1, 4: 0.1})
    x = b.op(op, b.op("Mul", made, b.const(np.float32(factor))))
    proto = classifier(b, b.op("Relu", pointwise(b, x, 6, 5)), 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert (facts.left, facts.channels) == (1, 1)
    assert weights(slim_proto)[:2] == [(4, 3, 3, 3), (6, 4, 3, 3)]


@pytest.mark.parametrize(("steps", "left"), [(100.5, 1), (253.5, 1), (20.3, 3)])
def test_a_quantised_constant_between_two_steps_is_not_known(tmp_path, steps, left):
    b = Builder(13)
    x = b.op("Sigmoid", layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 6, [1, 4]))
    ends = b.const(np.float32(0.5 / steps)), b.const(np.uint8(0))
    x = b.op("DequantizeLinear", b.op("QuantizeLinear", x, *ends), *ends)
    _, facts = slimmed(classifier(b, b.op("Relu", pointwise(b, x, 6, 5)), 5), tmp_path, {})
    assert facts.left == left


@pytest.mark.parametrize("mode", ["reflect", "edge"])
def test_what_is_the_same_everywhere_stays_so_beside_its_mirror(tmp_path, mode):
    b = Builder(13)
    x = b.op("Sigmoid", layer(b, "x", 3, 6, [1, 4]))
    padded = b.op("Pad", x, ints(b, 0, 0, 1, 1, 0, 0, 1, 1), mode=mode)
    y = b.op("Conv", padded, b.weight(5, 6, 3, 3), b.weight(5))
    proto = classifier(b, b.op("Relu", y), 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 2
    assert weights(slim_proto) == [(4, 3, 3, 3), (5, 4, 3, 3)]
    mixed = Builder(13)
    x = layer(mixed, "x", 3, 6, [1, 4])
    turned = mixed.op("Pad", x, ints(mixed, 0, 1, 0, 0, 0, 2, 0, 0), mode=mode)
    proto = classifier(mixed, mixed.op("Relu", mixed.conv(turned, 9, 5)), 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 0
