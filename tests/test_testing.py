"""The contract test for adapters: the worked example keeps it, and each way of breaking it is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

from debride.errors import ModelError
from debride.testing import check_adapter
from debride.types import Converted
from debride_adapters.onnx import adapter as onnx_adapter
from tiny import tiny_classifier, tiny_spec

EXAMPLE = Path(__file__).parents[1] / "samples" / "adapter"


class Good:
    """An adapter for ONNX under another suffix, whose parts the tests replace."""

    name = "Good"
    suffixes = (".good",)

    def convert(self, path, options):
        try:
            data = path.read_bytes()
            onnx.checker.check_model(data)
        except Exception as error:
            raise ModelError(f"{path}: no model; give another") from error
        return Converted(onnx=data, folder=path.parent)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "m.good"
    path.write_bytes(tiny_classifier(tiny_spec()))
    return path


def changed(**parts):
    return type("Changed", (Good,), parts)()


def after(act):
    """A convert that does `act(path, converted)` and hands on what it returns."""
    return lambda self, path, options: act(path, Good.convert(self, path, options))


def test_an_adapter_that_keeps_the_contract_passes(model):
    assert check_adapter(Good(), model).parity[0].difference == 0


def test_the_onnx_pass_through_keeps_the_contract(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_classifier(tiny_spec()))
    assert check_adapter(onnx_adapter, tmp_path / "m.onnx").opset == 18


@pytest.mark.parametrize(
    ("adapter", "clause"),
    [
        (changed(name=""), "name is empty"),
        (changed(suffixes=(".other",)), "none of the adapter's suffixes"),
        (changed(suffixes=(".Good",)), "lower case"),
        (changed(convert=None), "lacks name, suffixes or convert"),
        (changed(convert=after(lambda path, made: made.onnx)), r"no debride\.types\.Converted"),
        (changed(convert=after(lambda path, made: path.write_bytes(b"") or made)), "changes the model file"),
        (changed(convert=after(lambda path, made: path.with_name("left").touch() or made)), "leaves files"),
        (changed(convert=lambda self, path, options: Good.convert(self, Path("x.good"), options)), r"x\.good"),
    ],
    ids=["name", "suffix", "case", "no convert", "bytes", "changes", "leaves", "other path"],
)
def test_every_broken_clause_is_named(model, adapter, clause):
    with pytest.raises((AssertionError, ModelError), match=clause):
        check_adapter(adapter, model)


def test_a_fixed_batch_is_found(model):
    model.write_bytes(tiny_classifier(tiny_spec(), batch=1))
    with pytest.raises(AssertionError, match="batch dimension is fixed"):
        check_adapter(Good(), model)


def test_an_adapter_that_takes_anything_is_found(model):
    whole = model.read_bytes()
    with pytest.raises(AssertionError, match="a missing file is converted without an error"):
        check_adapter(changed(convert=lambda self, path, options: Converted(onnx=whole)), model)


@pytest.mark.parametrize(
    ("refusal", "clause"),
    [
        (ValueError("bad"), "a missing file raises ValueError, no ModelError: bad"),
        (ModelError("bad"), "does not begin with the path"),
        (ModelError("{path}: bad\nvery"), "more than one line"),
    ],
)
def test_a_refusal_must_be_one_line_that_names_the_file(model, refusal, clause):
    def convert(self, path, options):
        if path.name == model.name:
            return Good.convert(self, path, options)
        raise type(refusal)(str(refusal).format(path=path))

    with pytest.raises(AssertionError, match=clause):
        check_adapter(changed(convert=convert), model)


def test_the_worked_example_passes_its_own_test_and_is_found_once_installed(tmp_path):
    site = tmp_path / "site"
    info = site / "debride_numpy-1.0.dist-info"
    info.mkdir(parents=True)
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["debride.adapters"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[debride.adapters]", *lines]) + "\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(EXAMPLE), *filter(None, sys.path)])}
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", EXAMPLE, EXAMPLE],
        check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout
    network = {
        "shape": np.array([1, 2, 2]),
        "weight0": np.eye(4, 3, dtype=np.float32),
        "bias0": np.zeros(3, np.float32),
    }
    np.savez(tmp_path / "net.npz", **network)
    command = [
        sys.executable,
        "-c",
        "from debride.cli import main; main()",
        "convert",
        "net.npz",
        "-o",
        "net.onnx",
        "--json",
    ]
    ran = subprocess.run(
        command, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["conversion"]["framework"] == "NumPy"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros(3)}, "'shape' is missing"),
        ({"shape": np.array([1, 2, 2])}, "no 'weight0'"),
        ({"shape": np.array([1, 2, 2]), "weight0": np.zeros((5, 2)), "bias0": np.zeros(2)}, "layer 0 does not take 4"),
        ({"shape": np.array([1, 2, 2]), "weight0": np.array([{}], object)}, "plain arrays"),
    ],
)
def test_the_worked_example_refuses_what_is_no_network(tmp_path, monkeypatch, arrays, message):
    monkeypatch.syspath_prepend(str(EXAMPLE))
    from debride_numpy import read

    np.savez(tmp_path / "net.npz", **arrays)
    with pytest.raises(ModelError, match=rf"net\.npz: .*{message}"):
        read(tmp_path / "net.npz")
