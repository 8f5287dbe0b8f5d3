"""`debride scan` and `debride sanitize`: the stages, and with them torch and onnx, are loaded only to be run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Exit, Option

from debride.cli.guard import FAILED, check_output, guard, put, say, write_whole
from debride.cli.options import (
    OUTPUT,
    Align,
    Building,
    Computing,
    Convention,
    Debug,
    Images,
    Model,
    Resize,
    Resources,
    grouped,
)
from debride.errors import UsageError

if TYPE_CHECKING:
    from debride.retrain.options import RetrainOptions
    from debride.settings import Settings
    from debride.types import Report

EXIT_CODES = {"clean": 0, "sanitized": 0, "backdoored": 1, "not sanitized": 1}
BUDGETS = "Budgets"
RETRAINING = "Retraining"

SCAN_EPILOG = """[bold]Examples[/]

  debride scan vendor.onnx --images clean/ --per-class 10
  debride scan vendor.keras --images clean.npz --range 0,1 --report found
  debride scan vendor.pth --architecture net.py:build --images clean/
  debride scan vendor.onnx --images clean/ --output found.json --quiet
  debride scan vendor.onnx --images clean/ --device cuda:0

[bold]Exit codes[/]: 0 clean; 1 backdoored; 2 wrong usage; 3 inconclusive,
unsupported or failed; 130 interrupted."""

SANITIZE_EPILOG = """[bold]Examples[/]

  debride sanitize vendor.onnx --images clean/ -o clean.onnx --report report
  debride sanitize vendor.onnx --images clean/ -o clean.onnx --report report \\
      --slim
  debride sanitize vendor.onnx --images clean/ -o clean.onnx --report report \\
      --retrain never
  debride sanitize vendor.onnx --images clean/ -o clean.onnx --report report \\
      --per-class 10 --range 0,1 --mean 0.49,0.48,0.45 --std 0.25

[bold]Exit codes[/]: 0 cleaned and verified, or clean (the output is then an
unchanged copy); 1 not fully cleaned; 2 wrong usage; 3 inconclusive,
unsupported or failed; 130 interrupted."""


def place(*names: str, metavar: str, text: str) -> Any:
    """An option for a file or folder that the run writes."""
    return Option(*names, metavar=metavar, help=text, rich_help_panel=OUTPUT, show_default=False)


def budget(metavar: str, text: str) -> Any:
    """An option that limits a run."""
    return Option(metavar=metavar, help=text, rich_help_panel=BUDGETS)


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Which images a run takes, and the seed of all its random draws."""

    per_class: Annotated[int | None, Option(metavar="N", help="Draw N images of every class (else all).")] = None
    seed: Annotated[int, Option(metavar="S", help="Decides every random draw.")] = 0
    resize: Resize = False


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How far cleaning may go."""

    utility_budget: Annotated[float, budget("SHARE", "Largest loss of accuracy (or agreement).")] = 0.02
    target_asr: Annotated[float, budget("SHARE", "Attack success at which a backdoor is gone.")] = 0.05
    time_budget: Annotated[float | None, budget("SECONDS", "No new round begins after this.")] = None


@dataclass(frozen=True, kw_only=True)
class Retraining:
    """How a network is retrained."""

    retrain_method: Annotated[
        Literal["unlearn", "distill", "ft-sam", "fine-tune"],
        Option(help="What it learns from; see docs/retraining.md.", rich_help_panel=RETRAINING),
    ] = "unlearn"
    retrain_steps: Annotated[
        int,
        Option(metavar="N", min=1, max=100_000, help="At most so many updates a round.", rich_help_panel=RETRAINING),
    ] = 400
    batch_norm: Annotated[
        Literal["keep", "estimate"],
        Option(help="Running statistics of batch normalisation.", rich_help_panel=RETRAINING),
    ] = "keep"

    def options(self) -> RetrainOptions:
        """The same as `RetrainOptions`."""
        from debride.retrain.options import RetrainOptions

        return RetrainOptions(method=self.retrain_method, steps=self.retrain_steps, statistics=self.batch_norm)


@dataclass(frozen=True, kw_only=True)
class Telling:
    """How a run tells of itself."""

    format: Annotated[Literal["text", "json"], Option(help="The report on stdout.", rich_help_panel=OUTPUT)] = "text"
    force: Annotated[bool, Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)] = False
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)] = False
    debug: Debug = False


@grouped
def scan(
    *,
    model: Model,
    images: Images,
    draws: Draws,
    convention: Convention,
    building: Building,
    resources: Resources,
    computing: Computing,
    output: Annotated[
        Path | None, place("--output", "-o", metavar="FILE", text="The report as JSON goes here, not to stdout.")
    ] = None,
    report: Annotated[
        Path | None, place("--report", metavar="DIR", text="Folder for report, pictures and triggers.")
    ] = None,
    telling: Telling,
) -> None:
    """Tell whether a model carries a backdoor, and towards which class."""
    with guard(telling.debug, goals(output, report)):
        from debride.cli.progress import shown

        settings = settings_of(draws, convention, building, resources, computing)
        check_output(output, model, force=telling.force)
        check_report(report, force=telling.force)
        with shown(telling.quiet) as progress:
            from debride.sanitize import scan as run

            found = run(model, images, settings=settings, progress=progress)
        tell(found, report, output, telling)


@grouped
def sanitize(
    *,
    model: Model,
    images: Images,
    draws: Draws,
    convention: Convention,
    building: Building,
    budgets: Budgets,
    group_budget: Annotated[float, budget("SHARE", "Largest share of the channel groups to cut.")] = 0.05,
    resources: Resources,
    computing: Computing,
    output: Annotated[Path, place("--output", "-o", metavar="CLEAN.onnx", text="The cleaned model goes here.")],
    report: Annotated[Path, place("--report", metavar="DIR", text="Folder for report, pictures and triggers.")],
    retrain: Annotated[
        Literal["auto", "never", "always"],
        Option(
            help="Train the pruned network further: where pruning left an attack or cost anything, never, or always.",
            rich_help_panel=RETRAINING,
        ),
    ] = "auto",
    retraining: Retraining,
    slim: Annotated[
        bool, Option("--slim", help="Take what was cut out of the graph, not only zero it.", rich_help_panel=OUTPUT)
    ] = False,
    align: Align = 1,
    telling: Telling,
) -> None:
    """Find the backdoor of a model, cut it out of the graph, retrain where that helps, and verify what is left."""
    with guard(telling.debug, goals(output, report)):
        from debride.cli.progress import shown

        settings = settings_of(
            draws,
            convention,
            building,
            resources,
            computing,
            budgets,
            slim=slim,
            align=align,
            group_budget=group_budget,
            retraining=retraining,
            retrain=retrain,
        )
        check_output(output, model, force=telling.force)
        check_report(report, force=telling.force)
        check_apart(output, report)
        with shown(telling.quiet) as progress:
            from debride.sanitize import sanitize as run

            found = run(model, images, output, settings=settings, force=telling.force, progress=progress)
        tell(found, report, None, telling)


def settings_of(
    draws: Draws,
    convention: Convention,
    building: Building,
    resources: Resources,
    computing: Computing,
    budgets: Budgets | None = None,
    *,
    slim: bool = False,
    align: int = 1,
    group_budget: float = 0.05,
    retraining: Retraining | None = None,
    retrain: Literal["auto", "never", "always"] = "auto",
) -> Settings:
    """The groups of options as one value. Raises `UsageError` where one is out of range."""
    from debride.settings import Settings

    limits = budgets or Budgets()
    learning = retraining or Retraining()
    return Settings(
        flags=convention.flags(),
        source=building.options(),
        resize=draws.resize,
        per_class=draws.per_class,
        seed=draws.seed,
        threads=resources.threads,
        providers=tuple(resources.provider or ()),
        device=resources.device,
        precision=computing.precision,
        utility_budget=limits.utility_budget,
        group_budget=group_budget,
        target_asr=limits.target_asr,
        time_budget=limits.time_budget,
        slim=slim,
        align=align,
        retrain=retrain,
        retraining=learning.options(),
    )


def goals(output: Path | None, report: Path | None) -> tuple[Path, ...]:
    """What a run writes, for the message where it is interrupted."""
    return tuple(path for path in (output, report and report / "report.json") if path is not None)


def check_report(folder: Path | None, *, force: bool) -> None:
    """Raise `UsageError` where a report may not go to `folder`."""
    if folder is not None:
        from debride.report import check_folder

        check_folder(folder, force=force)


def check_apart(output: Path, report: Path) -> None:
    """Raise `UsageError` where the model and the report would go to one place."""
    if output.resolve() == report.resolve():
        raise UsageError(f"{output}: --output and --report are the same; give a file and a folder")
    from debride.report.write import OURS

    if output.resolve().parent == report.resolve() and OURS.fullmatch(output.name):
        raise UsageError(f"{output}: the report writes a file of that name there; give another --output")


def tell(found: Report, folder: Path | None, output: Path | None, telling: Telling) -> None:
    """Writes and prints the report, and ends with the verdict's exit code."""
    from debride.report import to_json, to_text, write_report

    # The folder was checked before the run; by now the cleaned model may lie in it.
    files: Sequence[Path] = write_report(found, folder, force=True) if folder is not None else ()
    document = to_json(found, files=[path.name for path in files])
    if output is not None:
        write_whole(output, document)
        say(f"{found.verdict}; the report is in {output}")
    else:
        put(document if telling.format == "json" else to_text(found, files=files))
    # A verdict that this table does not know must never look like a pass.
    raise Exit(EXIT_CODES.get(found.verdict, FAILED))
