"""What a model does on held-out images, clean and stamped: judged by its scores alone."""

from __future__ import annotations

import numpy as np

from .errors import ImagesError, ReportError
from .triggers import stamp
from .types import BoolArray, Evaluation, FloatArray, IntArray, Predict, Rate, Samples, Trigger, TriggerEvaluation


def classes_of(predict: Predict, images: FloatArray) -> IntArray:
    """The class of the highest score per image, int64 (N,); the first of equals."""
    classes: IntArray = predict(images).argmax(axis=1).astype(np.int64)
    return classes


def evaluate(
    predict: Predict, samples: Samples, triggers: tuple[Trigger, ...], *, reference: IntArray | None = None
) -> Evaluation:
    """Clean rate, and per trigger the attack success rate and the robust rate, on `samples`.

    The truth is `samples.labels` (kind "accuracy"); without labels it is `reference`, the delivered model's classes
    (N,) of the same images, and without that the model's own classes (kind "agreement"). The attack counts images
    whose true class is not the target: hits are those sent to the target, and robust are those still given their
    true class. Raises `ImagesError` or `ReportError` where images, labels or triggers do not fit each other.
    """
    if not len(samples):
        raise ImagesError("no held-out images to evaluate on; give more images")
    scores = predict(samples.images)
    found = scores.argmax(axis=1).astype(np.int64)
    truth = next(t for t in (samples.labels, reference, found) if t is not None)
    if truth.shape != found.shape or truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise ImagesError(f"labels {truth.shape} do not fit {len(found)} images and {scores.shape[1]} classes")
    for trigger in triggers:
        if not 0 <= trigger.target < scores.shape[1]:
            raise ReportError(f"the trigger's target {trigger.target} is none of the model's {scores.shape[1]} classes")
    return Evaluation(
        kind="agreement" if samples.labels is None else "accuracy",
        clean=_rate(found == truth),
        triggers=tuple(_attack(predict, samples.images, truth, found, trigger) for trigger in triggers),
    )


def mistakes(predict: Predict, samples: Samples, target: int) -> float:
    """Share of clean `samples` (labelled) of other classes that go to `target` all the same; 0 where there are none."""
    rows = np.flatnonzero(samples.labels != target)
    return float((classes_of(predict, samples.images[rows]) == target).mean()) if len(rows) else 0.0


def _attack(
    predict: Predict, images: FloatArray, truth: IntArray, found: IntArray, trigger: Trigger
) -> TriggerEvaluation:
    others = truth != trigger.target
    if not others.any():
        return TriggerEvaluation(target=trigger.target, asr=Rate(0, 0), robust=Rate(0, 0))
    stamped = classes_of(predict, stamp(images[others], trigger))
    return TriggerEvaluation(
        target=trigger.target,
        asr=_rate(stamped == trigger.target),
        robust=_rate(stamped == truth[others]),
        mistakes=_rate(found[others] == trigger.target),
    )


def _rate(hits: BoolArray) -> Rate:
    return Rate(int(hits.sum()), len(hits))
