"""The benchmark's comparison of devices, on a GPU that is none and without one."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

import bench_valuation
from debride import sessions
from debride.graph.channels import find_groups
from debride.sessions import Runtime
from debride.stakes import Stake
from fake_gpu import CPU, FakeGpu
from retraining_parts import SPEC, images
from trainable_models import plain, read

MODEL = read(plain())


@dataclass(frozen=True)
class Subject:
    """What the comparison reads of a loaded model."""

    model: object = MODEL
    groups: tuple = find_groups(MODEL.graph, "scores")[0]
    spec: object = SPEC
    runtime: Runtime = Runtime(threads=1)  # noqa: RUF009 - frozen
    seen: dict = field(default_factory=dict)


@pytest.fixture
def stakes():
    wanted = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    return tuple(Stake(images=images(4, seed), wanted=wanted) for seed in (1, 2))


def test_a_gpu_is_compared_with_the_cpu_by_images_in_a_run(monkeypatch, capsys, stakes):
    gpu = FakeGpu()
    monkeypatch.setattr(sessions, "ort", gpu)
    bench_valuation.compare_devices(Subject(), stakes, seed=0)
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == ["CPU", *(f"{n} images" for n in bench_valuation.SIZES), "GPU"]
    assert rows[2][2] == "1.00" and all(float(row[1]) > 0 for row in rows[2:]) and gpu.runs > 0


def test_without_a_gpu_one_line_says_so(monkeypatch, capsys, stakes):
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: [CPU])
    bench_valuation.compare_devices(Subject(), stakes, seed=0)
    out = capsys.readouterr().out
    assert out.startswith("no GPU to compare with: ") and out.count("\n") == 1
