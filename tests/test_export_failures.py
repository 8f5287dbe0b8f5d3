"""`debride export` writes nothing where it is used wrongly, interrupted, or what it makes is broken."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest

import debride.export.convert
import debride.export.integer
import export_runs
from debride.images import split
from debride.sessions import Runtime
from debride.types import Samples
from export_runs import IMAGES, MODEL, ONE, SUFFIX, exported
from graph_models import Builder

run = export_runs.run


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


@pytest.mark.parametrize("stage", ["quant_pre_process", "quantize_static"])
def test_an_interruption_leaves_nothing(run, monkeypatch, stage, tmp_path):
    real = getattr(debride.export.integer, stage)

    def interrupted(*arguments, **more):
        real(*arguments, **more)
        tempfile.mkdtemp()  # as where it hits what onnxruntime clears up itself
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
    while not list(scratch.rglob("*.onnx")) and process.poll() is None and time.monotonic() < deadline:
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
