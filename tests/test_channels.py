"""Channel groups: what is a player, what is not and why, and which slices make it."""

import numpy as np
import pytest
from onnx import helper

from debride.graph.channels import find_groups
from debride.graph.parse import parse
from debride.graph.read import read_model
from debride.types import Slice
from graph_models import VENDOR, Builder


def head(b, x, c):
    return b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.weight(c, 3), b.weight(3))


def found(b, shape=("n", 3, 8, 8), scores="scores", **kwargs):
    graph = parse(b.model(list(shape), "scores", ["n", 3], **kwargs))
    groups, refused = find_groups(graph, scores)
    return graph, groups, {r.layer: r.reason for r in refused}


def test_each_output_channel_of_a_convolution_is_one_player():
    b = Builder()
    y = b.conv("x", 3, 4)
    head(b, b.op("Relu", y), 4)
    graph, groups, refused = found(b)
    conv, gemm = graph.nodes[0].name, graph.nodes[-1].name
    assert [(g.layer, g.channel, g.edge, g.axis) for g in groups] == [(conv, c, y, 1) for c in range(4)]
    assert groups[2].slices == (
        Slice(node=conv, position=1, axis=0, indices=(2,)),
        Slice(node=conv, position=2, axis=0, indices=(2,)),
    )
    assert refused == {gemm: "makes the class scores"}


@pytest.mark.parametrize("listed", [False, True])
def test_a_batch_normalisation_that_alone_reads_the_layer_goes_with_it(listed):
    b = Builder()
    z = b.bn(b.conv("x", 3, 4, bias=False), 4)
    head(b, b.op("Relu", z), 4)
    graph, groups, _ = found(b, listed=listed)
    norm = graph.nodes[1].name
    assert groups[1].edge == z
    assert groups[1].slices[1:] == (
        Slice(node=norm, position=1, axis=0, indices=(1,)),
        Slice(node=norm, position=2, axis=0, indices=(1,)),
    )


def test_a_batch_normalisation_of_a_tensor_that_others_read_stays_apart():
    b = Builder()
    y = b.conv("x", 3, 4)
    head(b, b.op("Add", b.bn(y, 4), y), 4)
    _, groups, _ = found(b)
    assert {g.edge for g in groups} == {y} and all(len(g.slices) == 2 for g in groups)


def test_a_normalisation_written_as_mul_and_add_goes_with_the_layer():
    b = Builder()
    z = b.op("Add", b.op("Mul", b.conv("x", 3, 4), b.weight(4, 1, 1)), b.weight(1, 4, 1, 1))
    head(b, b.op("Relu", z), 4)
    graph, groups, _ = found(b)
    assert {g.edge for g in groups} == {z}
    assert groups[3].slices[-1] == Slice(node=graph.nodes[2].name, position=1, axis=1, indices=(3,))


def test_a_scale_without_a_shift_leaves_the_edge_where_it_is():
    b = Builder()
    y = b.conv("x", 3, 4)
    head(b, b.op("Mul", y, b.weight(4, 1, 1)), 4)
    assert {g.edge for g in found(b)[1]} == {y}


def test_a_shift_that_is_one_number_for_all_channels_is_not_taken_in():
    b = Builder()
    y = b.conv("x", 3, 4)
    head(b, b.op("Add", y, b.const(np.float32(0.5))), 4)
    assert {g.edge for g in found(b)[1]} == {y}


def test_depthwise_and_grouped_convolutions_have_one_player_per_output_channel():
    b = Builder()
    y = b.conv(b.conv("x", 3, 6, group=3), 6, 6, group=6)
    head(b, y, 6)
    _, groups, _ = found(b)
    assert len(groups) == 12 and {s.axis for g in groups for s in g.slices} == {0}


def test_transposed_convolutions_are_sliced_along_their_second_axis_or_by_group():
    b = Builder()
    plain = b.op("ConvTranspose", "x", b.weight(3, 4, 2, 2), b.weight(4))
    deep = b.op("ConvTranspose", plain, b.weight(4, 1, 2, 2), group=2)
    wide = b.op("ConvTranspose", deep, b.weight(2, 3, 2, 2), group=2)
    head(b, wide, 6)
    _, groups, refused = found(b)
    assert [g.edge for g in groups] == [plain] * 4 + [deep] * 2
    assert groups[1].slices[0].axis == 1 and groups[1].slices[0].indices == (1,)
    assert groups[5].slices[0].axis == 0 and groups[5].slices[0].indices == (2, 3)
    assert "a grouped ConvTranspose has no slice of its weight per channel" in refused.values()


@pytest.mark.parametrize(("trans", "shape", "axis"), [(0, (192, 5), 1), (1, (5, 192), 0)])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5)])
def test_gemm_players_are_sliced_along_the_output_axis(trans, shape, axis, bias):
    b = Builder()
    extra = [b.weight(*bias)] if bias else []
    y = b.op("Gemm", b.op("Flatten", "x"), b.weight(*shape), *extra, transB=trans)
    b.op("Gemm", b.op("Relu", y), b.weight(5, 3))
    graph, groups, _ = found(b)
    gemm = graph.nodes[1].name
    expected = [Slice(node=gemm, position=1, axis=axis, indices=(4,))]
    if bias:
        expected.append(Slice(node=gemm, position=2, axis=len(bias) - 1, indices=(4,)))
    assert len(groups) == 5 and groups[4].slices == tuple(expected) and groups[4].axis == 1


def test_a_bias_shared_by_all_channels_makes_a_layer_no_player():
    b = Builder()
    y = b.op("Gemm", b.op("Flatten", "x"), b.weight(192, 5), b.const(np.ones(1, np.float32)))
    b.op("Gemm", y, b.weight(5, 3))
    _, groups, refused = found(b)
    assert not groups and "its bias is one number for all channels" in refused.values()


def test_matmul_with_the_following_bias_is_one_layer():
    b = Builder()
    y = b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 5))
    z = b.op("Add", b.weight(5), y)
    b.op("Add", b.op("MatMul", b.op("Relu", z), b.weight(5, 3)), b.weight(3))
    graph, groups, _ = found(b)
    assert [(g.edge, g.axis) for g in groups] == [(z, 1)] * 5
    assert groups[0].slices == (
        Slice(node=graph.nodes[1].name, position=1, axis=1, indices=(0,)),
        Slice(node=graph.nodes[2].name, position=0, axis=0, indices=(0,)),
    )


def test_matmul_on_a_tensor_of_unknown_rank_has_its_channels_last():
    b = Builder(18)
    shape = b.op("Concat", b.op("Shape", "x", start=0, end=1), b.const(np.array([192])), axis=0)
    b.op("MatMul", b.op("MatMul", b.op("Reshape", "x", shape), b.weight(192, 5)), b.weight(5, 3))
    _, groups, _ = found(b)
    assert len(groups) == 5 and {g.axis for g in groups} == {-1}


def test_weights_through_identity_and_transpose_are_found_where_they_are_read():
    b = Builder(store="transpose")
    y = b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 5))
    b.op("MatMul", y, b.weight(5, 3))
    graph, groups, _ = found(b)
    turn = next(n for n in graph.nodes if n.op == "Transpose")
    assert groups[3].slices == (Slice(node=turn.name, position=0, axis=0, indices=(3,)),)


def test_a_computed_weight_makes_a_layer_no_player():
    b = Builder()
    base = b.weight(4, 3, 3, 3)
    y = b.op("Conv", "x", b.op("Mul", base, b.const(np.float32(2))))
    twice = b.op("Identity", b.weight(4, 4, 1, 1))
    y = b.op("Conv", b.op("Conv", y, twice), twice)
    head(b, y, 4)
    _, groups, refused = found(b)
    assert not groups
    assert list(refused.values())[:3] == [
        "its weight is computed by Mul",
        "its weight is computed once for several readers",
        "its weight is computed once for several readers",
    ]


def test_quantised_weights_make_a_layer_no_player():
    b = Builder()
    weight = b.op("DequantizeLinear", b.const(np.ones((4, 3, 3, 3), np.int8)), b.const(np.float32(0.1)))
    head(b, b.op("Conv", "x", weight), 4)
    assert "its weight is computed by DequantizeLinear" in found(b)[2].values()


def test_every_layer_that_makes_the_scores_is_refused_and_layers_beside_the_way_too():
    b = Builder()
    y = b.conv("x", 3, 4)
    one = b.op("GlobalAveragePool", b.conv(b.op("Relu", y), 4, 3))
    two = b.op("GlobalAveragePool", b.conv(y, 4, 3))
    side = b.conv(y, 4, 2)
    b.op("Softmax", b.op("Flatten", b.op("Add", one, two)), axis=1)
    _, groups, refused = found(b, outputs=[helper.make_tensor_value_info(side, 1, ["n", 2, 8, 8])])
    assert {g.edge for g in groups} == {y}
    assert sorted(refused.values()) == [
        "makes the class scores",
        "makes the class scores",
        "not on the way to the class scores",
    ]


def test_a_product_of_two_activations_is_no_layer_and_hides_none():
    b = Builder()
    y = b.conv("x", 3, 4)
    flat = b.op("Flatten", b.op("GlobalAveragePool", y))
    hidden = b.op("Gemm", flat, b.weight(4, 3))
    b.op("MatMul", hidden, b.op("MatMul", b.op("Transpose", hidden), hidden))
    _, groups, refused = found(b)
    assert {g.edge for g in groups} == {y} and list(refused.values()) == ["makes the class scores"]


def test_deep_residual_nets_are_searched_in_linear_time():
    b = Builder()
    y = b.conv("x", 3, 2)
    for _ in range(1500):
        y = b.op("Add", y, b.op("Relu", y))
    head(b, y, 2)
    assert len(found(b)[1]) == 2


EXPECTED = {
    "cifar-wrn-grid5": 560,
    "gtsrb-resnet-patch": 560,
    "gtsrb-resnet-clean": 560,
    "gtsrb-vgg-blend": 464,
    "cifar-badnet-white1": 560,
    "mnist-badnet-white1": 560,
    "cifar-features-clean": 252,
    "cifar-nhwc-small": 216,
    "cifar-resnet-2b": 188,
}


@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
@pytest.mark.parametrize(("name", "players"), EXPECTED.items())
def test_vendor_models_have_the_players_counted_by_hand(name, players):
    graph = read_model(VENDOR / f"{name}.onnx").graph
    groups, refused = find_groups(graph, graph.outputs[0].name)
    assert len(groups) == players
    assert [r.reason for r in refused] == ["makes the class scores"]


def test_slices_name_constants_of_the_graph():
    b = Builder(store="constant")
    head(b, b.bn(b.conv("x", 3, 4), 4), 4)
    graph, groups, _ = found(b)
    nodes = {n.name: n for n in graph.nodes}
    for piece in (s for g in groups for s in g.slices):
        array = graph.constants[nodes[piece.node].inputs[piece.position]]
        assert max(piece.indices) < array.shape[piece.axis]
