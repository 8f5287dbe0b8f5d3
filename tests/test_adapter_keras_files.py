"""Keras files from strangers: damaged, dangerous or incomplete ones are refused, and none of their code runs."""

from __future__ import annotations

import base64
import json
import marshal
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType

import numpy as np
import pytest

from debride.errors import ModelError
from debride.types import ConvertOptions
from debride_adapters.keras import adapter
from debride_adapters.keras.load import private_copy

pytestmark = pytest.mark.frameworks


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a sound `model.keras` and `model.h5`."""
    import keras_zoo

    folder = tmp_path_factory.mktemp("saved")
    for suffix in (".keras", ".h5"):
        keras_zoo.build("sequential").save(folder / f"model{suffix}")
    return folder


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        adapter.convert(path, ConvertOptions())
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def forged(saved: Path, target: Path, change: Callable[[dict], None], **files: bytes) -> Path:
    """The sound `.keras` archive with `change` made to its configuration, and `files` put in the place of its own."""
    with zipfile.ZipFile(saved / "model.keras") as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            data = files.get(name.split(".")[0], source.read(name))
            if name == "config.json":
                config = json.loads(data)
                change(config)
                data = json.dumps(config).encode()
            archive.writestr(name, data)
    return target


def payload(witness: Path) -> CodeType:
    """The code of a function that creates `witness` when it runs."""
    space: dict = {}
    exec(f"def f(x):\n    open({str(witness)!r}, 'w').close()\n    return x", space)
    return space["f"].__code__


def lambda_layer(witness: Path) -> dict:
    code = base64.b64encode(marshal.dumps(payload(witness))).decode()
    return {
        "module": "keras.layers",
        "class_name": "Lambda",
        "config": {"name": "evil", "function": [code, None, None], "function_type": "lambda", "arguments": {}},
        "registered_name": None,
    }


def test_the_payload_of_these_tests_does_what_it_should_not_when_it_runs(tmp_path):
    FunctionType(payload(tmp_path / "witness"), {"__builtins__": __builtins__})(1)
    assert (tmp_path / "witness").exists()


def test_a_lambda_in_a_keras_file_is_refused_and_does_not_run(saved, tmp_path):
    path = forged(
        saved, tmp_path / "evil.keras", lambda c: c["config"]["layers"].append(lambda_layer(tmp_path / "witness"))
    )
    assert "'evil' is a Lambda" in refused(path)
    assert not (tmp_path / "witness").exists()


@pytest.mark.parametrize("in_archive", [False, True], ids=["suffix h5", "suffix keras"])
def test_a_lambda_in_an_hdf5_file_is_refused_and_does_not_run(saved, tmp_path, in_archive):
    path = changed_h5(saved, tmp_path / ("evil.keras" if in_archive else "evil.h5"))
    import h5py

    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        layer = lambda_layer(tmp_path / "witness")
        config["config"]["layers"].insert(1, {"class_name": "Lambda", "config": layer["config"]})
        file.attrs["model_config"] = json.dumps(config)
    assert "'evil' is a Lambda" in refused(path)
    assert not (tmp_path / "witness").exists()


def test_a_configuration_that_names_a_module_is_refused_and_the_call_not_made(saved, tmp_path):
    def change(config: dict) -> None:
        config["config"]["layers"][1]["config"]["kernel_initializer"] = {
            "module": "os",
            "class_name": "function",
            "config": "mkdir",
            "registered_name": "mkdir",
        }

    assert "os.mkdir" in refused(forged(saved, tmp_path / "evil.keras", change))


def test_what_is_loaded_is_what_was_audited_and_nothing_else(saved, tmp_path):
    def change(config: dict) -> None:
        config["compile_config"] = {"loss": {"module": "os", "class_name": "system", "config": {}}}

    path = forged(saved, tmp_path / "model.keras", change)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("assets/vocabulary.txt", "x")
    (tmp_path / "private").mkdir()
    copy = private_copy(path, tmp_path / "private")
    assert copy.path.parent == tmp_path / "private"
    with zipfile.ZipFile(copy.path) as archive:
        assert set(archive.namelist()) == {"config.json", "model.weights.h5"}
        assert "compile_config" not in archive.read("config.json").decode()


def test_weights_that_do_not_fit_the_configuration_are_a_model_error_that_names_the_version(saved, tmp_path):
    def change(config: dict) -> None:
        config["config"]["layers"][-1]["config"]["units"] = 7

    assert "saved with 3." in refused(forged(saved, tmp_path / "model.keras", change))


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_an_archive_without_a_part_is_refused_by_the_parts_name(saved, tmp_path, name):
    with zipfile.ZipFile(saved / "model.keras") as source, zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        for entry in source.namelist():
            if entry != name:
                archive.writestr(entry, source.read(entry))
    assert f"holds no {name}" in refused(tmp_path / "m.keras")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(saved, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w", force_zip64=True) as file:
            for _ in range(128):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert "zip bomb" in refused(path)


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_file_cut_short_is_a_model_error(saved, tmp_path, suffix, kept):
    data = (saved / f"model{suffix}").read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    refused(path)


def test_files_of_another_kind_and_missing_ones_are_refused(tmp_path):
    (tmp_path / "text.keras").write_text("no model at all")
    assert "neither a .keras archive nor HDF5" in refused(tmp_path / "text.keras")
    assert "cannot be read" in refused(tmp_path / "missing.keras")
    assert "cannot be read" in refused(tmp_path)


def test_weights_alone_are_refused_with_what_is_needed(tmp_path):
    import keras_zoo

    path = tmp_path / "only.weights.h5"
    keras_zoo.build("sequential").save_weights(path)
    assert "weights only; a whole model is needed" in refused(path)


def changed_h5(saved: Path, target: Path) -> Path:
    target.write_bytes((saved / "model.h5").read_bytes())
    return target


def _external_link(file, folder: Path) -> None:
    import h5py

    file["model_weights/extra"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def _soft_link(file, folder: Path) -> None:
    import h5py

    file["model_weights/extra"] = h5py.SoftLink("/model_weights")


def _hard_circle(file, folder: Path) -> None:
    file["model_weights/extra"] = file["model_weights"]


def _external_storage(file, folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(400))
    file.create_dataset("extra", (100,), "f4", external=[(str(folder / "secret"), 0, 400)])


def _virtual(file, folder: Path) -> None:
    import h5py

    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (4,))
    file.create_virtual_dataset("extra", layout)


def _huge(file, folder: Path) -> None:
    file.create_dataset("extra", (1 << 40,), "f4", chunks=(1 << 20,))


def _compressed(file, folder: Path) -> None:
    file.create_dataset("extra", (1 << 28,), "u1", chunks=(1 << 20,), compression="gzip", fillvalue=0)


def _reference(file, folder: Path) -> None:
    import h5py

    file.create_dataset("extra", (1,), h5py.ref_dtype)


def _vlen(file, folder: Path) -> None:
    import h5py

    file.create_dataset("extra", (1,), h5py.vlen_dtype(np.int32))


def _compound_attribute(file, folder: Path) -> None:
    file["model_weights"].attrs["extra"] = np.zeros(2, [("a", "i4")])


def _named_type(file, folder: Path) -> None:
    file["extra"] = np.dtype("f4")


FORGERIES = {
    _external_link: "is a link to another place",
    _soft_link: "is a link to another place",
    _hard_circle: "is in the file twice",
    _external_storage: "lies in another file",
    _virtual: "lies in another file",
    _huge: "taken for a bomb",
    _compressed: "taken for a bomb",
    _reference: "neither numbers nor text",
    _vlen: "neither numbers nor text",
    _compound_attribute: "neither numbers nor text",
    _named_type: "neither group nor data",
}


@pytest.mark.parametrize(("forge", "words"), FORGERIES.items(), ids=[f.__name__.strip("_") for f in FORGERIES])
def test_hdf5_that_reaches_out_or_cannot_be_what_it_declares_is_refused(saved, tmp_path, forge, words):
    import h5py

    path = changed_h5(saved, tmp_path / "model.h5")
    with h5py.File(path, "r+") as file:
        forge(file, tmp_path)
    assert words in refused(path)


def test_the_weights_within_an_archive_are_walked_too(saved, tmp_path):
    import h5py

    weights = tmp_path / "weights.h5"
    with zipfile.ZipFile(saved / "model.keras") as archive:
        weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "r+") as file:
        _external_storage(file, tmp_path)
    path = forged(saved, tmp_path / "model.keras", lambda config: None, model=weights.read_bytes())
    assert "lies in another file" in refused(path)


def test_a_missing_framework_names_the_extra_to_install(saved, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "keras", None)
    assert "install debride[keras]" in refused(saved / "model.keras")
