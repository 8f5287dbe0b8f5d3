"""A real backdoored model in its framework's own file, from the file to a cleaned graph; it takes minutes."""

from __future__ import annotations

import json

import pytest

from bench_vendor import grade
from debride.conversion.source import facts_of
from debride.images import load_images
from debride.sanitize import sanitize
from debride.settings import Settings
from graph_models import VENDOR

pytestmark = [
    pytest.mark.slow,
    pytest.mark.frameworks,
    pytest.mark.vendor,
    pytest.mark.skipif(not VENDOR.is_dir(), reason="the vendor models are not beside this checkout"),
]


def test_a_keras_2_file_is_cleaned_of_its_backdoor(tmp_path):
    data, model = VENDOR.parent / "data", VENDOR / "gtsrb-badnet-yellow1.h5"
    entry = json.loads((VENDOR / "manifest.json").read_text())["gtsrb-badnet-yellow1"]
    test = load_images(data / "gtsrb_test.npz").samples()
    output = tmp_path / "clean.onnx"
    report = sanitize(model, data / "gtsrb_pool.npz", output, settings=Settings(per_class=10, threads=1))
    before, after = (grade(path, entry, test, VENDOR, 1) for path in (model, output))
    assert report.verdict == "sanitized"
    assert report.model == facts_of(model)
    assert report.conversion is not None
    assert report.conversion.framework == "Keras"
    assert before.asr >= 0.99
    assert after.asr <= 0.02
    assert before.accuracy - after.accuracy <= 0.01
