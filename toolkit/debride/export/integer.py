"""Eight-bit integers by onnxruntime's own static quantiser: QDQ, one scale per output channel of a weight.

https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

from debride.errors import ModelError
from debride.export.quiet import quiet
from debride.export.scores import float_scores
from debride.export.types import Method
from debride.graph.constants import array_of
from debride.graph.parse import opset_of
from debride.graph.tidy import upgraded
from debride.graph.write import write_model

_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
_PERCENTILE = 99.99
_BATCH = 32
_FLOAT = frozenset(("Softmax",))
"""Probabilities in eight bits would be multiples of 1/256 and no longer sum to 1."""
_OPSET = 13
"""The first whose DequantizeLinear takes a scale per channel."""


def quantised(
    proto: onnx.ModelProto,
    output: str,
    inputs: npt.NDArray[Any],
    *,
    name: str,
    method: Method,
    fixed: int | None,
    folder: Path,
) -> onnx.ModelProto:
    """`proto` (float32, nodes named) with weights and activations in eight bits; `output`, the scores, stay float.

    `inputs` (N, ...) are what input `name` is fed to find the ranges; a graph with a `fixed` batch is fed that many.
    Weights are symmetric, so that what is zero stays exactly zero, and have seven bits: on processors without VNNI sums
    of eight-bit products saturate. `folder` takes the files that come and go.

    Raises `ModelError` where the opset is too old, or the quantiser fails.
    """
    plain, ready, done = (folder / f"{part}.onnx" for part in ("float", "ready", "int8"))
    write_model(upgraded(proto, _OPSET) or proto, plain, force=True)
    try:
        with quiet():
            quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
            prepared = onnx.load(ready)
            _require_opset(prepared, proto)
            left = _flat_biases(prepared.graph)
            onnx.save(prepared, ready)
            reader = _Batches(name, inputs, fixed or min(_BATCH, len(inputs)))
            _quantise(ready, done, reader, left, method)
    except ModelError:
        raise
    except Exception as error:  # it raises whatever its parts raise, AssertionError among them
        raise ModelError(
            f"onnxruntime's quantiser fails ({type(error).__name__}: {' '.join(str(error).split())[:300]}); "
            "take --target fp16 or ort"
        ) from error
    return float_scores(onnx.load(done), output)


def _quantise(ready: Path, done: Path, reader: CalibrationDataReader, left: list[str], method: Method) -> None:
    quantize_static(
        str(ready),
        str(done),
        reader,
        quant_format=QuantFormat.QDQ,
        nodes_to_exclude=left,
        op_types_to_quantize=sorted({*QDQRegistry, *QLinearOpsRegistry} - _FLOAT),
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=_METHODS[method],
        # One batch after the other: the histograms would otherwise keep every activation of all images.
        extra_options={"CalibStridedMinMax": 1, "CalibPercentile": _PERCENTILE},
    )


def _require_opset(ready: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    if opset_of(ready) < _OPSET:
        raise ModelError(
            f"its opset {opset_of(proto)} cannot be brought up to {_OPSET}, the first with a scale per channel; "
            "export it anew with a newer opset, or take --target fp16"
        )


def _flat_biases(graph: onnx.GraphProto) -> list[str]:
    """Gives every Gemm of `graph` a bias of one axis, as the quantiser expects; the nodes where that cannot be.

    https://github.com/microsoft/onnxruntime/issues/24815: fusing MatMul and Add leaves biases of shape (1, N).
    """
    tensors, left = {tensor.name: tensor for tensor in graph.initializer}, []
    for node in graph.node:
        if node.op_type != "Gemm" or len(node.input) < 3 or not {*node.input[1:3]} <= set(tensors):
            continue
        weight, bias = (tensors[name] for name in node.input[1:3])
        turned = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        width = weight.dims[0 if turned else 1]
        if list(bias.dims) == [width]:
            continue
        values = array_of(bias)
        if values.ndim == 2 and len(values) > 1:  # another bias for every image of a fixed batch
            left.append(node.name)
            continue
        flat = np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (width,)))
        node.input[2] = f"{bias.name}:{node.name}"
        graph.initializer.append(onnx.numpy_helper.from_array(flat, node.input[2]))
    return left


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    """The calibration inputs, in batches of one size: histograms are stacked, so the last is filled with repeats."""

    def __init__(self, name: str, inputs: npt.NDArray[Any], size: int) -> None:
        self._name, self._inputs, self._size = name, inputs, size
        self._count = -(-len(inputs) // size)
        self._next, self._end = 0, self._count

    def __len__(self) -> int:
        return self._count

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with the batches from `start_index` up to `end_index`."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        """The next batch as a feed, or None at the end of the range."""
        if self._next >= self._end:
            return None
        rows = np.arange(self._next * self._size, (self._next + 1) * self._size) % len(self._inputs)
        self._next += 1
        return {self._name: np.ascontiguousarray(self._inputs[rows])}
