"""The delivered network as a teacher: its answers are probabilities whatever the graph ends in; rounds of learning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from debride.retrain import teacher as teaching
from debride.retrain.options import METHODS
from debride.retrain.teacher import Teacher
from debride.sessions import probabilities
from graph_models import Builder, run
from retraining_parts import QUICK, SPEC, images, made, same, samples, trigger
from trainable_models import end, net, plain, read


def headed(*head, **attributes):
    """A classifier whose scores go through the ops `head`."""
    b = Builder()
    y = end(b, b.op("Relu", b.conv("x", 3, 4)), 4)
    for op in head:
        y = b.op(op, y, **attributes)
    return net(b)


def teacher(proto, labelled=True, **options):
    return Teacher(read(proto), SPEC, replace(QUICK, **options), labelled=labelled)


@pytest.mark.parametrize("proto", [headed(), headed("Softmax", axis=1)], ids=["raw", "softmax"])
def test_answers_are_the_probabilities_of_what_the_model_says(proto):
    x = images(70)  # more than are computed at once
    (said,) = run(proto, {"x": x}, ["scores"])
    found = teacher(proto).answers(x)
    assert found.shape == (70, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, probabilities(said), rtol=0, atol=1e-6)
    assert np.ptp(found, axis=0).min() > 1e-3


def test_of_a_model_that_ends_in_a_sigmoid_they_are_the_softmax_of_what_is_before_it():
    x, proto = images(10), headed("Sigmoid")
    (said,) = run(proto, {"x": x}, ["scores"])
    logits = np.log(said.astype(np.float64) / (1 - said))
    np.testing.assert_allclose(teacher(proto).answers(x), probabilities(logits), rtol=0, atol=1e-5)
    # Shares of the sigmoids themselves are something else.
    assert np.abs(teacher(proto).answers(x) - said / said.sum(axis=1, keepdims=True)).max() > 1e-2


def test_answers_leave_the_images_as_they_are():
    x = images(5)
    before = x.copy()
    teacher(plain()).answers(x)
    np.testing.assert_array_equal(x, before)


def lesson(monkeypatch, method, labelled=True):
    """What a round of learning is given: the draws, the batch that is watched, and the loss."""
    seen = []
    monkeypatch.setattr(
        teaching, "train", lambda network, loss, draws, watched, *_, **__: seen.append((loss, draws, watched))
    )
    made_by = teacher(plain(), labelled=labelled, method=method)
    made_by.teach(made(), samples(), samples(12, seed=3), [trigger()], seed=0)
    return seen[0]


@pytest.mark.parametrize("name", METHODS)
def test_a_round_learns_from_some_images_and_is_watched_on_varied_others(monkeypatch, name):
    loss, draws, watched = lesson(monkeypatch, name)
    assert loss.method is METHODS[name] and (loss.delivered is not None) == (METHODS[name].features > 0)
    stamping = METHODS[name].stamped > 0
    assert len(watched.clean) == 256 and (len(watched.rows) > 0) == (len(draws(20).rows) > 0) == stamping


def test_labels_that_are_the_models_own_answers_are_not_held_for_the_truth(monkeypatch):
    _, _, watched = lesson(monkeypatch, "fine-tune")
    assert set(np.unique(watched.wanted)) == {0, 1}  # the labels alone
    _, _, watched = lesson(monkeypatch, "fine-tune", labelled=False)
    np.testing.assert_allclose(watched.wanted, teacher(plain()).answers(watched.clean), rtol=0, atol=1e-6)


def test_what_it_teaches_with_a_seed_is_the_same_every_time():
    found = []
    for seed in (0, 0, 1):
        network = made()
        course = teacher(plain(), steps=10).teach(network, samples(), samples(12, seed=3), [trigger()], seed=seed)
        found.append((course, network.snapshot()))
    (one, weights), (other, again), (_, different) = found
    assert one == other and same(weights, again) and not same(weights, different)
    assert one.best > 0 and not same(weights, made().snapshot())
