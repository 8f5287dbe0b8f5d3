"""`debride predict`: images go into a model, classes come out; neither torch nor onnx is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from debride.cli.guard import guard, plain, put, tell_conversion
from debride.cli.options import Building, Convention, Debug, Json, Model, Resources, grouped

if TYPE_CHECKING:
    from debride.serve import Classifier, Prediction
    from debride.sessions import Runtime
    from debride.specfile import SpecFlags

PREDICT_EPILOG = """[bold]Examples[/]

  debride predict clean.onnx photo.png
  debride predict clean.onnx photos/*.jpg --top 1 --json
  debride predict vendor.onnx photo.png --range 0,1 --layout NHWC

A model that debride wrote says itself how it wants its input; another needs a
side-car MODEL.json or --range (with --mean and --std).

[bold]Exit codes[/]: 0 classified; 2 wrong usage; 3 failed; 130 interrupted."""


@grouped
def predict(
    *,
    model: Model,
    images: Annotated[list[Path], Argument(metavar="IMAGE", help="Image files, of any size.")],
    top: Annotated[int, Option(min=1, metavar="K", help="How many classes to tell.")] = 5,
    convention: Convention,
    building: Building,
    resources: Resources,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Classify images, most probable class first."""
    with guard(debug):
        from debride.conversion.request import Request
        from debride.conversion.source import opened

        flags = convention.flags()
        request = Request(model=model, options=building.options(), flags=flags, threads=resources.threads)
        runtime = resources.runtime()
        with opened(request) as source:
            tell_conversion(source.conversion)
            found = _classifier(source.path, flags, runtime).classify(images, top)
        put(_json(images, found) if json else _text(images, found))


def _classifier(graph: Path, flags: SpecFlags, runtime: Runtime) -> Classifier:
    from debride.serve import Classifier
    from debride.sessions import Session
    from debride.spec import resolve_spec, sidecar_of
    from debride.specfile import SpecFlags

    if flags == SpecFlags():
        return Classifier(graph, runtime=runtime)
    session = Session(graph, runtime, str(graph))
    spec = resolve_spec(session, flags=flags, sidecar=sidecar_of(graph)).spec
    return Classifier(session, spec=spec)


def _text(images: Sequence[Path], found: Sequence[Sequence[Prediction]]) -> str:
    lines = []
    for path, best in zip(images, found, strict=True):
        lines += [plain(str(path)), *(f"  {100 * p.probability:5.1f} %  {plain(p.label)}" for p in best)]
    return "\n".join(lines)


def _json(images: Sequence[Path], found: Sequence[Sequence[Prediction]]) -> str:
    rows = [
        {
            "image": str(path),
            "predictions": [{"label": p.label, "index": p.index, "probability": p.probability} for p in best],
        }
        for path, best in zip(images, found, strict=True)
    ]
    return dumps(rows, indent=2, allow_nan=False)
