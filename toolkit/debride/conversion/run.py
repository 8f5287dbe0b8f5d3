"""A conversion in a child process of its own: a framework that crashes, hangs or eats memory is an error message."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

from debride.conversion.request import (
    GIB,
    MAX_OUTCOME,
    OUTCOME,
    REQUEST,
    Request,
    graph_at,
    outcome_from_json,
    request_to_json,
)
from debride.errors import ModelError
from debride.types import Conversion, Progress, no_progress

_LOG = "log.txt"
_TAIL = 4096
_MAX_LOG = 64 << 20
_TICK = 0.2
# No GPU is needed to trace a network, and two frameworks that both take one fight over it.
_QUIET = {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": "1"}


def convert_in(folder: Path, request: Request, progress: Progress = no_progress) -> Conversion:
    """Convert as `request` says, in `folder` (empty, for this alone); the graph is then where `graph_at` says.

    Raises what the child raised, and `ModelError` where it crashed or ran out of its limits. It is gone, with all
    that it started, however this ends.
    """
    progress("conversion", 0, 1)
    (folder / REQUEST).write_text(request_to_json(request), "utf-8")
    with (folder / _LOG).open("wb") as log:
        child = _started(folder, log)
        try:
            code = _wait(child, request, folder / _LOG)
        finally:
            _end(child)
    conversion = _result(folder, request, code)
    progress("conversion", 1, 1, f"from {conversion.framework}")
    return conversion


def _started(folder: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
    # -P: a file named like a module, in the folder where the user stands, must not be imported in its place.
    command = [sys.executable, "-P", "-m", "debride.conversion.child", str(folder), str(os.getpid())]
    scratch = folder / "scratch"
    scratch.mkdir()
    # What it leaves behind goes with the folder; and Keras, which writes a configuration into its home, reads none.
    homes = dict.fromkeys(("TMPDIR", "TMP", "TEMP", "KERAS_HOME"), str(scratch))
    # An empty or relative entry means the folder where the user stands, and so do files named like modules in it.
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    return subprocess.Popen(
        command,
        env={**os.environ, **_QUIET, **homes, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def _result(folder: Path, request: Request, code: int) -> Conversion:
    """What the child says that it has done, and has; raises what it raised, or how it ended."""
    if not _own_file(folder / OUTCOME):
        raise ModelError(f"{request.model}: {_death(code, request)}{_last_words(folder / _LOG)}")
    if (folder / OUTCOME).stat().st_size > MAX_OUTCOME:
        raise ModelError(f"{request.model}: the conversion says more than it can; get an undamaged model")
    conversion = outcome_from_json((folder / OUTCOME).read_text("utf-8"))
    graph = graph_at(folder, request)
    if graph.parent.is_symlink() or not _own_file(graph):
        raise ModelError(f"{request.model}: the conversion wrote no graph; run it again")
    return conversion


def _own_file(path: Path) -> bool:
    """Whether `path` is a file and no link: a child that a file has taken over could leave one to anything."""
    return path.is_file() and not path.is_symlink()


def _wait(child: subprocess.Popen[bytes], request: Request, log: Path) -> int:
    started = time.monotonic()
    while (spent := time.monotonic() - started) < request.limits.seconds:
        try:
            code = child.wait(_TICK)
        except subprocess.TimeoutExpired:
            if log.stat().st_size > _MAX_LOG:
                raise ModelError(f"{request.model}: its framework prints without end; get an undamaged model") from None
            continue
        return code
    raise ModelError(
        f"{request.model}: not converted after {spent:.0f} s; "
        "give it longer (debride convert --time-limit SECONDS) and go on with the ONNX file"
    )


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kills the child and what it has started, if anything is left of them."""
    try:
        if hasattr(os, "killpg"):
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    except (ProcessLookupError, PermissionError):
        pass
    child.wait()


def _death(code: int, request: Request) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return (
            f"the framework crashed while converting it ({name}); if it needs more than "
            f"{request.limits.memory / GIB:.3g} GiB of memory, debride convert --memory-limit GIB allows it"
        )
    return f"the conversion ended without a result (exit code {code})"


def _last_words(log: Path) -> str:
    """The last line that the child printed, for the message: it mostly names the cause."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _TAIL))
        lines = stream.read().decode("utf-8", "replace").split("\n")
    said = [line.strip() for line in lines if line.strip()]
    return f"; its last words: {said[-1][:300]}" if said else ""
