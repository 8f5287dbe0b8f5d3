"""Measuring a model's input convention on clean images, when nobody states it.

Each known convention is tried. A good one is right (where there are labels) and informative: classes differ from image
to image, and stay the same under disturbances that no class depends on. A wrong range saturates or starves the
network, which then says one class for all images, or another one after every disturbance; confidence is no sign.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .errors import ImagesError, ModelError
from .sessions import Session, predictor, probabilities
from .types import Channels, DoubleArray, FloatArray, InputSpec, IntArray, Samples

_MAX_IMAGES = 100
# Probabilities are clipped here: beyond, they tell how saturated a network is, not how wrong the convention.
_FLOOR = 1e-4
_TEMPERATURES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True, slots=True)
class _Convention:
    """One known convention; mean and std in RGB order; `cost` is what it must be better by, in nats over all images."""

    range: tuple[float, float]
    cost: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_COLOUR = (
    _Convention((0.0, 1.0), 0),
    _Convention((-1.0, 1.0), 1),
    _Convention((0.0, 255.0), 1),
    _Convention((0.0, 1.0), 1, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # ImageNet
    _Convention((0.0, 1.0), 2, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),  # CIFAR-10
    _Convention((0.0, 255.0), 1, (123.68, 116.779, 103.939)),  # Caffe's ImageNet mean, usual with BGR
)
_GREY = (*_COLOUR[:3], _Convention((0.0, 1.0), 1, (0.1307,), (0.3081,)))  # the last is MNIST's
_BGR_COST = 2.0


def measure(
    session: Session, draft: InputSpec, samples: Samples, seed: int = 0, *, channels_stated: bool = False
) -> InputSpec:
    """`draft` with the range, mean, std and (unless stated) channel order that suit `samples` best.

    The best maximises, over at most 100 images drawn by `seed`: mean log-likelihood of the labels (where there are
    any; at the temperature that suits it best, since a wider range by itself sharpens scores), plus the mutual
    information between image and predicted class under disturbances (with labels it fades as 10 / N: it helps where
    labels are few), minus a cost of at most 5 nats / N for the less usual conventions.
    Raises `ModelError` where no convention gives scores, `ImagesError` where images or labels do not fit.
    """
    rng = np.random.default_rng(seed)
    drawn = samples.take(np.sort(rng.permutation(len(samples))[:_MAX_IMAGES]))
    tried = [(spec, cost, _trial(session, spec, drawn)) for spec, cost in _candidates(draft, channels_stated)]
    usable = [(spec, cost, first) for spec, cost, first in tried if isinstance(first, np.ndarray)]
    if not usable:
        raise next(failure for _, _, failure in tried if isinstance(failure, ModelError))
    usable.sort(key=lambda entry: -_likelihood(entry[2], drawn.labels))
    weight = 1.0 if drawn.labels is None else min(1.0, 10 / len(drawn))
    best, best_score = draft, -np.inf
    for spec, cost, first in usable:
        known = _likelihood(first, drawn.labels) - cost / len(drawn)
        if known + weight * np.log(first.shape[1]) < best_score:  # no information can make up for it
            continue
        score = known + weight * _information(session, spec, drawn.images, first)
        if score > best_score:
            best, best_score = spec, score
    return best


def _candidates(draft: InputSpec, channels_stated: bool) -> Iterator[tuple[InputSpec, float]]:
    orders: tuple[Channels, ...] = (draft.channels,) if channels_stated or draft.depth == 1 else ("RGB", "BGR")
    for order in orders:
        for known in _GREY if draft.depth == 1 else _COLOUR:
            step = -1 if order == "BGR" else 1
            unusual = _BGR_COST if (order == "BGR") != (known is _COLOUR[-1]) and len(orders) > 1 else 0.0
            spec = replace(draft, channels=order, range=known.range, mean=known.mean[::step], std=known.std[::step])
            yield spec, known.cost + unusual


def _trial(session: Session, spec: InputSpec, samples: Samples) -> FloatArray | ModelError:
    """Class probabilities (N, K), or why the model gives none: some overflow outside their range."""
    try:
        scores = predictor(session, spec)(samples.images)
    except ModelError as error:
        return error
    if samples.labels is not None and not 0 <= samples.labels.min() <= samples.labels.max() < scores.shape[1]:
        raise ImagesError(f"labels go up to {samples.labels.max()} and {session.name} has {scores.shape[1]} classes")
    return probabilities(scores)


def _likelihood(first: FloatArray, labels: IntArray | None) -> float:
    if labels is None:
        return 0.0
    logits = np.log(np.clip(first.astype(np.float64), 1e-12, 1))
    tempered = (probabilities(logits / t)[np.arange(len(labels)), labels] for t in _TEMPERATURES)
    return max(float(np.log(np.clip(right, _FLOOR, 1)).mean()) for right in tempered)


def _information(session: Session, spec: InputSpec, images: FloatArray, first: FloatArray) -> float:
    """Mutual information, in nats, between the image and its predicted class over all disturbances."""
    predict = predictor(session, spec)
    votes = np.zeros(first.shape)
    runs = [first.argmax(axis=1)]
    try:
        runs += [predict(changed).argmax(axis=1) for changed in _disturbed(images)]
    except ModelError:
        return 0.0
    for classes in runs:
        votes[np.arange(len(votes)), classes] += 1 / len(runs)
    return float(_entropy(votes.mean(axis=0)) - _entropy(votes).mean())


def _disturbed(images: FloatArray) -> Iterator[FloatArray]:
    yield np.roll(images, 1, axis=3)
    yield np.roll(images, -1, axis=2)
    yield images * np.float32(0.9)
    yield images * np.float32(0.9) + np.float32(0.1)


def _entropy(p: DoubleArray) -> DoubleArray:
    entropy: DoubleArray = -(p * np.log(np.clip(p, 1e-12, 1))).sum(axis=-1)
    return entropy
