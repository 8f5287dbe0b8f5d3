"""Half precision by onnxruntime's own converter; what would leave its range stays in float32.

The converter clips weights beyond the range without a word, and lets activations overflow to infinity.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from debride.errors import ModelError
from debride.export.quiet import quiet
from debride.graph.constants import array_of
from debride.graph.hollow import constant_tensor
from debride.graph.infer import value_infos
from debride.graph.write import write_model
from debride.sessions import Runtime, Session

LARGEST = 65504.0
"""The largest number in half precision (IEEE 754-2019, binary16)."""
_MARGIN = 4.0
"""How much larger an activation may grow on images that were not tried."""
_BATCH = 32
_FLOAT, _HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def halved(
    proto: onnx.ModelProto,
    inputs: npt.NDArray[Any] | None,
    *,
    name: str,
    fixed: int | None,
    runtime: Runtime,
    folder: Path,
    also: Collection[str] = (),
) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """`proto` (float32, nodes named) in half precision, its inputs and outputs in float32; the nodes that stay float32.

    These make or read an activation that comes within a factor of 4 of the largest half on `inputs` (N, ...), fed to
    input `name` in batches (of `fixed`), or read a weight beyond it. Without `inputs` only weights are looked at.
    Operators of the kinds `also` stay in float32 as well.

    Raises `ModelError` where onnxruntime cannot run the graph, or the converter fails.
    """
    large = _large_constants(proto)
    if inputs is not None:
        peaks = _peaks(proto, inputs, name, fixed, runtime, folder)
        large |= {tensor for tensor, peak in peaks.items() if not peak * _MARGIN <= LARGEST}
    nodes = proto.graph.node
    kept = tuple(n.name for n in nodes if n.op_type in also or large.intersection((*n.input, *n.output)))
    return _converted(proto, kept), kept


def _converted(proto: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    """`proto` in half precision, but for the nodes `kept`. Raises `ModelError` where the converter fails."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    try:
        with quiet():
            made: onnx.ModelProto = convert_float_to_float16(
                copy, keep_io_types=True, op_block_list=DEFAULT_OP_BLOCK_LIST, node_block_list=list(kept)
            )
            _without_detours(made.graph, {node.name for node in proto.graph.node})
            ONNXModel(made).topological_sort()
    except Exception as error:  # it raises whatever its parts raise, AssertionError among them
        raise ModelError(
            f"onnxruntime's half precision converter fails ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}); take --target int8 or ort"
        ) from error
    # Types as they were inferred in float32; onnxruntime infers them itself.
    del made.graph.value_info[:]
    return made


def _large_constants(proto: onnx.ModelProto) -> set[str]:
    """Names of the weights and constants that half precision cannot hold."""
    constants = {node.output[0]: constant_tensor(node) for node in proto.graph.node}
    constants |= {tensor.name: tensor for tensor in proto.graph.initializer}
    return {name for name, tensor in constants.items() if tensor is not None and _beyond(tensor)}


def _beyond(tensor: onnx.TensorProto) -> bool:
    if tensor.data_type != _FLOAT:
        return False
    values = array_of(tensor)
    return bool(values.size and np.abs(values).max() > LARGEST)


def _peaks(
    proto: onnx.ModelProto,
    inputs: npt.NDArray[Any],
    name: str,
    fixed: int | None,
    runtime: Runtime,
    folder: Path,
) -> Mapping[str, float]:
    """The largest magnitude of every float activation over `inputs`, infinity where one is not finite."""
    infos = value_infos(proto)
    made = [tensor for node in proto.graph.node for tensor in node.output if tensor]
    floats = [t for t in made if t in infos and infos[t].type.tensor_type.elem_type == _FLOAT]
    path = folder / "peaks.onnx"
    write_model(_measured(proto, floats), path, force=True)
    session = Session(path, runtime, "the model with its activations measured")
    size = fixed or min(_BATCH, len(inputs))
    peaks = dict.fromkeys((name, *floats), 0.0)
    for start in range(0, len(inputs), size):
        rows = np.arange(start, start + size) % len(inputs)
        found = session.run({name: np.ascontiguousarray(inputs[rows])}, [_peak(tensor) for tensor in floats])
        peaks[name] = max(peaks[name], float(np.abs(inputs[rows]).max()))
        for tensor, peak in zip(floats, found, strict=True):
            value = float(np.asarray(peak).reshape(-1)[0]) if np.asarray(peak).size else 0.0
            peaks[tensor] = max(peaks[tensor], value if np.isfinite(value) else float("inf"))
    return peaks


def _peak(tensor: str) -> str:
    return f"debride.peak:{tensor}"


def _measured(proto: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    """`proto` that also gives the largest magnitude of each of `tensors`, taken right behind its maker."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    wanted = set(tensors)
    for node in proto.graph.node:
        copy.graph.node.add().CopyFrom(node)
        for tensor in wanted.intersection(node.output):
            size = f"debride.size:{tensor}"
            copy.graph.node.add(op_type="Abs", input=[tensor], output=[size], name=size)
            largest = onnx.helper.make_node("ReduceMax", [size], [_peak(tensor)], name=_peak(tensor), keepdims=0)
            copy.graph.node.append(largest)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(_peak(t), _FLOAT, []) for t in tensors)
    return copy


def _without_detours(graph: onnx.GraphProto, own: set[str]) -> None:
    """Between two nodes in float32 the converter rounds to half and back: there values overflow after all.

    Casts by nodes of its `own` are what the model wants.
    """
    casts = {node.output[0]: node for node in graph.node if node.op_type == "Cast"}
    targets = {output: node.attribute[0].i for output, node in casts.items()}
    straight = {}
    for output, node in casts.items():
        inner = casts.get(node.input[0])
        if inner is None or inner.name in own or node.name in own:
            continue
        if targets[output] == _FLOAT and targets[inner.output[0]] == _HALF:
            straight[output] = inner.input[0]
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        for place, name in enumerate(node.input):
            if name in straight and node.output[0] not in straight:
                node.input[place] = straight[name]
    for output in outputs & set(straight):  # the graph's own name for its scores: they are copied, not rounded
        casts[output].op_type = "Identity"
        del casts[output].attribute[:]
        casts[output].input[0] = straight[output]
    _prune(graph)


def _prune(graph: onnx.GraphProto) -> None:
    """Takes out the Casts that nobody reads any more."""
    while True:
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        idle = [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in read]
        if not idle:
            return
        for node in idle:
            graph.node.remove(node)
