"""What the benchmark of retraining reckons: DER, steps until an attack is back, means, and the manifest's trigger."""

from __future__ import annotations

import numpy as np
import pytest

from bench_retrain import Row, der, means, passed, planted
from bench_vendor import Grade, stamped
from debride.triggers import stamp
from debride.types import Rate


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ((0.9124, 0.9571), (0.9210, 0.0247), 96.62),  # FT-SAM's published line; better accuracy counts for nothing
        ((0.9, 1.0), (0.8, 0.5), 70.0),
        ((0.9, 0.5), (0.9, 0.7), 50.0),  # more attack counts as none less
        ((0.9, 1.0), (0.9, 1.0), 50.0),
    ],
)
def test_the_defence_effectiveness_rating(before, after, wanted):
    one, other = (Grade(accuracy=accuracy, asr=asr) for accuracy, asr in (before, after))
    assert der(one, other) == pytest.approx(wanted, abs=0.005)


def test_steps_until_an_attack_is_back():
    rates = [Rate(0, 10), Rate(5, 10), Rate(9, 10)]
    assert [passed((0, 4, 8), rates, level) for level in (0.0, 0.5, 0.9, 1.0)] == ["0", "4", "8", "> 8"]


def test_means_are_taken_per_images_cut_and_method():
    rows = [
        Row(key=key, cells=(), after=Grade(accuracy=accuracy, asr=asr), der=rating)
        for key, accuracy, asr, rating in (
            ((1, "pruned", "unlearn"), 0.8, 0.1, 90.0),
            ((1, "delivered", "unlearn"), 0.7, 0.3, 70.0),
            ((1, "pruned", "unlearn"), 0.9, 0.0, 95.0),
        )
    ]
    assert list(means(rows)) == [
        ("1", "pruned", "unlearn", "2", "85.00%", "5.00%", "92.50"),
        ("1", "delivered", "unlearn", "1", "70.00%", "30.00%", "70.00"),
    ]


@pytest.mark.parametrize("trigger", ["paste", "pixels", "blend"])
def test_the_manifests_trigger_stamps_as_the_manifest_says(trigger, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.random((4, 3, 8, 8), np.float32)
    np.savez(tmp_path / "t.npz", pattern=rng.random((8, 8, 3), np.float32))
    entry = {
        "target": 2,
        "trigger": {
            "paste": {"kind": "paste", "pixels": [[[255, 0, 51], [0, 0, 0]]], "row": 6, "col": 1},
            "pixels": {"kind": "pixels", "at": [[0, 1], [7, 7]], "value": 255},
            "blend": {"kind": "blend", "file": "t.npz", "alpha": 0.25},
        }[trigger],
    }
    found = planted(entry, images.shape[1:], tmp_path)
    np.testing.assert_allclose(stamp(images, found), stamped(images, entry["trigger"], tmp_path), atol=1e-6)
    assert found.target == 2 and found.l1 == pytest.approx({"paste": 2, "pixels": 2, "blend": 16}[trigger])
