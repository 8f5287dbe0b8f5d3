"""Whether onnxruntime survives a model: loaded and run once in a process of its own, for some graphs crash it.

In onnxruntime 1.32 its layout of convolutions in blocks crashes on some attention graphs in half precision (the ViT of
the tests).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from debride.errors import ModelError
from debride.sessions import Runtime, Session

_SECONDS = 600


def crash_of(path: Path, runtime: Runtime) -> str:
    """How the process ended that loaded and ran the model at `path`, as "SIGSEGV"; "" where it did not crash.

    An error that onnxruntime raises is no crash: whoever loads the model next is told of it.
    Raises `ModelError` where it takes longer than ten minutes.
    """
    command = [sys.executable, "-P", "-m", "debride.export.probe", str(path), str(runtime.threads), *runtime.providers]
    # As for conversions: an empty or relative entry would import what lies where the user stands.
    paths = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if Path(entry).is_absolute()]
    try:
        code = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"onnxruntime has not run the exported model after {_SECONDS} s; take another target"
        ) from error
    if code == -signal.SIGINT:
        raise KeyboardInterrupt
    if code < 0:
        return signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    return f"code {code:#x}" if code > 0xFF else ""  # Windows tells crashes so


def check_survives(path: Path, runtime: Runtime) -> None:
    """Raises `ModelError` where loading or running the model at `path` crashes onnxruntime."""
    how = crash_of(path, runtime)
    if how:
        raise ModelError(f"onnxruntime itself crashes on what it would become ({how}); take another --target")


def _main(path: str, threads: str, *providers: str) -> None:
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash that is expected leaves no file behind
    try:
        session = Session(Path(path), Runtime(threads=int(threads), providers=providers))
        # The batch may be open; where the image's size is too, loading has to do.
        if all(None not in entry.shape[1:] for entry in session.inputs):
            session.run({e.name: np.zeros([size or 1 for size in e.shape], e.dtype) for e in session.inputs})
    except ModelError:
        sys.exit(3)


if __name__ == "__main__":
    _main(*sys.argv[1:])
