"""The files of `tf_zoo`, written once a run by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
_folder = tempfile.TemporaryDirectory(prefix="tf-zoo-")


@cache
def zoo() -> Path:
    """The folder with every model, and `NAME.npz` with what the model answers to `images(n)` under the key `n`."""
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    subprocess.run([sys.executable, str(HERE / "tf_zoo.py"), _folder.name], env=environment, check=True)
    return Path(_folder.name)


def answers(name: str) -> dict[int, np.ndarray]:
    with np.load(zoo() / f"{name}.npz") as file:
        return {int(key): file[key] for key in file.files}


def images(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(n).random((n, *shape), np.float32)


def differ(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a part of the scores' size."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def run(onnx: bytes, batch: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    session = ort.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]
