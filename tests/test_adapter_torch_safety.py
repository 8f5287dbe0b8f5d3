"""Files that try to run something: a payload that would touch a file is not run, and the error names what was tried."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters.torch import adapter
from test_adapter_torch import SHAPED, difference, exported, scripted
from torch_zoo import SHAPE, network


class Payload:
    """Unpickled, it runs a command that creates `path`."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch '{self.path}'",))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    return tmp_path / "planted"


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def changed(path: Path, change: Callable[[str, bytes], bytes], **more: bytes) -> Path:
    """The archive `path` with every entry passed through `change` and `more` entries beside them."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).partition("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, change(name.partition("/")[2], data))
        for name, data in more.items():
            archive.writestr(f"{root}/{name}", data)
    return path


def program(folder: Path) -> Path:
    return exported(network("resnet"), folder / "model.pt2")


def refused(path: Path, reason: str) -> None:
    with pytest.raises(ModelError, match=reason) as error:
        adapter.convert(path, SHAPED)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_payload_in_a_checkpoint_is_not_run_and_is_named(legacy, tmp_path, planted):
    path = tmp_path / "model.pth"
    value = {"state_dict": network("resnet").state_dict(), "config": Payload(planted)}
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    refused(path, r"needs (posix|nt)\.system, which is code and is not run; save model\.state_dict\(\)")
    assert not planted.exists()
    torch.load(path, weights_only=False)
    assert planted.exists(), "the payload does nothing, so the test above proves nothing"


def test_a_whole_pickled_module_is_refused_with_the_mend(tmp_path):
    torch.save(network("resnet"), tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"torch\.nn\.modules\.container\.Sequential.*save model\.state_dict\(\)")


def test_a_payload_in_a_programs_sample_inputs_is_not_run(tmp_path, planted):
    bad = saved(((Payload(planted),), {}))
    path = changed(program(tmp_path), lambda name, data: bad if name == "data/sample_inputs/model.pt" else data)
    refused(path, r"sample_inputs/model\.pt needs (posix|nt)\.system")
    assert not planted.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert planted.exists(), "the payload does nothing, so the test above proves nothing"


def test_a_weight_of_a_program_that_is_marked_as_a_pickle_is_not_unpickled(tmp_path, planted):
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
        return saved(Payload(planted)) if name == "data/weights/weight_0" else data

    refused(changed(program(tmp_path), change), "is a pickled object and no plain tensor")
    assert not planted.exists()


def in_json(change: Callable[[str], str]) -> Callable[[str, bytes], bytes]:
    return lambda name, data: change(data.decode()).encode() if name == "models/model.json" else data


def test_a_size_that_is_python_code_is_not_evaluated(tmp_path, planted):
    command = f"__import__('os').system('touch {planted}')"
    size = re.compile(r"Symbol\('s\d+', positive=True, integer=True\)")
    path = changed(program(tmp_path), in_json(lambda text: size.sub(command, text)))
    refused(path, "has the size '__import__")
    assert not planted.exists()
    with contextlib.suppress(Exception):
        torch.export.load(path)
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


def test_guards_which_become_python_code_are_left_out(tmp_path, planted):
    def change(text: str) -> str:
        return json.dumps(json.loads(text) | {"guards_code": [f"__import__('os').system('touch {planted}') == 0"]})

    path = changed(program(tmp_path), in_json(change))
    assert difference(adapter.convert(path, ConvertOptions()), network("resnet")) < 1e-4
    assert not planted.exists()
    torch.export.load(path).module()(torch.rand(2, *SHAPE))
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.hub.load",
        "torch.load",
        "torch.ops.aten.from_file.default",
        "torch.ops.mylib.custom.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "_operator.methodcaller",
        "#ext.op",
    ],
)
def test_operators_that_no_classifier_needs_are_refused_by_name(target, tmp_path):
    def change(text: str) -> str:
        return text.replace('"torch.ops.aten.relu.default"', json.dumps(target), 1)

    refused(changed(program(tmp_path), in_json(change)), f"its program calls {re.escape(target)}")


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"relu"', json.dumps("x=print()"), r"has the (text|name) 'x=print\(\)'"),
        ("builtins.tuple", "collections.defaultdict", "no plain tuples"),
        ('"guards_code"', '"guards(code)"', r"has the name 'guards\(code\)'"),
        ('{"graph_module"', '["graph_module"', "damaged"),
    ],
)
def test_texts_of_a_program_that_could_become_code_are_refused(old, new, reason, tmp_path):
    refused(changed(program(tmp_path), in_json(lambda text: text.replace(old, new))), reason)


@pytest.mark.parametrize(
    "entry",
    [
        "data/aotinductor/model/model.so",
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "models/other.json",
        "data/weights/../evil",
    ],
)
def test_entries_that_hold_machine_code_or_objects_are_refused_by_name(entry, tmp_path):
    path = changed(program(tmp_path), lambda _, data: data, **{entry: b"\x7fELF"})
    refused(path, re.escape(entry))


class SavesInForward(nn.Module):
    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        torch.save(x, self.path)
        return x.mean((2, 3))


class SavesWhenLoaded(nn.Module):
    def __init__(self, path: Path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        return x.mean((2, 3))

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.ops.aten.save(torch.ones(1), state[0])


@pytest.mark.parametrize("module", [SavesInForward, SavesWhenLoaded])
def test_torchscript_that_writes_files_is_refused_before_it_is_loaded(module, tmp_path, planted):
    path = scripted(module(planted), tmp_path / "model.pt")
    refused(path, r"uses 'save\(.*nothing was run")
    assert not planted.exists()
    torch.jit.load(path)(torch.rand(1, 3, 4, 4))
    assert planted.exists(), "the code does nothing, so the test above proves nothing"


FORWARD = "  def forward"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('getattr(torch, "sa" "ve")(1, "f")', "getattr 'save'"),
        ('x = getattr(torch, "sa" "ve" if True else "")', "getattr None"),
        ("x = getattr", "getattr"),
        ('torch.from_file("f")', "from_file"),
        ("ops.mylib.custom(1)", "ops.mylib"),
        ("x = ops", "uses 'ops"),
        ("x = torch.classes.mylib.Custom()", "torch.classes"),
        ("x : __torch__.torch . classes.mylib.Custom = 1", "torch.classes"),
        ("^Function(1)(2)", "cannot be audited"),
        ("def (", "cannot be audited"),
        ("x = 'caf\xe9'", "cannot be audited"),
    ],
)
def test_torchscript_that_reaches_beyond_a_classifiers_operators_is_refused(line, reason, tmp_path):
    path = scripted(network("resnet"), tmp_path / "model.pt")

    def change(name: str, data: bytes) -> bytes:
        method = f"  def more(self) -> None:\n    {line}\n    return None\n{FORWARD}".encode()
        return data.replace(FORWARD.encode(), method, 1) if name.endswith("conv.py") else data

    refused(changed(path, change), reason)


class Named(nn.Module):
    """Its names look like what is refused and are harmless."""

    def __init__(self):
        super().__init__()
        self.classes, self.saved = 7, nn.Sequential(nn.Conv2d(3, 7, 3))

    def forward(self, x):
        return self.saved(x).mean((2, 3)).view(x.size(0), self.classes)


def test_harmless_names_that_look_alike_are_not_refused(tmp_path):
    assert difference(adapter.convert(scripted(Named().eval(), tmp_path / "model.pt"), SHAPED)) < 1e-4


def test_a_payload_in_the_pickle_of_a_torchscript_archive_is_not_run(tmp_path, planted):
    import pickle

    bad = pickle.dumps(Payload(planted), protocol=2)
    for entry in ("data.pkl", "constants.pkl"):
        path = scripted(network("resnet"), tmp_path / "model.pt")
        path = changed(path, lambda name, data, entry=entry: bad if name == entry else data)
        refused(path, rf"{re.escape(entry)} needs (posix|nt)\.system")
    assert not planted.exists()


def test_torchscript_of_the_oldest_format_whose_code_lies_elsewhere_is_refused(tmp_path):
    path = changed(scripted(network("resnet"), tmp_path / "model.pt"), lambda _, data: data, **{"model.json": b"{}"})
    refused(path, r"holds 'model\.json'")


def test_an_archive_with_two_roots_is_refused_since_readers_differ_on_which_counts(tmp_path):
    path = scripted(network("resnet"), tmp_path / "model.pt")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other/data.pkl", b"")
    refused(path, "more than one folder")


@pytest.mark.parametrize("part", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["script", "program"])
def test_truncated_archives_are_model_errors(kind, part, tmp_path):
    path = program(tmp_path) if kind == "program" else scripted(network("resnet"), tmp_path / "model.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    refused(path, "damaged (archive|checkpoint)")  # a program holds an archive that may be taken for the whole


def test_a_torch_with_a_known_hole_in_its_safe_loading_is_refused(tmp_path, monkeypatch):
    torch.save(network("resnet").state_dict(), tmp_path / "model.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    refused(tmp_path / "model.pth", r"torch 2\.9\.1\+cpu cannot load it safely; install torch>=2\.10")
