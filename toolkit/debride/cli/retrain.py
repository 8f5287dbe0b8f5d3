"""`debride retrain`: a network's weights trained further, so that what is left of a backdoor is unlearnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Option

from debride.cli.guard import check_output, guard
from debride.cli.options import Building, Computing, Convention, Images, Model, Resources, grouped
from debride.cli.runs import (
    Budgets,
    Draws,
    Retraining,
    Telling,
    check_apart,
    check_report,
    goals,
    place,
    settings_of,
    tell,
)

RETRAIN_EPILOG = """[bold]Examples[/]

  debride retrain pruned.onnx --images clean/ -o out.onnx --report report
  debride retrain pruned.onnx --images clean/ -o out.onnx \\
      --trigger first/trigger-5.npz
  debride retrain vendor.onnx --images clean/ -o out.onnx --per-class 10 \\
      --retrain-method distill

[bold]Exit codes[/]: 0 retrained and verified, or nothing was found in it; 1 not
clean afterwards; 2 wrong usage; 3 inconclusive, unsupported or failed; 130
interrupted."""


@grouped
def retrain(
    *,
    model: Model,
    images: Images,
    draws: Draws,
    convention: Convention,
    building: Building,
    budgets: Budgets,
    resources: Resources,
    computing: Computing,
    trigger: Annotated[
        list[Path] | None,
        Option(metavar="T.npz", help="A trigger to unlearn, beside those found; repeat for several."),
    ] = None,
    retraining: Retraining,
    output: Annotated[Path, place("--output", "-o", metavar="OUT.onnx", text="The retrained model goes here.")],
    report: Annotated[
        Path | None, place("--report", metavar="DIR", text="Folder for report, pictures and triggers.")
    ] = None,
    telling: Telling,
) -> None:
    """Train a model further on clean images, so that it unlearns its triggers; what is zero stays so."""
    with guard(telling.debug, goals(output, report)):
        from debride.cli.progress import shown

        settings = settings_of(
            draws, convention, building, resources, computing, budgets, retraining=retraining, retrain="always"
        )
        check_output(output, model, force=telling.force)
        for file in trigger or ():
            check_output(output, file, force=telling.force, what="the trigger")
        check_report(report, force=telling.force)
        if report is not None:
            check_apart(output, report)
        with shown(telling.quiet) as progress:
            from debride.sanitize import retrain as run

            found = run(
                model,
                images,
                output,
                settings=settings,
                triggers=tuple(trigger or ()),
                force=telling.force,
                progress=progress,
            )
        tell(found, report, None, telling)
