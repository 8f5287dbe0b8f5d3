"""A torch module as ONNX, by either of PyTorch's exporters, in silence."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Literal

import onnx
import torch
from torch import nn

Exporter = Literal["dynamo", "torchscript"]
DYNAMO = range(18, 24)
"""Opsets that `torch.onnx.export(dynamo=True)` writes without a converter that may fail."""
TORCHSCRIPT = range(9, 21)


def export(
    module: nn.Module,
    shape: tuple[int, ...],
    *,
    exporter: Exporter,
    opset: int,
    fold: bool = True,
    batch: Literal["dynamic", "fixed"] = "dynamic",
    listed: bool = False,
) -> onnx.ModelProto:
    """`module`, in inference mode, for images (N, *shape); input `x`, output `y`.

    `fold` folds constants (and, with it, BatchNorm into convolutions), `listed` names the initializers among the
    graph's inputs (torchscript only), `batch="fixed"` fixes N at 1.
    """
    dynamic = batch == "dynamic"
    example = torch.zeros(2 if dynamic else 1, *shape)
    buffer = io.BytesIO()
    with prepared(), torch.no_grad():
        if exporter == "dynamo":
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=["x"],
                output_names=["y"],
                dynamic_shapes=({0: torch.export.Dim("n")},) if dynamic else None,
                optimize=fold,
                verbose=False,
            )
            assert program is not None
            return program.model_proto
        torch.onnx.export(
            module,
            (example,),
            buffer,
            dynamo=False,
            opset_version=opset,
            input_names=["x"],
            output_names=["y"],
            dynamic_axes={"x": {0: "n"}, "y": {0: "n"}} if dynamic else None,
            do_constant_folding=fold,
            keep_initializers_as_inputs=listed,
        )
    return onnx.load_from_string(buffer.getvalue())


@contextmanager
def prepared() -> Iterator[None]:
    """Attention is written in plain operators, and nothing of what the exporters say reaches the terminal."""
    disabled, fast = logging.root.manager.disable, torch.backends.mha.get_fastpath_enabled()
    logging.disable(logging.CRITICAL)
    torch.backends.mha.set_fastpath_enabled(False)  # an operator of its own, which the older exporter has no form for
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()), _muted(1, 2):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _muted(*descriptors: int) -> Iterator[None]:
    """What C++ writes to these goes nowhere: the older exporter prints the whole graph where it fails."""
    kept = [os.dup(descriptor) for descriptor in descriptors]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for descriptor in descriptors:
            os.dup2(nowhere, descriptor)
        yield
    finally:
        for descriptor, former in zip(descriptors, kept, strict=True):
            os.dup2(former, descriptor)
            os.close(former)
        os.close(nowhere)
