"""Trained values go back into the delivered file, pruned entries stay zero, and nothing else changes."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import exports
from architectures import network, shape_of
from debride.errors import SurgeryError
from debride.graph.hollow import LARGE
from debride.graph.read import read_model
from debride.graph.surgery import write_model, zero
from debride.graph.trained import check_trained, working_written, written
from debride.graph.weights import silent, statistics, trainable
from debride.proxy.runner import GraphRunner
from graph_models import VENDOR, Builder, assert_close, classifiers, images, run, with_function
from random_graphs import graphs
from trainable_models import MADE, SAMPLE, dense, end, groups_of, net, plain, read

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
EXPORTED = {
    "mobilenet_v2": ("torchscript", 17),
    "preact_resnet": ("torchscript", 11),
    "vit": ("dynamo", 18),
    "tied": ("dynamo", 20),
    "poolformer": ("torchscript", 17),
}


def pruned(model, count=3, seed=2):
    """`model` with some of its groups zeroed, read anew, and these groups."""
    groups = groups_of(model)
    gone = [groups[p] for p in np.random.default_rng(seed).permutation(len(groups))[:count]]
    return read(zero(model, gone)), gone


def drawn(model, seed=1):
    """New values for all that `model` can train, and for its running statistics; zeros stay where they must."""
    rng, still = np.random.default_rng(seed), silent(model.graph, groups_of(model))
    arrays = {}
    for weight in trainable(model)[0]:
        old = model.graph.constants[weight.name].astype(np.float32)
        spread = 0.5 * max(0.05, float(np.abs(old).mean()))
        new = (old + spread * rng.standard_normal(old.shape)).astype(np.float32)
        arrays[weight.name] = np.where(still.get(weight.name, False), np.float32(0), new)
    for norm in statistics(model):
        for name in (norm.mean, norm.variance):
            old = model.graph.constants[name]
            arrays[name] = (old * rng.uniform(0.8, 1.2, old.shape)).astype(old.dtype)
    return arrays, still


def by_proxy(model, arrays, x):
    """The scores of the torch proxy with `arrays` in its buffers."""
    runner = GraphRunner(model.graph)
    with torch.no_grad():
        for name, array in arrays.items():
            runner.tensors[name].copy_(torch.from_numpy(array))
        scores = model.graph.outputs[0].name
        feeds = {name: torch.from_numpy(value) for name, value in x.items()}
        return runner.run(feeds, [scores])[scores].numpy()


def with_data_of(after, before, names):
    """`after` with the tensors `names` as `before` stores them: what is left must be `before`, byte for byte."""
    restored = onnx.ModelProto.FromString(after.SerializeToString())
    old = {t.name: t for t in before.graph.initializer}
    for tensor in restored.graph.initializer:
        if tensor.name in names:
            tensor.CopyFrom(old[tensor.name])
    for node, was in zip(restored.graph.node, before.graph.node, strict=True):
        if node.op_type == "Constant" and node.output[0] in names:
            node.CopyFrom(was)
    return restored


def check_round_trip(model, path):
    """Trained by random, written, read: onnxruntime computes what the proxy does, and nothing else has changed."""
    arrays, still = drawn(model)
    delivered = model.proto.SerializeToString(deterministic=True)
    after = written(model, arrays)
    assert model.proto.SerializeToString(deterministic=True) == delivered
    check_trained(model.proto, after, arrays, still)
    write_model(after, path)
    again = read_model(path)
    assert with_data_of(again.proto, model.proto, arrays).SerializeToString(deterministic=True) == delivered
    for name, array in arrays.items():
        np.testing.assert_array_equal(again.graph.constants[name], array)
    x, scores = images(model), model.graph.outputs[0].name
    found = run(again.working, x, [scores])[0]
    assert_close(found, by_proxy(model, arrays, x))
    np.testing.assert_array_equal(run(working_written(model, arrays), x, [scores])[0], found)
    before = run(model.working, x, [scores])[0]
    # Ten times what counts as close, even for scores behind a softmax that random images saturate.
    assert np.abs(found - before).max() > 1e-4 * max(1.0, float(np.abs(before).max()))
    return arrays


@pytest.mark.parametrize("what", MADE)
def test_trained_values_come_back_from_the_file(tmp_path, what):
    model = read(MADE[what]())
    check_round_trip(model, tmp_path / "whole.onnx")
    check_round_trip(pruned(model)[0], tmp_path / "pruned.onnx")


@pytest.mark.parametrize("name", EXPORTED)
def test_exported_networks_come_back_too(tmp_path, name):
    exporter, opset = EXPORTED[name]
    proto = exports.export(network(name), shape_of(name), exporter=exporter, opset=opset)
    check_round_trip(pruned(read(proto))[0], tmp_path / "m.onnx")


@pytest.mark.parametrize("what", [*MADE, *EXPORTED])
def test_every_weight_has_a_gradient_in_the_proxy(what):
    if what in MADE:
        model = read(MADE[what]())
    else:
        exporter, opset = EXPORTED[what]
        model = read(exports.export(network(what), shape_of(what), exporter=exporter, opset=opset))
    runner, scores = GraphRunner(model.graph), model.graph.outputs[0].name
    tensors = {w.name: runner.tensors[w.name].requires_grad_() for w in trainable(model, scores)[0]}
    feeds = {name: torch.from_numpy(value) for name, value in images(model).items()}
    made = runner.run(feeds, [scores])[scores]
    (made * torch.randn(made.shape, generator=torch.manual_seed(0))).sum().backward()
    assert tensors and all(t.grad is not None and bool(t.grad.any()) for t in tensors.values())


@pytest.mark.vendor
@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout")
def test_vendor_models_come_back_too(tmp_path):
    for path in sorted(VENDOR.glob("*.onnx")):
        arrays = check_round_trip(pruned(read_model(path), 9)[0], tmp_path / path.name)
        assert len(arrays) >= 8


def test_the_sample_comes_back_too(tmp_path):
    check_round_trip(pruned(read_model(SAMPLE), 9)[0], tmp_path / "m.onnx")


def test_a_weight_given_to_a_function_is_written_and_the_function_stays(tmp_path):
    model = read(with_function())
    assert model.proto.functions
    check_round_trip(model, tmp_path / "m.onnx")


@QUICK
@given(proto=classifiers())
def test_in_plain_classifiers_everything_trains(proto):
    weights, refused = trainable(read(proto))
    stored = {t.name: t for t in proto.graph.initializer}
    stored.update({n.output[0]: n.attribute[0].t for n in proto.graph.node if n.op_type == "Constant"})
    floats = {name for name, t in stored.items() if t.data_type == TensorProto.FLOAT}
    norms = [n for n in proto.graph.node if n.op_type == "BatchNormalization"]
    scaled = {n.input[1] for n in proto.graph.node if n.op_type == "Mul"}
    assert not refused
    assert {w.name for w in weights} == floats - {name for n in norms for name in n.input[3:]} - scaled


@QUICK
@given(proto=st.one_of(classifiers(), graphs()), data=st.data())
def test_pruned_channels_are_zero_in_the_trained_network(proto, data):
    model = read(proto)
    groups = groups_of(model)
    assume(groups)
    gone = [groups[p] for p in sorted(data.draw(st.sets(st.integers(0, len(groups) - 1), min_size=1, max_size=5)))]
    model = read(zero(model, gone))
    arrays, still = drawn(model)
    check_trained(model.proto, written(model, arrays), arrays, still)
    after = working_written(model, arrays)
    edges = sorted({group.edge for group in gone} - {value.name for value in after.graph.output})
    after.graph.output.extend(helper.make_empty_tensor_value_info(edge) for edge in edges)
    x, names = images(model, 1 if model.bound else 2), [value.name for value in after.graph.output]
    values = dict(zip(names, run(after, x, names), strict=True))
    for group in gone:
        assert not np.take(values[group.edge], group.channel, axis=group.axis).any(), group
    assert_close(by_proxy(model, arrays, x), values["scores"])


def test_only_what_is_zero_as_a_whole_stays_silent():
    model = read(plain())
    assert silent(model.graph, groups_of(model)) == {}
    groups = groups_of(model)
    assert {g.layer for g in groups} == {"n_t3"}
    cut = read(zero(model, [groups[2]]))
    still = silent(cut.graph, groups_of(cut))
    conv, norm = cut.graph.nodes[0], cut.graph.nodes[1]
    assert set(still) == {*conv.inputs[1:], *norm.inputs[1:3]}
    for name, mask in still.items():
        assert mask.shape == cut.graph.constants[name].shape
        assert mask[2].all() and mask.sum() * 4 == mask.size
    # A kernel of zeros whose bias is not zero is no dead channel.
    array = numpy_helper.to_array(model.proto.graph.initializer[0]).copy()
    array[1] = 0
    other = onnx.ModelProto.FromString(model.proto.SerializeToString())
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, other.graph.initializer[0].name))
    other = read(other)
    assert silent(other.graph, groups_of(other)) == {}


def test_a_transposed_weight_is_silent_in_its_own_shape():
    model = read(dense("transpose"))
    cut = read(zero(model, [groups_of(model)[1]]))
    still = silent(cut.graph, groups_of(cut))
    assert sorted(mask.shape for mask in still.values()) == [(4,), (4, 192)]
    for mask in still.values():
        assert mask[1].all() and mask.sum() * 4 == mask.size


def test_groups_of_another_graph_are_refused():
    other = Builder()
    other.count = 40
    end(other, other.conv("x", 3, 9), 9)
    with pytest.raises(SurgeryError, match="find the groups on this model"):
        silent(read(plain()).graph, groups_of(read(net(other))))


@pytest.mark.parametrize("kind", ["FLOAT16", "DOUBLE", "BFLOAT16"])
@pytest.mark.parametrize("raw", [True, False])
def test_values_are_rounded_to_the_type_that_the_file_has(tmp_path, kind, raw):
    to = getattr(TensorProto, kind)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(to))
    b = Builder(13)
    values = b.rng.standard_normal((192, 4)).astype(dtype)
    typed = helper.make_tensor("w", to, [192, 4], values.ravel().tolist())
    b.initializers.append(numpy_helper.from_array(values, "w") if raw else typed)
    y = b.op("MatMul", b.op("Flatten", b.op("Cast", "x", to=to)), "w")
    b.op("MatMul", b.op("Cast", y, to=1), b.weight(4, 3))
    model = read(net(b))
    assert trainable(model)[0][0].name == "w"
    new = b.rng.standard_normal((192, 4))
    after = written(model, {"w": new})
    check_trained(model.proto, after, ["w"], {})
    stored = after.graph.initializer[0]
    assert stored.data_type == to and not any((stored.float_data, stored.int32_data, stored.double_data))
    assert numpy_helper.to_array(stored).tobytes() == new.astype(dtype).tobytes()
    write_model(after, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx").graph.constants["w"].dtype == dtype


def test_what_keeps_its_bits_is_stored_as_it_was():
    proto = plain()
    for tensor in proto.graph.initializer:
        values = numpy_helper.to_array(tensor).reshape(-1).tolist()
        tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))
    model = read(proto)
    same = {w.name: model.graph.constants[w.name] for w in trainable(model)[0]}
    assert written(model, same).SerializeToString() == model.proto.SerializeToString()
    assert written(model, {}).SerializeToString() == model.proto.SerializeToString()
    name = proto.graph.initializer[0].name
    after = written(model, {**same, name: same[name] + 1})
    assert after.graph.initializer[0].raw_data and not after.graph.initializer[0].float_data
    assert after.graph.initializer[1] == proto.graph.initializer[1]


def test_arrays_in_another_memory_order_are_written_in_their_shape():
    model = read(dense())
    name = trainable(model)[0][0].name
    array = np.asfortranarray(model.graph.constants[name] + np.float32(1))
    assert not array.flags.c_contiguous
    after = written(model, {name: array})
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.initializer[0]), array)


def test_large_weights_are_written_and_small_ones_beside_them(tmp_path):
    b = Builder()
    hidden = b.op("Relu", b.op("Gemm", b.op("Flatten", "x"), b.weight(192, 128), b.weight(128)))
    b.op("Gemm", hidden, b.weight(128, 3), b.weight(3))
    model = read(net(b))
    assert any(a.size >= LARGE for a in model.graph.constants.values())
    check_round_trip(pruned(model)[0], tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full(4, np.nan, np.float32), "'b' is not finite as float16"),
        (np.full(4, 1e6, np.float32), "'b' is not finite as float16"),
        (np.zeros(3, np.float32), r"'b' has the shape \(4,\), its new values \(3,\)"),
        (np.zeros((4, 1), np.float32), "'b' has the shape"),
        (np.zeros(4, np.int64), "'b' holds float16 numbers, its new values int64"),
    ],
)
def test_values_that_do_not_fit_are_refused_by_name(array, message):
    b = Builder(13)
    b.initializers.append(numpy_helper.from_array(np.ones(4, np.float16), "b"))
    y = b.op("Add", b.op("Cast", b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 4)), to=10), "b")
    b.op("MatMul", b.op("Cast", y, to=1), b.weight(4, 3))
    model = read(net(b))
    for write in (written, working_written):
        with pytest.raises(SurgeryError, match=message):
            write(model, {"b": array})


def test_names_that_are_none_and_integers_are_refused():
    b = Builder(13)
    end(b, b.op("Reshape", b.conv("x", 3, 4), b.const(np.array([0, 4, 8, 8], np.int64))), 4)
    model = read(net(b))
    with pytest.raises(SurgeryError, match="'none' is no constant of the model"):
        written(model, {"none": np.zeros(1, np.float32)})
    shape = next(t.name for t in model.proto.graph.initializer if t.data_type == TensorProto.INT64)
    with pytest.raises(SurgeryError, match="holds int64 numbers"):
        written(model, {shape: np.zeros(4, np.float32)})
