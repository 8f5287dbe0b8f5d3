"""What a scan or a sanitize run is told: the flags of the command line as one frozen value."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from debride.errors import UsageError
from debride.inversion.options import InversionOptions
from debride.retrain.options import RetrainOptions
from debride.sessions import Runtime, device_number, runtime_on
from debride.specfile import SpecFlags
from debride.types import ConvertOptions, PrecisionChoice

RetrainChoice = Literal["auto", "never", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`per_class` images are drawn by `seed` (None: all); `threads` 0 means all cores.
    `device` ("auto", "cpu", "cuda", "cuda:N") is for torch and, unless `providers` are named, for onnxruntime;
    `precision` is that of convolutions and products in torch, "auto" the fastest by measuring.

    `utility_budget` is the largest loss of accuracy (or agreement) that cleaning may cost, `group_budget` the largest
    share of all channel groups that may go, `target_asr` the success rate below which an attack counts as removed,
    `time_budget` the seconds after which no new round begins (None: no limit). `slim` takes the cut channels out of the
    graph, and leaves convolutions widths that are multiples of `align`. `source` helps to convert a model that is no
    ONNX file. `retrain` says when a pruned network is retrained: `auto` where pruning left an attack or cost anything.
    """

    flags: SpecFlags = field(default_factory=SpecFlags)
    source: ConvertOptions = field(default_factory=ConvertOptions)
    resize: bool = False
    per_class: int | None = None
    seed: int = 0
    threads: int = 0
    providers: tuple[str, ...] = ()
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    utility_budget: float = 0.02
    group_budget: float = 0.05
    target_asr: float = 0.05
    time_budget: float | None = None
    slim: bool = False
    align: int = 1
    inversion: InversionOptions = field(default_factory=InversionOptions)
    retrain: RetrainChoice = "auto"
    retraining: RetrainOptions = field(default_factory=RetrainOptions)

    def __post_init__(self) -> None:
        """Raises `UsageError` where a value is out of range."""
        for name in ("utility_budget", "group_budget", "target_asr"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"--{name.replace('_', '-')} is {getattr(self, name)}; give a share from 0 to 1")
        if self.per_class is not None and self.per_class < 1:
            raise UsageError(f"--per-class is {self.per_class}; give 1 or more")
        device_number(self.device)
        if self.threads < 0 or self.seed < 0:
            raise UsageError("--threads and --seed take whole numbers from 0")
        if self.align != 1 and not self.slim:
            raise UsageError("--align says how --slim slims; give both")
        if self.retrain == "never" and self.retraining != RetrainOptions():
            raise UsageError(
                "--retrain never leaves nothing for --retrain-method, --retrain-steps or --batch-norm to say"
            )
        if not 1 <= self.align <= 64:
            raise UsageError(f"--align is {self.align}; give 1 to 64")
        if self.time_budget is not None and not 0 < self.time_budget < float("inf"):
            raise UsageError(f"--time-budget is {self.time_budget}; give seconds above 0")

    def runtime(self) -> Runtime:
        """How onnxruntime is to run: by the `providers` named, else on `device`.

        Its threads do not spin between two runs, when torch wants the cores.
        """
        return replace(runtime_on(self.device, threads=self.threads, providers=self.providers), spin=False)

    def as_report(self) -> dict[str, Any]:
        """The settings that decide a run's outcome, for the report."""
        names = (
            "per_class",
            "seed",
            "threads",
            "device",
            "precision",
            "utility_budget",
            "group_budget",
            "target_asr",
            "time_budget",
            "resize",
            "slim",
            "align",
            "retrain",
        )
        chosen = {name: getattr(self, name) for name in names}
        searched = {"inversion": asdict(self.inversion), "retraining": asdict(self.retraining)}
        return {**chosen, "providers": list(self.providers), **searched}
