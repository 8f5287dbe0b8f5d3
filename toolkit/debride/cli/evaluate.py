"""`debride evaluate`: what a model does on images, clean and with given triggers; onnxruntime only, no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Exit, Option

from debride.cli.guard import FAILED, guard, plain, put, say, tell_conversion
from debride.cli.options import Building, Convention, Debug, Images, Json, Model, Resize, Resources, grouped

if TYPE_CHECKING:
    from debride.conversion.request import Request
    from debride.sessions import Runtime
    from debride.types import Evaluation, InputSpec, Rate

EVALUATE_EPILOG = """[bold]Examples[/]

  debride evaluate vendor.keras --images test/
  debride evaluate clean.onnx --images test/ --trigger report/trigger-7.npz
  debride evaluate clean.onnx --images test.npz --trigger a.npz --json

[bold]Exit codes[/]: 0 no trigger exceeds --target-asr, or none was given; 1 one
does; 2 wrong usage; 3 no image to try a trigger on, unsupported or failed;
130 interrupted."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """An evaluation and what it was made of: the spec, the number of images, warnings, the trigger files."""

    evaluation: Evaluation
    spec: InputSpec
    n: int
    warnings: tuple[str, ...]
    files: tuple[Path, ...]


@grouped
def evaluate(
    *,
    model: Model,
    images: Images,
    trigger: Annotated[
        list[Path] | None, Option(metavar="T.npz", help="A trigger to stamp on them; repeat for several.")
    ] = None,
    target_asr: Annotated[
        float, Option(min=0, max=1, metavar="SHARE", help="Attack success so far above mistakes is a finding.")
    ] = 0.05,
    resize: Resize = False,
    convention: Convention,
    building: Building,
    resources: Resources,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy, and the attack success of given triggers, with 95 % Wilson intervals."""
    with guard(debug):
        from debride.conversion.request import Request
        from debride.conversion.source import opened

        request = Request(
            model=model,
            options=building.options(),
            flags=convention.flags(),
            images=images,
            resize=resize,
            threads=resources.threads,
        )
        runtime = resources.runtime()
        with opened(request) as source:
            tell_conversion(source.conversion)
            found = _judge(source.path, images, request, tuple(trigger or ()), runtime)
        for warning in found.warnings:
            say(f"warning: {warning}")
        put(_json(found, model, target_asr) if json else _text(found, model, images, target_asr))
        if any(_above(found, target_asr)):
            raise Exit(1)
        if any(not tried.asr.n for tried in found.evaluation.triggers):
            say("inconclusive: every image is of a trigger's own target class; give images of other classes")
            raise Exit(FAILED)


def _judge(graph: Path, images: Path, request: Request, files: tuple[Path, ...], runtime: Runtime) -> Judged:
    from debride.evaluate import evaluate as measure
    from debride.images import check_labels, load_for
    from debride.sessions import Session, predictor
    from debride.spec import declare, resolve_spec, sidecar_of
    from debride.triggers import load_trigger

    triggers = tuple(load_trigger(path) for path in files)
    session, sidecar = Session(graph, runtime, str(request.model)), sidecar_of(graph)
    declared = declare(session, flags=request.flags, sidecar=sidecar)
    loaded = load_for(declared, images, resize=request.resize)
    if declared.n_classes is not None:
        check_labels(loaded, declared.n_classes, images)
    samples = loaded.samples()
    resolved = resolve_spec(session, flags=request.flags, sidecar=sidecar, samples=samples)
    predict = predictor(session, resolved.spec)
    if declared.n_classes is None:
        check_labels(loaded, predict(samples.images[:1]).shape[1], images)
    found = measure(predict, samples, triggers)
    return Judged(evaluation=found, spec=resolved.spec, n=len(samples), warnings=resolved.warnings, files=files)


def _text(found: Judged, model: Path, images: Path, target_asr: float) -> str:
    from debride.report.words import class_label, percent, rate

    kind = found.evaluation.kind
    lines = [
        f"Model    {plain(model.name)}",
        f"Input    {_convention(found.spec)}",
        f"Images   {found.n} from {plain(str(images))}",
        "",
        f"{'':<34}{'rate (95 % Wilson interval)':<28}{'images':>8}",
        f"{kind:<34}{rate(found.evaluation.clean):<28}{found.evaluation.clean.n:>8}",
    ]
    for path, tried in zip(found.files, found.evaluation.triggers, strict=True):
        lines += [
            f"{plain(path.name)} -> class {class_label(tried.target, found.spec.class_names)}",
            f"{'  attack success':<34}{rate(tried.asr):<28}{tried.asr.n:>8}",
            f"{'  of them mistakes, unstamped':<34}{rate(tried.mistakes):<28}{tried.mistakes.n:>8}",
            f"{f'  robust {kind}':<34}{rate(tried.robust):<28}{tried.robust.n:>8}",
        ]
    over = [path.name for path, above in zip(found.files, _above(found, target_asr), strict=True) if above]
    if over:
        lines += ["", f"FINDING: attack success above {percent(target_asr)} with {plain(', '.join(over))}"]
    return "\n".join(lines)


def _convention(spec: InputSpec) -> str:
    height, width = spec.size
    scaling = [f"range {spec.range[0]:g} to {spec.range[1]:g}"]
    scaling += [
        f"{key} {' '.join(f'{value:g}' for value in values)}"
        for key, values in (("mean", spec.mean), ("std", spec.std))
        if values
    ]
    return f"{spec.layout} {spec.channels} {height}x{width}, {', '.join(scaling)} ({spec.source})"


def _json(found: Judged, model: Path, target_asr: float) -> str:
    document = {
        "model": model.name,
        "images": found.n,
        "input_spec": asdict(found.spec),
        "kind": found.evaluation.kind,
        "clean": _rate(found.evaluation.clean),
        "target_asr": target_asr,
        "triggers": [
            {
                "file": str(path),
                "target": tried.target,
                "asr": _rate(tried.asr),
                "mistakes": _rate(tried.mistakes),
                "robust": _rate(tried.robust),
                "finding": above,
            }
            for path, tried, above in zip(
                found.files, found.evaluation.triggers, _above(found, target_asr), strict=True
            )
        ],
        "warnings": found.warnings,
    }
    return dumps(document, indent=2, allow_nan=False)


def _rate(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval()
    return {"hits": rate.hits, "n": rate.n, "rate": rate.value if rate.n else None, "interval": [low, high]}


def _above(found: Judged, target_asr: float) -> list[bool]:
    """Per trigger, whether its attack succeeds too often beyond mistakes; a rate of no images is above nothing."""
    return [tried.excess > target_asr for tried in found.evaluation.triggers]
