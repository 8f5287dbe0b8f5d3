"""What the tests of exports share: graphs in fewer bits, and a report's folder with its triggers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from debride.graph.read import model_of
from debride.sessions import Runtime, Session
from debride.triggers import save_trigger
from debride.types import Rate, Trigger
from graph_models import Builder

SAMPLE = Path(__file__).parents[1] / "samples" / "fashion-backdoored.onnx"
ONE = Runtime(threads=1)


def read(proto):
    return model_of(proto.SerializeToString(), Path("model.onnx"), free=False)


def batch(n=7, seed=0, shape=(3, 8, 8)):
    return np.random.default_rng(seed).random((n, *shape), np.float32)


def scores_of(proto, inputs, name="x"):
    return Session(proto.SerializeToString(), ONE).run({name: inputs})[0]


def with_softmax(opset=13):
    b = Builder(opset)
    flat = b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv("x", 3, 4))))
    b.op("Softmax", b.op("Gemm", flat, b.weight(4, 5), b.weight(5)), axis=1)
    return b.model(["n", 3, 8, 8], "scores", ["n", 5])


def quantised_already(opset=13):
    b = Builder(opset)
    scale, zero_point = b.const(np.array(0.01, np.float32)), b.const(np.array(0, np.uint8))
    low = b.op("QuantizeLinear", b.op("Relu", b.conv("x", 3, 4)), scale, zero_point)
    b.op("Flatten", b.op("GlobalAveragePool", b.op("DequantizeLinear", low, scale, zero_point)))
    return b.model(["n", 3, 8, 8], "scores", ["n", 4])


def trigger(target):
    mask = np.zeros((1, 2, 2), np.float32)
    mask[0, 0, 0] = 0.5
    return Trigger(target=target, mask=mask, pattern=np.ones((1, 2, 2), np.float32), l1=0.5, success=Rate(1, 1))


def report(folder, model="0" * 64, output=None, suspects=(1,), files=True):
    folder.mkdir(parents=True, exist_ok=True)
    facts = {"name": "m.onnx", "size": 1}
    document = {
        "schema": "debride.report/1",
        "command": "sanitize",
        "verdict": "sanitized",
        "reason": "",
        "model": {**facts, "sha256": model},
        "output": {**facts, "sha256": output} if output else None,
        "suspects": list(suspects),
    }
    (folder / "report.json").write_text(str(document).replace("'", '"').replace("None", "null"))
    for target in suspects if files else ():
        save_trigger(folder / f"trigger-{target}.npz", trigger(target))
    return folder
