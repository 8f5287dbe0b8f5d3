"""numpy constants to torch tensors, bit by bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from debride.errors import UnsupportedOpError

_BY_NAME = {
    "bfloat16": (np.int16, torch.bfloat16),
    "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
    "float8_e4m3fnuz": (np.uint8, torch.float8_e4m3fnuz),
    "float8_e5m2": (np.uint8, torch.float8_e5m2),
    "float8_e5m2fnuz": (np.uint8, torch.float8_e5m2fnuz),
}
"""Types that numpy knows only through an extension: (integers of the same width, torch dtype)."""


def to_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A copy of `array` as a CPU tensor of the same type; `UnsupportedOpError` for strings and 2- or 4-bit types."""
    name = array.dtype.name
    if name in _BY_NAME:
        bits, dtype = _BY_NAME[name]
        return torch.from_numpy(np.array(array, order="C").view(bits)).view(dtype)
    if array.dtype.kind not in "fiub" or name.startswith(("int4", "uint4", "int2", "uint2")):
        raise UnsupportedOpError(f"the proxy computes nothing in type {name}; export the model in float32")
    return torch.from_numpy(np.array(array, order="C"))
