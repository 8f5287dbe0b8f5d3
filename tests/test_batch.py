"""Freeing a fixed batch: a freed graph gives for many images what it gave for one batch after the other."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from architectures import network as architecture
from debride import loading
from debride.conversion.source import Source
from debride.errors import ModelError
from debride.graph import branches
from debride.graph.read import read_model
from debride.loading import _read, load
from debride.sessions import Runtime
from debride.settings import Settings
from debride.specfile import SpecFlags
from exports import export
from graph_models import Builder, assert_close, run
from tiny import tiny_classifier, tiny_samples, tiny_spec
from torch_zoo import SHAPE, network

END = helper.make_tensor_value_info("end", TensorProto.FLOAT, None)

NAMES = {"zoo_vit": network, "zoo_convnext": network, "deit": architecture, "swin": architecture, "gmlp": architecture}


def freed(proto, folder):
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return read_model(path)


def check(model, batches=3):
    """Several batches in one run, and one image alone, give what the delivered graph gives batch by batch."""
    size = model.proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    assert model.graph.inputs[0].shape[0] is None
    shape = model.graph.inputs[0].shape[1:]
    x = np.random.default_rng(0).random((batches * size, *shape), dtype=np.float32)
    single = np.concatenate([run(model.proto, {"x": x[i : i + size]})[0] for i in range(0, len(x), size)])
    assert_close(run(model.working, {"x": x})[0], single)
    assert_close(run(model.working, {"x": x[:1]})[0], single[:1])


@pytest.mark.parametrize("exporter, opset", [("dynamo", 18), ("dynamo", 23), ("torchscript", 14), ("torchscript", 17)])
@pytest.mark.parametrize("name", NAMES)
def test_networks_of_tokens_and_windows_are_freed(tmp_path, name, exporter, opset):
    module = NAMES[name](name.removeprefix("zoo_")).eval()
    check(freed(export(module, SHAPE, exporter=exporter, opset=opset, batch="fixed"), tmp_path))


def patches(b, size):
    """(size, 4, 16) of images (size, 3, 8, 8)."""
    y = b.op("Conv", "x", b.weight(16, 3, 4, 4), strides=[4, 4])
    y = b.op("Reshape", y, b.const(np.array([size, 16, 4], np.int64)))
    return b.op("Transpose", y, perm=[0, 2, 1])


def classifier(b, y, size, width=16):
    b.op("Gemm", b.op("Flatten", y), b.weight(width, 3))
    return b.model([size, 3, 8, 8], "scores", [size, 3])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("form", ["constant", "expand", "computed"])
def test_a_class_token_is_joined_to_every_image(tmp_path, size, form):
    b = Builder(13)
    token = np.random.default_rng(1).random((1, 1, 16), dtype=np.float32)
    y = patches(b, size)
    if form == "constant":
        token = b.const(np.repeat(token, size, axis=0))
    elif form == "expand":
        token = b.op("Expand", b.const(token), b.const(np.array([size, 1, 16], np.int64)))
    else:
        count = b.op("Slice", b.op("Shape", y), b.const(np.array([0])), b.const(np.array([1])))
        token = b.op("Expand", b.const(token), b.op("Concat", count, b.const(np.array([1, 16])), axis=0))
    y = b.op("Concat", token, y, axis=1)
    check(freed(classifier(b, y, size, 80), tmp_path))


@pytest.mark.parametrize("size", [1, 2])
def test_windows_and_their_masks_are_freed(tmp_path, size):
    b = Builder(13)
    y = b.op("Reshape", "x", b.const(np.array([size, 3, 2, 4, 2, 4], np.int64)))
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 4, 1, 3, 5]), b.const(np.array([4 * size, 3, 16], np.int64)))
    mask = np.random.default_rng(2).random((4, 3, 16), dtype=np.float32)
    y = b.op("Mul", y, b.const(np.tile(mask, (size, 1, 1))))
    y = b.op("Reshape", y, b.const(np.array([size, 192], np.int64)))
    check(freed(classifier(b, y, size, 192), tmp_path))


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_behind_the_words_is_freed_even_where_they_share_an_axis(tmp_path, size):
    b = Builder(13)
    y = b.op("Transpose", patches(b, size), perm=[1, 0, 2])
    y = b.op("Reshape", y, b.const(np.array([4 * size, 16], np.int64)))
    y = b.op("Gemm", y, b.weight(16, 16))
    y = b.op("Reshape", y, b.const(np.array([4, size, 16], np.int64)))
    check(freed(classifier(b, b.op("Transpose", y, perm=[1, 0, 2]), size, 64), tmp_path))


def test_a_gather_that_only_gives_a_shape_is_freed(tmp_path):
    b = Builder(13)
    y = b.op("Reshape", b.op("GlobalAveragePool", b.conv("x", 3, 4)), b.const(np.array([8], np.int64)))
    y = b.op("Gather", y, b.const(np.arange(8).reshape(2, 4, 1, 1)), axis=0)
    check(freed(classifier(b, y, 2, 4), tmp_path))


def mixed(b):
    return b.op("Add", "x", b.op("ReduceMean", "x", axes=[0], keepdims=1))


def reversed_batch(b):
    return b.op("Gather", "x", b.const(np.array([1, 0])), axis=0)


def first(b):
    y = b.op("Slice", "x", b.const(np.array([0])), b.const(np.array([1])), b.const(np.array([0])))
    return b.op("Concat", y, y, axis=0)


OVER = {
    "Softmax": {"axis": 0},
    "LogSoftmax": {"axis": -2},
    "Hardmax": {"axis": 0},
    "LpNormalization": {"axis": 0},
    "ReduceLogSumExp": {"axes": [0], "keepdims": 1},
    "ReduceL2": {"axes": [-2], "keepdims": 1},
    "CumSum": {},
    "LayerNormalization": {"axis": 0},
    "MeanVarianceNormalization": {"axes": [0]},
}


@pytest.mark.parametrize("op", OVER)
def test_what_looks_along_the_batch_is_not_freed_though_a_batch_of_one_hides_it(op, tmp_path):
    b = Builder(17)
    y = b.op("Flatten", "x")
    if op == "CumSum":
        y = b.op(op, y, b.const(np.array(0)))
    elif op == "LayerNormalization":
        y = b.op(op, y, b.weight(1, 192), axis=0)
    else:
        y = b.op(op, y, **OVER[op])
    model = freed(classifier(b, y, 1, 192), tmp_path)
    assert model.graph.inputs[0].shape[0] == 1
    assert op in model.bound


@pytest.mark.parametrize("op", sorted(set(OVER) - {"LayerNormalization", "CumSum"}))
def test_what_looks_along_another_axis_is_freed(op, tmp_path):
    b = Builder(17)
    options = {k: [1] if isinstance(v, list) else 1 for k, v in OVER[op].items()}
    y = b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 5))
    y = b.op("Mul", b.op(op, y, **options), b.op("Sigmoid", y))
    model = freed(classifier(b, y, 2, 5), tmp_path)
    check(model)
    assert model.bound == ""


@pytest.mark.parametrize("opset, axis, free", [(11, 1, True), (11, 2, True), (11, 0, False), (13, 2, True)])
def test_an_old_softmax_takes_all_axes_from_one_on(opset, axis, free, tmp_path):
    b = Builder(opset)
    model = freed(classifier(b, b.op("Softmax", "x", axis=axis), 1, 192), tmp_path)
    assert (model.graph.inputs[0].shape[0] is None) == free
    turned = Builder(opset)
    y = turned.op("Softmax", turned.op("Transpose", "x", perm=[1, 0, 2, 3]), axis=0)
    y = turned.op("Transpose", y, perm=[1, 0, 2, 3])
    model = freed(classifier(turned, y, 1, 192), tmp_path)
    assert (model.graph.inputs[0].shape[0] is None) == (opset == 13)


def test_maps_that_hold_the_batch_elsewhere_than_in_their_first_axis_are_not_freed(tmp_path):
    b = Builder(13)
    b.op("Conv", b.op("Transpose", "x", perm=[1, 0, 2, 3]), b.weight(1, 1, 3, 3), pads=[1, 1, 1, 1])
    model = freed(b.model([1, 3, 8, 8], "scores", [3, 1, 8, 8]), tmp_path)
    assert model.graph.inputs[0].shape[0] == 1 and "Conv" in model.bound


@pytest.mark.parametrize("body", [mixed, reversed_batch, first])
def test_a_batch_that_cannot_be_freed_stays_and_the_model_is_read(tmp_path, body):
    b = Builder(13)
    proto = classifier(b, body(b), 2, 192)
    model = freed(proto, tmp_path)
    assert model.graph.inputs[0].shape == (2, 3, 8, 8) and model.working == proto
    assert "node 'n_t" in model.bound


@pytest.mark.parametrize("mixes", [True, False])
def test_a_model_that_says_another_thing_when_freed_is_loaded_as_it_is(tmp_path, mixes):
    b = Builder(13)
    lengths = b.const(np.full(192, 2 if mixes else 1))  # turns the first images about, of how many there may be
    b.op("Gemm", b.op("ReverseSequence", b.op("Flatten", "x"), lengths, time_axis=0, batch_axis=1), b.weight(192, 3))
    assert freed(b.model([2, 3, 8, 8], "scores", [2, 3]), tmp_path).graph.inputs[0].shape[0] is None
    model = _read(tmp_path / "m.onnx", Runtime(threads=1))
    assert model.graph.inputs[0].shape[0] == (2 if mixes else None)
    assert ("other scores" in model.bound) == mixes


def loaded(proto, folder):
    """`proto`, of images of 6x5 pixels, loaded as scanning does, with images beside it."""
    path, samples = folder / "m.onnx", tiny_samples(10)
    path.write_bytes(proto.SerializeToString())
    np.savez(folder / "i.npz", x=np.rint(samples.images.transpose(0, 2, 3, 1) * 255).astype(np.uint8), y=samples.labels)
    flags = SpecFlags(layout="NCHW", range=(0.0, 1.0))
    return load(Source(origin=path, path=path), folder / "i.npz", Settings(threads=1, flags=flags))


def tiny(batch):
    return onnx.load_from_string(tiny_classifier(tiny_spec(name="x"), batch=batch))


@pytest.mark.parametrize("mixes", [True, False])
def test_the_report_tells_why_images_go_through_one_at_a_time(mixes, tmp_path):
    proto = tiny(1)
    last = proto.graph.node[-1]
    last.output[0] = "logits"
    proto.graph.node.append(helper.make_node("CumSum", ["logits", "axis"], ["scores"], name="total"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0 if mixes else 1), "axis"))
    told = [warning for warning in loaded(proto, tmp_path).warnings if "at a time" in warning]
    why = "node 'total' (CumSum) mixes the batch"
    whole = f"which makes searching slower, and cannot be made to take more: {why}; export it with a dynamic batch"
    assert told == ([f"the graph takes 1 image at a time, {whole}"] if mixes else [])


def test_a_model_larger_than_a_protobuf_is_refused_with_what_takes_it(tmp_path, monkeypatch):
    proto = tiny("n")
    monkeypatch.setattr(loading, "_MOST", proto.ByteSize())
    assert loaded(proto, tmp_path).warnings == ()
    monkeypatch.setattr(loading, "_MOST", proto.ByteSize() - 1)
    with pytest.raises(ModelError, match=r"m\.onnx: larger than 2 GiB .* evaluate, predict and slim take it"):
        loaded(proto, tmp_path)


@pytest.mark.parametrize("fault", [True, False])
def test_a_rewritten_graph_that_gives_other_scores_is_refused(fault, tmp_path, monkeypatch):
    proto = tiny("n")
    last = proto.graph.node[-1]
    last.output[0] = "logits"
    bodies = [
        helper.make_graph([helper.make_node(op, ["logits"], ["end"])], op, [], [END]) for op in ("Identity", "Neg")
    ]
    fork = helper.make_node("If", ["flag"], ["scores"], then_branch=bodies[0], else_branch=bodies[1])
    proto.graph.node.append(fork)
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "flag"))
    if fault:
        monkeypatch.setattr(branches, "_chosen", lambda value: "else_branch")
        with pytest.raises(ModelError, match="decided branches and computed weights the graph gives other scores"):
            loaded(proto, tmp_path)
    else:
        assert loaded(proto, tmp_path).parity < 1e-5
