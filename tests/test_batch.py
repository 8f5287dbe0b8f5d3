"""Freeing a fixed batch: a freed graph gives for many images what it gave for one batch after the other."""

import numpy as np
import pytest

from architectures import network as architecture
from debride.graph.read import read_model
from debride.loading import _read
from debride.sessions import Runtime
from exports import export
from graph_models import Builder, assert_close, run
from torch_zoo import SHAPE, network

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


@pytest.mark.parametrize("body", [mixed, reversed_batch, first])
def test_a_batch_that_cannot_be_freed_stays_and_the_model_is_read(tmp_path, body):
    b = Builder(13)
    proto = classifier(b, body(b), 2, 192)
    model = freed(proto, tmp_path)
    assert model.graph.inputs[0].shape == (2, 3, 8, 8) and model.working == proto


@pytest.mark.parametrize("mixes", [True, False])
def test_a_model_that_says_another_thing_when_freed_is_loaded_as_it_is(tmp_path, mixes):
    b = Builder(13)
    y = b.op("Softmax", b.op("Flatten", "x"), axis=0 if mixes else 1)  # a batch of one hides it
    b.op("Gemm", y, b.weight(192, 3))
    freed(b.model([1, 3, 8, 8], "scores", [1, 3]), tmp_path)
    model = _read(tmp_path / "m.onnx", Runtime(threads=1))
    assert model.graph.inputs[0].shape[0] == (1 if mixes else None)
