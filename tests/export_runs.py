"""`debride export` in the tests' own process, and what it is run on."""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from debride.cli import main
from tiny import tiny_samples

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL, IMAGES, TRIGGER = SAMPLES / "fashion-backdoored.onnx", SAMPLES / "images", SAMPLES / "true-trigger.npz"
ONE = ("--threads", "1")
SUFFIX = {"ort": "ort", "int8": "onnx", "fp16": "onnx"}


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


def colours(path, per_class=30, depth=3):
    samples = tiny_samples(per_class, depth)
    pixels = np.rint(samples.images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    np.savez(path, x=pixels[..., 0] if depth == 1 else pixels, y=samples.labels)
    return path
