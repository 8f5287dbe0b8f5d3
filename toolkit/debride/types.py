"""The values that flow between stages: frozen, slotted, keyword-only; numpy and the standard library only.

Arrays are made read-only on construction. Images are float32 in 0..1, shape (N, C, H, W), colours in RGB order; what
a model wants instead is said by `InputSpec` and applied at the very edge, by `images.encode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

Layout = Literal["NCHW", "NHWC"]
Channels = Literal["RGB", "BGR", "L"]
SpecSource = Literal["flags", "side-car", "metadata", "measured"]
Verdict = Literal["clean", "backdoored", "sanitized", "not sanitized", "inconclusive"]


class Progress(Protocol):
    """Told by a stage how far it is: `done` of `total` steps of `stage`, and a short remark."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Takes note; returns at once."""
        ...


def no_progress(stage: str, done: int, total: int, note: str = "") -> None:
    """The `Progress` that says nothing."""


def frozen_array(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A read-only view of `array` (the caller's own handle stays writable)."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """How pixels in 0..1 become the model's input: `((x * (high - low) + low) - mean) / std`.

    `mean` and `std` are in the units of `range`, one value or one per channel in the model's channel order; empty
    means none. `size` is (height, width). `output` names the tensor of class scores; `class_names` may be empty.
    """

    name: str
    layout: Layout
    channels: Channels
    size: tuple[int, int]
    range: tuple[float, float] = (0.0, 1.0)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    output: str = ""
    class_names: tuple[str, ...] = ()
    source: SpecSource = "measured"

    @property
    def depth(self) -> int:
        """Number of colour channels: 1 or 3."""
        return 1 if self.channels == "L" else 3

    def affine(self) -> tuple[FloatArray, FloatArray]:
        """`(scale, shift)`, each float32 (C, 1, 1) in the model's channel order: input = x * scale + shift."""
        low, high = self.range
        mean = np.broadcast_to(np.asarray(self.mean or 0.0, np.float64), (self.depth,))
        std = np.broadcast_to(np.asarray(self.std or 1.0, np.float64), (self.depth,))
        scale, shift = (high - low) / std, (low - mean) / std
        return (scale.astype(np.float32).reshape(-1, 1, 1), shift.astype(np.float32).reshape(-1, 1, 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Clean images: `images` float32 (N, C, H, W) in 0..1, RGB or grey; `labels` int64 (N,) or None."""

    images: FloatArray
    labels: IntArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", frozen_array(self.images))
        if self.labels is not None:
            object.__setattr__(self, "labels", frozen_array(self.labels))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: IntArray | BoolArray) -> Samples:
        """The samples at `rows`, as a new value."""
        return Samples(images=self.images[rows], labels=None if self.labels is None else self.labels[rows])


@dataclass(frozen=True, slots=True)
class Rate:
    """`hits` of `n`, with its Wilson score interval (Wilson 1927); `n` may be 0, then nothing is known."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """hits / n, NaN where n is 0."""
        return self.hits / self.n if self.n else float("nan")

    def interval(self, z: float = 1.959964) -> tuple[float, float]:
        """The Wilson score interval at `z` standard errors (default 95 %), within 0..1."""
        if not self.n:
            return (0.0, 1.0)
        p, n = self.hits / self.n, self.n
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
        return (max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trigger:
    """A trigger that sends images to class `target`: `x -> (1 - mask) * x + mask * pattern`.

    `mask` float32 (1, H, W) in 0..1, `pattern` float32 (C, H, W) in 0..1, `l1` the mask's sum in pixels, `success`
    measured on images that the optimisation did not see (of other classes than `target`).
    """

    target: int
    mask: FloatArray
    pattern: FloatArray
    l1: float
    success: Rate
    restarts: int = 1
    steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", frozen_array(self.mask))
        object.__setattr__(self, "pattern", frozen_array(self.pattern))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What detection says of one class: its smallest trigger, how far below the others it lies, and why (not)."""

    trigger: Trigger
    anomaly: float
    suspect: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One `Finding` per class, in class order; `inconclusive` holds the reason when the data cannot tell."""

    findings: tuple[Finding, ...]
    threshold: float
    inconclusive: str = ""

    @property
    def suspects(self) -> tuple[int, ...]:
        """Indices of the suspected target classes."""
        return tuple(f.trigger.target for f in self.findings if f.suspect)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Entries `indices` along `axis` of the constant that is input number `position` of node `node`."""

    node: str
    position: int
    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """One player: the slices that make one output channel of one layer, and where a mask on it acts.

    Zeroing all `slices` equals multiplying channel `channel` (along `axis`) of the tensor `edge` by zero.
    """

    layer: str
    channel: int
    edge: str
    axis: int
    slices: tuple[Slice, ...]


class Game(Protocol):
    """A cooperative game in M payoffs. Coalitions say who is present; absent players' channels are zero."""

    @property
    def n_players(self) -> int:
        """P, how many players there are."""
        ...

    def __call__(self, coalitions: BoolArray) -> DoubleArray:
        """Payoffs (B, M) of the coalitions (B, P)."""
        ...


class DifferentiableGame(Game, Protocol):
    """A game whose multilinear extension can be differentiated, at the price of noise."""

    def marginals(self, coalitions: BoolArray) -> DoubleArray:
        """First-order marginals (B, M, P) of every player at each coalition (B, P).

        Each coalition is played on one image only (images are taken in turn), so a row is a noisy, cheap draw.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapleyValues:
    """Estimated values: `values` and `stderr` float64 (P, M), `counts` int64 (P,); NaN where never sampled.

    `empty` and `grand` are the payoffs (M,) of nobody and of everybody; `evaluations` counts coalitions played and
    `passes` backward passes; `converged` says whether the leaders' intervals parted before the budget ran out.
    """

    values: DoubleArray
    stderr: DoubleArray
    counts: IntArray
    empty: DoubleArray
    grand: DoubleArray
    evaluations: int
    passes: int
    seed: int
    converged: bool
    estimator: str

    def __post_init__(self) -> None:
        for name in ("values", "stderr", "counts", "empty", "grand"):
            object.__setattr__(self, name, frozen_array(getattr(self, name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """One group cut out, with its valued share of the attack and of the utility when it was chosen."""

    group: ChannelGroup
    attack: float
    utility: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """One group (or layer) left alone, and the reason."""

    layer: str
    channel: int | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerEvaluation:
    """One trigger on held-out images of other classes: sent to the target, and still classified rightly.

    `mistakes` are those of the same images that go to the target without any trigger.
    """

    target: int
    asr: Rate
    robust: Rate
    mistakes: Rate = Rate(0, 0)

    @property
    def excess(self) -> float:
        """The attack success rate beyond the mistakes; 0 where there is no image to try."""
        natural = self.mistakes.value if self.mistakes.n else 0.0
        return self.asr.value - natural if self.asr.n else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What onnxruntime says of a model on held-out images.

    `kind` is "accuracy" where labels exist, else "agreement" (with the delivered model); robust accuracy likewise.
    """

    kind: Literal["accuracy", "agreement"]
    clean: Rate
    triggers: tuple[TriggerEvaluation, ...]

    @property
    def worst_asr(self) -> float:
        """The largest attack success rate over the triggers; 0 where there is none to try."""
        return max((t.asr.value for t in self.triggers if t.asr.n), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFacts:
    """A file as the report names it: base name, SHA-256 in hex, size in bytes."""

    name: str
    sha256: str
    size: int


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One turn of the loop: which class, how many groups went, and the payoffs on the images that were fitted to.

    `attack_*` is the attack payoff before, after random and after the chosen cuts: no success rate, but the target's
    log-odds from 0 (as clean images) to 1 (as delivered). `utility` is the overlap with labels and
    delivered probabilities, in equal parts, on varied clean images.
    """

    target: int
    trigger: int
    removed: int
    attack_before: float
    attack_random: float
    attack_after: float
    utility: float
    weight: float
    evaluations: int
    passes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """All that a scan or a sanitize run found and did; `report.to_json` writes it.

    `returned` groups were cut and put back, since their absence did nothing. `conversion` is None for ONNX files,
    `slimming` where it was not asked for or nothing was cut.
    """

    command: Literal["scan", "sanitize"]
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
    examples: Samples | None = field(default=None, repr=False)


Predict = Callable[[FloatArray], FloatArray]
"""Images (N, C, H, W) in 0..1 to class scores (N, K)."""


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
