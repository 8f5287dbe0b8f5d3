"""torch's two exporters to ONNX: the one built on torch.export, and the older one that records TorchScript."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions, Reference
from debride_adapters.common import one_line, output_names
from debride_adapters.torch.attention import attention_as_onnx
from debride_adapters.torch.run import cause, module_reference, quiet, run

if TYPE_CHECKING:
    from torch import Tensor, nn

INPUT = "image"
LIMIT = 2**31 - 1  # protobuf's own limit for one message
_EXAMPLES = 2  # torch.export takes a batch of one for a constant


@dataclass(frozen=True, slots=True)
class Exported:
    """A serialized ModelProto, and a remark on the way it was made, or nothing."""

    onnx: bytes
    note: str = ""


def export_module(path: Path | str, module: nn.Module, shape: Sequence[int], options: ConvertOptions) -> Converted:
    """`module` (in inference mode) as ONNX, input "image" (N, *shape), outputs "scores", "scores_1", ...

    The exporter built on torch.export is tried first, the older one, which records TorchScript, second.

    Raises:
        ModelError: the module does not run on float32 images of `shape`, or neither exporter can write it.
    """
    import torch

    example = torch.rand(_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    names = output_names(len(run(path, module, example)))
    exported = _exported(path, module, example, names, options.opset)
    return converted(exported, module_reference(path, module), options)


def export_script(path: Path | str, module: nn.Module, shape: Sequence[int], options: ConvertOptions) -> Converted:
    """As `export_module`, for a TorchScript module: by the older exporter, the only one that takes it."""
    import torch

    example = torch.rand(_EXAMPLES, *shape, generator=torch.Generator().manual_seed(0))
    names = output_names(len(run(path, module, example)))
    try:
        data = _by_torchscript(module, example, names, options.opset)
    except Exception as error:
        raise ModelError(
            f"{path}: PyTorch cannot write this TorchScript as ONNX ({one_line(error)}); "
            "export the network with torch.export, or save its state_dict"
        ) from error
    return converted(Exported(data), module_reference(path, module), options)


def _exported(path: Path | str, module: nn.Module, example: Tensor, names: list[str], opset: int) -> Exported:
    try:
        return Exported(_by_dynamo(module, example, names, opset))
    except Exception as error:
        reason = error
    try:
        data = _by_torchscript(module, example, names, opset)
    except Exception as error:
        raise ModelError(
            f"{path}: neither of PyTorch's exporters can write it: {cause(reason)}; {one_line(error)}; "
            "change what the network does there"
        ) from error
    return Exported(data, f"written by PyTorch's older exporter, since the newer one failed: {cause(reason)}")


def _by_dynamo(module: nn.Module, example: Tensor, names: list[str], opset: int) -> bytes:
    import torch

    with quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            input_names=[INPUT],
            output_names=names,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    return serialized(program)


def _by_torchscript(module: nn.Module, example: Tensor, names: list[str], opset: int) -> bytes:
    import torch

    buffer = io.BytesIO()
    with quiet(), attention_as_onnx(opset):
        torch.onnx.export(
            module,
            (example,),
            buffer,  # type: ignore[arg-type]
            dynamo=False,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: {0: "batch"} for name in (INPUT, *names)},
            opset_version=opset,
            verbose=False,
        )
    return buffer.getvalue()


def serialized(program: Any) -> bytes:
    """The ModelProto of an ONNXProgram as bytes, all weights inside.

    Raises:
        ValueError: it is larger than protobuf's 2 GiB.
    """
    if program is None:
        raise ValueError("the exporter returned nothing")
    proto = program.model_proto
    if proto.ByteSize() > LIMIT:
        raise ValueError("larger than 2 GiB")
    data: bytes = proto.SerializeToString()
    return data


def converted(exported: Exported, reference: Reference, options: ConvertOptions) -> Converted:
    """What the adapter hands over: notes tell the way it was made, and the opset where it is not the one asked for."""
    import onnx
    import torch

    opsets = onnx.load_model_from_string(exported.onnx).opset_import
    opset = next((entry.version for entry in opsets if entry.domain in ("", "ai.onnx")), 0)
    notes = [exported.note] if exported.note else []
    if opset != options.opset:
        notes.append(f"opset {options.opset} was asked for, PyTorch's exporter wrote {opset}")
    packages = {"torch": str(torch.__version__)}
    with contextlib.suppress(ImportError):
        import onnxscript

        packages["onnxscript"] = str(onnxscript.__version__)
    return Converted(onnx=exported.onnx, notes=tuple(notes), packages=packages, reference=reference)
