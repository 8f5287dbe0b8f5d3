"""torch.export files (.pt2): the program is JSON, and is audited and rewritten before `torch.export.load` sees it.

`torch.export.load` unpickles what is marked so, evaluates size expressions as Python, resolves operator names to any
function within `torch`, and writes names from the file into Python source that it then runs.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions
from debride_adapters.common import one_line, output_names
from debride_adapters.torch.export import INPUT, Exported, converted, serialized
from debride_adapters.torch.files import read_archive, write_archive
from debride_adapters.torch.run import cause, in_portions, module_reference, quiet
from debride_adapters.torch.schema import audited, on_processor

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_WANTED = re.compile(
    r"archive_format|archive_version|byteorder|\.data/version|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)"
)
_DROPPED = re.compile(r"extra/.*|\.data/serialization_id|\.format_version|\.storage_alignment")
_PROGRAM = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"


def load_program(path: Path) -> ExportedProgram:
    """The torch.export program in `path`; its tensors are on the processor.

    Raises:
        ModelError: damaged, or it holds what could run code; nothing of it was run then.
    """
    import torch

    entries = read_archive(path, _WANTED, _DROPPED)
    if _PROGRAM not in entries or _SAMPLES not in entries:
        raise ModelError(f"{path}: holds no program named 'model'; save it with torch.export.save")
    safe = {name: _audited(path, name, data) for name, data in entries.items()}
    try:
        with quiet():
            program = torch.export.load(write_archive(safe))
            # What leads nowhere is not written as ONNX, and so not judged by the exporter: it must not run either.
            program.graph.eliminate_dead_code()
            program.graph_module.recompile()
            return program
    except Exception as error:
        raise ModelError(
            f"{path}: PyTorch {torch.__version__} cannot load it ({_cause(error)}); export it again with this version"
        ) from error


def _audited(path: Path, name: str, data: bytes) -> bytes:
    if name.endswith(".pt"):
        return _plain_pickle(path, name, data)
    if not name.endswith(".json"):
        return data
    value = _parsed(path, name, data)
    if name == _PROGRAM:
        value = audited(path, value)
    else:
        _audit_config(path, name, value)
    return json.dumps(on_processor(value)).encode()


def _parsed(path: Path, name: str, data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: {name} is damaged ({one_line(error)}); export the model again") from error


def _audit_config(path: Path, name: str, config: Any) -> None:
    """Weights and constants must be plain bytes: those marked as pickles would be unpickled freely."""
    listed = config.get("config") if isinstance(config, dict) else None
    if not isinstance(listed, dict):
        raise ModelError(f"{path}: {name} is damaged; export the model again")
    for tensor, entry in listed.items():
        plain = isinstance(entry, dict) and entry.get("use_pickle") is False
        if not plain or not re.fullmatch(r"(weight|tensor)_\d+", str(entry.get("path_name"))):
            raise ModelError(
                f"{path}: '{str(tensor)[:80]}' is a pickled object and no plain tensor, and is not unpickled; "
                "export the model with plain tensors"
            )
        if not re.fullmatch(r"[\w.]+", str(tensor)):
            raise ModelError(f"{path}: '{str(tensor)[:80]}' is no name of a weight; export the model again")


def _plain_pickle(path: Path, name: str, data: bytes) -> bytes:
    """The pickle `data`, read the safe way and written anew: `torch.export.load` falls back to the unsafe one."""
    import torch

    if not data:
        return data
    try:
        value = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"needs {found.group(1)}, which is code" if found else f"cannot be read safely ({one_line(error)})"
        raise ModelError(
            f"{path}: {name} {reason} and is not unpickled; export the model again with plain tensors as inputs"
        ) from error
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _cause(error: BaseException) -> str:
    """The deserializer wraps the reason, with a traceback, in one error per level."""
    lines = [line.strip() for line in str(error).splitlines() if re.match(r"\s*[\w.]*(Error|Exception): ", line)]
    return one_line(lines[-1] if lines else str(error))


def convert_program(path: Path, options: ConvertOptions) -> Converted:
    """The torch.export program in `path` as ONNX; its shapes are the program's own.

    Raises:
        ModelError: as `load_program`; or it takes other than one image, was exported in training mode, or cannot be
            written as ONNX.
    """
    program = load_program(path)
    shape = _image_shape(path, program)
    _refuse_training(path, program)
    names = output_names(len(program.graph_signature.user_outputs))
    with quiet():
        module = program.module(check_guards=False)
    fixed = shape[0] if isinstance(shape[0], int) else 0
    reference = module_reference(path, module)
    try:
        made = Exported(_written(program, names, options.opset))
    except Exception as error:
        raise ModelError(
            f"{path}: PyTorch cannot write it as ONNX ({cause(error)}); export the network with torch.onnx.export"
        ) from error
    result = converted(made, in_portions(reference, fixed) if fixed else reference, options)
    if not fixed:
        return result
    note = f"was exported for batches of {fixed}; torch.export with a dynamic batch avoids the guess that it can vary"
    return replace(result, notes=(note, *result.notes))


def _image_shape(path: Path, program: ExportedProgram) -> tuple[Any, ...]:
    inputs = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    if len(inputs) != 1 or inputs[0] not in nodes:
        raise ModelError(f"{path}: takes {len(inputs)} inputs; export a classifier that takes one batch of images")
    return tuple(nodes[str(inputs[0])].meta["val"].shape)


def _refuse_training(path: Path, program: ExportedProgram) -> None:
    drops = [node.args for node in program.graph.nodes if str(node.target) == "aten.dropout.default"]
    random = any(len(arguments) > 2 and arguments[2] for arguments in drops)
    if program.graph_signature.buffers_to_mutate or random:
        raise ModelError(f"{path}: was exported in training mode; call model.eval() before torch.export")


def _written(program: ExportedProgram, names: list[str], opset: int) -> bytes:
    import torch

    with quiet():
        made = torch.onnx.export(
            program,
            (),
            dynamo=True,
            input_names=[INPUT],
            output_names=names,
            opset_version=opset,
            external_data=False,
            verbose=False,
        )
    return serialized(made)
