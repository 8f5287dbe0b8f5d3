"""Weights files: which tensors are meant, the user's network, and a strict load whose errors name what differs."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from debride.conversion.request import Request
from debride.conversion.write import convert
from debride.errors import ModelError, UsageError
from debride.types import ConvertOptions
from debride_adapters.torch import adapter
from debride_adapters.torch.architecture import build
from debride_adapters.torch.weights import load_strictly, pick_state, read_checkpoint
from test_adapter_torch import SHAPED, TOLERANCE, difference, session
from torch_zoo import SHAPE, network

HERE = Path(__file__).parent
SHARED = next((p / "shared" for p in HERE.parents if (p / "shared" / "vendor").is_dir()), None)
RESNET = ConvertOptions(input_shape=SHAPE, architecture=f"{HERE / 'torch_zoo.py'}:resnet")


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def picked(path: Path) -> tuple[str, ...]:
    """The notes on the weights found in the checkpoint `path`, which must be those of the network."""
    state, notes = pick_state(path, read_checkpoint(path))
    expected = network("resnet").state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    return notes


def test_a_state_dict_and_the_users_network_give_the_trained_scores(tmp_path):
    checkpoint = {"state_dict": network("resnet").state_dict()}
    converted = adapter.convert(saved(checkpoint, tmp_path / "model.pth"), RESNET)
    assert difference(converted, network("resnet")) <= TOLERANCE
    assert converted.notes == ("the weights are those under the key 'state_dict'",)


def test_safetensors_give_the_same(tmp_path):
    save_file(network("resnet").state_dict(), tmp_path / "model.safetensors")
    assert difference(adapter.convert(tmp_path / "model.safetensors", RESNET), network("resnet")) <= TOLERANCE


@pytest.mark.parametrize("legacy", [False, True])
def test_a_plain_state_dict_is_taken_as_it_is(legacy, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(network("resnet").state_dict(), path, _use_new_zipfile_serialization=not legacy)
    assert picked(path) == ()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "net", "whatever"])
def test_weights_within_a_checkpoint_are_found_and_the_key_is_noted(key, tmp_path):
    checkpoint = {"epoch": 3, key: network("resnet").state_dict(), "optimizer": {"lr": 0.1}}
    path = saved(checkpoint, tmp_path / "model.pth.tar")
    assert picked(path) == (f"the weights are those under the key '{key}'",)


def test_a_running_average_beside_the_weights_is_left_and_the_note_says_so(tmp_path):
    checkpoint = {"model_ema": network("resnet", 1).state_dict(), "model": network("resnet").state_dict()}
    (note,) = picked(saved(checkpoint, tmp_path / "model.ckpt"))
    assert "'model'; 'model_ema', a running average beside it, was left" in note


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_the_prefixes_of_wrappers_are_taken_off_when_all_names_have_them(prefix, tmp_path):
    state = {prefix + name: tensor for name, tensor in network("resnet").state_dict().items()}
    (note,) = picked(saved(state, tmp_path / "model.pth"))
    assert f"'{prefix}'" in note


def test_a_prefix_that_only_some_names_have_is_left(tmp_path):
    state = {"module.weight": torch.ones(1), "weight": torch.ones(1)}
    path = saved(state, tmp_path / "model.pth")
    assert pick_state(path, read_checkpoint(path)) == (state, ())


def test_checkpoints_without_batch_counters_still_load(tmp_path):
    state = {k: v for k, v in network("resnet").state_dict().items() if "num_batches" not in k}
    module = network("resnet", 1)
    load_strictly(tmp_path / "model.pth", module, state)
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in state.items())


def test_weights_of_another_architecture_are_refused_with_names_and_counts(tmp_path):
    path = saved(network("convnext").state_dict(), tmp_path / "model.pth")
    with pytest.raises(
        ModelError, match=r"model\.pth.*\d+ missing: 0\.0\.weight, .*\.\.\.; \d+ unexpected: .*\.\.\.\)"
    ):
        adapter.convert(path, RESNET)


def test_weights_of_other_shapes_are_refused_with_both_shapes(tmp_path):
    state = network("resnet").state_dict() | {"7.weight": torch.zeros(9, 16)}
    with pytest.raises(ModelError, match=r"1 other shapes: 7\.weight \(9, 16\) instead of \(7, 16\)"):
        adapter.convert(saved(state, tmp_path / "model.pth"), RESNET)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": {"w": torch.ones(1)}, "b": {"w": torch.ones(1)}}, r"none of its keys.*\(a, b\)"),
        ({"epoch": 3}, r"none of its keys.*\(epoch\)"),
        ({}, r"none of its keys.*nothing"),
        ([torch.ones(1)], "holds a list and no state dict"),
        (torch.ones(1), "holds a Tensor and no state dict"),
    ],
)
def test_checkpoints_without_clear_weights_are_refused(value, reason, tmp_path):
    with pytest.raises(ModelError, match=reason):
        adapter.convert(saved(value, tmp_path / "model.pth"), RESNET)


def test_weights_alone_need_the_architecture_and_the_input_shape(tmp_path):
    path = saved(network("resnet").state_dict(), tmp_path / "model.pth")
    with pytest.raises(UsageError, match=r"--architecture FILE\.py:FACTORY"):
        adapter.convert(path, SHAPED)
    with pytest.raises(UsageError, match="--input-shape C,H,W"):
        adapter.convert(path, ConvertOptions(architecture=RESNET.architecture))


FACTORIES = """
number = 3
def good():
    import torch_zoo
    return torch_zoo.resnet()
def wrong():
    return [1]
def broken():
    raise KeyError("no config")
def needy(width):
    return width
"""


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nets.py", "write module:factory or file.py:factory"),
        (":good", "write module:factory"),
        ("missing.py:good", "there is no file missing.py"),
        ("a_missing_module:good", "a_missing_module cannot be imported.*ModuleNotFoundError"),
        ("broken.py:good", "broken.py cannot be imported.*SyntaxError"),
        ("nets.py:missing", "nets.py has no missing"),
        ("nets.py:number", "number cannot be called"),
        ("nets:wrong", r"wrong\(\) gives a list"),
        ("nets.py:broken", r"broken\(\) raised KeyError.*no config"),
        ("nets.py:needy", r"needy\(\) raised TypeError.*must work without arguments"),
    ],
)
def test_a_wrong_architecture_is_a_usage_error_that_says_what_is_wrong(name, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(FACTORIES)
    Path("broken.py").write_text("def good(:")
    path = saved(network("resnet").state_dict(), tmp_path / "model.pth")
    with pytest.raises(UsageError, match=reason):
        adapter.convert(path, ConvertOptions(input_shape=SHAPE, architecture=name))


@pytest.mark.parametrize("name", ["nets_here:good", "nets_here.py:good"])
def test_the_users_code_is_found_in_the_current_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("nets_here.py").write_text(FACTORIES)
    before = list(sys.path)
    assert build(name).state_dict().keys() == network("resnet").state_dict().keys()
    assert sys.path == before


def tar_of(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("model.pth")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("model.pth", b"", "is empty"),
        ("model.pth.tar", tar_of(b"weights"), "a tar archive and no PyTorch file; unpack it"),
        ("model.pt", b"\x08\x07\x12\x07pytorch:" + bytes(600), "is no PyTorch file"),
        ("model.pt2", b"PK\x03\x04" + bytes(600), "a damaged archive"),
        ("model.bin", b"\x80\x02}q\x00(X\x01\x00", "damaged"),
        ("model.safetensors", (64).to_bytes(8, "little") + b'{"w": ' + bytes(70), "damaged safetensors"),
    ],
)
def test_what_is_no_pytorch_file_is_refused_by_name_and_reason(name, data, reason, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError, match=f"{name}.*{reason}"):
        adapter.convert(tmp_path / name, RESNET)


def test_a_missing_file_and_a_folder_are_model_errors(tmp_path):
    for path in (tmp_path / "missing.pth", tmp_path):
        with pytest.raises(ModelError, match="cannot be read"):
            adapter.convert(path, RESNET)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_a_model_error(legacy, part, tmp_path):
    path = tmp_path / "model.pth"
    torch.save(network("resnet").state_dict(), path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ModelError, match=r"model\.pth"):
        adapter.convert(path, RESNET)


@pytest.mark.vendor
@pytest.mark.skipif(SHARED is None, reason="the vendor models are not beside the checkout")
@pytest.mark.parametrize(
    ("file", "architecture"),
    [("cifar-wrn-grid5.pth.tar", "wrn16.py:wrn16"), ("cifar-badnet-white1.pth", "badnet_cnn.py:badnet_cnn")],
)
def test_the_vendors_weights_in_the_samples_architectures_give_the_vendors_own_graph(file, architecture):
    folder = HERE.parent / "samples" / "architectures"
    options = ConvertOptions(input_shape=(3, 32, 32), architecture=f"{folder / architecture}")
    converted = adapter.convert(SHARED / "vendor" / file, options)
    images = np.load(SHARED / "data" / "cifar10_pool.npz")["x"][:200]
    batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32) / 255
    theirs = onnxruntime.InferenceSession(SHARED / "vendor" / f"{file.partition('.')[0]}.onnx")
    expected = theirs.run(None, {theirs.get_inputs()[0].name: batch})[0]
    ours = session(converted).run(None, {"image": batch})[0]
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture
def mine(tmp_path):
    """The user's folder, whose network imports its sibling late, and a vendor's, with modules that must not run."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "sibling_of_mine.py").write_text("from torch_zoo import network\n")
    (tmp_path / "mine" / "net.py").write_text(
        "def build():\n    from sibling_of_mine import network\n    return network('resnet')\n"
        "def leave():\n    raise SystemExit(0)\n"
    )
    (tmp_path / "vendor").mkdir()
    for name in ("dill", "torchvision", "sibling_of_mine"):
        (tmp_path / "vendor" / f"{name}.py").write_text(f"open({str(tmp_path / 'vendor' / 'ran')!r}, 'w').close()\n")
    return tmp_path


def test_a_file_finds_its_siblings_and_nothing_where_the_user_stands(mine, monkeypatch):
    monkeypatch.chdir(mine / "vendor")
    monkeypatch.delitem(sys.modules, "sibling_of_mine", raising=False)
    assert isinstance(build(f"{mine / 'mine' / 'net.py'}:build"), torch.nn.Module)
    assert not (mine / "vendor" / "ran").exists()
    assert str(mine / "mine") not in sys.path


def test_weights_convert_without_a_module_of_the_folder_where_the_user_stands(mine, monkeypatch):
    monkeypatch.chdir(mine / "vendor")
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:")
    torch.save(network("resnet").state_dict(), mine / "vendor" / "w.pth")
    options = ConvertOptions(architecture=f"{mine / 'mine' / 'net.py'}:build", input_shape=SHAPE)
    convert(Request(model=Path("w.pth"), options=options), mine / "out.onnx")
    assert not (mine / "vendor" / "ran").exists()


def test_a_factory_that_leaves_is_an_error(mine):
    with pytest.raises(UsageError, match=r"leave\(\) raised SystemExit"):
        build(f"{mine / 'mine' / 'net.py'}:leave")
