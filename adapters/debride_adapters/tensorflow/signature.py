"""What goes into a TensorFlow graph and what comes out, before anything of it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debride.errors import ModelError, UsageError
from debride.types import ConvertOptions
from debride_adapters.common import stated_by

Shape = tuple[int | None, ...]
_FLOAT, _UINT8 = 1, 4  # tensorflow.DataType
_FLOATS = (1, 2, 14, 19)  # float32, float64, bfloat16, float16
_INTERNAL = "__saved_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """The image input: tensor `feed` of `shape` (N, H, W, C) or (N, C, H, W), None where free, of bytes or of floats.

    `outputs` are the float tensors that it leads to; `dropped` counts outputs of other types. `single` says that the
    file fixes the batch at one image; `shape` frees it all the same.
    """

    feed: str
    shape: Shape
    is_bytes: bool
    outputs: tuple[str, ...]
    dropped: int = 0
    single: bool = False

    def remarks(self) -> tuple[str, ...]:
        """What was changed at the graph's ends, for the report."""
        notes = []
        if self.is_bytes:
            notes.append("the input took bytes (uint8) and now takes floats in 0..255")
        if self.dropped:
            notes.append(f"outputs that are no floats were left out ({self.dropped})")
        if self.single:
            notes.append("the batch was fixed at one image and is free now")
        return tuple(notes)


def pick(signatures: Mapping[str, Any], path: Path, options: ConvertOptions) -> tuple[str, Signature]:
    """The name and content of the signature to convert: "serving_default", else the only usable one.

    Raises `ModelError` listing the signatures where none, or more than one, takes one batch of images.
    """
    names = [name for name in signatures if not name.startswith(_INTERNAL)]
    usable = [name for name in names if _usable(signatures[name])]
    if "serving_default" in usable:
        usable = ["serving_default"]
    if len(usable) != 1:
        found = "; ".join(f"{name[:40]}({_inputs(signatures[name])})" for name in sorted(names)[:8]) or "none"
        raise ModelError(
            f"{path}: needs one signature with one image input and float scores; found: {found}; "
            "export it with a signature named serving_default"
        )
    definition = signatures[usable[0]]
    (feed,) = definition.inputs.values()
    outputs = [definition.outputs[key] for key in sorted(definition.outputs)]
    floats = tuple(dict.fromkeys(info.name for info in outputs if info.dtype in _FLOATS))
    shape = image_shape(_dims(feed.tensor_shape), feed.name, path, options)
    dropped = len(outputs) - sum(info.dtype in _FLOATS for info in outputs)
    single = [dim.size for dim in feed.tensor_shape.dim[:1]] == [1]
    return usable[0], Signature(
        feed=feed.name, shape=shape, is_bytes=feed.dtype == _UINT8, outputs=floats, dropped=dropped, single=single
    )


def image_shape(dims: Shape | None, name: str, path: Path, options: ConvertOptions) -> Shape:
    """The input's shape with a free batch; sides that the file leaves open are taken from `options.input_shape`.

    Raises `UsageError` where the file says nothing and the option is missing or contradicts the file.
    """
    asked = options.input_shape
    if dims is None:
        if asked is None or len(asked) != 3:
            raise UsageError(f"{path}: the shape of its input '{name}' is not stated; give one image's input shape")
        return (None, *asked)
    if asked is None:
        return (None, *dims[1:])
    if len(asked) != len(dims) - 1 or any(d not in (None, a) for d, a in zip(dims[1:], asked, strict=True)):
        raise UsageError(
            f"{path}: its input '{name}' takes {dims[1:]} per image, not {tuple(asked)}; correct the shape"
        )
    return (None, *asked)


def stated(signature: Signature) -> dict[str, Any]:
    """The fields of `InputSpec` that `signature` states: layout and size by its shape, range where it takes bytes."""
    return {**stated_by(signature.shape[1:]), **({"range": (0.0, 255.0)} if signature.is_bytes else {})}


def _usable(signature: Any) -> bool:
    inputs = list(signature.inputs.values())
    if len(inputs) != 1 or inputs[0].dtype not in (_FLOAT, _UINT8) or not inputs[0].name:
        return False
    dims = _dims(inputs[0].tensor_shape)
    return (dims is None or len(dims) == 4) and any(info.dtype in _FLOATS for info in signature.outputs.values())


def _dims(shape: Any) -> Shape | None:
    return None if shape.unknown_rank else tuple(None if dim.size < 0 else int(dim.size) for dim in shape.dim)


def _inputs(signature: Any) -> str:
    return ", ".join(f"{key[:40]}: {_dims(info.tensor_shape)}" for key, info in sorted(signature.inputs.items())[:6])
