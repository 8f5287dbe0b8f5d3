"""`debride export` of models of every kind: conventions, opsets, slimmed, in several files, of another framework."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import export_runs
import made_up
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import write_model, zero
from debride.images import encode, load_images
from debride.serve import Classifier
from debride.sessions import Runtime, Session
from debride.specfile import METADATA_KEY, to_json
from export_runs import IMAGES, MODEL, ONE, SUFFIX, colours, exported
from graph_models import VENDOR, Builder
from tiny import tiny_classifier, tiny_samples, tiny_spec

run = export_runs.run
COLOURS = ("red", "green", "blue", "white")


def blunt(path):
    """Colours told apart by what is small beside a constant, which eight bits lose, at `path`."""
    spec = tiny_spec()
    model = onnx.load_from_string(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    graph = model.graph
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    weight = next(t for t in graph.initializer if t.name == "weight")
    bias = next(t for t in graph.initializer if t.name == "bias")
    offset = np.float32(60)
    less = numpy_helper.to_array(bias) - offset * numpy_helper.to_array(weight).sum(axis=0)
    bias.CopyFrom(numpy_helper.from_array(less.astype(np.float32), "bias"))
    graph.initializer.append(numpy_helper.from_array(np.array(offset), "offset"))
    place = list(graph.node).index(gemm)
    nodes = list(graph.node)
    nodes.insert(place, helper.make_node("Add", ["flat", "offset"], ["lifted"], name="lift"))
    gemm.input[0] = "lifted"
    del graph.node[:]
    graph.node.extend(nodes)
    nodes[place + 1].input[0] = "lifted"
    del graph.node[:]
    graph.node.extend(nodes)
    path.write_bytes(model.SerializeToString())
    return path


def test_eight_bits_that_lose_the_classes_are_refused_with_the_mend(run, tmp_path):
    model, images = blunt(tmp_path / "blunt.onnx"), colours(tmp_path / "images.npz")
    code, found, err = exported(run, "int8", tmp_path / "out.onnx", model=model, images=images)
    assert code == 1 and not (tmp_path / "out.onnx").exists()
    assert found["output"] is None and found["before"]["clean"]["rate"] > 0.95
    assert found["after"]["clean"]["rate"] < 0.9
    assert "accuracy fell by" in err and "or --target fp16" in err and found["missed"]
    code, found, _ = exported(run, "int8", tmp_path / "out.onnx", "--max-loss", "1", model=model, images=images)
    assert code == 0 and found["missed"] == [] and (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("target", SUFFIX)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layout": "NHWC"},
        {"channels": "L"},
        {"channels": "BGR", "range": (0.0, 255.0), "mean": (120.0, 110.0, 100.0)},
        {"batch": 1},
        {"batch": 8, "softmax": True},
        {"softmax": True},
        {"dynamic": True},
    ],
)
def test_conventions_batches_and_softmax_inside(run, changes, target, tmp_path):
    made = {key: changes[key] for key in ("batch", "softmax", "dynamic") if key in changes}
    spec = tiny_spec(class_names=COLOURS, **{k: v for k, v in changes.items() if k not in made})
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}, **made))
    images = colours(tmp_path / "images.npz", depth=spec.depth)
    output = tmp_path / f"out.{SUFFIX[target]}"
    code, found, err = exported(run, target, output, "--max-loss", "0.03", model=model, images=images)
    assert code == 0, (err, found and found["missed"])
    session = Session(output, Runtime(1))
    assert session.inputs == Session(model, Runtime(1)).inputs
    assert [o.name for o in session.outputs] == ["scores"]
    classifier = Classifier(output, runtime=Runtime(1))
    assert classifier.spec.class_names == COLOURS and classifier.spec.size == spec.size
    samples = tiny_samples(4, spec.depth, seed=5)
    pixels = [np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8) for image in samples.images]
    right = [row[0].index == label for row, label in zip(classifier.classify(pixels), samples.labels, strict=True)]
    assert np.mean(right) >= 0.9
    if made.get("softmax"):
        sums = [sum(p.probability for p in row) for row in classifier.classify(pixels)]
        np.testing.assert_allclose(sums, 1, rtol=0, atol=2e-3 if target == "fp16" else 1e-5)


@pytest.mark.parametrize("target", SUFFIX)
@pytest.mark.parametrize(("opset", "ir"), [(8, 3), (11, 4), (12, 6), (13, 8), (17, 8), (21, 10), (23, 11)])
def test_opsets_old_and_new(run, opset, ir, target, tmp_path):
    b = Builder(opset, ir)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.bn(b.conv("x", 3, 8), 8))))
    b.op("Gemm", flat, b.weight(8, 3), b.weight(3))
    model, images = tmp_path / "model.onnx", tmp_path / "images.npz"
    model.write_bytes(b.model(["n", 3, 8, 8], "scores", ["n", 3], listed=True).SerializeToString())
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), np.uint8)
    np.savez(images, x=pixels // np.arange(1, 61, dtype=np.uint8)[:, None, None, None])
    output = tmp_path / f"out.{SUFFIX[target]}"
    code, found, err = exported(run, target, output, "--max-loss", "0.3", "--range", "0,1", model=model, images=images)
    assert code == 0 and found["before"]["kind"] == "agreement", err
    if target == "int8":
        assert {o.version for o in onnx.load(output).opset_import if not o.domain} == {max(opset, 13)}
    if target == "fp16":
        assert {o.version for o in onnx.load(output).opset_import if not o.domain} == {opset}


def zeroed(path, channels=(0, 5)):
    model = read_model(MODEL, free=False)
    groups, _ = find_groups(model.graph, "scores")
    write_model(zero(model, [g for g in groups if g.channel in channels]), path)
    return path


def test_a_slimmed_model_goes_into_eight_bits(run, tmp_path):
    assert run("slim", zeroed(tmp_path / "cut.onnx"), "-o", tmp_path / "slim.onnx", "-q", *ONE)[0] == 0
    more = ("--range", "0,1", "--max-loss", "0.05")
    code, found, err = exported(run, "int8", tmp_path / "out.onnx", *more, model=tmp_path / "slim.onnx")
    assert code == 0, err
    assert found["after"]["size"] < 0.35 * found["before"]["size"]


def test_external_data_come_into_the_one_file(run, tmp_path):
    onnx.save(onnx.load(MODEL), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    assert (tmp_path / "m.data").stat().st_size > 500_000
    for target, suffix in SUFFIX.items():
        output = tmp_path / f"{target}.{suffix}"
        code, found, err = exported(run, target, output, model=tmp_path / "m.onnx")
        assert code == 0, err
        assert found["before"]["size"] > 500_000 and found["after"]["size"] == output.stat().st_size > 100_000
        assert Session(output.read_bytes(), Runtime(1)).inputs  # nothing lies beside it


def test_a_model_of_another_framework_is_converted_first(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", made_up.install(tmp_path / "site"))
    (tmp_path / "model.made").write_text("{}")
    images = colours(tmp_path / "images.npz")
    for target, suffix in SUFFIX.items():
        output = tmp_path / f"{target}.{suffix}"
        code, found, err = exported(run, target, output, model=tmp_path / "model.made", images=images)
        assert code == 0, err
        assert found["conversion"]["framework"] == "Made-up"
        assert found["export"]["source"] == "model.made" and found["model"]["name"] == "model.made"
        assert found["export"]["sha256"] == found["model"]["sha256"]


def test_encode_feeds_the_quantiser_as_it_feeds_the_model():
    """`exported` above compares with the images themselves, which is right for range 0..1 in NCHW alone."""
    images = load_images(IMAGES, depth=1).samples().images
    assert np.array_equal(encode(images, tiny_spec(channels="L", size=(28, 28))), images)


@pytest.mark.vendor
@pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside the checkout")
@pytest.mark.parametrize("target", SUFFIX)
@pytest.mark.parametrize(
    ("name", "data", "more"),
    [
        ("cifar-nhwc-small", "cifar10", ()),  # NHWC, opset 9
        ("cifar-resnet-2b", "cifar10", ("--mean", "0.485,0.456,0.406", "--std", "0.225")),  # a batch of 1, opset 9
        ("mnist-badnet-white1", "mnist", ()),  # softmax inside
    ],
)
def test_vendor_models(run, name, data, more, target, tmp_path):
    images = VENDOR.parent / "data" / f"{data}_pool.npz"
    more = ("--range", "0,1", "--max-loss", "0.02", *more)
    output = tmp_path / f"out.{SUFFIX[target]}"
    code, found, err = exported(run, target, output, *more, model=VENDOR / f"{name}.onnx", images=images)
    assert code == 0, err
    assert found["after"]["clean"]["rate"] >= found["before"]["clean"]["rate"] - 0.03
