"""What goes into an adapter and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from .types_find import Rate
from .types_input import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """What a user adds to a model file that does not say everything.

    `architecture` names the user's own code that builds the network of a weights file: "module:factory" or
    "file.py:factory", where `factory()` returns the network. `input_shape` is the shape of one image as the network
    takes it, without the batch, e.g. (3, 32, 32). `images_shape` is (C, H, W) of the clean images, where all have
    one: no statement, but a network that says nothing of its input probably takes these. `opset` is the ONNX operator
    set to aim for.
    """

    architecture: str | None = None
    input_shape: tuple[int, ...] | None = None
    images_shape: tuple[int, ...] | None = None
    opset: int = 18


Reference = Callable[[FloatArray], Sequence[FloatArray]]
"""A batch, as the graph's image input takes it -> what the source framework computes, one array per graph output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Converted:
    """What an adapter makes of a model file: a serialized ONNX ModelProto and what the framework says of its input.

    `spec` holds any of `InputSpec`'s fields that the source file states (never guesses). `folder` is where external
    data named by the model lie, None where it holds all its weights. `passed_on`: the file was ONNX already, and its
    metadata are its maker's own words, to be kept and heeded. `notes` are remarks for the report, `packages`
    the versions of what took part. `reference` runs the model in its own framework, to measure parity; None where
    there is no other framework. `tolerance` is the largest difference that counts as equal (see `Agreement`), where
    the adapter has a reason for another than the usual, as for quantised models; a note should say it.
    """

    onnx: bytes = field(repr=False)
    spec: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    reference: Reference | None = None
    tolerance: float | None = None
    passed_on: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "spec", MappingProxyType(dict(self.spec)))
        object.__setattr__(self, "packages", MappingProxyType(dict(self.packages)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How far a converted graph in onnxruntime is from the model in its own framework, on one kind of input.

    `kind` is "random" or "images"; `difference` is the largest |a - b| over any output, as a share of how far that
    output's values spread about each input's mean; `same_class` counts the inputs that both put in the same class.
    """

    kind: Literal["random", "images"]
    difference: float
    same_class: Rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Where an ONNX graph came from: the framework, its packages' versions, parity as measured, and remarks."""

    framework: str
    packages: Mapping[str, str]
    opset: int
    parity: tuple[Agreement, ...]
    tolerance: float
    notes: tuple[str, ...] = ()
