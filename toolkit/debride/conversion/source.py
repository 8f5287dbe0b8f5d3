"""Any model file -> a path to ONNX for the stages: itself, or what it was converted to, for as long as it is needed."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from debride.conversion.request import Request, graph_at
from debride.conversion.run import convert_in
from debride.errors import DebrideError, ModelError
from debride.specfile import named, sidecar_of
from debride.types import Conversion, FileFacts, Progress, no_progress

_CHUNK = 1 << 20
_MAX_FILES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """`origin` is what the user named, `path` the ONNX file to read.

    Where they are not the same, `conversion` says how one became the other, and `facts` what `origin` was before.
    """

    origin: Path
    path: Path
    conversion: Conversion | None = None
    facts: FileFacts | None = None


def is_onnx(path: Path) -> bool:
    """Whether `path` is taken for an ONNX file, or one in ORT format, which onnxruntime runs: neither is converted."""
    return path.suffix.lower() in (".onnx", ".ort")


@contextmanager
def opened(request: Request, progress: Progress = no_progress) -> Iterator[Source]:
    """The request's model as ONNX: an .onnx file as it is, another framework's converted into a temporary folder.

    Raises the errors of the adapter and of `convert_in`. Errors raised inside that name the temporary file are raised
    again with the name of the model.
    """
    origin = request.model
    if not origin.exists():
        raise ModelError(f"{origin}: no such file; give the path of a model")
    if not (origin.is_file() or origin.is_dir()):
        raise ModelError(f"{origin}: neither a file nor a folder; give the path of a model")
    if is_onnx(origin):
        yield Source(origin=origin, path=origin)
        return
    with TemporaryDirectory(prefix="debride-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        request = replace(request, name=f"{named(origin).stem}.onnx")
        facts = facts_of(origin)
        conversion = convert_in(folder, request, progress)
        path = graph_at(folder, request)
        sidecar = sidecar_of(origin)
        if sidecar is not None:
            shutil.copyfile(sidecar, path.with_suffix(".json"))
        try:
            yield Source(origin=origin, path=path, conversion=conversion, facts=facts)
        except DebrideError as error:
            if str(path) not in str(error):
                raise
            raise type(error)(str(error).replace(str(path), f"{origin} (as ONNX)")) from error


def facts_of(path: Path) -> FileFacts:
    """Name, SHA-256 and size of a file or a folder; of a folder, over the sorted relative paths and their contents.

    Raises `ModelError` where it is not there, cannot be read, or is a folder with links or too many files.
    """
    try:
        if path.is_dir():
            return _folder_facts(path)
        if path.exists() and not path.is_file():
            raise ModelError(f"{path}: neither a file nor a folder; give the path of a model")
        digest = hashlib.sha256()
        return FileFacts(name=named(path).name, size=_add(digest, path), sha256=digest.hexdigest())
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file; give the path of a model") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


def _folder_facts(folder: Path) -> FileFacts:
    files = sorted(Path(root) / name for root, _, names in os.walk(folder) for name in names)
    if len(files) > _MAX_FILES:
        raise ModelError(f"{folder}: holds {len(files)} files, more than any model; give the model's own folder")
    digest, size = hashlib.sha256(), 0
    for file in files:
        if file.is_symlink() or not file.is_file():
            raise ModelError(f"{file}: a link or no file at all; copy the model's own files into the folder")
        name = file.relative_to(folder).as_posix().encode()
        inner = hashlib.sha256()
        size += _add(inner, file)
        digest.update(hashlib.sha256(name).digest() + inner.digest())
    return FileFacts(name=named(folder).name, sha256=digest.hexdigest(), size=size)


def _add(digest: hashlib._Hash, file: Path) -> int:
    size = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size
