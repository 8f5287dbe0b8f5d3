"""The datatypes of the Open Inference Protocol v2 ("Tensor Data Types"), and how a tensor is described in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from debride.sessions import TensorInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Datatype:
    """One numeric datatype: its `name` in the protocol, `dtype` here, and `wire`, little-endian, in binary tensors.

    `packing` is the `struct` code of a number in JSON, empty where there is none: FP16 has no JSON
    form, and a BOOL is true or false.
    """

    name: str
    dtype: np.dtype[Any]
    wire: np.dtype[Any]
    packing: str

    @property
    def in_json(self) -> bool:
        """Whether tensors of it can be sent in JSON."""
        return self.name != "FP16"


def _datatype(name: str, scalar: type[np.generic], packing: str) -> Datatype:
    dtype = np.dtype(scalar)
    return Datatype(name=name, dtype=dtype, wire=dtype.newbyteorder("<"), packing=packing)


_ALL = (
    _datatype("BOOL", np.bool_, ""),
    _datatype("UINT8", np.uint8, "B"),
    _datatype("UINT16", np.uint16, "H"),
    _datatype("UINT32", np.uint32, "I"),
    _datatype("UINT64", np.uint64, "Q"),
    _datatype("INT8", np.int8, "b"),
    _datatype("INT16", np.int16, "h"),
    _datatype("INT32", np.int32, "i"),
    _datatype("INT64", np.int64, "q"),
    _datatype("FP16", np.float16, ""),
    _datatype("FP32", np.float32, "f"),
    _datatype("FP64", np.float64, "d"),
)
DATATYPES = {kind.dtype: kind for kind in _ALL}
"""Every datatype that is understood, by its numpy dtype. BYTES is only ever sent, as the text of a classification."""


def tensor_metadata(info: TensorInfo) -> dict[str, Any]:
    """`$metadata_tensor`: {name, datatype, shape}, with -1 for open dimensions.

    The datatype of an end that the protocol's numbers cannot carry (text, bfloat16, no tensor at all) is BYTES.
    """
    kind = DATATYPES.get(info.dtype)
    return {
        "name": info.name,
        "datatype": kind.name if kind else "BYTES",
        "shape": [-1 if dim is None else dim for dim in info.shape],
    }
