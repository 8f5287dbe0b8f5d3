"""The exported model beside the one it was made of, on the same held-out images, and what of the goal was missed."""

from __future__ import annotations

from collections.abc import Sequence

from debride.errors import ImagesError
from debride.evaluate import classes_of, evaluate
from debride.export.attacks import Attack
from debride.export.types import ExportOptions, Graded
from debride.types import Predict, Rate, Samples, TriggerEvaluation


def graded(before: Predict, after: Predict, samples: Samples, attacks: Sequence[Attack]) -> Graded:
    """Both models on `samples`, clean and with each trigger; without labels the truth is what `before` says.

    Raises `ImagesError` or `ReportError` where images, labels or triggers do not fit or a trigger has no image to be
    tried on, `ModelError` where one of the models gives no finite score.
    """
    triggers = tuple(attack.trigger for attack in attacks)
    reference = classes_of(before, samples.images)
    was, now = (evaluate(predict, samples, triggers, reference=reference) for predict in (before, after))
    for attack, tried in zip(attacks, was.triggers, strict=True):
        if not tried.asr.n:
            raise ImagesError(f"every held-out image is of the target class of {attack.name}; give images of others")
    return Graded(before=was, after=now, attacks=tuple(attack.name for attack in attacks), images=len(samples))


def shortfalls(found: Graded, options: ExportOptions) -> tuple[str, ...]:
    """What of the goal was missed, each with its mend; empty where the export is good.

    As in sanitize, an image or two of few are no evidence of a loss: the lower end of the Wilson interval counts.
    """
    missed = []
    lost = Rate(max(0, found.before.clean.hits - found.after.clean.hits), found.before.clean.n)
    if lost.interval()[0] > options.max_loss:
        missed.append(f"{found.before.kind} fell by {lost.value:.1%}, more than --max-loss; {_mend(options)}")
    for name, was, now in zip(found.attacks, found.before.triggers, found.after.triggers, strict=True):
        grown = Rate(max(0, _beyond_mistakes(now) - _beyond_mistakes(was)), now.asr.n)
        if was.excess > options.target_asr:
            missed.append(
                f"{name} sends {was.asr.value:.1%} of images to class {was.target} in the model itself; clean it with "
                "debride sanitize first"
            )
        elif now.excess > options.target_asr or grown.interval()[0] > options.max_loss:
            missed.append(
                f"{name} sends {now.asr.value:.1%} of images to class {now.target}, and {was.asr.value:.1%} before; "
                f"{_mend(options)}"
            )
    return tuple(missed)


def _beyond_mistakes(tried: TriggerEvaluation) -> int:
    return tried.asr.hits - tried.mistakes.hits


def _mend(options: ExportOptions) -> str:
    others = [method for method in ("minmax", "entropy", "percentile") if method != options.method]
    return {
        "int8": f"try --calibration {' or '.join(others)}, more images, or --target fp16",
        "fp16": "try --target ort",
        "ort": "deploy the ONNX file, and tell the makers of onnxruntime",
    }[options.target]
