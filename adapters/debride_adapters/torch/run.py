"""Running the source model: quietly, in inference mode, as the reference that parity is measured against."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from debride.errors import ModelError
from debride.types import FloatArray, Reference
from debride_adapters.common import one_line

if TYPE_CHECKING:
    from torch import Tensor


def module_reference(path: Path | str, module: Any) -> Reference:
    """Runs `module`, as it is, on a float32 batch; one array per tensor it returns, in order."""
    import torch

    def reference(batch: FloatArray) -> list[FloatArray]:
        return [tensor.numpy() for tensor in run(path, module, torch.from_numpy(np.array(batch, np.float32)))]

    return reference


def in_portions(reference: Reference, size: int) -> Reference:
    """`reference`, which takes batches of `size` only, for batches of any size: the last one is filled up."""

    def portions(batch: FloatArray) -> list[FloatArray]:
        padded = np.concatenate([batch, np.repeat(batch[-1:], -len(batch) % size, axis=0)])
        results = [reference(padded[start : start + size]) for start in range(0, len(padded), size)]
        return [np.concatenate(parts)[: len(batch)] for parts in zip(*results, strict=True)]

    return portions


def run(path: Path | str, module: Any, batch: Tensor) -> list[Tensor]:
    """The tensors that `module` returns for `batch` (N, ...), on the processor.

    Raises:
        ModelError: it does not run on such a batch, or returns no tensor.
    """
    import torch

    try:
        with torch.no_grad(), quiet():
            tensors = flat(module(batch))
    except Exception as error:
        raise ModelError(
            f"{path}: does not run on images of shape {tuple(batch.shape[1:])} ({cause(error)}); "
            "give the right --input-shape C,H,W"
        ) from error
    if not tensors:
        raise ModelError(f"{path}: returns no tensor; export a classifier of images")
    return [tensor.detach().cpu() for tensor in tensors]


def flat(value: Any) -> list[Tensor]:
    """The tensors in what a network returned, in the order in which both exporters list them."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for child in value.values() for tensor in flat(child)]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [tensor for child in value for tensor in flat(child)]
    return []


def cause(error: BaseException) -> str:
    """One line: the innermost reason: PyTorch's exporter and its TorchScript interpreter wrap it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.startswith("RuntimeError: ")]
    return one_line(lines[-1] if lines else error)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters print progress, warnings and, when they fail, whole graphs; errors are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            _silent(1),
            _silent(2),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _silent(descriptor: int) -> Iterator[None]:
    """PyTorch's C++ side writes past Python's streams."""
    try:
        kept = os.dup(descriptor)
    except OSError:  # closed, as for a service
        yield
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)
    os.close(sink)
    try:
        yield
    finally:
        os.dup2(kept, descriptor)
        os.close(kept)
