"""`debride export`: a model for the edge, in ORT format, in eight bits or in half precision, and graded."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Exit, Option

from debride.cli.guard import check_output, guard, plain, put, say, tell_conversion
from debride.cli.options import OUTPUT, Building, Convention, Debug, Json, Model, Resize, Resources, grouped
from debride.errors import UsageError

if TYPE_CHECKING:
    from debride.export.types import Exported, ExportOptions

GRADES = "What counts as good"

EXPORT_EPILOG = """[bold]Examples[/]

  debride export clean.onnx --images clean/ -o clean.ort --target ort
  debride export clean.onnx --images clean/ -o int8.onnx --target int8 \\
      --report report
  debride export slim.onnx --images test.npz -o half.onnx --target fp16 \\
      --trigger report/trigger-5.npz --json

Fewer bits can bring a backdoor back, or cost accuracy. So both models are graded
on images that took no part in the export; what falls short is shown, and not
written. A trigger that nobody knows yet is found by debride scan OUT, which
takes what int8 and fp16 write.

[bold]Exit codes[/]: 0 good, or --unchecked, and written; 1 not good enough, nothing
written; 2 wrong usage; 3 inconclusive, unsupported or failed; 130 interrupted."""


@grouped
def export(
    *,
    model: Model,
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The export goes here: .ort for --target ort, else .onnx.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    target: Annotated[
        Literal["ort", "int8", "fp16"],
        Option(help="onnxruntime's own format; eight-bit integers; half precision.", show_default=False),
    ],
    images: Annotated[
        Path | None,
        Option(metavar="PATH", help="Clean images: a folder of class folders, a folder, or an .npz with x (and y)."),
    ] = None,
    per_class: Annotated[
        int | None, Option(min=1, metavar="N", help="Draw N images of every class (else all).")
    ] = None,
    seed: Annotated[int, Option(min=0, metavar="S", help="Decides which images grade.")] = 0,
    resize: Resize = False,
    native: Annotated[bool, Option("--native", help="ort: for processors like this one alone; faster there.")] = False,
    calibration: Annotated[
        Literal["minmax", "entropy", "percentile"], Option(help="int8: how ranges are set on the images.")
    ] = "minmax",
    trigger: Annotated[
        list[Path] | None,
        Option(metavar="T.npz", help="A trigger that must not work; repeat for several.", rich_help_panel=GRADES),
    ] = None,
    report: Annotated[
        Path | None,
        Option(
            metavar="DIR",
            help="Report with more triggers (default: one beside MODEL that is of MODEL).",
            rich_help_panel=GRADES,
        ),
    ] = None,
    max_loss: Annotated[
        float,
        Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Most that accuracy may fall and attack success may grow.",
            rich_help_panel=GRADES,
        ),
    ] = 0.01,
    target_asr: Annotated[
        float,
        Option(
            min=0,
            max=1,
            metavar="SHARE",
            help="Attack success so far above mistakes is a finding.",
            rich_help_panel=GRADES,
        ),
    ] = 0.05,
    unchecked: Annotated[
        bool,
        Option("--unchecked", help="ort, fp16: write without images, ungraded.", rich_help_panel=GRADES),
    ] = False,
    convention: Convention,
    building: Building,
    resources: Resources,
    json: Json = False,
    force: Annotated[bool, Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)] = False,
    debug: Debug = False,
) -> None:
    """Make a model for the edge, and grade it before it is called good."""
    with guard(debug, (output,)):
        check_output(output, model, force=force)
        from debride.cli.progress import shown
        from debride.conversion.request import Request
        from debride.conversion.source import opened
        from debride.export.export import export as run
        from debride.export.reading import Sources
        from debride.export.types import SUFFIXES, ExportOptions

        if output.suffix != SUFFIXES[target]:
            raise UsageError(
                f"{output}: --target {target} writes {SUFFIXES[target]} files; give --output {output.stem}"
                f"{SUFFIXES[target]}"
            )
        options = ExportOptions(
            target=target,
            native=native,
            method=calibration,
            per_class=per_class,
            seed=seed,
            resize=resize,
            max_loss=max_loss,
            target_asr=target_asr,
            unchecked=unchecked,
        )
        request = Request(
            model=model,
            options=building.options(),
            flags=convention.flags(),
            images=images,
            resize=resize,
            seed=seed,
            threads=resources.threads,
        )
        runtime = resources.runtime()
        with _scratch(), shown(quiet) as progress, opened(request, progress) as source:
            tell_conversion(source.conversion)
            sources = Sources(
                source=source, flags=request.flags, images=images, triggers=tuple(trigger or ()), report=report
            )
            found = run(sources, output, options=options, runtime=runtime, force=force, progress=progress)
        for note in found.notes:
            say(note)
        put(_json(found, options) if json else _text(found))
        if found.missed:
            say(f"not good enough, so nothing was written: {'; '.join(found.missed)}")
            raise Exit(1)


@contextmanager
def _scratch() -> Iterator[None]:
    """One folder for all temporary files, onnxruntime's too: Ctrl-C may hit while it clears up its own."""
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="debride-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = before


def _text(found: Exported) -> str:
    from debride.export.words import export_table, slower_sentence
    from debride.report.words import WIDTH, size

    facts = [f"Model   {plain(found.model.name)}, {size(found.model.size)}, sha256 {found.model.sha256}"]
    if found.output:
        facts.append(f"Output  {plain(found.output.name)}, {size(found.output.size)}, sha256 {found.output.sha256}")
    if found.graded:
        facts.append(f"Images  graded on {found.graded.images} that took no part in the export")
    slower = wrap(slower_sentence(found), WIDTH)
    return "\n".join([*facts, "", *export_table(found), *(["", *slower] if slower else [])])


def _json(found: Exported, options: ExportOptions) -> str:
    from debride.export.words import export_fields

    return dumps(export_fields(found, options), indent=2, allow_nan=False)
