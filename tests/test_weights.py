"""Which constants of a model can be trained, and which cannot and why."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from debride.graph.read import read_model
from debride.graph.weights import statistics, trainable
from graph_models import VENDOR, Builder, with_function
from trainable_models import MADE, SAMPLE, dense, end, net, plain, read


def found(model, scores=None):
    """{name: (role, layer)} and [(layer, reason)]."""
    weights, refused = trainable(model, scores)
    assert all(w.shape == model.graph.constants[w.name].shape for w in weights)
    return {w.name: (w.role, w.layer) for w in weights}, [(r.layer, r.reason) for r in refused]


def test_of_the_sample_and_of_the_vendors_models_all_weights_train():
    for path in (SAMPLE, *sorted(VENDOR.glob("*.onnx"))):
        model = read_model(path)
        weights, refused = found(model, model.graph.outputs[0].name)
        layers = [n for n in model.graph.nodes if n.op in ("Conv", "Gemm", "MatMul")]
        assert not refused and layers
        assert sum(role == "weight" for role, _ in weights.values()) == len(layers), path
        # The mean and deviation of the images are nobody's weights.
        assert not weights.keys() & {"0.mean", "0.std"}
        norms = statistics(model)
        assert len(norms) == sum(n.op == "BatchNormalization" for n in model.graph.nodes)
        assert not weights.keys() & {name for norm in norms for name in (norm.mean, norm.variance)}


ROLES = {
    "norm": "weight bias scale shift weight bias",
    "constant nodes": "weight bias scale shift weight bias",
    "identity": "weight bias scale shift weight bias",
    "ir 3": "weight bias scale shift weight bias",
    "matmul": "weight bias weight bias",
    "matmul of transposed": "weight bias weight bias",
    "tied": "weight weight bias",
    "nhwc, batch 1": "weight bias weight bias weight bias",
    "decomposed": "weight bias scale shift scale shift weight scale shift weight bias",
}


@pytest.mark.parametrize("what", MADE)
def test_roles_in_the_order_of_the_layers(what):
    weights, refused = trainable(read(MADE[what]()))
    assert " ".join(w.role for w in weights) == ROLES[what]
    assert not refused


def test_a_transposed_weight_trains_as_it_is_stored():
    model = read(dense("transpose"))
    weights, _ = trainable(model)
    assert [w.shape for w in weights] == [(4, 192), (4,), (3, 4), (3,)]
    assert {w.layer for w in weights} == {n.name for n in model.graph.nodes if n.op == "MatMul"}


def test_statistics_are_named_with_the_tensor_that_they_are_of():
    proto = plain()
    proto.graph.node[1].attribute.append(helper.make_attribute("epsilon", 0.25))
    (norm,) = statistics(read(proto))
    node = proto.graph.node[1]
    assert (norm.node, norm.data, norm.epsilon) == (node.name, node.input[0], 0.25)
    assert (norm.mean, norm.variance) == tuple(node.input[3:])


@pytest.mark.parametrize("change", ["shared", "one for both", "output", "training", "per activation"])
def test_statistics_that_others_read_or_that_are_none_are_left_out(change):
    b = Builder(opset={"training": 15, "per activation": 8}.get(change, 13))
    y = b.bn(b.conv("x", 3, 4), 4)
    norm = b.nodes[-1]
    ends = []
    if change == "shared":
        y = b.op("BatchNormalization", y, b.weight(4), b.weight(4), *norm.input[3:])
    elif change == "one for both":
        norm.input[4] = norm.input[3] = b.const(np.full(4, 0.5, np.float32))
    elif change == "per activation":
        norm.attribute.append(helper.make_attribute("spatial", 0))
    elif change == "output":
        ends = [helper.make_tensor_value_info(norm.input[4], 1, [4])]
    else:
        norm.attribute.append(helper.make_attribute("training_mode", 1))
        norm.output.extend(["m", "v"])
    end(b, b.op("Relu", y), 4)
    model = read(net(b, outputs=ends))
    assert statistics(model) == ()
    if change == "training":
        assert found(model)[1] == [(norm.name, "it normalises by the images at hand")]


def quantised(b):
    to = b.const(np.arange(4 * 3 * 9, dtype=np.int8).reshape(4, 3, 3, 3))
    zero_point = b.const(np.int8(0))
    weight = b.op("DequantizeLinear", to, b.const(np.float32(0.01)), zero_point)
    return b.op("Conv", "x", weight, pads=[1, 1, 1, 1])


def computed(b):
    weight = b.weight(4, 3, 3, 3)
    return b.op("Conv", "x", b.op("Mul", weight, b.const(np.float32(0.5))), pads=[1, 1, 1, 1])


def two_purposes(b):
    weight = b.weight(4, 3, 1, 1)
    y = b.op("Conv", "x", weight)
    return b.op("Add", y, b.op("ReduceSum", weight, keepdims=0))


def two_roles(b):
    both = b.weight(4)
    return b.op(
        "BatchNormalization", b.conv("x", 3, 4, bias=False), both, both, b.weight(4), b.const(np.ones(4, np.float32))
    )


def laid_out_for_two(b):
    weight = b.op("Transpose", b.weight(3, 3, 1, 1), perm=[1, 0, 2, 3])
    y = b.op("Conv", b.op("Conv", "x", weight), weight)
    return b.op("Conv", y, b.weight(4, 3, 1, 1))


def from_the_image(b):
    weight = b.op("Reshape", b.op("GlobalAveragePool", "x"), b.const(np.array([3, 1, 1, 1], np.int64)))
    return b.conv(b.op("Conv", "x", weight, group=3), 3, 4)


def common_bias(b):
    flat = b.op("Flatten", "x")
    hidden = b.op("Relu", b.op("Gemm", flat, b.weight(192, 4), b.const(np.zeros(1, np.float32))))
    return b.op("Reshape", hidden, b.const(np.array([0, 4, 1, 1], np.int64)))


def vector(b):
    y = b.op("MatMul", b.op("Flatten", "x"), b.weight(192))
    y = b.op("Gemm", b.op("Reshape", y, b.const(np.array([-1, 1], np.int64))), b.weight(1, 4), b.weight(4))
    return b.op("Reshape", y, b.const(np.array([0, 4, 1, 1], np.int64)))


REFUSED = {
    "vector": (vector, "MatMul", "its weight is a vector"),
    "quantised": (quantised, "Conv", "its weight is computed in the graph, by DequantizeLinear"),
    "computed": (computed, "Conv", "its weight is computed in the graph"),
    "two purposes": (two_purposes, "Conv", "its weight serves another purpose too"),
    "two roles": (two_roles, "BatchNormalization", "one constant is both scale and shift"),
    "laid out for two": (laid_out_for_two, "Conv", "its weight is laid out once for several readers"),
    "from the image": (from_the_image, "Conv", "its weight depends on the model's input"),
    "common bias": (common_bias, "Gemm", "its bias is one number for all channels"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_reason(what):
    build, op, reason = REFUSED[what]
    b = Builder(11)
    end(b, build(b), 4)
    proto = net(b, batch=1 if what == "from the image" else "n")
    model = read(proto)
    weights, refused = found(model)
    assert {r for _, r in refused} == {reason}
    assert {next(n.op for n in model.graph.nodes if n.name == layer) for layer, _ in refused} == {op}
    stored = {t.name for t in proto.graph.initializer}
    assert weights.keys() < stored


def test_a_weight_that_is_an_output_of_the_graph_serves_another_purpose():
    b = Builder()
    y = b.conv("x", 3, 4)
    weight = b.nodes[-1].input[1]
    end(b, y, 4)
    model = read(net(b, outputs=[helper.make_tensor_value_info(weight, 1, [4, 3, 3, 3])]))
    assert found(model)[1] == [("n_t3", "its weight serves another purpose too")]


def test_a_weight_that_a_branch_reads_too_serves_another_purpose():
    b = Builder()
    y = b.conv("x", 3, 4)
    weight = b.nodes[-1].input[1]

    def branch(op, name):
        out = helper.make_tensor_value_info(name, 1, None)
        return helper.make_graph([helper.make_node(op, [weight], [name])], name, [], [out])

    total = b.op("ReduceSum", y, keepdims=0)
    asks = b.op("Greater", total, b.const(np.float32(0)))
    either = b.op("If", asks, then_branch=branch("Identity", "a"), else_branch=branch("Neg", "b"))
    end(b, b.op("Mul", y, b.op("ReduceMax", either, keepdims=0)), 4)
    assert "its weight serves another purpose too" in [reason for _, reason in found(read(net(b)))[1]]


def test_layers_in_functions_train_where_the_file_stores_their_weights_in_its_main_graph():
    proto = with_function()  # the weight is given to the function
    assert [r for r, _ in found(read(proto))[0].values()] == ["weight", "weight", "bias"]
    weight = proto.functions[0].node.add()
    value = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32))
    weight.CopyFrom(helper.make_node("Constant", [], ["own"], value=value))
    nodes = [weight, *[n for n in proto.functions[0].node if n.op_type != "Constant"]]
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    nodes[1].input[1] = "own"
    del proto.functions[0].node[:]
    proto.functions[0].node.extend(nodes)
    weights, refused = found(read(proto))
    assert [r for r, _ in weights.values()] == ["weight", "bias"]
    assert [r for _, r in refused] == ["its weight lies inside a function"]


def test_a_layer_in_a_branch_that_is_always_taken_cannot_be_written_back():
    b = Builder(13)
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "inner")

    def branch(op, inputs, name, constants):
        out = helper.make_tensor_value_info(name, 1, None)
        return helper.make_graph([helper.make_node(op, inputs, [name])], name, [], [out], constants)

    then = branch("Conv", ["x", "inner"], "a", [weight])
    other = branch("Identity", ["x"], "b", [])
    y = b.op("If", b.const(np.array(True)), then_branch=then, else_branch=other)
    end(b, y, 4)
    model = read(net(b))
    assert model.graph.nodes[0].op == "Conv"
    assert [r for _, r in found(model)[1]] == ["its weight lies inside a branch"]
    block = helper.make_function(
        "local", "Id", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], model.proto.opset_import
    )
    proto = onnx.ModelProto.FromString(model.proto.SerializeToString())
    proto.functions.append(block)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    assert [r for _, r in found(read(proto))[1]] == ["its weight lies inside a branch"]


def test_input_normalisation_and_the_constants_of_activations_are_no_weights():
    b = Builder()
    deviation = b.op("Sqrt", b.const(np.full((3, 1, 1), 0.1, np.float32)))
    x = b.op("Div", b.op("Sub", "x", b.weight(3, 1, 1)), deviation)
    x = b.op("Add", b.op("Mul", x, b.weight(3, 1, 1)), b.weight(3, 1, 1))
    y = b.conv(x, 3, 4)
    gate = b.op("Clip", b.op("Add", y, b.const(np.float32(3))), b.const(np.float32(0)), b.const(np.float32(6)))
    y = b.conv(b.op("Mul", b.op("Div", gate, b.const(np.float32(6))), y), 4, 1)
    y = b.op("HardSigmoid", b.op("Add", y, b.const(np.full((1, 1, 1), 3, np.float32))))
    end(b, b.conv(y, 1, 4), 4)
    model = read(net(b))
    weights, refused = trainable(model)
    assert " ".join(w.role for w in weights) == "weight bias weight bias weight bias weight bias"
    assert not refused


def test_a_number_behind_a_normalisation_is_no_scale():
    b = Builder()
    y = b.conv("x", 3, 4)
    centred = b.op("Sub", y, b.op("ReduceMean", y, axes=[1]))
    y = b.op("Div", centred, b.op("Sqrt", b.op("ReduceMean", b.op("Mul", centred, centred), axes=[1])))
    end(b, b.op("Add", b.op("Mul", y, b.const(np.array([2], np.float32))), b.weight(4, 1, 1)), 4)
    assert [r for r, _ in found(read(net(b)))[0].values()] == ["weight", "bias", "weight", "bias"]


def test_what_a_node_with_graphs_reads_inside_may_come_from_the_image():
    b = Builder()
    y = b.conv("x", 3, 4)

    def branch(op, name):
        out = helper.make_tensor_value_info(name, 1, None)
        return helper.make_graph([helper.make_node(op, [y], [name])], name, [], [out])

    chance = b.op("Squeeze", b.op("RandomUniform", shape=[1]))
    asks = b.op("Less", chance, b.const(np.float32(2)))
    end(b, b.op("If", asks, then_branch=branch("Relu", "a"), else_branch=branch("Neg", "b")), 4)
    assert [r for r, _ in found(read(net(b)))[0].values()] == ["weight", "bias", "weight", "bias"]


def test_products_of_two_activations_are_no_layers():
    b = Builder()
    y = b.op("Flatten", b.conv("x", 3, 4), axis=2)
    b.op("MatMul", y, b.op("Transpose", y, perm=[1, 0]))
    b.op("Gemm", b.nodes[-1].output[0], b.weight(4, 3), b.weight(3))
    proto = b.model([1, 3, 8, 8], "scores", [4, 3])
    assert [r for r, _ in found(read(proto))[0].values()] == ["weight", "bias", "weight", "bias"]


@pytest.mark.parametrize("change", ["other numbers", "another shape", "another type"])
def test_a_constant_that_the_file_has_otherwise_is_not_written_back(change):
    proto = plain()
    proto.graph.node[0].name = ""  # the working copy names it
    model = read(proto)
    assert model.rewritten is not None
    bias = proto.graph.initializer[1]
    array = numpy_helper.to_array(bias)
    other = {"other numbers": array + 1, "another shape": array[:, None], "another type": array.astype(np.float64)}
    bias.CopyFrom(numpy_helper.from_array(other[change], bias.name))
    weights, refused = found(replace(model, proto=proto))
    assert bias.name in found(model)[0] and bias.name not in weights
    assert refused == [("Conv:t3", "its bias is not what the file stores under its name")]
    assert len(weights) == len(found(model)[0]) - 1


def test_with_the_scores_named_only_what_makes_them_is_trained():
    b = Builder()
    y = b.conv("x", 3, 4)
    side = b.op("GlobalAveragePool", b.bn(b.conv(y, 4, 2), 2))
    end(b, y, 4)
    model = read(net(b, outputs=[helper.make_tensor_value_info(side, 1, ["n", 2, 1, 1])]))
    assert len(trainable(model)[0]) == 8 and len(statistics(model)) == 1
    assert len(trainable(model, "scores")[0]) == 4 and not statistics(model, "scores")
