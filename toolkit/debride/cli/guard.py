"""From exceptions to one line on stderr and an exit code: never 0 or 1 for a failure, no traceback unless asked."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from debride.errors import DebrideError, UsageError

if TYPE_CHECKING:
    from debride.types import Conversion

FAILED = 3
INTERRUPTED = 130
# What `pip install debride` leaves out, and the extra that brings it.
_EXTRAS = {
    **dict.fromkeys(("onnx", "onnx_graphsurgeon", "onnx_ir", "onnxscript", "safetensors", "torch"), "cpu"),
    **dict.fromkeys(
        ("httptools", "orjson", "prometheus_client", "python_multipart", "starlette", "uvicorn", "uvloop"), "serve"
    ),
}


@contextmanager
def guard(debug: bool = False, outputs: Sequence[Path] = ()) -> Iterator[None]:
    """Ends the command as the exception says: `DebrideError` by its exit code, Ctrl-C 130, anything else 3.

    `outputs` are the files that the command writes: the message says which of them were written before it ended.
    """
    watched = {path: _state(path) for path in outputs}

    def written(nothing: str = "") -> str:
        changed = [str(path) for path, state in watched.items() if _state(path) != state]
        return f"; already written: {', '.join(changed)}" if changed else nothing

    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        say(f"interrupted{written('; nothing was written')}")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        missing = _missing(error)
        known = isinstance(error, DebrideError) or missing is not None
        what = missing or (str(error) if known else f"failed unexpectedly: {type(error).__name__}: {error}")
        say(f"error: {what}{written()}{'' if known or debug else ' (--debug shows where)'}")
        raise typer.Exit(error.exit_code if isinstance(error, DebrideError) else FAILED) from None


def _missing(error: Exception) -> str | None:
    """What to install, where `error` says that a package of an extra is not there."""
    root = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if root not in _EXTRAS:
        return None
    extra = _EXTRAS[root]
    other = " (or debride[gpu])" if extra == "cpu" else ""
    return f"this command needs {root}, which is not installed: pip install 'debride[{extra}]'{other}"


def say(message: str) -> None:
    """`message` on one line of stderr, without what a terminal would obey: parts of it come from untrusted files."""
    typer.echo("debride: " + plain(message), err=True)


def tell_conversion(conversion: Conversion | None) -> None:
    """Says on stderr what an answer was computed with, where the model was of another framework."""
    if conversion is not None:
        from debride.report.conversion import conversion_facts

        for name, text in conversion_facts(conversion):
            say(f"{name.lower()}: {text}")


def plain(text: str) -> str:
    """`text` on one line, "?" in place of control characters."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(text.split()))


def put(text: str) -> None:
    """`text` on stdout; where its reader has left (`| head`), silence: the exit code still tells the verdict."""
    try:
        typer.echo(text, nl=not text.endswith("\n"))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def check_output(output: Path | None, model: Path, *, force: bool, what: str = "the model") -> None:
    """Raises `UsageError` where `output` exists (unless `force`), is the input `model` or has no folder to lie in.

    `what` names that input.
    """
    if output is None:
        return
    if output.exists() and model.exists() and output.samefile(model):
        raise UsageError(f"{output}: --output is {what} itself; give another path")
    if output.is_dir() or not output.parent.is_dir():
        raise UsageError(f"{output}: {'is a folder' if output.is_dir() else 'its folder does not exist'}; give a file")
    if not os.access(output.parent, os.W_OK):
        raise UsageError(f"{output}: its folder may not be written to; give another --output")
    if output.exists() and not force:
        raise UsageError(f"{output} exists; give another --output, or --force to replace it")


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to `path` in one step, or raises `UsageError` and leaves it as it was."""
    partial = path.with_name(f".{path.name}.part")
    try:
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error}); give another --output") from error
    finally:
        partial.unlink(missing_ok=True)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns)
