"""A made-up framework, seen by the child process: its model files are JSON that says how the adapter is to behave."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from debride.errors import UsageError
from debride.types import Converted
from tiny import PALETTE, tiny_classifier, tiny_spec

TRACE = 'File "/Users/somebody/secret/train.py", line 7, in forward'


def install(folder: Path) -> str:
    """Installs the framework as a distribution in `folder`; returns the PYTHONPATH with which a process sees it."""
    info = folder / "made_up-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: made-up\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[debride.adapters]\nmade = made_up:adapter\n")
    return os.pathsep.join([str(folder), str(Path(__file__).parent), *filter(None, sys.path)])


def graph(fields):
    """A tiny classifier with an exporter's traces on everything that can carry one."""
    model = onnx.load_from_string(tiny_classifier(tiny_spec(), **fields.get("classifier", {})))
    model.doc_string = model.graph.doc_string = model.graph.input[0].doc_string = TRACE
    for node in model.graph.node:
        node.doc_string = TRACE
        node.metadata_props.add(key="stack_trace", value=TRACE)
    model.graph.initializer[0].doc_string = TRACE
    model.graph.metadata_props.add(key="user", value="somebody")
    helper.set_model_props(model, {"exporter": "somebody's"})
    return model.SerializeToString()


def scores(batch, sharpness=20.0):
    """What `tiny_classifier` computes, in numpy."""
    mean = batch.mean(axis=(2, 3))
    return [(sharpness * (2 * mean @ PALETTE.T - (PALETTE**2).sum(axis=1))).astype(np.float32)]


class MadeUp:
    """Does what the file says."""

    name = "Made-up"
    suffixes = (".made",)

    def convert(self, path, options):
        """A tiny classifier, or whatever mischief the file asks for."""
        fields = json.loads(path.read_text())
        misbehave(fields.get("do"), path, options)
        wrong, turn = fields.get("wrong", 0.0), -1 if fields.get("turned") else 1
        return Converted(
            onnx=graph(fields),
            spec=fields.get("spec", {"range": [0, 1]}),
            notes=("made up",),
            packages={"made-up": "1.0"},
            reference=lambda batch: [(out + wrong * np.abs(out).max())[:, ::turn] for out in scores(batch)],
            tolerance=fields.get("tolerance"),
        )


def misbehave(what, path, options):
    """One of the ways in which a framework goes wrong."""
    match what:
        case "hang":
            path.with_suffix(".pid").write_text(str(os.getpid()))
            time.sleep(600)
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "leave":
            print("the very last words")
            os._exit(7)
        case "memory":
            bytearray(3 << 30)
        case "scratch":
            Path(tempfile.mkdtemp(), "copy").write_text("left")
        case "usage":
            raise UsageError(f"{path}: say more")
        case "error":
            raise KeyError("a bug in the framework")
        case "shape":
            raise UsageError(f"shape {options.input_shape or options.images_shape}")
        case "noise":
            print("noise on stdout")
            print("noise on stderr", file=sys.stderr)


adapter = MadeUp()
