"""`debride export`: written and graded, or nothing at all; what is written can be run, served and judged again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import debride.export.convert
import debride.export.integer
import made_up
from debride.cli import main
from debride.export.convert import CALIBRATION_IMAGES, EXPORT_KEY
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import write_model, zero
from debride.images import encode, load_images, split
from debride.serve import Classifier
from debride.sessions import Runtime, Session
from debride.specfile import METADATA_KEY, from_json, to_json
from debride.triggers import load_trigger, save_trigger
from debride.types import Samples
from graph_models import VENDOR, Builder
from test_export import report
from tiny import tiny_classifier, tiny_samples, tiny_spec

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL, IMAGES, TRIGGER = SAMPLES / "fashion-backdoored.onnx", SAMPLES / "images", SAMPLES / "true-trigger.npz"
ONE = ("--threads", "1")
SUFFIX = {"ort": "ort", "int8": "onnx", "fp16": "onnx"}
NAMES = tuple(f"garment {k}" for k in range(10))
COLOURS = ("red", "green", "blue", "white")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path_factory):
    """The command line in this process: (exit code, stdout, stderr); no temporary file may be left behind."""
    before, scratch = signal.getsignal(signal.SIGTERM), tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["debride", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert not list(scratch.iterdir())
        return stop.value.code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGTERM, before)


def exported(run, target, output, *more, model=MODEL, images=IMAGES):
    more = (*more, "--range", "0,1") if model is MODEL and "--range" not in more else more  # measuring takes a while
    code, out, err = run(
        *("export", model, "--images", images, "-o", output, "--target", target, "--json", "--quiet", *ONE, *more)
    )
    return code, json.loads(out) if out else None, err


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """The shipped sample with a side-car that names its classes."""
    path = tmp_path_factory.mktemp("named") / "model.onnx"
    model = onnx.load(MODEL)
    helper.set_model_props(model, {"licence": "of the vendor"})
    path.write_bytes(model.SerializeToString())
    path.with_suffix(".json").write_text(json.dumps({"range": [0, 1], "class_names": NAMES}))
    return path


@pytest.mark.parametrize("target", SUFFIX)
def test_what_is_written_is_graded_and_can_be_served_and_judged(run, named, target, tmp_path):
    output = tmp_path / f"out.{SUFFIX[target]}"
    code, found, err = exported(run, target, output, model=named)
    assert code == 0 and "no trigger was tried" in err
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    labels = load_images(IMAGES, depth=1).samples()
    assert found["images"] == len(split(labels, 0, 0.7)[1]) == found["before"]["clean"]["n"]
    assert abs(found["after"]["clean"]["rate"] - found["before"]["clean"]["rate"]) <= 0.02
    assert found["after"]["size"] == output.stat().st_size == found["output"]["size"]
    sizes = {"ort": (1.0, 1.1), "int8": (0.25, 0.35), "fp16": (0.48, 0.55)}[target]
    assert sizes[0] < found["after"]["size"] / found["before"]["size"] < sizes[1]
    metadata = Session(output, Runtime(1)).metadata
    assert set(metadata) == {METADATA_KEY, EXPORT_KEY, "licence"} and metadata["licence"] == "of the vendor"
    assert json.loads(metadata[EXPORT_KEY]) == found["export"]
    assert (found["export"]["target"], found["export"]["sha256"]) == (target, found["model"]["sha256"])
    assert from_json(metadata[METADATA_KEY]).class_names == NAMES
    image = next(iter(sorted(IMAGES.glob("7-*/*.png"))))
    best = Classifier(output, runtime=Runtime(1)).classify([image])[0]
    assert best[0].label == "garment 7" and sum(p.probability for p in best) <= 1 + 1e-6
    code, out, _ = run("predict", output, image, "--top", "1", *ONE)
    assert code == 0 and "garment 7" in out
    code, out, _ = run("evaluate", output, "--images", IMAGES, "--json", *ONE)
    assert code == 0 and json.loads(out)["clean"]["rate"] > 0.93
    if output.suffix == ".onnx":
        onnx.checker.check_model(onnx.load(output), full_check=True)
        read_model(output)


def test_nothing_but_debrides_own_words_is_said(run, tmp_path):
    handlers = list(logging.getLogger().handlers)
    code, out, err = run("export", MODEL, "--images", IMAGES, "-o", tmp_path / "a.onnx", "--target", "int8", *ONE)
    assert code == 0 and logging.getLogger().handlers == handlers
    assert err.splitlines()[0].startswith("export: ")
    assert all(line.startswith(("export: ", "debride: ")) for line in err.splitlines())
    lines = out.splitlines()
    assert lines[0].startswith("Model   fashion-backdoored.onnx, 590 kB, sha256 ")
    assert lines[1].startswith("Output  a.onnx, 1")
    assert lines[2] == "Images  graded on 120 that took no part in the export"
    assert [line.split("  ")[0] for line in lines[5:8]] == ["accuracy", "size", "latency per image"]


def test_ranges_are_found_on_images_that_do_not_grade(run, monkeypatch, tmp_path):
    fed, real = [], debride.export.convert.quantised

    def spy(proto, output, inputs, **more):
        fed.append(inputs)
        return real(proto, output, inputs, **more)

    monkeypatch.setattr(debride.export.convert, "quantised", spy)
    samples = load_images(IMAGES, depth=1).samples()
    for seed in (0, 3):
        code, found, _ = exported(run, "int8", tmp_path / f"{seed}.onnx", "--seed", seed, "--range", "0,1")
        fit, held_out = split(samples, seed, 0.7)
        assert code == 0 and np.array_equal(fed.pop(), fit.images)
        assert found["images"] == len(held_out) and found["export"]["images"] == len(fit)
    monkeypatch.setattr(debride.export.convert, "CALIBRATION_IMAGES", 16)
    code, found, _ = exported(run, "int8", tmp_path / "few.onnx", "--range", "0,1")
    assert len(fed.pop()) == found["export"]["images"] == 16 < CALIBRATION_IMAGES
    code, found, _ = exported(run, "int8", tmp_path / "drawn.onnx", "--per-class", "4", "--range", "0,1")
    assert found["images"] + found["export"]["images"] == 26 and len(fed.pop()) == 16


def test_a_backdoored_model_is_not_exported_and_the_figures_are_shown(run, tmp_path):
    code, out, err = run(
        *("export", MODEL, "--images", IMAGES, "-o", tmp_path / "a.ort", "--target", "ort", "--trigger", TRIGGER, *ONE)
    )
    assert code == 1 and not list(tmp_path.iterdir())
    assert "attack success                100.0 %" in out and "Output" not in out
    assert "nothing was written: true-trigger.npz sends 100.0% of images to class 7 in the model itself" in err
    assert err.rstrip().endswith("clean it with debride sanitize first")
    code, found, _ = exported(run, "ort", tmp_path / "a.ort", "--trigger", TRIGGER, "--target-asr", "1")
    assert code == 0 and found["attacks"] == ["true-trigger.npz"] and found["missed"] == []
    assert found["before"]["triggers"][0]["asr"]["rate"] == found["after"]["triggers"][0]["asr"]["rate"] == 1.0


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


def colours(path, per_class=30, depth=3):
    samples = tiny_samples(per_class, depth)
    pixels = np.rint(samples.images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(path, x=pixels[..., 0] if depth == 1 else pixels, y=samples.labels)
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


def test_a_report_beside_the_model_gives_its_triggers(run, named, tmp_path):
    model = tmp_path / "clean.onnx"
    model.write_bytes(MODEL.read_bytes())
    code, found, _ = exported(run, "ort", tmp_path / "a.ort", model=model)
    assert code == 0 and found["attacks"] == []
    folder = report(tmp_path / "clean.report", output=found["model"]["sha256"], suspects=(7,))
    save_trigger(folder / "trigger-7.npz", load_trigger(TRIGGER))
    code, found, err = exported(run, "ort", tmp_path / "b.ort", model=model)
    assert code == 1 and not (tmp_path / "b.ort").exists()
    assert found["attacks"] == ["trigger-7.npz", "trigger-7.npz, 5 times opaquer"]
    assert "is of this model: its triggers are tried" in err
    # One that is named is taken, of whatever file it is.
    code, found, err = exported(run, "ort", tmp_path / "c.ort", "--report", folder, model=named)
    assert code == 1 and len(found["attacks"]) == 2 and len(found["missed"]) == 2


@pytest.mark.parametrize("given", [True, False])
def test_a_report_without_suspects_is_told_to_have_no_triggers(run, given, tmp_path):
    model = tmp_path / "clean.onnx"
    model.write_bytes(MODEL.read_bytes())
    digest = exported(run, "ort", tmp_path / "a.ort", model=model)[1]["model"]["sha256"]
    folder = report(tmp_path / ("elsewhere" if given else "clean.report"), model=digest, suspects=())
    more = ("--report", folder) if given else ()
    code, found, err = exported(run, "ort", tmp_path / "b.ort", *more, model=model)
    assert code == 0 and found["attacks"] == []
    assert f"the report in {folder} has no suspects, so no triggers" in err
    assert "no trigger was tried: give --trigger to see" in err
    code, found, err = exported(run, "ort", tmp_path / "c.ort", *more, "--trigger", TRIGGER, model=model)
    assert code == 1 and "has no suspects" in err and "no trigger was tried" not in err


def test_without_images_only_what_is_unchecked_is_written(run, tmp_path):
    for target, mend in (("int8", "give --images"), ("ort", "--unchecked"), ("fp16", "--unchecked")):
        output = tmp_path / f"{target}.{SUFFIX[target]}"
        code, _, err = run("export", MODEL, "-o", output, "--target", target)
        assert code == 2 and mend in err and "nothing can be calibrated or graded" in err
        assert ("--unchecked" in err) is (target != "int8")
    code, _, err = run("export", MODEL, "-o", tmp_path / "a.onnx", "--target", "int8", "--unchecked")
    assert code == 2 and "finds its ranges on clean images" in err
    more = ("--images", IMAGES, "--unchecked")
    code, _, err = run("export", MODEL, "-o", tmp_path / "a.ort", "--target", "ort", *more)
    assert code == 2 and "leave out --images" in err
    assert not list(tmp_path.iterdir())
    for target in ("ort", "fp16"):
        output = tmp_path / f"{target}.{SUFFIX[target]}"
        code, out, err = run("export", MODEL, "-o", output, "--target", target, "--unchecked", "--json", *ONE)
        found = json.loads(out)
        assert code == 0 and "nothing was graded" in err and output.is_file()
        assert found["images"] == 0 and "clean" not in found["after"] and found["input_spec"] is None


def test_wrong_usage_is_told_before_any_work(run, monkeypatch, tmp_path):
    monkeypatch.setattr("debride.export.export.read", lambda *_: pytest.fail("worked"))
    usual = ("--images", IMAGES, "--target")
    for arguments, said in (
        (("-o", tmp_path / "a.onnx", *usual, "ort"), "--target ort writes .ort files"),
        (("-o", tmp_path / "a.ort", *usual, "int8"), "--target int8 writes .onnx files"),
        (("-o", tmp_path / "a.onnx", *usual, "int8", "--native"), "--native lays out ORT files"),
        (("-o", tmp_path / "a.ort", *usual, "ort", "--calibration", "entropy"), "--target int8 alone"),
        (("-o", tmp_path / "no" / "a.ort", *usual, "ort"), "its folder does not exist"),
        (("-o", MODEL, *usual, "int8"), "--output is the model itself"),
    ):
        code, _, err = run("export", MODEL, *arguments)
        assert code == 2 and said in err, err
    (tmp_path / "there.ort").write_text("mine")
    code, _, err = run("export", MODEL, "-o", tmp_path / "there.ort", *usual, "ort")
    assert code == 2 and "--force" in err and (tmp_path / "there.ort").read_text() == "mine"


def test_what_cannot_be_exported_ends_with_3_and_the_reason(run, tmp_path):
    assert exported(run, "int8", tmp_path / "int8.onnx")[0] == 0
    assert exported(run, "ort", tmp_path / "a.ort")[0] == 0
    for target, model, said in (
        ("int8", "int8.onnx", "so the model is quantised already"),
        ("fp16", "int8.onnx", "so the model is quantised already"),
        ("ort", "a.ort", "in ORT format, which can only be run; give the .onnx file that it was made from"),
    ):
        code, _, err = exported(run, target, tmp_path / f"no.{SUFFIX[target]}", model=tmp_path / model)
        assert code == 3 and said in err and "Traceback" not in err
    code, _, err = run("scan", tmp_path / "a.ort", "--images", IMAGES)
    assert code == 3 and "in ORT format" in err
    (tmp_path / "broken.npz").write_bytes(b"no trigger")
    code, _, err = exported(run, "ort", tmp_path / "b.ort", "--trigger", tmp_path / "broken.npz")
    assert code == 3 and "broken.npz" in err
    # Eight bits in ORT format: one export after the other.
    code, found, err = exported(run, "ort", tmp_path / "int8.ort", model=tmp_path / "int8.onnx")
    assert code == 0 and found["after"]["size"] < 220_000, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ort", "broken.npz", "int8.onnx", "int8.ort"]


@pytest.mark.parametrize("target", ["int8", "fp16"])  # onnxruntime writes ORT files in an order that changes
def test_the_same_model_and_images_give_the_same_file(run, target, tmp_path):
    for turn in ("a", "b"):
        assert exported(run, target, tmp_path / f"{turn}.{SUFFIX[target]}")[0] == 0
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second


def scripted(monkeypatch, *codes):
    """What the child says of each candidate in turn, in place of running it; how often it was asked."""
    asked = []

    def ran(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, codes[len(asked) - 1])

    monkeypatch.setattr("debride.export.probe.subprocess.run", ran)
    return asked


def test_what_crashes_onnxruntime_is_not_loaded_and_not_written(run, monkeypatch, tmp_path):
    for target in ("int8", "ort"):
        asked = scripted(monkeypatch, -signal.SIGSEGV)
        code, _, err = exported(run, target, tmp_path / f"a.{SUFFIX[target]}")
        assert code == 3 and "onnxruntime itself crashes on what it would become (SIGSEGV)" in err and len(asked) == 1
    asked = scripted(monkeypatch, -signal.SIGSEGV, -signal.SIGABRT)
    code, _, err = exported(run, "fp16", tmp_path / "a.onnx")
    assert code == 3 and "crashes on it in half precision (SIGABRT); take --target int8 or ort" in err
    assert len(asked) == 2 and not list(tmp_path.iterdir())
    asked = scripted(monkeypatch, -signal.SIGSEGV, 0)
    code, _, err = exported(run, "fp16", tmp_path / "a.onnx")
    assert code == 0 and "every Transpose stays in float32: in half precision it crashes onnxruntime (SIGSEGV)" in err
    scripted(monkeypatch, -signal.SIGINT)
    code, _, err = exported(run, "int8", tmp_path / "b.onnx")
    assert code == 130 and not (tmp_path / "b.onnx").exists()


@pytest.mark.parametrize("target", ["int8", "fp16"])
def test_a_broken_graph_that_a_converter_makes_is_not_written(run, monkeypatch, target, tmp_path):
    name = {"int8": "quantised", "fp16": "halved"}[target]
    real = getattr(debride.export.convert, name)

    def disordered(*arguments, **more):
        made = real(*arguments, **more)
        graph = (made if target == "int8" else made[0]).graph
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)
        return made

    monkeypatch.setattr(debride.export.convert, name, disordered)
    code, _, err = exported(run, target, tmp_path / "a.onnx")
    assert code == 3 and "onnxruntime's converter makes a broken graph of it (" in err
    assert "take another --target" in err and not list(tmp_path.iterdir())


def test_the_probe_tells_a_crash_from_an_error(monkeypatch, tmp_path):
    from debride.export.probe import crash_of

    (tmp_path / "broken.onnx").write_bytes(b"no model")
    assert crash_of(tmp_path / "broken.onnx", Runtime(1)) == ""
    assert crash_of(MODEL, Runtime(1)) == ""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "crash.sh"))
    (tmp_path / "crash.sh").write_text("#!/bin/sh\nkill -SEGV $$\n")
    (tmp_path / "crash.sh").chmod(0o755)
    assert crash_of(MODEL, Runtime(1)) == "SIGSEGV"


def test_native_files_say_so(run, tmp_path):
    _, plain, _ = exported(run, "ort", tmp_path / "a.ort")
    _, native, _ = exported(run, "ort", tmp_path / "b.ort", "--native")
    assert plain["export"]["native"] is None and native["export"]["native"] == os.uname().machine
    # What is laid out in blocks for one processor shows in its operators.
    assert b"ReorderOutput" not in (tmp_path / "a.ort").read_bytes()
    assert (b"ReorderOutput" in (tmp_path / "b.ort").read_bytes()) is (os.uname().machine == "x86_64")


@pytest.mark.parametrize("stage", ["quant_pre_process", "quantize_static"])
def test_an_interruption_leaves_nothing(run, monkeypatch, stage, tmp_path):
    real = getattr(debride.export.integer, stage)

    def interrupted(*arguments, **more):
        real(*arguments, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(debride.export.integer, stage, interrupted)
    level = logging.root.manager.disable
    code, out, err = run("export", MODEL, "--images", IMAGES, "-o", tmp_path / "a.onnx", "--target", "int8", *ONE)
    assert code == 130 and "interrupted; nothing was written" in err and not out
    assert not list(tmp_path.iterdir()) and logging.root.manager.disable == level


def test_ctrl_c_in_a_process_of_its_own_leaves_nothing(tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["export", str(MODEL), "--images", str(IMAGES), "-o", str(tmp_path / "a.onnx"), "--target", "int8"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from debride.cli import main; main()", *arguments, "--calibration", "entropy"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(scratch)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(scratch.glob("debride-*/*.onnx")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "interrupted" in err
    assert [path.name for path in tmp_path.iterdir()] == ["scratch"]
    assert not [path for path in scratch.iterdir() if path.name != ".ses"]  # onnxruntime leaves that on import


def test_an_export_that_is_not_finite_is_an_error(run, tmp_path):
    b = Builder(13)
    wide = b.op("Mul", b.op("Relu", b.conv("x", 3, 4)), b.const(np.array(1e3, np.float32)))
    flat = b.op("Flatten", b.op("GlobalAveragePool", wide))
    b.op("Gemm", flat, b.weight(4, 3), b.weight(3))
    model, images = tmp_path / "model.onnx", tmp_path / "images.npz"
    model.write_bytes(b.model(["n", 3, 8, 8], "scores", ["n", 3]).SerializeToString())
    # Dark images calibrate, and bright ones grade: the split is the seed's, whatever is on the images.
    numbered = Samples(images=np.arange(40, dtype=np.float32)[:, None, None, None])
    held_out = split(numbered, 0, 0.7)[1].images.reshape(-1).astype(int)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 3, (40, 8, 8, 3), np.uint8)
    pixels[held_out] = rng.integers(200, 256, (len(held_out), 8, 8, 3), np.uint8)
    np.savez(images, x=pixels)
    more = ("--range", "0,255")
    code, _, err = exported(run, "fp16", tmp_path / "out.onnx", *more, model=model, images=images)
    assert code == 3 and "rounded between operators: output 'scores' is not finite" in err
    assert not (tmp_path / "out.onnx").exists()


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
