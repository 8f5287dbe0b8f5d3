"""What was measured of a model, and the report that holds it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from .types_compute import Compute, Meter
from .types_convert import Conversion
from .types_cut import Pruned, Refused, Round
from .types_find import Detection, Evaluation, Samples
from .types_input import InputSpec
from .types_retrain import Retraining

Verdict = Literal["clean", "backdoored", "sanitized", "not sanitized", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file as the report names it: base name, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What running a model costs: bytes of its file (external data included), `parameters` (elements of the float
    constants that its nodes read), `macs` (multiply-accumulates for one image), and `latency` (seconds for one image,
    the median of interleaved runs; None where not measured)."""

    size: int
    parameters: int
    macs: int
    latency: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slimming:
    """How dead channels were taken out of a graph, and what it costs before and after.

    Of `dead` zeroed groups `left` went; the others `stayed`, each with its reason. `channels` counts all layers' output
    channels that went: those that were constant or unread go too. `difference` is the largest |a - b| of the scores
    before and after, on random inputs and on `images` real ones, as a share of the scores' spread. `reason` says why
    nothing was removed although channels could leave ("" otherwise).
    """

    before: Cost
    after: Cost
    dead: int
    left: int
    channels: int
    stayed: tuple[Refused, ...]
    difference: float
    images: int
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """All that a scan, a sanitize or a retrain run found and did; `report.to_json` writes it.

    `returned` groups were cut and put back, since their absence did nothing. `conversion` is None for ONNX files,
    `slimming` where it was not asked for or nothing was cut, `retraining` where none was needed or asked for. `cost`
    counts image passes per stage, and `compute` says how they were computed.
    """

    command: Literal["scan", "sanitize", "retrain"]
    verdict: Verdict
    reason: str
    model: FileFacts
    output: FileFacts | None
    spec: InputSpec
    detection: Detection
    players: int
    seed: int
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    parity: float
    samples: Mapping[str, int]
    seconds: Mapping[str, float]
    cost: Mapping[str, Meter] = field(default_factory=dict)
    compute: Compute | None = None
    before: Evaluation | None = None
    after: Evaluation | None = None
    pruned: tuple[Pruned, ...] = ()
    refused: tuple[Refused, ...] = ()
    rounds: tuple[Round, ...] = ()
    recheck: Detection | None = None
    returned: int = 0
    warnings: tuple[str, ...] = ()
    conversion: Conversion | None = None
    slimming: Slimming | None = None
    retraining: Retraining | None = None
    examples: Samples | None = field(default=None, repr=False)
