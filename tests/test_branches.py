"""`If` nodes that shapes or constants decide: resolved alike for whoever runs the graph; all others are left."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from architectures import network, shape_of
from debride.errors import UnsupportedOpError
from debride.graph.branches import resolved
from debride.graph.channels import find_groups
from debride.graph.hollow import LARGE
from debride.graph.read import read_model
from debride.graph.surgery import check_written, editable, working_zero, zero
from debride.proxy.interpreter import Proxy
from exports import export
from graph_models import Builder, assert_close, images, run
from zoo_checks import Subject


def node(op, inputs, output, **attributes):
    return helper.make_node(op, list(inputs), [output], **attributes)


def branch(nodes, output="out", initializers=(), name="branch"):
    ends = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
    return helper.make_graph(list(nodes), name, [], ends, list(initializers))


def fork(b, condition, then, other):
    return b.op("If", condition, then_branch=then, else_branch=other)


def finished(b, y, batch="n", width=192):
    b.op("Gemm", b.op("Flatten", y), b.weight(width, 3))
    return b.model([batch, 3, 8, 8], "scores", [batch, 3])


def dimension(b, tensor, axis):
    return b.op("Gather", b.op("Shape", tensor), b.const(np.int64(axis)), axis=0)


def simple(then="Relu", other="Neg"):
    return branch([node(then, ["x"], "t1x")], "t1x"), branch([node(other, ["x"], "t2x")], "t2x")


def counts(b, axis, op, number):
    return b.op(op, dimension(b, "x", axis), b.const(np.int64(number)))


def arithmetic(b):
    sizes = b.op("Slice", b.op("Shape", "x"), b.const(np.array([2])), b.const(np.array([4])))
    area = b.op("ReduceProd", sizes, keepdims=0, axes=[0])
    half = b.op("Div", b.op("Mul", area, b.const(np.int64(3))), b.const(np.int64(2)))
    return b.op("Greater", b.op("Cast", half, to=TensorProto.FLOAT), b.const(np.float32(95.5)))


def logic(b):
    one, other = counts(b, 1, "Equal", 3), b.op("Not", counts(b, 2, "Less", 8))
    return b.op("And", b.op("Or", one, b.const(np.array(False))), other)


def picked_after_the_batch(b):
    """The batch goes along through all of it, and is left out at the end."""
    sizes = b.op("Add", b.op("Concat", b.op("Shape", "x"), b.const(np.array([5])), axis=0), b.const(np.array([1])))
    last = b.op("Gather", b.op("Unsqueeze", sizes, b.const(np.array([0]))), b.const(np.array([3, 4])), axis=1)
    return b.op("Equal", b.op("ReduceSum", last, keepdims=0), b.const(np.int64(15)))


DECIDED = {
    "constant": lambda b: b.const(np.array(True)),
    "equal": lambda b: counts(b, 1, "Equal", 3),
    "greater": lambda b: counts(b, 3, "Greater", 7),
    "arithmetic": arithmetic,
    "logic": logic,
    "after the batch": picked_after_the_batch,
}


@pytest.mark.parametrize("truth", [True, False])
@pytest.mark.parametrize("store", ["initializer", "constant"])
@pytest.mark.parametrize("case", DECIDED)
def test_the_branch_that_onnxruntime_takes_takes_the_place_of_the_if(case, store, truth, tmp_path):
    b = Builder(13, store=store)
    condition = DECIDED[case](b)
    condition = condition if truth else b.op("Not", condition)
    proto = finished(b, fork(b, condition, *simple()))
    model = read(proto, tmp_path)
    assert [n.op for n in model.graph.nodes] == ["Relu" if truth else "Neg", "Flatten", "Gemm"]
    assert model.proto == proto
    same(model)


def read(proto, folder):
    onnx.checker.check_model(proto)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return read_model(folder / "m.onnx")


def same(model):
    onnx.checker.check_model(model.working)
    feed = images(model)
    expected = run(model.proto, feed)[0]
    np.testing.assert_array_equal(run(model.working, feed)[0], expected)
    assert expected.std() > 0.01


def over_the_batch(b):
    return b.op("Equal", dimension(b, "x", 0), b.const(np.int64(1)))


def over_the_number_of_pixels(b):
    return b.op("Greater", b.op("Size", "x"), b.const(np.int64(192)))


def over_the_images(b):
    return b.op("Greater", b.op("ReduceMax", "x", keepdims=0), b.const(np.float32(0.5)))


def over_the_product_of_all_sizes(b):
    return b.op("Less", b.op("ReduceProd", b.op("Shape", "x"), keepdims=0), b.const(np.int64(193)))


@pytest.mark.parametrize(
    "case", [over_the_batch, over_the_number_of_pixels, over_the_images, over_the_product_of_all_sizes]
)
def test_a_condition_that_an_image_or_an_open_batch_decides_stays(case, tmp_path):
    b = Builder(13)
    proto = finished(b, fork(b, case(b), *simple()))
    assert resolved(proto) is proto
    model = read(proto, tmp_path)
    assert "If" in [n.op for n in model.graph.nodes]
    with pytest.raises(UnsupportedOpError, match="operator If"):
        Subject(proto, tmp_path).parity()


@pytest.mark.parametrize(
    "bounds, decided", [({"start": 1, "end": 2}, True), ({"start": -3}, True), ({"end": 2}, False)]
)
def test_shapes_may_be_asked_for_in_part(bounds, decided):
    b = Builder(17)
    largest = b.op("ReduceMax", b.op("Shape", "x", **bounds), keepdims=0)
    proto = finished(b, fork(b, b.op("Less", largest, b.const(np.int64(9))), *simple()))
    assert (resolved(proto) is not proto) == decided


def test_a_fixed_batch_decides_and_is_freed_then(tmp_path):
    b = Builder(13)
    model = read(finished(b, fork(b, over_the_batch(b), *simple()), batch=1), tmp_path)
    assert model.graph.inputs[0].shape[0] is None and model.graph.nodes[0].op == "Relu"
    feed = images(model)
    single = [run(model.proto, {"x": feed["x"][i : i + 1]})[0] for i in range(3)]
    assert_close(run(model.working, feed)[0], np.concatenate(single))


def test_what_the_file_claims_of_shapes_in_between_is_not_believed(tmp_path):
    """onnxruntime runs what is so; a file that claims otherwise would show debride another model than it runs."""
    b = Builder(13)
    y = b.op(
        "Reshape",
        "x",
        b.op(
            "Cast",
            b.op(
                "Mul",
                b.op("Cast", b.const(np.array([-1, 192])), to=1),
                b.op(
                    "Add",
                    b.op("Mul", b.op("ReduceMax", "x", keepdims=0), b.const(np.float32(0))),
                    b.const(np.float32(1)),
                ),
            ),
            to=7,
        ),
    )
    condition = b.op("Equal", dimension(b, y, 1), b.const(np.int64(7)))
    proto = finished(b, fork(b, condition, *simple()))
    proto.graph.value_info.append(helper.make_tensor_value_info(y, TensorProto.FLOAT, ["n", 7]))
    assert resolved(proto) is proto


def test_loops_stay_and_one_that_would_run_for_ever_is_not_run():
    b = Builder(13)
    body = helper.make_graph(
        [node("Identity", ["on"], "still"), node("Identity", ["s"], "s2")],
        "body",
        [helper.make_tensor_value_info(n, t, []) for n, t in (("i", 7), ("on", 9), ("s", 9))],
        [helper.make_tensor_value_info(n, 9, []) for n in ("still", "s2")],
    )
    condition = b.op("Loop", b.const(np.int64(10**12)), b.const(np.array(True)), b.const(np.array(True)), body=body)
    proto = finished(b, fork(b, condition, *simple()), batch=1)
    onnx.checker.check_model(proto)
    assert resolved(proto) is proto


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Tile", "Range", "Mul"])
def test_a_number_that_would_fill_the_memory_is_not_computed(op):
    b = Builder(13)
    huge = b.const(np.int64(10**12))
    if op == "Range":
        y = b.op("Range", b.const(np.int64(0)), huge, b.const(np.int64(1)))
    elif op == "ConstantOfShape":
        y = b.op("ConstantOfShape", b.const(np.array([10**12])))
    elif op == "Mul":
        y = b.op("Mul", b.const(np.arange(16000)[:, None]), b.const(np.arange(16000)))
        y = b.op("Reshape", y, b.const(np.array([-1])))
    else:
        y = b.op(op, b.const(np.array([1])), b.const(np.array([10**12])))
    condition = b.op("Equal", b.op("ReduceMax", y, keepdims=0), b.const(np.int64(1)))
    proto = finished(b, fork(b, condition, *simple()))
    assert resolved(proto) is proto


def test_the_last_reshape_may_have_an_open_target():
    b = Builder(13)
    y = fork(b, over_the_images(b), *simple())
    b.op("Reshape", y, b.op("Concat", dimension_of_one(b), b.const(np.array([-1])), axis=0))
    proto = b.model(["n", 3, 8, 8], "scores", ["n", 192])
    assert resolved(proto) is proto


def dimension_of_one(b):
    return b.op("Gather", b.op("Shape", "x"), b.const(np.array([0])), axis=0)


@pytest.mark.parametrize("outer", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_nested_ifs_are_resolved_to_the_last(outer, inner, tmp_path):
    b = Builder(13)
    flag = b.const(np.array(inner))
    deep = [branch([node(op, ["y"], "z")], "z") for op in ("Relu", "Neg")]
    within = [node("Sigmoid", ["x"], "y"), node("If", [flag], "out", then_branch=deep[0], else_branch=deep[1])]
    others = [node("Tanh", ["x"], "y"), node("If", ["own"], "out", then_branch=deep[0], else_branch=deep[1])]
    own = numpy_helper.from_array(np.array(not inner), "own")
    b.nodes.append(node("Identity", ["x"], "y0"))
    y = fork(b, counts(b, 1, "Equal", 3 if outer else 4), branch(within), branch(others, initializers=[own]))
    model = read(finished(b, b.op("Add", y, "y0")), tmp_path)
    expected = [("Sigmoid", "Relu" if inner else "Neg"), ("Tanh", "Neg" if inner else "Relu")][not outer]
    assert tuple(n.op for n in model.graph.nodes if n.op != "Identity")[:2] == expected
    same(model)


def test_an_undecided_if_within_a_decided_one_moves_up_and_stays(tmp_path):
    b = Builder(13)
    hot = over_the_images(b)
    deep = [branch([node(op, ["y"], "z")], "z") for op in ("Relu", "Neg")]
    within = [node("Sigmoid", ["x"], "y"), node("If", [hot], "out", then_branch=deep[0], else_branch=deep[1])]
    proto = finished(b, fork(b, b.const(np.array(True)), branch(within), simple()[1]))
    model = read(proto, tmp_path)
    assert [n.op for n in model.graph.nodes] == ["ReduceMax", "Greater", "Sigmoid", "If", "Flatten", "Gemm"]
    same(model)


def test_names_that_clash_are_made_anew(tmp_path):
    """Two branches use the same names for nodes, tensors and weights, and one of these a node of the main graph."""
    b = Builder(13)
    y = "x"
    for scale in (2.0, 0.5):
        weight = numpy_helper.from_array(np.full((3, 1, 1), scale, np.float32), "w")
        nodes = [
            node("Mul", [y, "w"], "t", name="n"),
            node(
                "If",
                ["yes"],
                "u",
                name="n2",
                then_branch=branch([node("Abs", ["t"], "deep")], "deep"),
                else_branch=branch([node("Neg", ["t"], "deep")], "deep"),
            ),
            node("Add", ["u", "w"], "out", name="n3"),
        ]
        yes = numpy_helper.from_array(np.array(True), "yes")
        y = fork(b, counts(b, 1, "Equal", 3), branch(nodes, initializers=[weight, yes]), simple()[1])
    b.nodes.append(node("Relu", [y], "after", name="n"))
    proto = finished(b, "after")
    model = read(proto, tmp_path)
    assert [n.op for n in model.graph.nodes] == ["Mul", "Abs", "Add", "Mul", "Abs", "Add", "Relu", "Flatten", "Gemm"]
    assert [n.name for n in model.graph.nodes if n.op == "Relu"] == ["n"]
    assert len({n.name for n in model.graph.nodes}) == 9
    same(model)


def test_outputs_may_be_given_twice_or_be_weights():
    b = Builder(13)
    weight = numpy_helper.from_array(np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("v", "v", "w", "v2")]
    chosen = helper.make_graph([node("Relu", ["x"], "v"), node("Identity", ["x"], "v2")], "g", [], ends, [weight])
    names = [f"e{i}" for i in range(4)]
    flag = b.const(np.array(True), "constant")
    b.nodes.append(helper.make_node("If", [flag], names, name="fork", then_branch=chosen, else_branch=chosen))
    y = b.op("Sum", *names)
    b.op("Flatten", y)
    found = resolved(b.model(["n", 3, 8, 8], "scores", ["n", 192]))
    onnx.checker.check_model(found)
    assert "If" not in [n.op_type for n in found.graph.node]
    x = np.random.default_rng(0).random((2, 3, 8, 8), dtype=np.float32)
    expected = 3 * x + np.arange(3, dtype=np.float32).reshape(3, 1, 1)
    assert_close(run(found, {"x": x})[0], expected.reshape(2, 192))  # onnxruntime takes no branch of these forms itself


def test_what_fed_the_condition_or_the_other_branch_alone_is_gone(tmp_path):
    b = Builder(13)
    other = b.conv("x", 3, 3)
    both = b.op("Tanh", "x")
    condition = b.op("Equal", dimension(b, both, 1), b.const(np.int64(3)))
    y = fork(b, condition, branch([node("Relu", [both], "r")], "r"), branch([node("Relu", [other], "r")], "r"))
    model = read(finished(b, y), tmp_path)
    assert [n.op for n in model.graph.nodes] == ["Tanh", "Relu", "Flatten", "Gemm"]
    assert len(model.working.graph.initializer) == 1
    same(model)


def pruned(model, layers):
    groups, _ = find_groups(model.graph, "scores")
    chosen = [g for g in groups if g.layer in layers][::2]
    assert chosen
    before, after = editable(model, chosen), zero(model, chosen)
    check_written(before, after, chosen)
    onnx.checker.check_model(after)
    feed = images(model)
    found = run(after, feed)[0]
    assert_close(found, run(working_zero(model, chosen), feed)[0])
    assert np.abs(found - run(model.proto, feed)[0]).max() > 1e-3
    return before, after


def convolutions(large=False):
    """A convolution before an If, one in its chosen branch, its weights there too; and a Conv of the other's name."""
    width = 64 if large else 4
    b = Builder(13)
    y = b.op("Relu", b.conv("x", 3, width))
    rng = np.random.default_rng(5)
    weight = numpy_helper.from_array(rng.normal(size=(width, width, 3, 3)).astype(np.float32) / width, "inner")
    nodes = [node("Conv", [y, "inner"], "c", name="within", pads=[1, 1, 1, 1]), node("Relu", ["c"], "out")]
    y = fork(
        b, counts(b, 1, "Equal", 3), branch(nodes, initializers=[weight]), branch([node("Neg", [y], "neg")], "neg")
    )
    y = b.op("Relu", b.conv(y, width, 4))
    return finished(b, y, width=256)


@pytest.mark.parametrize("large", [False, True])
def test_layers_around_an_if_are_zeroed_in_the_delivered_graph_and_those_within_in_the_resolved(large, tmp_path):
    proto = convolutions(large)
    weights = [t for a in proto.graph.node[5].attribute for t in a.g.initializer]
    assert [np.prod(t.dims) >= LARGE for t in weights] == [large]
    model = read(proto, tmp_path)
    same(model)
    names = [n.name for n in model.graph.nodes if n.op == "Conv"]
    assert names[1] == "within"
    before, after = pruned(model, (names[0], names[2]))
    assert before is model.proto and "If" in [n.op_type for n in after.graph.node]
    before, after = pruned(model, names)
    assert [n.op_type for n in before.graph.node].count("Conv") == 3
    assert "If" not in [n.op_type for n in after.graph.node]


@pytest.mark.parametrize("opset", [11, 13, 17])
@pytest.mark.parametrize("batch", ["dynamic", "fixed"])
def test_the_squeezes_of_pytorchs_older_exporter_are_plain_nodes(opset, batch, tmp_path):
    module = network("alexnet_lrn")
    proto = export(module, shape_of("alexnet_lrn"), exporter="torchscript", opset=opset, batch=batch)
    assert "If" in [n.op_type for n in proto.graph.node]
    subject = Subject(proto, tmp_path)
    assert "If" not in [n.op for n in subject.model.graph.nodes]
    assert subject.parity() < 1e-5
    assert subject.refused == ()
    chosen = subject.chosen()
    assert editable(subject.model, chosen) is subject.model.proto
    assert subject.masked_difference(chosen) < 1e-5
    with torch.no_grad():
        expected = module(torch.from_numpy(subject.images)).numpy()
    found = Proxy(subject.model.graph, subject.spec).scores(torch.from_numpy(subject.images)).detach().numpy()
    assert_close(found, expected)
