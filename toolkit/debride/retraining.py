"""The stage that retrains: learn, attack again, and learn from what still works; then see what it was worth."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from debride.errors import ImagesError, ModelError
from debride.evaluate import classes_of
from debride.graph.parse import parse
from debride.graph.read import Model, model_of
from debride.graph.trained import changes, check_trained, working_written, written
from debride.graph.weights import statistics
from debride.loading import Loaded
from debride.memory import release
from debride.proxy.interpreter import Proxy
from debride.retrain.draws import STAMPED
from debride.retrain.network import Network
from debride.retrain.norms import estimate
from debride.retrain.options import METHODS
from debride.retrain.relearn import expected_images, relearn
from debride.retrain.teacher import Teacher
from debride.retrain.train import Course
from debride.rounds import inverted_anew
from debride.sessions import Session, predictor
from debride.settings import Settings
from debride.types import (
    Detection,
    FloatArray,
    Predict,
    Progress,
    Refused,
    Relearning,
    Samples,
    Statistics,
    Trigger,
    WeightChange,
)

_ROUNDS = 3
"""How often at most the suspects are inverted anew and their new triggers unlearnt too."""
_SEEDS = 50_000
"""Apart from the seeds of the inversions between cuts."""
LIGHT = 0.5
"""Share of the images that a step sees where pruning left no attack. Many steps of few images unlearn more there than
few of many, and cost more accuracy: four retrainings of a WideResNet and a VGG lost 0.31 points and left 0.67 % of the
attack on average by 400 steps of 32 images, 0.55 and 0.71 by 400 of 24, 0.19 and 1.00 by 200 of 64."""
_WITH_WEIGHTS = 2.0
"""What a pass takes that gives the weights' gradients too, with the teacher's answer and what follows."""
_CONTRADICTED = 0.25
_DOUBTED = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Retrained:
    """A retrained graph, what it says of images, and how it became that: by at most `budget` steps in all rounds.

    `checked` is the detection with the triggers as inverted last, and `triggers` all that were unlearnt, by class.
    """

    proto: Any  # an onnx.ModelProto, a type that only graph may name
    predict: Predict
    course: Course
    budget: int
    images: int
    statistics: Statistics
    changes: tuple[WeightChange, ...]
    fixed: tuple[Refused, ...]
    checked: Detection
    triggers: Mapping[int, tuple[Trigger, ...]]
    relearning: tuple[Relearning, ...]


def doubts(loaded: Loaded, settings: Settings) -> tuple[str, ...]:
    """What speaks against retraining on these images, as warnings.

    Raises `ImagesError` where it would do harm: labels that contradict the delivered model nearly everywhere.
    `ModelError` where nothing in the model can be trained, or not in the way that is asked for.
    """
    Network(loaded.model, loaded.spec, (), loaded.compute).check(loaded.fit.images[:1])
    options = settings.retraining
    if loaded.model.bound and (METHODS[options.method].features or options.statistics == "estimate"):
        raise ModelError(
            f"{loaded.facts.name}: its batch is fixed, and --retrain-method distill and --batch-norm estimate need a "
            "free one; take --retrain-method unlearn and --batch-norm keep"
        )
    labels = np.concatenate([_labels(loaded.fit), _labels(loaded.held_out)])
    warnings = []
    unseen = loaded.n_classes - len(set(_labels(loaded.fit).tolist()))
    if unseen:
        warnings.append(
            f"of {loaded.n_classes} classes {unseen} have no image among the {len(loaded.fit)} that are learnt from: "
            "what the network knows of them is held by its answers to other images alone; give more images of each"
        )
    if not loaded.labelled:
        return tuple(warnings)
    found = np.concatenate([classes_of(loaded.predict, part.images) for part in (loaded.fit, loaded.held_out)])
    agreeing = int((found == labels).sum())
    told = f"the model says otherwise of {len(labels) - agreeing} of {len(labels)} images than their labels"
    if agreeing <= max(_CONTRADICTED, 1 / loaded.n_classes) * len(labels):
        raise ImagesError(
            f"{told}: by them the target's images would be taken for others'; check the order of classes, or give none"
        )
    if agreeing < _DOUBTED * len(labels):
        warnings.append(f"{told}; where these are right, it is a poor model")
    return tuple(warnings)


def _labels(samples: Samples) -> Any:
    assert samples.labels is not None  # `load` labels unlabelled images
    return samples.labels


def retrained(
    loaded: Loaded,
    settings: Settings,
    proto: Any,
    detection: Detection,
    triggers: Mapping[int, Sequence[Trigger]],
    *,
    deadline: float | None,
    progress: Progress,
) -> Retrained:
    """Train the weights of `proto` (the delivered model, or that with channels zeroed) further; zero stays zero.

    `triggers` are unlearnt, by class, and each class is inverted anew; what stands out then is unlearnt too. Without
    triggers all classes are inverted anew, once.
    Raises `ModelError` where nothing can be trained, `SurgeryError` where the weights cannot be written back.
    """
    model = model_of(proto.SerializeToString(), loaded.model.path, free=not loaded.model.bound)
    network = Network(model, loaded.spec, loaded.groups, loaded.compute)
    norms, anew = statistics(model, network.proxy.output), dict[str, FloatArray]()
    if norms and settings.retraining.statistics == "estimate":
        anew = estimate(network.proxy, norms, loaded.fit.images)
    teacher = Teacher(loaded.model, loaded.spec, settings.retraining, labelled=loaded.labelled, compute=loaded.compute)
    found = {target: tuple(known) for target, known in triggers.items()}
    checked, courses = detection, list[Course]()
    rounds = _ROUNDS if found and teacher.method.stamped else 1
    for number in range(rounds):
        stamps = [t for known in found.values() for t in known]
        seed, stage = settings.seed + 100 * number, f"retraining, round {number + 1}" if number else "retraining"
        parts = loaded.fit, loaded.held_out
        courses.append(
            teacher.teach(network, *parts, stamps, seed=seed, deadline=deadline, progress=progress, stage=stage)
        )
        release()
        checked, fresh = _attacked(loaded, settings, model, network, anew, checked, found, number, progress)
        late = deadline is not None and time.monotonic() > deadline
        if late or number == rounds - 1 or not set(checked.suspects) & set(found):
            break
        found = {t: (*known, fresh[t]) if t in checked.suspects else known for t, known in found.items()}
    arrays = {**network.arrays(), **anew}
    result = written(model, arrays)
    check_trained(model.proto, result, list(arrays), network.silent)
    return Retrained(
        proto=result,
        predict=predictor(Session(result.SerializeToString(), loaded.runtime, "the retrained model"), loaded.spec),
        course=_joined(courses),
        budget=rounds * settings.retraining.steps,
        images=len(loaded.fit),
        statistics="none" if not norms else "estimated" if anew else "kept",
        changes=changes(model.proto, result, list(arrays)),
        fixed=network.fixed,
        checked=checked,
        triggers=found,
        relearning=() if late else _relearnt(loaded, settings, network, teacher.answers, found, progress),
    )


def expected_passes(loaded: Loaded, settings: Settings, *, light: bool) -> float:
    """What a retraining takes, in image passes of the search, for an estimate of the time."""
    options = settings.retraining
    images = loaded.compute.images(round(options.images * (LIGHT if light else 1.0)))
    return _WITH_WEIGHTS * options.steps * images * (1 + STAMPED)


def passes_of_relearning(loaded: Loaded) -> float:
    """What the relearning test of one class takes, in the same."""
    return _WITH_WEIGHTS * expected_images(loaded.compute)


def _attacked(
    loaded: Loaded,
    settings: Settings,
    model: Model,
    network: Network,
    anew: Mapping[str, FloatArray],
    detection: Detection,
    classes: Collection[int],
    number: int,
    progress: Progress,
) -> tuple[Detection, dict[int, Trigger]]:
    """Invert `classes` (or all, where there are none) on the network as it stands: the detection, triggers by class."""
    working = working_written(model, {**network.arrays(), **anew})
    proxy = Proxy(parse(working), loaded.spec, compute=loaded.compute)
    predict = predictor(Session(working.SerializeToString(), loaded.runtime, "the retrained model"), loaded.spec)
    targets = sorted(classes) or [f.trigger.target for f in detection.findings if not f.trigger.surveyed]
    seed = settings.seed + _SEEDS + 1000 * number + targets[0]
    return inverted_anew(loaded, settings, detection, targets, proxy, predict, seed=seed, progress=progress)


def _relearnt(
    loaded: Loaded,
    settings: Settings,
    network: Network,
    delivered: Callable[[FloatArray], FloatArray],
    triggers: Mapping[int, Sequence[Trigger]],
    progress: Progress,
) -> tuple[Relearning, ...]:
    """The relearning test of each class, with its first trigger."""
    release()
    first = [known[0] for known in triggers.values() if known]
    parts = loaded.fit, loaded.held_out
    return tuple(relearn(network, *parts, t, delivered, seed=settings.seed, progress=progress) for t in first)


def _joined(courses: Sequence[Course]) -> Course:
    """All rounds as one course: the steps of all, and the best of the last one that was better than where it began."""
    best, taken = 0, 0
    for course in courses:
        best = taken + course.best if course.best else best
        taken += course.steps
    return Course(steps=taken, images=courses[-1].images, best=best, loss=courses[-1].loss)
