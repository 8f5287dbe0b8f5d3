"""Zip archives from strangers: how large they become is read from their directory, before anything is unpacked."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

from debride.errors import ModelError

MAX_ENTRIES = 100_000
MAX_BYTES = 8 << 30
_SUSPICIOUS_BYTES = 64 << 20
_SUSPICIOUS_RATIO = 200


def check_zip(path: Path, *, max_bytes: int = MAX_BYTES) -> tuple[str, ...]:
    """The names in the zip archive `path`, in order.

    Weights hardly shrink: an archive that grows 200-fold past 64 MiB is taken for a bomb. (`zipfile` and PyTorch's
    reader both stop at the size that the directory states, so a directory that lies is an error when read.)

    Raises:
        ModelError: no zip archive, too large when unpacked, or names that repeat or lead out of it.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: a damaged archive ({error}); copy or save the model again") from error
    names = tuple(entry.filename for entry in entries)
    if len(names) > MAX_ENTRIES:
        raise ModelError(f"{path}: holds {len(names)} files, more than any model; get an undamaged one")
    if len(set(names)) != len(names):
        raise ModelError(f"{path}: holds a file twice, and readers disagree on which counts; save the model again")
    for name in names:
        if "\\" in name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ModelError(f"{path}: holds a file named '{name[:80]}' that leads out of it; get an undamaged model")
    # Entries may overlap: together they never hold more than the file does.
    size = sum(entry.file_size for entry in entries)
    packed = min(sum(entry.compress_size for entry in entries), path.stat().st_size)
    if size > max_bytes or (size > _SUSPICIOUS_BYTES and size > _SUSPICIOUS_RATIO * max(packed, 1)):
        raise ModelError(
            f"{path}: {packed:,} bytes that would unpack to {size:,}; taken for a zip bomb, nothing was unpacked"
        )
    return names
