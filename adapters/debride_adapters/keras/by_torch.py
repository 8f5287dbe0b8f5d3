"""Keras on torch -> ONNX, by torch's own exporter."""

from __future__ import annotations

import logging
import warnings
from typing import Any

from debride_adapters.keras.signature import IMAGE, Signature, call

_BATCH = 2
"""Of the example traced: a batch of one would be taken for a fixed size."""
_FOLDED = 1 << 26
"""Entries of the largest constant computed ahead: depthwise weights are reshaped in the trace."""


def export(model: Any, signature: Signature, opset: int) -> bytes:
    """The Keras `model` in inference mode as a serialized ModelProto of `opset`.

    Its input is `IMAGE`, its outputs are `signature.outputs`; the batch is free and every
    other side of `signature.shape` is given.
    """
    import torch

    class Inference(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: Any) -> tuple[Any, ...]:
            return tuple(call(self.model, image))

    was_training = model.training
    device = next((weight.value.device for weight in model.weights), "cpu")
    size = [_BATCH, *(side or 1 for side in signature.shape)]
    example = torch.zeros(size, device=device)
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                Inference().eval(),
                (example,),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=[IMAGE],
                output_names=list(signature.outputs),
                verbose=False,
            )
    finally:
        quiet.setLevel(level)
        model.train(was_training)
    return _folded(program)


def _folded(program: Any) -> bytes:
    import onnxscript.optimizer

    onnxscript.optimizer.optimize(program.model, input_size_limit=_FOLDED, output_size_limit=_FOLDED)
    data: bytes = program.model_proto.SerializeToString()
    return data
