"""`debride slim`: zeroed channels leave the graph, so that the file is smaller and faster and says the same."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from shutil import get_terminal_size
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

from typer import Option

from debride.cli.guard import check_output, guard, plain, put, tell_conversion
from debride.cli.options import OUTPUT, Align, Building, Convention, Debug, Json, Model, Resize, Resources, grouped
from debride.errors import ModelError

if TYPE_CHECKING:
    from debride.conversion.request import Request
    from debride.conversion.source import Source
    from debride.graph.read import Model as Graph
    from debride.sessions import Runtime
    from debride.slimming import Slimmed
    from debride.spec import Declared
    from debride.types import Conversion, FileFacts, FloatArray, InputSpec, Progress, Slimming

SLIM_EPILOG = """[bold]Examples[/]

  debride slim clean.onnx -o slim.onnx
  debride slim clean.onnx -o slim.onnx --images test/ --json
  debride slim pruned.keras -o slim.onnx --images test/ --range 0,255

Channels go that are zero, or that say the same whatever the input, or that
nobody reads. Both graphs are run on random inputs, and on --images if given;
where the outputs differ, nothing is written. With nothing to take out, the
output is an unchanged copy. onnxruntime's fast convolutions on CPUs want
widths that are multiples of 4: --align 4 keeps them so.

[bold]Exit codes[/]: 0 written, and equal to the model; 2 wrong usage; 3 not equal,
unsupported or failed; 130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """The model that the user named, the file that was written, and what happened in between."""

    model: FileFacts
    output: FileFacts
    conversion: Conversion | None
    slimming: Slimming


@grouped
def slim(
    *,
    model: Model,
    output: Annotated[
        Path,
        Option(
            "--output",
            "-o",
            metavar="SLIM.onnx",
            help="The slim model goes here.",
            rich_help_panel=OUTPUT,
            show_default=False,
        ),
    ],
    images: Annotated[
        Path | None, Option(metavar="PATH", help="Images to compare on as well: a folder, or an .npz with x.")
    ] = None,
    resize: Resize = False,
    seed: Annotated[int, Option(min=0, metavar="S", help="Decides the random inputs.")] = 0,
    align: Align = 1,
    convention: Convention,
    building: Building,
    resources: Resources,
    json: Json = False,
    force: Annotated[bool, Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)] = False,
    debug: Debug = False,
) -> None:
    """Take dead channels out of a graph: smaller, mostly faster, same outputs."""
    with guard(debug, (output,)):
        check_output(output, model, force=force)
        from debride.cli.progress import shown
        from debride.conversion.request import Request
        from debride.conversion.source import opened

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
        with shown(quiet) as progress, opened(request, progress) as source:
            tell_conversion(source.conversion)
            written = _written(source, request, runtime, align, output, force, progress)
        put(_json(written) if json else _text(written))


def _written(
    source: Source,
    request: Request,
    runtime: Runtime,
    align: int,
    output: Path,
    force: bool,
    progress: Progress,
) -> Written:
    from debride.conversion.source import facts_of
    from debride.graph.read import read_model
    from debride.graph.write import write_copy, write_model
    from debride.report.slimming import changed
    from debride.types import FileFacts

    model = read_model(source.path, free=False)
    found = _slimmed(model, source, request, runtime, align, progress)
    if found.facts.reason:
        raise ModelError(
            f"{request.model}: could not be slimmed, and nothing was written: {found.facts.reason}; "
            "go on with the model as it is"
        )
    if changed(found.facts):
        write_model(found.proto, output, force=force)
    else:
        write_copy(model.data, model.path, model.external, output, force=force)
    own = source.facts or FileFacts(name=request.model.name, sha256=model.sha256, size=model.size)
    return Written(model=own, output=facts_of(output), conversion=source.conversion, slimming=found.facts)


def _slimmed(
    model: Graph, source: Source, request: Request, runtime: Runtime, align: int, progress: Progress
) -> Slimmed:
    from debride.slimming import slim as run

    spec, images = _compared_on(model, source, request, runtime)
    return run(model, spec=spec, images=images, runtime=runtime, align=align, seed=request.seed, progress=progress)


def _compared_on(
    model: Graph, source: Source, request: Request, runtime: Runtime
) -> tuple[InputSpec | None, FloatArray | None]:
    """How the model wants its input, and the images; None where nobody says it, and where there are none."""
    from debride.images import load_for
    from debride.sessions import Session
    from debride.spec import declare, resolve_spec, sidecar_of
    from debride.specfile import METADATA_KEY, SpecFlags

    flags, sidecar = request.flags, sidecar_of(source.path)
    told = flags != SpecFlags() or sidecar or any(entry.key == METADATA_KEY for entry in model.proto.metadata_props)
    if request.images is None and not told:
        return None, None  # any graph can be slimmed, also one that is no image classifier
    session = Session(source.path, runtime, str(request.model))
    declared = declare(session, flags=flags, sidecar=sidecar)
    if request.images is None:
        return _shaped(declared), None
    loaded = load_for(declared, request.images, resize=request.resize)
    samples = loaded.samples()
    return resolve_spec(session, flags=flags, sidecar=sidecar, samples=samples).spec, samples.images


def _shaped(declared: Declared) -> InputSpec | None:
    """The shape of the input alone, for noise that needs no scaling; None where it is open."""
    from debride.types import InputSpec

    if declared.depth is None or declared.size is None:
        return None
    channels = declared.fields.channels or ("L" if declared.depth == 1 else "RGB")
    return InputSpec(
        name=declared.name, layout=declared.layout, channels=channels, size=declared.size, output=declared.output
    )


def _text(written: Written) -> str:
    from debride.report.slimming import cost_table, slower_sentence, stayed_lines
    from debride.report.words import WIDTH, size

    # A pipe has no width: what goes into a file is laid out as reports are.
    width = max(40, min(WIDTH, get_terminal_size((WIDTH, 24)).columns)) if _is_terminal() else WIDTH
    files = (("Model", written.model), ("Output", written.output))
    facts = [f"{name:<9}{plain(file.name)}, {size(file.size)}, sha256 {file.sha256}" for name, file in files]
    for name, text in _said(written.slimming):
        lines = wrap(plain(text), width - 9, break_on_hyphens=False)
        facts += [f"{name if not i else '':<9}{line}" for i, line in enumerate(lines)]
    stayed = stayed_lines(written.slimming, width, "--json lists all")
    slower = wrap(slower_sentence(written.slimming), width)
    parts = [facts, cost_table(written.slimming), slower, ["Zeroed channels that stay", *stayed] if stayed else []]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _is_terminal() -> bool:
    return sys.stdout.isatty()


def _said(slimming: Slimming) -> Iterator[tuple[str, str]]:
    from debride.report.slimming import changed, channels_sentence, equality_sentence
    from debride.slimming import TOLERANCE

    if changed(slimming):
        yield "Channels", channels_sentence(slimming)
        wide = slimming.difference > TOLERANCE  # only half precision may differ by more
        limit = ", as half precision rounds" if wide else f" (limit {TOLERANCE:g})"
        yield "Equal", equality_sentence(slimming) + limit
    elif slimming.dead:
        yield "Channels", f"{channels_sentence(slimming)}; the output is an unchanged copy"
    else:
        yield "Channels", "there is nothing to take out, so the output is an unchanged copy"


def _json(written: Written) -> str:
    from debride.report.conversion import conversion_fields
    from debride.report.slimming import changed, slimming_fields

    document = {
        "model": asdict(written.model),
        "output": asdict(written.output),
        "conversion": conversion_fields(written.conversion) if written.conversion else None,
        "changed": changed(written.slimming),
        "slimming": slimming_fields(written.slimming),
    }
    return dumps(document, indent=2, allow_nan=False)
