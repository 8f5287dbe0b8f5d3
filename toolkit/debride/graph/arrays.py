"""The constants of a graph, of which large ones are decoded when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakValueDictionary

import numpy.typing as npt
import onnx
from onnx import numpy_helper

from debride.graph.hollow import is_large
from debride.types import frozen_array


class Arrays(Mapping[str, npt.NDArray[Any]]):
    """Arrays by tensor name. Large ones are decoded whenever they are asked for, and kept by whoever asked alone.

    They are read from the protobuf, which must not change meanwhile. All are read-only.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any] | None] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._alive: WeakValueDictionary[str, npt.NDArray[Any]] = WeakValueDictionary()

    def put(self, name: str, value: onnx.TensorProto | npt.NDArray[Any]) -> None:
        """Add a constant."""
        if not isinstance(value, onnx.TensorProto):
            self._arrays[name] = frozen_array(value)
        elif is_large(value):
            self._arrays[name], self._tensors[name] = None, value
        else:
            self._arrays[name] = frozen_array(numpy_helper.to_array(value))

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        array = self._arrays[name]
        if array is None:
            array = self._alive.get(name)
        if array is None:
            array = self._alive[name] = frozen_array(numpy_helper.to_array(self._tensors[name]))
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __contains__(self, name: object) -> bool:
        return name in self._arrays
