"""Constants told apart from what they were before: by identity, by torch's version counter, by their numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy.typing as npt
from torch import Tensor


def stamped(values: Mapping[str, Tensor], names: Collection[str]) -> dict[str, tuple[Tensor, int]] | None:
    """The constants `names` with their versions, to tell changes by later; None where one of them wants a gradient."""
    if any(values[name].requires_grad for name in names):
        return None
    return {name: (values[name], _version(values[name])) for name in names}


def unchanged(stamps: Mapping[str, tuple[Tensor, int]], values: Mapping[str, Tensor]) -> bool:
    """Whether the constants are still those tensors, with nothing written into them, and want no gradient."""
    return all(
        values[name] is tensor and _version(tensor) == version and not tensor.requires_grad
        for name, (tensor, version) in stamps.items()
    )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def same_numbers(tensor: Tensor, array: npt.NDArray[Any]) -> bool:
    """Whether a constant still holds what the model's file says."""
    return tensor.shape == array.shape and bool((tensor.detach().cpu().double().numpy() == array).all())
