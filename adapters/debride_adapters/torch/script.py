"""TorchScript archives: their code is read before `torch.jit.load`, which already runs every `__setstate__` in it.

TorchScript can neither import nor call Python, but it can write and read files, call other machines and reach whatever
operators are installed. So the code may use PyTorch's own operators only, without those few.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from debride.errors import ModelError
from debride_adapters.torch.files import one_line, pickle_globals, read_archive, write_archive

if TYPE_CHECKING:
    from torch.jit import ScriptModule

MAX_CODE = 8 << 20
_WANTED = re.compile(r"version|\.data/version|byteorder|data\.pkl|constants\.pkl|code/[\w./]+\.py|(data|constants)/\d+")
# Debug notes, traced inputs and extra files: the model does not need them, so nothing reads them.
_DROPPED = re.compile(
    r"code/.*\.debug_pkl|traced_inputs.*|extra/.*|\.data/serialization_id|\.format_version|\.storage_alignment"
)
_FORBIDDEN = re.compile(
    r"\b(save|from_file|rpc_\w+|PythonOp|set_|_resize_output_|_nested_view_from_buffer\w*|_cuda_\w+"
    r"|_sparse_\w*unsafe\w*)\b"
)
_OPS = re.compile(r"\bops\b(?!\.(prim|aten|quantized)\.)")
_GLOBALS = re.compile(
    r"__torch__(\.\w+)+|torch\._utils\._rebuild_tensor(_v2|_v3)?|torch\.\w+Storage|collections\.OrderedDict"
    r"|torch\.jit\._pickle\.(build_\w+list|restore_type_tag)"
)


def load_script(path: Path) -> ScriptModule:
    """The TorchScript model in `path`, in inference mode, on the processor.

    Raises:
        ModelError: damaged, or its code or pickles use more than a classifier needs; nothing of it was run then.
    """
    import torch

    entries = read_archive(path, _WANTED, _DROPPED)
    _audit_code(path, {name: data for name, data in entries.items() if name.startswith("code/")})
    for name in ("data.pkl", "constants.pkl"):
        if name in entries:
            _audit_pickle(path, name, entries[name])
    try:
        module: ScriptModule = torch.jit.load(write_archive(entries), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(
            f"{path}: PyTorch cannot load it ({one_line(error)}); save it again with torch.jit.save"
        ) from error
    module.eval()
    return module


def _audit_code(path: Path, sources: Mapping[str, bytes]) -> None:
    if sum(map(len, sources.values())) > MAX_CODE:
        raise ModelError(
            f"{path}: more than {MAX_CODE >> 20} MiB of TorchScript code; export the model with torch.export"
        )
    for name, data in sources.items():
        try:
            text = data.decode("ascii")
            tree = ast.parse(text)
            reached = _reached_by_name(tree)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ModelError(
                f"{path}: {name} cannot be audited ({one_line(error)}); export the model with torch.export"
            ) from error
        found = _FORBIDDEN.search(text) or _OPS.search(text)
        used = text[found.start() : found.end() + 30].split("\n")[0] if found else reached
        if used:
            raise ModelError(
                f"{path}: {name} uses '{used}', which no classifier needs; nothing was run; get another export"
            )


def _reached_by_name(tree: ast.AST) -> str:
    """A name that the search of the text may miss: one within `getattr`, or a class that is no TorchScript, or nothing.

    PyTorch writes `getattr` only for names such as "0", which cannot be written out.
    """
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _is_getattr(node.func)]
    if len(calls) != sum(_is_getattr(node) for node in ast.walk(tree)):
        return "getattr"
    for call in calls:
        name = call.args[1] if len(call.args) == 2 else None
        value = name.value if isinstance(name, ast.Constant) else None
        if not isinstance(value, str) or value.isidentifier():
            return f"getattr {value!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "classes" and _last_name(node.value) == "torch":
            return "torch.classes"
    return ""


def _last_name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_getattr(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("getattr", "hasattr", "setattr")


def _audit_pickle(path: Path, name: str, data: bytes) -> None:
    try:
        for used in pickle_globals(data):
            if not _GLOBALS.fullmatch(used) or used.startswith("__torch__.torch.classes"):
                raise ModelError(f"{path}: {name} needs {used[:80]}, which no classifier needs; get another export")
    except (ValueError, IndexError, EOFError) as error:
        raise ModelError(f"{path}: {name} is damaged ({one_line(error)}); save the model again") from error
