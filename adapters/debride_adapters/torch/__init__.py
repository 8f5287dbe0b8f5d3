"""PyTorch's files: torch.export (.pt2), TorchScript, state dicts and safetensors, each told by its content.

A file's own code never runs: see `schema`, `script` and `weights` for what is looked at before
anything is built. Weights alone need the user's own network, `--architecture`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from debride.errors import ModelError, UsageError
from debride.types import Converted, ConvertOptions
from debride_adapters.common import one_line
from debride_adapters.torch.files import kind_of, refuse_old_torch

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, slots=True)
class TorchAdapter:
    """Reads what `torch.export.save`, `torch.jit.save`, `torch.save` and safetensors write."""

    name: str = "PyTorch"
    suffixes: tuple[str, ...] = (".pt2", ".pt", ".pth", ".tar", ".ckpt", ".bin", ".safetensors")

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The model at `path` as ONNX, with a free batch dimension; runs none of the file's own code.

        Raises:
            ModelError: damaged, holds code, does not fit the architecture, or cannot be written as ONNX.
            UsageError: weights without `architecture`, TorchScript or weights without `input_shape`.
        """
        kind = kind_of(path)
        refuse_old_torch(path)
        if kind == "program":
            from debride_adapters.torch.program import convert_program

            return convert_program(path, options)
        if kind == "script":
            return _script(path, options)
        return _weights(path, options, safe=kind == "safetensors")


def from_module(
    module: nn.Module, input_shape: tuple[int, int, int], *, options: ConvertOptions | None = None
) -> Converted:
    """A copy of `module`, in inference mode and on the processor, as ONNX; images are `input_shape` (C, H, W).

    Raises:
        ModelError: it cannot be copied, does not run on such images, or cannot be written as ONNX.
    """
    what = type(module).__name__
    try:
        network = copy.deepcopy(_unwrapped(module))
    except Exception as error:
        raise ModelError(f"{what}: cannot be copied ({one_line(error)}); remove its weight_norm or hooks") from error
    return _exported(what, network, input_shape, options or ConvertOptions(), ())


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network within `torch.compile`'s and DataParallel's wrappers, which hide what it takes."""
    inner = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
    name = inner.get(type(module).__name__)
    wrapped: nn.Module = getattr(module, name) if name else module
    return _unwrapped(wrapped) if name else module


def _script(path: Path, options: ConvertOptions) -> Converted:
    from debride_adapters.torch.export import export_script
    from debride_adapters.torch.script import load_script

    shape = _shape(path, options, "TorchScript does not say how large its images are")
    module = load_script(path)
    made = export_script(path, module, shape, options)
    return replace(made, notes=("TorchScript's own operators were run, never Python", *made.notes))


def _weights(path: Path, options: ConvertOptions, *, safe: bool) -> Converted:
    from debride_adapters.torch.architecture import build
    from debride_adapters.torch.weights import load_strictly, pick_state, read_checkpoint, read_safetensors

    loaded = read_safetensors(path) if safe else read_checkpoint(path)
    state, notes = pick_state(path, loaded)
    if not options.architecture:
        raise UsageError(f"{path}: holds weights only; name your network, --architecture FILE.py:FACTORY")
    shape = _shape(path, options, "weights do not say how large the images are")
    network = build(options.architecture)
    load_strictly(path, network, state)
    return _exported(path, network, shape, options, notes)


def _exported(
    what: Path | str, network: nn.Module, shape: tuple[int, ...], options: ConvertOptions, notes: tuple[str, ...]
) -> Converted:
    import torch

    from debride_adapters.torch.export import export_module

    refuse_old_torch(what)
    network = network.eval().cpu()
    if any(p.is_floating_point() and p.dtype != torch.float32 for p in network.state_dict().values()):
        network, notes = network.float(), (*notes, "its weights were turned into float32")
    made = export_module(what, network, shape, options)
    return replace(made, notes=(*notes, *made.notes))


def _shape(path: Path, options: ConvertOptions, reason: str) -> tuple[int, ...]:
    shape = options.input_shape or options.images_shape
    if not shape:
        raise UsageError(f"{path}: {reason}; say it with --input-shape C,H,W")
    return shape


adapter = TorchAdapter()
