"""`debride convert`: a model file of any framework that an adapter reads -> ONNX, with parity measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from debride.cli.guard import check_output, guard, plain, put
from debride.cli.options import (
    OUTPUT,
    RESOURCES,
    Building,
    Convention,
    Debug,
    Json,
    Resize,
    grouped,
)
from debride.errors import UsageError

if TYPE_CHECKING:
    from debride.conversion.request import Request
    from debride.conversion.write import Written
    from debride.plugins import Offer

CONVERT_EPILOG = """[bold]Examples[/]

  debride convert vendor.keras -o vendor.onnx --images clean/
  debride convert vendor.pth -o vendor.onnx --architecture net.py:build \\
      --input-shape 3,32,32
  debride convert saved_model/ -o vendor.onnx --json
  debride convert --list

The conversion runs in a process of its own, within limits, and runs none of
the file's own code. --architecture names your code, which is run.

[bold]Exit codes[/]: 0 converted, and equal to the framework; 2 wrong usage; 3 not
converted, not equal or failed; 130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a conversion may use, and how far its result may be off."""

    threads: Annotated[
        int, Option(min=0, metavar="T", help="CPU threads; 0: all cores.", rich_help_panel=RESOURCES)
    ] = 0
    time_limit: Annotated[
        float, Option(min=1, max=1e6, metavar="SECONDS", help="It is ended after this.", rich_help_panel=RESOURCES)
    ] = 600.0
    memory_limit: Annotated[
        float,
        Option(min=0.1, max=1e6, metavar="GIB", help="It may not take more than this.", rich_help_panel=RESOURCES),
    ] = 8.0
    opset: Annotated[int, Option(min=13, max=23, metavar="N", help="ONNX operator set to aim for.")] = 18
    tolerance: Annotated[
        float | None,
        Option(min=0, metavar="SHARE", help="Largest difference, of the scores' spread (0.001; more if quantised)."),
    ] = None


@grouped
def convert(
    *,
    model: Annotated[
        Path | None, Argument(metavar="MODEL", help="The model, of a kind that --list names.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None, Option("--output", "-o", metavar="MODEL.onnx", help="The ONNX file.", rich_help_panel=OUTPUT)
    ] = None,
    images: Annotated[
        Path | None, Option(metavar="PATH", help="Clean images, to measure parity on them as well.")
    ] = None,
    resize: Resize = False,
    seed: Annotated[int, Option(min=0, metavar="S", help="Decides every random draw.")] = 0,
    building: Building,
    convention: Convention,
    bounds: Bounds,
    listing: Annotated[bool, Option("--list", help="Name the kinds of files that can be read, and end.")] = False,
    json: Json = False,
    force: Annotated[bool, Option("--force", help="Replace what is there.", rich_help_panel=OUTPUT)] = False,
    quiet: Annotated[bool, Option("--quiet", "-q", help="No progress on stderr.", rich_help_panel=OUTPUT)] = False,
    debug: Debug = False,
) -> None:
    """Turn a model of any framework into ONNX, and measure that both say the same."""
    with guard(debug, () if output is None else (output,)):
        if listing:
            put(_listed(json))
            return
        if model is None or output is None:
            raise UsageError("name a MODEL and an --output; debride convert --list says what can be read")
        check_output(output, model, force=force)
        from debride.cli.progress import shown

        request = _request(model, images, building, convention, bounds, resize=resize, seed=seed)
        with shown(quiet) as progress:
            from debride.conversion.write import convert as run

            written = run(request, output, force=force, progress=progress)
        put(_json(written) if json else _text(written))


def _request(
    model: Path,
    images: Path | None,
    building: Building,
    convention: Convention,
    bounds: Bounds,
    *,
    resize: bool,
    seed: int,
) -> Request:
    from debride.conversion.request import GIB, Limits, Request

    return Request(
        model=model,
        options=building.options(bounds.opset),
        flags=convention.flags(),
        images=images,
        resize=resize,
        seed=seed,
        threads=bounds.threads,
        tolerance=bounds.tolerance,
        limits=Limits(seconds=bounds.time_limit, memory=int(bounds.memory_limit * GIB)),
    )


def _text(written: Written) -> str:
    from debride.report.conversion import conversion_facts
    from debride.report.words import size

    facts = [
        ("Model", f"{written.model.name}, {size(written.model.size)}, sha256 {written.model.sha256}"),
        ("Output", f"{written.output.name}, {size(written.output.size)}, sha256 {written.output.sha256}"),
        *conversion_facts(written.conversion),
    ]
    return "\n".join(f"{name:<8} {plain(text)}" for name, text in facts)


def _json(written: Written) -> str:
    from debride.report.conversion import conversion_fields

    document = {
        "model": asdict(written.model),
        "output": asdict(written.output),
        "conversion": conversion_fields(written.conversion),
    }
    return dumps(document, indent=2, allow_nan=False)


def _listed(json: bool) -> str:
    from debride.plugins import offers

    found = offers()
    if json:
        return dumps([_offer(offer) for offer in found], indent=2)
    rows = [("reads", "adapter", "from", "state")]
    rows += [(_kind(o), o.adapter, o.distribution, _state(o)) for o in found]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join([*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[3]]) for row in rows
    )


def _offer(offer: Offer) -> dict[str, Any]:
    return {
        "kind": offer.kind,
        "adapter": offer.adapter,
        "distribution": offer.distribution,
        "extra": offer.extra or None,
        "missing": list(offer.missing),
    }


def _kind(offer: Offer) -> str:
    return offer.kind if offer.kind.startswith(".") else f"folder with {offer.kind}"


def _state(offer: Offer) -> str:
    if not offer.missing:
        return "ready"
    return f"needs {', '.join(offer.missing)}: pip install '{offer.distribution}[{offer.extra}]'"
