"""A worked example of an adapter: fully connected networks kept as plain NumPy arrays, in an `.npz`.

The file holds `weight0` (inputs, units), `bias0` (units,), `weight1`, ... and `shape`, the (C, H, W) of one image in
0..1. The network is flatten, then for each layer `x @ weight + bias`, with a ReLU between two layers.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions, FloatArray

Layer = tuple[FloatArray, FloatArray]
MAX_VALUES = 1 << 28


@dataclass(frozen=True, slots=True)
class NumpyAdapter:
    """Reads `.npz` files of weights. What it needs of onnx is imported when a model is converted, not before."""

    name: str = "NumPy"
    suffixes: tuple[str, ...] = (".npz",)

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The network at `path` as ONNX; raises `ModelError` where the file holds no such network."""
        shape, layers = read(path)
        return Converted(
            onnx=graph(shape, layers, options.opset),
            spec={"name": "image", "layout": "NCHW", "size": list(shape[1:]), "range": [0, 1]},
            packages={"numpy": np.__version__},
            reference=lambda batch: [run(layers, batch)],
        )


def read(path: Path) -> tuple[tuple[int, ...], list[Layer]]:
    """(C, H, W) and the layers of the network at `path`, checked: whatever a stranger's file holds is an error here."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 4 * MAX_VALUES:
                raise ModelError(f"{path}: unpacks to more than {4 * MAX_VALUES} bytes; is it the right file?")
        # allow_pickle=False: an array of objects is a pickle, and a pickle is a program.
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        first = str(error).split("\n")[0]
        raise ModelError(f"{path}: no .npz file of plain arrays ({first}); save it with numpy.savez") from error
    sides = arrays.get("shape", np.zeros(0))
    if sides.shape != (3,) or sides.dtype.kind not in "iu" or not (sides > 0).all():
        raise ModelError(f"{path}: 'shape' is missing or is not (C, H, W); save it with the weights")
    shape = tuple(int(side) for side in sides)
    return shape, checked(path, arrays, int(np.prod(shape)))


def checked(path: Path, arrays: dict[str, npt.NDArray[Any]], width: int) -> list[Layer]:
    """The layers in order, each fitting the one before it."""
    layers: list[Layer] = []
    while (weight := arrays.get(f"weight{len(layers)}")) is not None:
        bias = arrays.get(f"bias{len(layers)}")
        if (
            bias is None
            or bias.ndim != 1
            or weight.shape != (width, len(bias))
            or {weight.dtype.kind, bias.dtype.kind} != {"f"}
        ):
            raise ModelError(
                f"{path}: layer {len(layers)} does not take {width} inputs; save weight and bias of every layer"
            )
        layers.append((weight.astype(np.float32), bias.astype(np.float32)))
        width = len(bias)
    if not layers:
        raise ModelError(f"{path}: holds no 'weight0'; save the weights as weight0, bias0, weight1, ...")
    return layers


def graph(shape: tuple[int, ...], layers: list[Layer], opset: int) -> bytes:
    """The network as a serialized ONNX model with a free batch dimension."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, tensors = [helper.make_node("Flatten", ["image"], ["x0"])], []
    for i, (weight, bias) in enumerate(layers):
        last = i == len(layers) - 1
        tensors += [numpy_helper.from_array(weight, f"weight{i}"), numpy_helper.from_array(bias, f"bias{i}")]
        nodes.append(helper.make_node("Gemm", [f"x{i}", f"weight{i}", f"bias{i}"], ["scores" if last else f"y{i}"]))
        nodes += [] if last else [helper.make_node("Relu", [f"y{i}"], [f"x{i + 1}"])]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(layers[-1][1])])]
    model = helper.make_model(
        helper.make_graph(nodes, "network", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    return model.SerializeToString()


def run(layers: list[Layer], batch: FloatArray) -> FloatArray:
    """The network on a batch (N, C, H, W), by NumPy alone: what the ONNX graph is compared with."""
    x = batch.reshape(len(batch), -1)
    for weight, bias in layers[:-1]:
        x = np.maximum(x @ weight + bias, 0)
    weight, bias = layers[-1]
    scores: FloatArray = x @ weight + bias
    return scores


adapter = NumpyAdapter()
