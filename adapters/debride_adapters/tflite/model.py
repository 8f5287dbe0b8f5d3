"""TFLite files, read as data: parsed in Python, audited, and written anew before TensorFlow's C++ sees a byte."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from debride.errors import ModelError
from debride_adapters.common import one_line, read_bounded

_IDENTIFIER = b"TFL3"
_MOVED_OPCODE = 127  # an opcode above one byte, which stands in a second field
FLOAT32 = 0
_UINT8, _INT8 = 3, 9
_PURE = frozenset(("GELU",))  # besides what tf2onnx lists
_DRAWS = re.compile("RANDOM|MULTINOMIAL")  # a classifier that draws lots cannot be compared with anything


def read_tflite(path: Path) -> Any:
    """The model at `path` as plain Python objects (TFLite's `ModelT`), audited.

    Raises `ModelError` for a file that is damaged, holds custom or Flex operators or more than one graph, or takes
    or gives anything but one batch of images and scores.
    """
    data = read_bounded(path)
    if data[4:8] != _IDENTIFIER:
        raise ModelError(f"{path}: no TFLite model, or of an older format; convert the model again")
    from tensorflow.lite.python import schema_py_generated as schema

    allowed = _allowed()
    try:
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        _audit(model, schema, allowed, path)
    except (struct.error, ValueError, TypeError, IndexError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelError(f"{path}: damaged or cut short ({one_line(error)}); copy or convert it again") from error
    return model


def write_tflite(model: Any) -> bytes:
    """`model` as a TFLite file: only what was parsed goes in, so no offset leads anywhere else."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), _IDENTIFIER)
    return bytes(builder.Output())


def graph_of(model: Any) -> Any:
    """The one graph of an audited model."""
    return model.subgraphs[0]


def quantised(model: Any) -> bool:
    """Whether any tensor of the graph holds 8-bit numbers with a scale."""
    return any(tensor.type in (_INT8, _UINT8) and _scaled(tensor) for tensor in graph_of(model).tensors)


def operators(model: Any, schema: Any) -> Iterator[str]:
    """The name of each operator code, custom ones as "CUSTOM ..."; a number that TFLite does not know as itself."""
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    for entry in model.operatorCodes:
        old = entry.deprecatedBuiltinCode
        code = entry.builtinCode if old == _MOVED_OPCODE else old
        # Readers differ in which field they trust where the two disagree.
        if old not in (_MOVED_OPCODE, 0) and entry.builtinCode not in (old, 0):
            raise ValueError("an operator with two codes")
        custom = entry.customCode.decode("utf-8", "replace") if entry.customCode else ""
        yield f"CUSTOM {custom}".strip() if custom or names.get(code) == "CUSTOM" else names.get(code, str(code))


@cache
def _allowed() -> frozenset[str]:
    import tf2onnx.tflite_handlers  # noqa: F401  (fills the table)
    from tf2onnx.handler import tf_op

    listed = {name for versions in tf_op.get_opsets().values() for version in versions for name in version}
    return frozenset(name[4:] for name in listed if name.startswith("TFL_") and not _DRAWS.search(name)) | _PURE


def _audit(model: Any, schema: Any, allowed: frozenset[str], path: Path) -> None:
    codes = list(operators(model, schema))
    for name in codes:
        if name.startswith("CUSTOM"):
            raise ModelError(
                f"{path}: holds the operator '{name[:80]}', code from outside TFLite; convert it with built-in "
                "operators alone"
            )
        if name not in allowed:
            raise ModelError(f"{path}: holds the operator {name}, which tf2onnx does not translate; convert it to ONNX")
    if len(model.subgraphs) != 1:
        raise ModelError(f"{path}: holds {len(model.subgraphs)} graphs, not one; convert a plain classifier")
    graph = graph_of(model)
    _check_numbers(model, graph, len(codes), path)
    if len(graph.inputs) != 1 or graph.tensors[graph.inputs[0]].shape is None:
        raise ModelError(f"{path}: has {len(graph.inputs)} inputs, not one with a stated shape; convert the classifier")
    # A class number beside the scores is left out; its operators stay, and nothing reads them.
    graph.outputs = [number for number in graph.outputs if _holds_scores(graph.tensors[number])]
    if not graph.outputs or not _holds_scores(graph.tensors[graph.inputs[0]]):
        raise ModelError(f"{path}: its image or its scores are neither float32 nor 8 bits with a scale; convert it so")
    if len(graph.tensors[graph.inputs[0]].shape) != 4:
        raise ModelError(f"{path}: its input is no batch of images; give a classifier of images")


def _check_numbers(model: Any, graph: Any, codes: int, path: Path) -> None:
    """Every tensor, buffer and operator code that is referred to exists, and names are one each."""
    tensors = range(len(graph.tensors))
    wrong = any(tensor.buffer not in range(len(model.buffers)) for tensor in graph.tensors)
    wrong |= any(number not in tensors for number in (*graph.inputs, *graph.outputs))
    for operator in graph.operators:
        wrong |= operator.opcodeIndex not in range(codes)
        read, written = _list(operator.inputs), _list(operator.outputs)
        wrong |= any(number != -1 and number not in tensors for number in (*read, *written))
    wrong |= len({_name(tensor) for tensor in graph.tensors}) != len(graph.tensors)
    wrong |= not all(map(_plain, graph.tensors))
    # Weights outside the tables, which plain files under 2 GiB have no need of.
    wrong |= any(buffer.offset > 1 or buffer.size > 1 for buffer in model.buffers)
    if wrong:
        raise ModelError(f"{path}: its tables do not fit together; convert the model again")


def _plain(tensor: Any) -> bool:
    """Whether the scales fit the tensor's shape and it is stored densely: the interpreter trusts what is written."""
    if tensor.sparsity is not None:
        return False
    if not _scaled(tensor):
        return True
    quantization, sides = tensor.quantization, _list(tensor.shape)
    scales, zeros, axis = len(quantization.scale), len(_list(quantization.zeroPoint)), quantization.quantizedDimension
    return zeros in (0, scales) and (scales == 1 or (0 <= axis < len(sides) and sides[axis] == scales))


def _holds_scores(tensor: Any) -> bool:
    return tensor.type == FLOAT32 or (tensor.type in (_INT8, _UINT8) and _scaled(tensor))


def _scaled(tensor: Any) -> bool:
    quantization = tensor.quantization
    return quantization is not None and quantization.scale is not None and len(quantization.scale) > 0


def _list(values: Any) -> list[int]:
    return [] if values is None else [int(value) for value in values]


def _name(tensor: Any) -> str:
    return (tensor.name or b"").decode("utf-8", "replace")
