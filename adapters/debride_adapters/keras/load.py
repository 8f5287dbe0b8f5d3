"""A vendor's Keras file -> a model: checked first, then built from a private copy that holds only what was checked."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride_adapters.archive import check_zip
from debride_adapters.keras.audit import MAX_CONFIG, audit_config
from debride_adapters.keras.h5 import SIGNATURE, audit_h5

_CONFIG, _WEIGHTS, _METADATA = "config.json", "model.weights.h5", "metadata.json"


@dataclass(frozen=True, slots=True)
class Private:
    """A copy of a model file that Keras may load, and the version of Keras that the file says it was saved with."""

    path: Path
    saved_with: str | None


def private_copy(path: Path, folder: Path) -> Private:
    """An audited copy of the model `path` in `folder`: its kind is told by its content, whatever its suffix.

    Raises:
        ModelError: neither a `.keras` archive nor HDF5, damaged, weights alone, or refused by the audit.
    """
    try:
        with path.open("rb") as file:
            start = file.read(8)
        if start == SIGNATURE:
            return _copy_h5(path, folder)
        if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            return _copy_archive(path, folder)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); give an existing model file") from error
    raise ModelError(f"{path}: neither a .keras archive nor HDF5; save it with model.save('model.keras')")


def load_model(path: Path) -> tuple[Any, str | None]:
    """The Keras model in the file `path`, not compiled, and the version of Keras it was saved with, if told.

    Raises:
        ModelError: refused (see `private_copy`), or this version of Keras cannot build it.
    """
    with tempfile.TemporaryDirectory(prefix="debride-") as folder:
        copy = private_copy(path, Path(folder))
        import keras

        try:
            model = keras.saving.load_model(copy.path, compile=False, safe_mode=True)
        # Keras and its backend raise whatever happened to go wrong inside them.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            saved = f", saved with {copy.saved_with}," if copy.saved_with else ""
            raise ModelError(
                f"{path}: Keras {keras.__version__} cannot build this model{saved} ({type(error).__name__}: {reason}); "
                "load it where it was made and save it again with Keras 3"
            ) from error
    return model, copy.saved_with


def _copy_h5(path: Path, folder: Path) -> Private:
    import h5py

    copy = folder / "model.h5"
    shutil.copyfile(path, copy)
    config = audit_h5(copy, path)
    if config is None:
        raise ModelError(f"{path}: holds weights only; a whole model is needed, as model.save('model.keras') writes it")
    audited = audit_config(config, path)
    with h5py.File(copy, "r+") as file:
        saved_with = file.attrs.get("keras_version")
        file.attrs["model_config"] = json.dumps(audited)
        file.attrs.pop("training_config", None)
    version = saved_with.decode("utf-8", "replace") if isinstance(saved_with, bytes) else saved_with
    return Private(copy, str(version)[:20] if version is not None else None)


def _copy_archive(path: Path, folder: Path) -> Private:
    names = check_zip(path)
    for name in (_CONFIG, _WEIGHTS):
        if name not in names:
            raise ModelError(f"{path}: no Keras model, it holds no {name}; save it with model.save('model.keras')")
    weights, copy = folder / _WEIGHTS, folder / "model.keras"
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_CONFIG).file_size > MAX_CONFIG:
                raise ModelError(f"{path}: its {_CONFIG} is larger than any model's; save the model again")
            config = audit_config(archive.read(_CONFIG), path)
            saved_with = _version(archive) if _METADATA in names else None
            with archive.open(_WEIGHTS) as source, weights.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{path}: a damaged archive ({error}); copy or save the model again") from error
    audit_h5(weights, path)
    # Assets stay behind: only layers that are refused have any.
    with zipfile.ZipFile(copy, "w") as archive:
        archive.writestr(_CONFIG, json.dumps(config))
        archive.write(weights, _WEIGHTS)
    return Private(copy, saved_with)


def _version(archive: zipfile.ZipFile) -> str | None:
    """What the archive says of itself; only for messages, so damage here is no error."""
    if archive.getinfo(_METADATA).file_size > 1 << 16:
        return None
    try:
        metadata = json.loads(archive.read(_METADATA))
    except ValueError:
        return None
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    return version[:20] if isinstance(version, str) else None
