"""The pass-through: ONNX files are handed on byte for byte."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from debride.errors import ModelError
from debride.types import Converted, ConvertOptions

LIMIT = 2**31 - 1  # protobuf's own limit for one message


@dataclass(frozen=True, slots=True)
class OnnxAdapter:
    """Reads `.onnx` files; what their metadata say of the input is left to the core, which parses the graph."""

    name: str = "ONNX"
    suffixes: tuple[str, ...] = (".onnx",)

    def convert(self, path: Path, options: ConvertOptions) -> Converted:
        """The bytes of `path` and the folder it lies in, for external data.

        Raises `ModelError` for a file that cannot be read, is empty or exceeds protobuf's 2 GiB.
        """
        try:
            with path.open("rb") as file:
                data = file.read(LIMIT + 1)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); give an existing .onnx file") from error
        if not data:
            raise ModelError(f"{path}: is empty; export the model again")
        if len(data) > LIMIT:
            raise ModelError(f"{path}: larger than 2 GiB; export its weights as external data")
        return Converted(onnx=data, folder=path.parent, passed_on=True)


adapter = OnnxAdapter()
