"""Tensors that stay in the memory of a GPU between runs of onnxruntime."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """A tensor in the memory of a GPU, which goes into a session's runs there; `numpy.asarray` fetches it.

    `address` is that of its first element; the memory is that of the OrtValue `owner`.
    """

    owner: Any
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    address: int

    def __len__(self) -> int:
        """How many entries it has along the first axis."""
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Resident:
        """Entries along the first axis that follow on each other: a view."""
        first, last, _ = rows.indices(len(self))
        stride = self.dtype.itemsize * math.prod(self.shape[1:])
        return replace(self, shape=(last - first, *self.shape[1:]), address=self.address + first * stride)

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """A copy of its entries."""
        first = (self.address - self.owner.data_ptr()) // self.dtype.itemsize
        held = self.owner.numpy().reshape(-1)[first : first + math.prod(self.shape)]
        return np.asarray(held.reshape(self.shape), dtype)


Held = npt.NDArray[Any] | Resident
"""A tensor where a session computes: on the CPU, an array."""
