"""What an export is told, and what it tells: frozen values without arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from debride.errors import UsageError
from debride.types import Conversion, Evaluation, FileFacts, InputSpec

Target = Literal["ort", "int8", "fp16"]
Method = Literal["minmax", "entropy", "percentile"]

SUFFIXES: Mapping[str, str] = {"ort": ".ort", "int8": ".onnx", "fp16": ".onnx"}
"""onnxruntime takes a file for ORT format by its suffix alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """What to make, and what still counts as good.

    `native` lays an ORT file out for this machine's own processor. `method` sets the ranges of eight-bit numbers from
    the calibration images. `per_class` images are drawn by `seed` (None: all). `max_loss` is the largest share of
    held-out images by which accuracy may fall and a trigger's success may grow, `target_asr` the success rate beyond
    mistakes above which a trigger works. `unchecked` exports without images, and grades nothing.
    """

    target: Target
    native: bool = False
    method: Method = "minmax"
    per_class: int | None = None
    seed: int = 0
    resize: bool = False
    max_loss: float = 0.01
    target_asr: float = 0.05
    unchecked: bool = False

    def __post_init__(self) -> None:
        """Raises `UsageError` where a value is out of range, or two contradict each other."""
        for name in ("max_loss", "target_asr"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give a share from 0 to 1")
        if self.per_class is not None and self.per_class < 1:
            raise UsageError(f"--per-class is {self.per_class}; give 1 or more")
        if self.seed < 0:
            raise UsageError("--seed takes whole numbers from 0")
        if self.native and self.target != "ort":
            raise UsageError("--native lays out ORT files; give it with --target ort alone")
        if self.method != "minmax" and self.target != "int8":
            raise UsageError("--calibration sets eight-bit ranges; give it with --target int8 alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """What a file costs: `size` in bytes, external data included, and `latency`, seconds for one image."""

    size: int
    latency: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """Both models on the same held-out images; `attacks` names the triggers, in the order of both evaluations."""

    before: Evaluation
    after: Evaluation
    attacks: tuple[str, ...]
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What an export made: `output` is None where it was not good enough to be written, for the reasons in `missed`.

    `made` is what the file says of its making (`debride.export` in its metadata). `graded` is None where nothing was
    graded, `spec` where nothing tells it. `notes` are remarks for the reader.
    """

    model: FileFacts
    output: FileFacts | None
    conversion: Conversion | None
    spec: InputSpec | None
    made: Mapping[str, Any]
    before: Weight
    after: Weight
    graded: Graded | None
    missed: tuple[str, ...]
    notes: tuple[str, ...]
