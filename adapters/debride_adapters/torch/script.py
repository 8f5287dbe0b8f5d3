"""TorchScript archives: everything in them is read and judged before `torch.jit.load`.

TorchScript can neither import nor call Python, but it can write and read files, call other machines and reach whatever
operators are installed, some of which corrupt memory. `code` lets through only what `operators` lists, and no
`__setstate__`, which loading would run; `objects` holds the pickles against the code. After loading, the graphs are
looked through once more, since they are what counts; by then nothing of the file has run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from debride.errors import ModelError
from debride_adapters.common import one_line
from debride_adapters.torch.code import defined, read_code, reasons, write_code
from debride_adapters.torch.files import read_archive, write_archive
from debride_adapters.torch.objects import check_constants, check_model, declared, read_objects
from debride_adapters.torch.operators import foreign

if TYPE_CHECKING:
    from torch.jit import ScriptModule

MAX_CODE = 8 << 20
# `bytecode.pkl` and `mobile_debug_handles.pkl` of PyTorch's lite interpreter are not among them.
_WANTED = re.compile(
    r"version|\.data/version|byteorder|data\.pkl|constants\.pkl|code/(\w+/)*\w+\.py|(data|constants)/\d+", re.ASCII
)
# Debug notes, traced inputs and extra files: the model does not need them, so nothing reads them.
_DROPPED = re.compile(
    r"code/.*\.debug_pkl|traced_inputs.*|extra/.*|\.data/serialization_id|\.format_version|\.storage_alignment"
)


def load_script(path: Path) -> ScriptModule:
    """The TorchScript model in `path`, in inference mode, on the processor.

    Raises:
        ModelError: damaged, or its code or pickles use more than a classifier needs; nothing of it was run then.
    """
    import torch

    # What `empty` gives is then filled: else it is whatever the process had in memory there.
    torch.use_deterministic_algorithms(True, warn_only=True)
    entries = read_archive(path, _WANTED, _DROPPED)
    code = _audited_code(path, {name: data for name, data in entries.items() if name.startswith("code/")})
    _audit_objects(path, entries, code)
    entries |= {name: write_code(tree) for name, tree in code.items()}
    try:
        module: ScriptModule = torch.jit.load(write_archive(entries), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ModelError(
            f"{path}: PyTorch cannot load it ({one_line(error)}); save it again with torch.jit.save"
        ) from error
    try:
        found = next(foreign(module), "")
    except RuntimeError as error:
        raise ModelError(f"{path}: has no forward ({one_line(error)}); save the whole model") from error
    if found:
        raise _refused(path, "its graph", found)
    module.eval()
    return module


def _audited_code(path: Path, sources: Mapping[str, bytes]) -> dict[str, ast.Module]:
    if sum(map(len, sources.values())) > MAX_CODE:
        raise ModelError(
            f"{path}: more than {MAX_CODE >> 20} MiB of TorchScript code; export the model with torch.export"
        )
    code: dict[str, ast.Module] = {}
    known: set[str] = set()
    name = ""
    try:
        for name, data in sources.items():
            code[name] = read_code(data)
            for here in defined(_module(name), code[name]):
                if here in known:  # which of the two counts, readers need not agree
                    raise ValueError(f"defines {here} twice")
                known.add(here)
        for name, tree in code.items():
            if used := next(reasons(tree, known), ""):
                raise _refused(path, name, used)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ModelError(
            f"{path}: {name} cannot be audited ({one_line(error)}); export the model with torch.export"
        ) from error
    return code


def _module(file: str) -> str:
    return file[len("code/") : -len(".py")].replace("/", ".")


def _refused(path: Path, where: str, used: str) -> ModelError:
    return ModelError(
        f"{path}: {where} uses '{one_line(used)}', which debride does not let a model's file run; nothing was run; "
        "export the network with torch.export, or save its state_dict"
    )


def _audit_objects(path: Path, entries: Mapping[str, bytes], code: Mapping[str, ast.Module]) -> None:
    fields: dict[str, dict[str, ast.expr]] = {}
    name = "its code"
    try:
        for file, tree in code.items():
            fields |= declared(_module(file), tree)
        for kind, check in (("constants", check_constants), ("data", lambda value: check_model(value, fields))):
            name = f"{kind}.pkl"
            prefix = f"{kind}/"
            weights = {key[len(prefix) :]: data for key, data in entries.items() if key.startswith(prefix)}
            if name in entries:
                check(read_objects(entries[name], weights))
    except Exception as error:  # a damaged pickle raises almost anything
        raise ModelError(f"{path}: {name} {one_line(error)}; save the model again with torch.jit.save") from error
