"""The TensorFlow and TFLite adapters where TensorFlow is not installed, or not needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters import tensorflow, tflite


def test_importing_the_adapters_imports_no_framework():
    code = "import sys, debride_adapters.tensorflow, debride_adapters.tflite; print(*sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    loaded = set(done.stdout.split())
    assert "debride_adapters.tflite" in loaded
    assert not loaded & {"tensorflow", "tf2onnx", "onnx", "google.protobuf"}


@pytest.mark.parametrize(("adapter", "name"), [(tensorflow.adapter, "model.pb"), (tflite.adapter, "model.tflite")])
def test_without_tensorflow_the_extra_is_named(adapter, name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    (tmp_path / name).write_bytes(b"model")
    with pytest.raises(ModelError, match=r"install debride\[tensorflow\]"):
        adapter.convert(tmp_path / name, ConvertOptions())


@pytest.mark.parametrize(("adapter", "name"), [(tensorflow.adapter, "model.pb"), (tflite.adapter, "model.tflite")])
def test_a_missing_file_is_said_to_be_missing(adapter, name: str, tmp_path: Path):
    with pytest.raises(ModelError, match="no such file"):
        adapter.convert(tmp_path / name, ConvertOptions())
