"""The plugin door: suffixes from metadata alone, one import at most, errors that say what can be read."""

from __future__ import annotations

import configparser
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from debride.errors import ModelError
from debride.plugins import GROUP, Adapter, adapter_for, offers
from debride.types import Converted, ConvertOptions
from debride_adapters.onnx import adapter as onnx_adapter

ROOT = Path(__file__).parents[1]
GOOD = """
from debride.types import Converted, ConvertOptions
class Good:
    name = "Good"
    suffixes = (".zgood",)
    def convert(self, path, options):
        return Converted(onnx=path.read_bytes(), spec={"layout": "NHWC"}, notes=("read",))
adapter = Good()
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a made-up distribution: modules by name, entry points as lines."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(name: str, entries: list[str], **modules: str) -> None:
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *entries]) + "\n")
        for module, text in modules.items():
            (tmp_path / f"{module}.py").write_text(text)
            monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()

    return put


def test_listing_the_suffixes_imports_no_adapter(install):
    install("zbombs", ["zbomb = zbomb:adapter"], zbomb="raise RuntimeError('imported')")
    assert ".zbomb" in {offer.kind for offer in offers()}
    assert "zbomb" not in sys.modules


def test_the_suffix_picks_the_adapter_whatever_its_case_and_no_other_is_imported(install, tmp_path):
    install("zbombs", ["zbomb = zbomb:adapter"], zbomb="raise RuntimeError('imported')")
    install("zgoods", ["zgood = zgood:adapter"], zgood=GOOD)
    model = tmp_path / "model.ZGOOD"
    model.write_bytes(b"graph")
    converted = adapter_for(model).convert(model, ConvertOptions())
    assert (converted.onnx, dict(converted.spec), converted.notes) == (b"graph", {"layout": "NHWC"}, ("read",))
    assert "zbomb" not in sys.modules


def test_an_unknown_suffix_is_an_error_that_names_what_can_be_read(install):
    install("zgoods", ["zgood = zgood:adapter"], zgood=GOOD)
    with pytest.raises(ModelError, match=r"model\.zip.*can be read:.*\.zgood"):
        adapter_for(Path("model.zip"))
    with pytest.raises(ModelError, match="without a suffix"):
        adapter_for(Path("model"))


def test_a_suffix_that_two_distributions_claim_is_refused(install):
    install("zgoods", ["zgood = zgood:adapter"], zgood=GOOD)
    install("zgoods2", ["zgood = zgood2:adapter"], zgood2=GOOD)
    with pytest.raises(ModelError, match="zgood2:adapter"):
        adapter_for(Path("model.zgood"))


def test_a_folder_is_claimed_by_the_file_that_marks_it(install, tmp_path):
    install("zfolders", ["weights.zf = zfolder:adapter"], zfolder=GOOD.replace(".zgood", "weights.zf"))
    model = tmp_path / "model"
    model.mkdir()
    with pytest.raises(ModelError, match=r"model: no adapter reads this folder; can be read:.*weights\.zf"):
        adapter_for(model)
    (model / "weights.zf").touch()
    assert adapter_for(model).name == "Good"


def test_what_an_extra_lacks_is_told_from_metadata_alone(install, tmp_path):
    install("zbombs", ["zbomb = zbomb:adapter [boom]"], zbomb="raise RuntimeError('imported')")
    with (tmp_path / "zbombs-1.0.dist-info" / "METADATA").open("a") as metadata:
        metadata.write(
            "Provides-Extra: boom\nRequires-Dist: numpy\n"
            'Requires-Dist: numpy; extra == "boom"\nRequires-Dist: a-missing-one>=2; extra == "boom"\n'
            'Requires-Dist: another-missing-one; extra == "other"\n'
        )
    (offer,) = (offer for offer in offers() if offer.kind == ".zbomb")
    assert (offer.extra, offer.missing, offer.distribution) == ("boom", ("a-missing-one",), "zbombs")
    assert "zbomb" not in sys.modules


@pytest.mark.parametrize(
    "text",
    ["import a_framework_that_is_missing", "adapter = object()", GOOD.replace(".zgood", ".other"), "x = 1"],
    ids=["framework missing", "no adapter", "other suffix", "no such object"],
)
def test_a_broken_adapter_is_a_model_error_that_names_it(install, text):
    install("zgoods", ["zgood = zgood:adapter"], zgood=text)
    with pytest.raises(ModelError, match="zgood:adapter"):
        adapter_for(Path("model.zgood"))


def test_the_entry_points_that_debride_declares_are_adapters_for_their_suffix():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [line for line in config["options.entry_points"][GROUP].splitlines() if line]
    assert lines
    for line in lines:
        suffix, _, value = (part.strip() for part in line.partition("="))
        module, _, attribute = value.split(" ")[0].partition(":")
        adapter = getattr(importlib.import_module(module), attribute)
        assert isinstance(adapter, Adapter)
        assert (suffix if "." in suffix else f".{suffix}") in adapter.suffixes


def test_onnx_files_pass_through_byte_for_byte(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(bytes(range(256)))
    converted = onnx_adapter.convert(model, ConvertOptions())
    assert converted.onnx == bytes(range(256))
    assert converted.folder == tmp_path
    assert not converted.spec


def test_onnx_files_that_cannot_be_read_are_model_errors_that_name_the_file(tmp_path):
    (tmp_path / "empty.onnx").touch()
    for name in ("missing.onnx", "empty.onnx"):
        with pytest.raises(ModelError, match=name):
            onnx_adapter.convert(tmp_path / name, ConvertOptions())
    with pytest.raises(ModelError):
        onnx_adapter.convert(tmp_path, ConvertOptions())


def test_a_converted_model_cannot_be_changed():
    hints = {"layout": "NHWC"}
    converted = Converted(onnx=b"", spec=hints)
    hints["layout"] = "NCHW"
    assert converted.spec["layout"] == "NHWC"
    with pytest.raises(TypeError):
        converted.spec["layout"] = "NCHW"


def test_the_door_and_the_pass_through_load_no_framework():
    code = (
        "import sys, debride.plugins, debride_adapters.onnx;"
        "print([m for m in ('torch', 'onnx', 'onnxruntime', 'cv2') if m in sys.modules])"
    )
    script = f"import sys; sys.path[:0] = {[str(ROOT / 'toolkit'), str(ROOT / 'adapters')]}; {code}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
