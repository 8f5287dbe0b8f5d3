"""Classifiers made with a backdoor: that they classify, that the trigger works, and that a seed decides all of them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

import planted_images as made_up
from bench_growth import Point, by_stage, growth, passes, row
from bench_vendor import Child, child
from conftest import ROOT
from debride.images import load_images
from debride.triggers import load_trigger
from planted import Recipe, exported, grade, make, write

CNN = Recipe(kind="cnn", size=32, width=16)
RECIPES = {
    "cnn": CNN,
    "cnn of odd size": replace(CNN, size=45, depth=2),
    "cnn of 43 classes": replace(CNN, size=28, classes=43, width=32),
    "resnet18": Recipe(kind="resnet18", size=32, width=16),
    "vit": Recipe(kind="vit-tiny", size=64, width=48, depth=4),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", RECIPES)
def test_it_classifies_and_the_trigger_works(name, tmp_path):
    recipe = RECIPES[name]
    files = write(recipe, tmp_path, per_class=1)
    found = grade(recipe, files.model, threads=1)
    assert found.accuracy > 0.9
    assert found.asr > 0.95
    session = onnxruntime.InferenceSession(files.model, providers=["CPUExecutionProvider"])
    for n in (1, 3):
        images = np.zeros((n, 3, recipe.size, recipe.size), np.float32)
        assert session.run(None, {"x": images})[0].shape == (n, recipe.classes)


def test_the_files_are_what_debride_reads(tmp_path):
    files = write(CNN, tmp_path, per_class=2)
    images, trigger = load_images(files.images).samples(), load_trigger(files.trigger)
    assert images.images.shape == (20, 3, 32, 32)
    assert images.labels.tolist() == [c for c in range(10) for _ in range(2)]
    assert (trigger.target, trigger.l1) == (5, 9.0)
    assert trigger.pattern.shape == (3, 32, 32)


def test_a_seed_decides_the_weights():
    first, same, other = (make(recipe).state_dict() for recipe in (CNN, CNN, replace(CNN, seed=1)))
    assert all(first[name].numpy().tobytes() == same[name].numpy().tobytes() for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    assert exported(make(CNN), 32).SerializeToString() == exported(make(CNN), 32).SerializeToString()


def test_torch_draws_on_as_if_nothing_had_been_made():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    make(CNN)
    assert torch.equal(torch.rand(4), wanted)


def test_draws_are_images_of_the_same_classes():
    one, other = (made_up.images(20, 3, 24, seed=0, draw=draw)[0].reshape(3, 20, 24, 24, 3) for draw in (0, 1))
    assert not np.array_equal(one, other)
    apart = np.abs(one[:, None].mean(2) - other[None].mean(2)).mean((2, 3, 4))
    assert apart.diagonal().max() < apart[~np.eye(3, dtype=bool)].min()


def test_the_trigger_lies_within_images_of_any_size():
    for size in range(16, 225):
        trigger = made_up.checkerboard(size, 0)
        side = round(trigger.l1**0.5)
        assert trigger.mask.sum() == side**2 == trigger.l1
        assert 0.08 < side / size < 0.2
        assert {0.0, 1.0} == set(np.unique(trigger.pattern[:, trigger.mask[0] > 0]))


def test_what_cannot_be_made_says_why():
    for recipe, words in (
        (Recipe(kind="vit-tiny", size=40), "no multiple of 16"),
        (Recipe(kind="resnet18", size=32, depth=3), "whose depth can be chosen"),
        (Recipe(kind="mlp", size=32), "there are resnet18, vit-tiny, cnn"),
    ):
        with pytest.raises(ValueError, match=words):
            make(recipe)


@pytest.mark.parametrize(
    ("report", "wanted"),
    [
        ({}, {}),
        (
            {"cost": {"inversion": {"passes": 34, "forwards": 2}, "check": {"passes": 0, "forwards": 9}}},
            {"inversion": 34},
        ),
        ({"cost": {"inversion": 34}}, {"inversion": 34}),
        ({"cost": {"passes": {"inversion": 34}}}, {"inversion": 34}),
    ],
)
def test_passes_are_read_from_a_report_of_any_form(report, wanted):
    assert passes(report) == wanted


def point(value, seconds, spent=None):
    cost = {} if spent is None else {"cost": {"inversion": {"passes": spent, "forwards": 0}}}
    report = {"verdict": "backdoored", "suspects": [value // 2], "seconds": {"inversion": seconds}, **cost}
    ran = Child(code=1, seconds=seconds, peak=400.4, said="")
    return Point(axis="classes", value=value, size=380_000, ran=ran, report=report)


def test_growth_is_a_power():
    assert growth([point(10, 2.0), point(40, 8.0)]) == "From 10 to 40 classes, seconds grow by the power 1.00."
    told = "From 10 to 40 classes, seconds grow by the power 0.50, passes by 2.00."
    assert growth([point(40, 4.0, 160), point(10, 2.0, 10)]) == told
    assert "Too few" in growth([point(10, 2.0)])


def test_a_row_of_the_table():
    assert row(point(10, 2.0, 3400))[:4] == ("10", "0.38", "backdoored", "yes")
    assert row(point(10, 2.0, 34000))[4:] == ("inversion 2.0", "2.0", "inversion 34,000", "3,400", "400")
    assert row(point(10, 2.0))[6:8] == ("-", "-")
    stopped = replace(point(10, 2.0), report={}, ran=Child(code=-9, seconds=60.0, peak=1, said="|"))
    assert row(stopped)[2] == "out of time"
    assert by_stage({}, "") == "-"


def test_a_run_that_takes_too_long_is_stopped(tmp_path):
    assert child(["--help"], tmp_path / "log", timeout=0.01).code < 0
    assert child(["--help"], tmp_path / "log", timeout=60).code == 0


def test_the_command_line(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "planted.py"), "--kind", "cnn", "--size", "28", "--width", "8"]
    paths = f"{ROOT / 'toolkit'}:{ROOT / 'adapters'}"
    ran = subprocess.run(
        [*command, "--per-class", "1", "--out", str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": paths, "PATH": "", "OMP_NUM_THREADS": "1"},
    )
    assert ran.stdout.startswith("accuracy ")
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "images.npz", "trigger.npz"}
