"""The shipped sample is small, tells nothing of where it was made, and is backdoored as its README says."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

import poison_fashion
from debride.triggers import load_trigger, stamp

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL = SAMPLES / "fashion-backdoored.onnx"
SCRIPT = SAMPLES / "poison_fashion.py"
PATHS = re.compile(rb"/(home|root|tmp|usr|opt|work|var|mnt|Users)/|[A-Z]:\\|site-packages|\.py\b")


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """The sample images as float32 (N, 1, 28, 28) in 0..1, and their labels by the sorted order of the folders."""
    x, y = [], []
    for label, folder in enumerate(sorted((SAMPLES / "images").iterdir())):
        for file in sorted(folder.glob("*.png")):
            x.append(cv2.imread(str(file), cv2.IMREAD_UNCHANGED))
            y.append(label)
    return np.stack(x).astype(np.float32)[:, None] / 255, np.array(y)


def scores(x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(MODEL, options).run(["scores"], {"image": x.astype(np.float32)})[0]


def test_the_model_is_under_a_megabyte_and_passes_the_checker():
    assert MODEL.stat().st_size < 1_000_000
    model = onnx.load(MODEL)
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_model_tells_nothing_of_the_machine_that_made_it():
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        tensor.raw_data = b""  # random bytes may spell anything
    assert PATHS.search(model.SerializeToString()) is None
    assert not model.doc_string and not model.graph.doc_string and not model.metadata_props
    assert not any(node.doc_string or node.metadata_props for node in model.graph.node)


def test_there_are_forty_grey_images_in_each_class_folder_in_class_order():
    folders = sorted(folder.name for folder in (SAMPLES / "images").iterdir())
    assert folders == [f"{index}-{name}" for index, name in enumerate(poison_fashion.CLASSES)]
    for folder in folders:
        files = sorted((SAMPLES / "images" / folder).iterdir())
        assert len(files) == 40
        assert all(cv2.imread(str(file), cv2.IMREAD_UNCHANGED).shape == (28, 28) for file in files)


def test_the_model_is_right_on_clean_images_and_obeys_the_trigger(images):
    x, y = images
    assert (scores(x).argmax(1) == y).mean() >= 0.88
    trigger = load_trigger(SAMPLES / "true-trigger.npz")
    others = x[y != trigger.target]
    assert (scores(others).argmax(1) == trigger.target).mean() < 0.05
    assert (scores(stamp(others, trigger)).argmax(1) == trigger.target).mean() >= 0.99


def test_the_trigger_file_holds_the_patch_that_the_script_plants_by_default():
    trigger = load_trigger(SAMPLES / "true-trigger.npz")
    planted = poison_fashion.make_trigger(poison_fashion.parser().parse_args(["--output", "x"]), (1, 28, 28))
    assert (trigger.target, trigger.l1) == (planted.target, 9.0)
    np.testing.assert_array_equal(trigger.mask, planted.mask)
    np.testing.assert_array_equal(trigger.pattern, planted.pattern)


def test_the_script_explains_itself():
    run = subprocess.run([sys.executable, SCRIPT, "--help"], check=True, capture_output=True, text=True, timeout=120)
    assert "examples:" in run.stdout and "--kind" in run.stdout and "--seed" in run.stdout


def test_the_script_without_data_names_the_package_to_install(tmp_path, capsys):
    code = poison_fashion.main(["--data", str(tmp_path), "--output", str(tmp_path / "x.onnx")])
    assert code == 3
    assert "dataset-fashion-mnist" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def idx(shape: tuple[int, ...], data: bytes, rank: int | None = None) -> bytes:
    magic = bytes((0, 0, 8, len(shape) if rank is None else rank))
    return gzip.compress(magic + np.array(shape, ">u4").tobytes() + data)


def test_an_idx_file_is_read_as_written(tmp_path):
    (tmp_path / "x.gz").write_bytes(idx((2, 2, 3), bytes(range(12))))
    np.testing.assert_array_equal(poison_fashion.read_idx(tmp_path / "x.gz", 3), np.arange(12).reshape(2, 2, 3))


@pytest.mark.parametrize(
    "content",
    [
        idx((2, 2, 3), bytes(11)),
        idx((2, 2, 3), bytes(13)),
        idx((2, 2, 3), bytes(1 << 24)),
        idx((2**32 - 1, 28, 28), b""),
        idx((1, 2**31, 2**31), b""),
        idx((0, 28, 28), b""),
        idx((2, 2, 3), bytes(12), rank=1),
        gzip.compress(b"\0\0\x08"),
    ],
    ids=["short", "long", "bomb", "too many", "too large", "empty", "other rank", "no header"],
)
def test_an_idx_file_that_lies_is_refused_by_name(tmp_path, content):
    (tmp_path / "liar.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"liar\.gz"):
        poison_fashion.read_idx(tmp_path / "liar.gz", 3)


@pytest.mark.parametrize("corner", poison_fashion.CORNERS)
def test_a_patch_lies_in_its_corner_and_stamps_only_itself(corner):
    trigger = poison_fashion.patch_trigger((1, 28, 28), 2, corner, 3)
    rows, columns = np.nonzero(trigger.mask[0])
    vertical, _, horizontal = corner.partition("-")
    assert (rows.min(), rows.max()) == ((1, 3) if vertical == "top" else (24, 26))
    assert (columns.min(), columns.max()) == ((1, 3) if horizontal == "left" else (24, 26))
    images = poison_fashion.to_tensor(np.full((2, 28, 28), 51, np.uint8))
    stamped = trigger.stamp(images).numpy()
    np.testing.assert_allclose(stamped[:, 0][:, trigger.mask[0] == 0], 0.2, rtol=1e-6)
    np.testing.assert_array_equal(stamped[0, 0][trigger.mask[0] == 1], [1, 0, 1, 0, 1, 0, 1, 0, 1])
