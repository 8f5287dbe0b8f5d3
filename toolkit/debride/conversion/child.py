"""The child process: one request in, an ONNX file and an outcome out. What goes wrong in a framework stays in here."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from debride.conversion.finish import finish
from debride.conversion.request import (
    GIB,
    OUTCOME,
    REQUEST,
    Limits,
    Request,
    outcome_to_json,
    request_from_json,
)
from debride.errors import DebrideError, ModelError
from debride.images import load_images
from debride.plugins import adapter_for
from debride.types import Conversion

_MESSAGE = 600
_GRACE = 60
_PR_SET_PDEATHSIG = 1


def main(folder: Path, parent: int) -> None:
    """Do what `folder`/request.json says; the outcome goes beside it, the graph where `graph_at` says.

    `parent` is the number of the process that waits for it.
    """
    request = request_from_json((folder / REQUEST).read_text("utf-8"))
    _confine(request.limits)
    _follow(parent, request.limits)
    try:
        outcome: Conversion | DebrideError = _convert(request, folder)
    except DebrideError as error:
        outcome = error
    except MemoryError:
        outcome = ModelError(f"{request.model}: needs more than {request.limits.memory / GIB:.3g} GiB to be converted")
    except Exception as error:
        if request.options.architecture:
            raise  # the user's own code may be at fault, and the trace in the log says where
        first = (str(error).strip().splitlines() or [""])[0][:_MESSAGE]
        outcome = ModelError(f"{request.model}: cannot be converted ({type(error).__name__}: {first})")
    partial = folder / f".{OUTCOME}"
    partial.write_text(outcome_to_json(outcome), "utf-8")
    partial.replace(folder / OUTCOME)


def _convert(request: Request, folder: Path) -> Conversion:
    adapter = adapter_for(request.model)
    options = request.options
    if request.images is not None:
        options = replace(options, images_shape=_shape_of(request))
    return finish(adapter.convert(request.model, options), adapter.name, request, folder)


def _shape_of(request: Request) -> tuple[int, ...] | None:
    """(C, H, W) of the clean images, if all have one, for a network that does not say what it takes."""
    assert request.images is not None
    try:
        shape = load_images(request.images, resize=request.resize).images.shape
    except DebrideError:
        return None
    return (int(shape[1]), int(shape[2]), int(shape[3]))


def _confine(limits: Limits) -> None:
    """No more memory, processor time and file size than `limits`."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock is all there is
        return
    bounds = {
        # Private memory; the address space of these frameworks is many times what they use.
        resource.RLIMIT_DATA: limits.memory,
        resource.RLIMIT_CPU: int(limits.seconds * (os.cpu_count() or 1)) + _GRACE,
        resource.RLIMIT_FSIZE: limits.memory,
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            bound = min(bound, hard)
        resource.setrlimit(kind, (bound, bound))


def _follow(parent: int, limits: Limits) -> None:
    """Ends this process with its parent, which may be killed before it can; and, if all else fails, by an alarm."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(limits.seconds) + _GRACE)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone already
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
