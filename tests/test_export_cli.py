"""`debride export`: written and graded, or nothing at all; what is written can be run, served and judged again."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import onnx
import pytest
from onnx import helper

import debride.export.convert
import debride.export.integer
import export_runs
from debride.export.convert import CALIBRATION_IMAGES, EXPORT_KEY
from debride.graph.read import read_model
from debride.images import load_images, split
from debride.serve import Classifier
from debride.sessions import Runtime, Session
from debride.specfile import METADATA_KEY, from_json
from debride.triggers import load_trigger, save_trigger
from export_helpers import report
from export_runs import IMAGES, MODEL, ONE, SUFFIX, TRIGGER, exported

run = export_runs.run
NAMES = tuple(f"garment {k}" for k in range(10))


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


def test_a_report_without_suspects_hides_no_other(run, tmp_path):
    model = tmp_path / "clean.onnx"
    model.write_bytes(MODEL.read_bytes())
    digest = exported(run, "ort", tmp_path / "a.ort", model=model)[1]["model"]["sha256"]
    report(tmp_path / "clean.onnx.report", output=digest, suspects=())
    told = report(tmp_path / "report", output=digest, suspects=(7,))
    save_trigger(told / "trigger-7.npz", load_trigger(TRIGGER))
    code, found, err = exported(run, "ort", tmp_path / "b.ort", model=model)
    assert code == 1 and len(found["attacks"]) == 2
    assert f"the report in {told} is of this model" in err


def test_what_the_images_cannot_tell_is_said(run, tmp_path):
    loaded = load_images(IMAGES)
    x, y = np.rint(255 * loaded.images[:, 0]).astype(np.uint8), loaded.labels
    np.savez(tmp_path / "two.npz", x=x[y < 2], y=y[y < 2])
    _, _, err = exported(run, "ort", tmp_path / "two.ort", images=tmp_path / "two.npz")
    assert "8 of 10 classes have no image among those that grade" in err
    few = np.concatenate([np.flatnonzero(y == k)[:5] for k in range(10)])
    np.savez(tmp_path / "few.npz", x=x[few], y=y[few])
    _, _, err = exported(run, "ort", tmp_path / "few.ort", images=tmp_path / "few.npz")
    assert "images only: what so few say is little more than chance" in err
    assert "classes have no image" not in err
    _, _, err = exported(run, "ort", tmp_path / "all.ort")
    assert "images only" not in err and "classes have no image" not in err


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


@pytest.mark.parametrize("target", ["int8", "fp16"])  # onnxruntime writes ORT files in an order that changes
def test_the_same_model_and_images_give_the_same_file(run, target, tmp_path):
    for turn in ("a", "b"):
        assert exported(run, target, tmp_path / f"{turn}.{SUFFIX[target]}")[0] == 0
    first, second = (path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert first == second


def test_native_files_say_so(run, tmp_path):
    _, plain, _ = exported(run, "ort", tmp_path / "a.ort")
    _, native, _ = exported(run, "ort", tmp_path / "b.ort", "--native")
    assert plain["export"]["native"] is None and native["export"]["native"] == os.uname().machine
    # What is laid out in blocks for one processor shows in its operators.
    assert b"ReorderOutput" not in (tmp_path / "a.ort").read_bytes()
    assert (b"ReorderOutput" in (tmp_path / "b.ort").read_bytes()) is (os.uname().machine == "x86_64")
