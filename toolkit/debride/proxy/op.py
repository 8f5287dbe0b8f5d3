"""What an operator of the table is, and the few helpers that all families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from debride.errors import ModelError, UnsupportedOpError

MAX_ELEMENTS = 2**28
"""Largest tensor that a shape-making operator may create: an untrusted graph must not exhaust the memory."""

DTYPES: Mapping[int, torch.dtype] = MappingProxyType(
    {
        1: torch.float32,
        2: torch.uint8,
        3: torch.int8,
        4: torch.uint16,
        5: torch.int16,
        6: torch.int32,
        7: torch.int64,
        9: torch.bool,
        10: torch.float16,
        11: torch.float64,
        12: torch.uint32,
        13: torch.uint64,
        16: torch.bfloat16,
        17: torch.float8_e4m3fn,
        18: torch.float8_e4m3fnuz,
        19: torch.float8_e5m2,
        20: torch.float8_e5m2fnuz,
    }
)
"""`TensorProto.DataType` numbers (onnx.proto) as torch dtypes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """One implementation of one ONNX operator, right for exactly the schema versions `since`.

    `compute` takes the inputs as positional tensors (None where an optional one is omitted) and the attributes as
    keyword arguments, and returns a tensor or a tuple of them. With `counts_outputs` it is also given `n_outputs`.
    """

    name: str
    since: tuple[int, ...]
    compute: Callable[..., Any]
    domain: str = ""
    counts_outputs: bool = False

    def __call__(self, *inputs: Tensor | None, **attributes: Any) -> Any:
        """The outputs for `inputs`."""
        return self.compute(*inputs, **attributes)


def op(
    *, since: Sequence[int], domain: str = "", counts_outputs: bool = False
) -> Callable[[Callable[..., Any]], Operator]:
    """Make an `Operator` of a function that carries the ONNX operator's name, with `_VERSION` behind it if it must."""

    def wrap(function: Callable[..., Any]) -> Operator:
        name = function.__name__.partition("_")[0]
        return Operator(name=name, since=tuple(since), compute=function, domain=domain, counts_outputs=counts_outputs)

    return wrap


def dtype_of(number: int) -> torch.dtype:
    """The torch dtype of a `TensorProto.DataType`; `UnsupportedOpError` where torch has none (strings, 4 bits)."""
    if number not in DTYPES:
        raise UnsupportedOpError(f"tensor type {number} has no counterpart in the proxy; export the model in float32")
    return DTYPES[number]


def ints(tensor: Tensor) -> list[int]:
    """A shape, axes or pads tensor as Python integers."""
    values = tensor.tolist() if tensor.ndim == 1 else tensor.reshape(-1).tolist()
    return values if not tensor.dtype.is_floating_point else [int(v) for v in values]


def bounded(shape: Sequence[int]) -> list[int]:
    """`shape` itself, unless a tensor of that shape would be larger than `MAX_ELEMENTS` (`ModelError`)."""
    if any(s < 0 for s in shape) or prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"a tensor of shape {list(shape)} is over the limit of {MAX_ELEMENTS} elements")
    return list(shape)


def shape_tensor(values: Sequence[int]) -> Tensor:
    """Integers as the int64 tensor, kept on the CPU, that shape arithmetic works on."""
    return torch.tensor(values, dtype=torch.int64)
