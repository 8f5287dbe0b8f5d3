"""The pass-through: ONNX files are handed on byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from debride.types import Converted, ConvertOptions
from debride_adapters.common import read_bounded


@dataclass(frozen=True, slots=True)
class OnnxAdapter:
    """Reads `.onnx` files; what their metadata say of the input is left to the core, which parses the graph."""

    name: str = "ONNX"
    suffixes: tuple[str, ...] = (".onnx",)

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The bytes of `path` and the folder it lies in, for external data.

        Raises `ModelError` for a file that cannot be read, is empty or exceeds protobuf's 2 GiB.
        """
        return Converted(onnx=read_bounded(path), folder=path.parent, passed_on=True)


adapter = OnnxAdapter()
