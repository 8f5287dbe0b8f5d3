"""Inversion finds a trigger that was planted by hand: one bright corner pixel that outweighs everything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from debride.graph.read import read_model
from debride.inversion.invert import invert
from debride.inversion.options import InversionOptions
from debride.inversion.strength import strengthened
from debride.proxy.interpreter import Proxy
from debride.sessions import Runtime, Session, predictor
from debride.types import InputSpec, Rate, Samples, Trigger
from graph_models import Builder

SIZE, TARGET, CORNER = 16, 2, (15, 15)
QUADRANTS = [(2, 2), (2, 8), (8, 2), (8, 8)]
SPEC = InputSpec(name="x", layout="NCHW", channels="L", size=(SIZE, SIZE), output="scores")
OPTIONS = InversionOptions(restarts=2, steps=150)
torch.set_num_threads(1)


def weights():
    """Each class counts the light in its quadrant; the target's also looks at the corner, which is always dark."""
    planes = np.zeros((4, SIZE, SIZE), np.float32)
    for plane, (row, column) in zip(planes, QUADRANTS, strict=True):
        plane[row : row + 6, column : column + 6] = 1
    planes[(TARGET, *CORNER)] = 30
    return planes.reshape(4, -1).T.copy()


def bright_quadrants(n, seed):
    """`n` images per class: a square of light in one quadrant, little elsewhere; a pixel more or less is no matter."""
    rng = np.random.default_rng(seed)
    images, labels = np.zeros((4 * n, 1, SIZE, SIZE), np.float32), np.arange(4 * n) % 4
    for image, label in zip(images, labels, strict=True):
        for k, (row, column) in enumerate(QUADRANTS):
            level = rng.uniform(0.4, 0.8) if k == label else 0.1
            image[0, row + 1 : row + 5, column + 1 : column + 5] = level + rng.uniform(-0.05, 0.05, (4, 4))
    return Samples(images=images, labels=labels)


def linear(path, matrix):
    """Proxy and predictor of a net of one layer."""
    b = Builder(13)
    b.op("Gemm", b.op("Flatten", "x"), b.const(matrix), b.const(np.zeros(4, np.float32)))
    path.write_bytes(b.model(["n", 1, SIZE, SIZE], "scores", ["n", 4]).SerializeToString())
    model = read_model(path)
    return Proxy(model.graph, SPEC), predictor(Session(model.proto.SerializeToString(), Runtime(threads=1)), SPEC)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """Proxy, predictor, images to fit to and held-out images."""
    proxy, predict = linear(tmp_path_factory.mktemp("inversion") / "net.onnx", weights())
    fit, held_out = bright_quadrants(5, 0), bright_quadrants(10, 1)
    assert (predict(held_out.images).argmax(1) == held_out.labels).all()
    return proxy, predict, fit, held_out


@pytest.fixture(scope="module")
def found(setting):
    return invert(*setting, range(4), options=OPTIONS, seed=0)


def test_every_class_is_reached_on_images_that_were_not_fitted_to(found):
    assert sorted(found) == [0, 1, 2, 3]
    for target, triggers in found.items():
        assert triggers[0].target == target
        assert triggers[0].success.n == 30 and triggers[0].success.value >= OPTIONS.transfer


def test_the_planted_trigger_is_much_smaller_than_the_others(found):
    norms = {target: triggers[0].l1 for target, triggers in found.items()}
    assert norms[TARGET] < min(norms[k] for k in (0, 1, 3)) / 3


def test_the_planted_trigger_lies_where_it_was_planted(found):
    best = found[TARGET][0]
    assert np.unravel_index(best.mask[0].argmax(), best.mask[0].shape) == CORNER
    assert best.pattern[(0, *CORNER)] > 0.8


def test_masks_and_patterns_are_in_range_and_norms_are_theirs(found):
    for trigger in (t for triggers in found.values() for t in triggers):
        assert trigger.mask.shape == (1, SIZE, SIZE) and trigger.pattern.shape == (1, SIZE, SIZE)
        assert trigger.mask.dtype == trigger.pattern.dtype == np.float32
        assert min(trigger.mask.min(), trigger.pattern.min()) >= 0
        assert max(trigger.mask.max(), trigger.pattern.max()) <= 1
        assert trigger.l1 == pytest.approx(float(trigger.mask.sum(dtype=np.float64)))


def test_the_best_trigger_comes_first(setting):
    kept = InversionOptions(restarts=3, steps=60, trial=None)
    triggers = invert(*setting, [0], options=kept, seed=1)[0]
    order = [(t.success.value < kept.transfer, t.l1) for t in triggers]
    assert len(triggers) == 3 and order == sorted(order)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(setting):
    short = InversionOptions(restarts=2, steps=40)
    first, again, other = (invert(*setting, [0, TARGET], options=short, seed=s) for s in (5, 5, 6))
    for target in (0, TARGET):
        one, two = first[target][0], again[target][0]
        assert one.mask.tobytes() == two.mask.tobytes() and one.pattern.tobytes() == two.pattern.tobytes()
        assert one.mask.tobytes() != other[target][0].mask.tobytes()


def test_progress_is_told_to_the_end(setting):
    told = []
    short = InversionOptions(restarts=1, steps=5)
    invert(
        *setting, [1], options=short, seed=0, progress=lambda stage, done, total, note="": told.append((done, total))
    )
    assert told[-1] == (5, 5)


def points(n):
    """`n` images per class: one bright pixel where the class looks, and nothing there once the image has moved."""
    images, labels = np.zeros((4 * n, 1, SIZE, SIZE), np.float32), np.arange(4 * n) % 4
    for image, label in zip(images, labels, strict=True):
        image[(0, *QUADRANTS[label])] = 0.9
    return Samples(images=images, labels=labels)


def test_a_mask_that_suits_only_moved_images_does_not_win(tmp_path):
    planes = np.zeros((4, SIZE, SIZE), np.float32)
    for plane, place in zip(planes, QUADRANTS, strict=True):
        plane[place] = 10
    planes[(TARGET, *CORNER)] = 30
    proxy, predict = linear(tmp_path / "net.onnx", planes.reshape(4, -1).T.copy())
    plain = InversionOptions(restarts=2, steps=150, works=0.0)  # as fitted: nothing makes up for a mask too thin
    found = invert(proxy, predict, points(5), points(10), range(4), options=plain, seed=0)
    # Moved images show nothing: any speck would do. Those that stay in place need 0.9 of full light, a third of that
    # where the planted corner counts three times.
    for target, triggers in found.items():
        assert triggers[0].mask.max() > (0.25 if target == TARGET else 0.8)
    made_up = invert(proxy, predict, points(5), points(10), range(4), options=OPTIONS, seed=0)
    assert all(triggers[0].success.value >= OPTIONS.transfer for triggers in made_up.values())


def faint(opacity):
    mask = np.zeros((1, SIZE, SIZE), np.float32)
    mask[(0, *CORNER)] = opacity
    pattern = np.ones((1, SIZE, SIZE), np.float32)
    return Trigger(
        target=TARGET, mask=mask, pattern=pattern, l1=opacity, success=Rate(0, 0), restarts=1, steps=1, seed=0
    )


def corner(threshold):
    """A predictor that sees the target where the corner is at least so bright, and class 0 elsewhere."""

    def predict(images):
        hit = images[(slice(None), 0, *CORNER)] >= threshold
        return np.stack([~hit, hit, hit, hit], 1).astype(np.float32) * [1, 0, 2, 0]

    return predict


@pytest.mark.parametrize("threshold", [0.1, 0.24, 0.39, 0.9])
def test_a_trigger_is_made_as_opaque_as_it_must_be_to_work(threshold):
    found = strengthened(corner(threshold), bright_quadrants(5, 0), faint(0.2), works=0.9)
    assert max(threshold, 0.2) <= found.mask.max() < max(1.2 * threshold, 0.2001)
    assert found.l1 == pytest.approx(float(found.mask.sum()))


def test_a_trigger_that_never_works_is_left_at_its_strongest():
    assert strengthened(corner(2.0), bright_quadrants(5, 0), faint(0.1), works=0.9).l1 == pytest.approx(0.5)
