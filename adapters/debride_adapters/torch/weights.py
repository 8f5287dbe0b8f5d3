"""Checkpoints and safetensors: which dictionary of tensors is meant, and a strict load into the user's network."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from debride.errors import ModelError
from debride_adapters.common import one_line

if TYPE_CHECKING:
    from torch import Tensor, nn

_CONTAINERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
_AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema")
_PREFIXES = ("module.", "_orig_mod.")
_SHOWN = 3
_MEND = "save model.state_dict() alone, or export the model with torch.export or torch.jit"


def read_checkpoint(path: Path) -> object:
    """The tensors and plain values of the checkpoint `path`; its pickle can make nothing else.

    Raises:
        ModelError: the pickle needs more than tensors (named), or the file is damaged.
    """
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|`?([\w.]+)`? was not an allowed|class ([\w.]+)", str(error))
        if found:
            name = next(group for group in found.groups() if group)
            raise ModelError(f"{path}: its pickle needs {name}, which is code and is not run; {_MEND}") from error
        raise ModelError(f"{path}: its pickle is damaged or needs code ({_reason(error)}); {_MEND}") from error
    except Exception as error:
        raise ModelError(f"{path}: a damaged checkpoint ({one_line(error)}); copy or save it again") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of the safetensors file `path`.

    Raises:
        ModelError: the file is damaged, or the package safetensors is missing.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ModelError(f"{path}: the package safetensors is missing; install safetensors") from error
    try:
        return load_file(path)
    except Exception as error:
        raise ModelError(f"{path}: damaged safetensors ({one_line(error)}); copy or save it again") from error


def _reason(error: BaseException) -> str:
    """torch wraps its reason in advice to load the file unsafely, which nobody should read here."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(next((line for line in lines if line.startswith("WeightsUnpickler error")), str(error)))


def pick_state(path: Path, loaded: object) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The state dict within `loaded`, and notes on what was chosen or renamed.

    Raises:
        ModelError: none is there, or several and none has a usual name.
    """
    if not isinstance(loaded, Mapping):
        raise ModelError(f"{path}: holds a {type(loaded).__name__} and no state dict; save model.state_dict()")
    notes: list[str] = []
    state = loaded
    if not _is_state(loaded):
        key = _container(path, loaded)
        state = loaded[key]
        averages = [name for name in loaded if name != key and name in _AVERAGES]
        beside = f"; '{averages[0]}', a running average beside it, was left" if averages else ""
        notes.append(f"the weights are those under the key '{key}'{beside}")
    names, dropped = _without_prefixes(state)
    if dropped:
        notes.append(f"the prefix '{dropped}' of all weights' names was taken off")
    return names, tuple(notes)


def _is_state(value: object) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _container(path: Path, loaded: Mapping[Any, Any]) -> str:
    found = [str(key) for key, value in loaded.items() if _is_state(value)]
    for name in (*_CONTAINERS, *_AVERAGES):
        if name in found:
            return name
    if len(found) != 1:
        seen = ", ".join(str(key)[:40] for key in list(loaded)[:8]) or "nothing"
        raise ModelError(f"{path}: none of its keys is known to hold the weights ({seen}); save model.state_dict()")
    return found[0]


def _without_prefixes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """DataParallel and torch.compile put their own names before all others, in either order."""
    names, dropped = dict(state), ""
    while prefix := next((p for p in _PREFIXES if all(k.startswith(p) for k in names)), ""):
        names, dropped = {k[len(prefix) :]: v for k, v in names.items()}, dropped + prefix
    return names, dropped


def load_strictly(path: Path, module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into `module`, every name and shape or none.

    Raises:
        ModelError: names are missing or unexpected, or shapes differ; says the first of each and how many.
    """
    wanted = module.state_dict()
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in state and state[name].shape != tensor.shape
    ]
    # Checkpoints from before PyTorch 0.4.1 have no such counters, which inference never reads.
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in wanted]
    lists = (("missing", missing), ("unexpected", unexpected), ("other shapes", shapes))
    wrong = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in lists if names)
    if wrong:
        raise ModelError(f"{path}: the weights do not fit the architecture ({wrong}); name the one they are from")
    try:
        module.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: the weights do not fit the architecture ({one_line(error)})") from error


def _first(names: Sequence[str]) -> str:
    return ", ".join(name[:80] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
