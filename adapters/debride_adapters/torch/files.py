"""Which kind of PyTorch file it is, by its content; an archive is read once, so that what is audited is loaded."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from debride.errors import ModelError
from debride_adapters.archive import check_zip
from debride_adapters.common import one_line

Kind = Literal["program", "script", "checkpoint", "safetensors"]
OLDEST = (2, 10)
_TAR_MAGIC = (257, b"ustar")
_SAFETENSORS_HEADER = 100_000_000


def kind_of(path: Path) -> Kind:
    """Whether `path` holds a torch.export program, a TorchScript archive, a checkpoint or safetensors.

    Raises:
        ModelError: the file cannot be read, or is none of these.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); give an existing PyTorch file") from error
    if not head:
        raise ModelError(f"{path}: is empty; save the model again")
    if head[:4] == b"PK\x03\x04":
        return _kind_of_archive(path)
    start, magic = _TAR_MAGIC
    if head[start : start + len(magic)] == magic:
        raise ModelError(f"{path}: a tar archive and no PyTorch file; unpack it and give the model file inside")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _SAFETENSORS_HEADER:
        return "safetensors"
    if head[0] == 0x80:
        return "checkpoint"
    raise ModelError(f"{path}: is no PyTorch file, or damaged; save it with torch.save, torch.jit.save or torch.export")


def _kind_of_archive(path: Path) -> Kind:
    names = {name.partition("/")[2] for name in check_zip(path)}
    if "archive_format" in names:
        return "program"
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "script"
    if "data.pkl" in names:
        return "checkpoint"
    if any(name.endswith("serialized_exported_program.json") for name in (*names, *check_zip(path))):
        raise ModelError(f"{path}: a torch.export file of an old format; save it again with a PyTorch of today")
    raise ModelError(f"{path}: a zip archive that holds no PyTorch model; give the model file itself")


def read_archive(path: Path, wanted: re.Pattern[str], dropped: re.Pattern[str]) -> dict[str, bytes]:
    """The entries of the archive by name below its one root folder; those that match `dropped` are left out.

    Raises:
        ModelError: damaged, more than one root, or an entry that matches neither pattern.
    """
    names = check_zip(path)
    if len({name.partition("/")[0] for name in names}) != 1:
        raise ModelError(f"{path}: its files lie in more than one folder; save the model again with PyTorch")
    entries: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in names:
                inner = name.partition("/")[2]
                if dropped.fullmatch(inner):
                    continue
                if not wanted.fullmatch(inner):
                    raise ModelError(f"{path}: holds '{inner[:80]}', which no plain model needs; export it again alone")
                entries[inner] = archive.read(name)
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, RuntimeError, NotImplementedError) as error:
        raise ModelError(f"{path}: a damaged archive ({one_line(error)}); copy or save the model again") from error
    return entries


def write_archive(entries: Mapping[str, bytes]) -> io.BytesIO:
    """A fresh archive of `entries`: PyTorch's own zip reader then sees what was audited, however odd the file was."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(f"model/{name}", data)
    buffer.seek(0)
    return buffer


def refuse_old_torch(path: Path | str) -> None:
    """Before 2.10 even `weights_only` loading could be made to run a file's code (CVE-2025-32434, CVE-2026-24747).

    Raises:
        ModelError: torch is missing or older than that.
    """
    try:
        import torch
    except ImportError as error:
        raise ModelError(f"{path}: PyTorch is missing; install torch>=2.10") from error
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < OLDEST:
        raise ModelError(f"{path}: torch {torch.__version__} cannot load it safely; install torch>=2.10")
