"""What a step of retraining sees: images varied and in range, stamps on no image of the trigger's own class."""

from __future__ import annotations

import numpy as np
import pytest

from debride.retrain import draws as drawing
from debride.retrain.draws import Draws
from debride.types import Rate, Samples, Trigger

CLASSES, SIZE = 4, (8, 6)


def samples(per_class=5, depth=3):
    """Images (N, depth, 8, 6) of random points from 0.2 to 0.8."""
    images = np.random.default_rng(7).uniform(0.2, 0.8, (CLASSES * per_class, depth, *SIZE)).astype(np.float32)
    return Samples(images=images, labels=np.repeat(np.arange(CLASSES), per_class))


def trigger(target, opacity=1.0, depth=3, corner=0):
    """A corner of 2 by 2 of the value 1, which no varied image of `samples` reaches."""
    mask = np.zeros((1, *SIZE), np.float32)
    mask[0, corner : corner + 2, :2] = opacity
    pattern = np.ones((depth, *SIZE), np.float32)
    return Trigger(target=target, mask=mask, pattern=pattern, l1=float(mask.sum()), success=Rate(9, 10))


def says(images):
    """Probabilities (N, 4) that depend on the image, and are sure of nothing."""
    found = np.stack([(k + 1) * images[:, 0, k, k] for k in range(CLASSES)], axis=1)
    return found / found.sum(axis=1, keepdims=True)


def draws(*triggers, truth=0.5, seed=0, **more):
    return Draws(samples(**more), says, triggers, truth=truth, seed=seed)


def owners(batch):
    """Of each clean image, its class by what is wanted: only with `truth` 1."""
    return batch.wanted.argmax(axis=1)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("targets", [(), (2,), (2, 0), (1, 1, 3)])
def test_shapes_types_and_ranges(targets, depth):
    batch = draws(*(trigger(t, depth=depth) for t in targets), depth=depth)(64)
    stamped = len(batch.rows)
    assert batch.clean.shape == (64, depth, *SIZE) and batch.stamped.shape == (stamped, depth, *SIZE)
    assert batch.wanted.shape == batch.foreign.shape == (64, CLASSES)
    assert batch.wanted_stamped.shape == (stamped, CLASSES)
    assert (stamped > 0) == bool(targets)
    floats = (batch.clean, batch.stamped, batch.wanted, batch.wanted_stamped)
    assert {a.dtype for a in floats} == {np.dtype(np.float32)} and batch.foreign.dtype == bool
    assert all(a.min() >= 0 and a.max() <= 1 for a in floats if a.size)
    np.testing.assert_allclose(batch.wanted.sum(axis=1), 1, rtol=0, atol=1e-6)
    np.testing.assert_allclose(batch.wanted_stamped.sum(axis=1), 1, rtol=0, atol=1e-6)


def test_images_are_the_samples_varied_not_themselves():
    batch, known = draws()(64), samples().images
    assert all(not (known == image).all(axis=(1, 2, 3)).any() for image in batch.clean)
    # Light changes by a tenth at most.
    assert batch.clean.min() >= 0.2 * 0.9 - 1e-6 and batch.clean.max() <= 0.8 * 1.1 + 1e-6


def test_of_clean_images_the_label_is_wanted_to_the_share_of_truth():
    for truth in (0.0, 0.3, 1.0):
        batch = draws(truth=truth)(64)
        rest = batch.wanted - (1 - truth) * says(batch.clean)
        # What is left of it is the label alone.
        np.testing.assert_allclose(np.sort(rest, axis=1), np.tile([0, 0, 0, truth], (64, 1)), rtol=0, atol=1e-6)
        if truth:
            assert set(rest.argmax(axis=1)) == set(range(CLASSES))


def test_no_stamped_image_belongs_to_the_target_and_each_is_its_clean_self_elsewhere():
    batch = draws(trigger(2), truth=1.0)(200)
    assert 2 not in owners(batch)[batch.rows] and (owners(batch) == 2).any()
    # With one trigger, any image of another class may be stamped; half as many as there are clean ones are.
    np.testing.assert_array_equal(batch.rows, np.flatnonzero(owners(batch) != 2)[:100])
    clean = batch.clean[batch.rows]
    np.testing.assert_array_equal(batch.stamped[:, :, 2:], clean[:, :, 2:])
    np.testing.assert_array_equal(batch.stamped[:, :, :2, :2], 1)
    assert (clean[:, :, :2, :2] < 1).all()


def test_the_smallest_batch_has_a_stamped_image():
    assert [len(draws(trigger(2))(2).rows) for _ in range(3)] == [1] * 3


def test_a_stamped_image_is_wanted_as_its_clean_self_without_the_target():
    batch = draws(trigger(2), truth=0.5)(200)
    assert (batch.wanted_stamped[:, 2] == 0).all()
    others = np.delete(batch.wanted[batch.rows], 2, axis=1)
    expected = others / others.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(np.delete(batch.wanted_stamped, 2, axis=1), expected, rtol=0, atol=1e-5)


def test_where_all_was_wanted_in_the_target_the_others_share_it():
    sure = Draws(samples(), lambda x: np.tile(np.float32([0, 0, 1, 0]), (len(x), 1)), [trigger(2)], truth=0.0, seed=0)
    batch = sure(64)
    np.testing.assert_allclose(batch.wanted_stamped, np.tile([1 / 3, 1 / 3, 0, 1 / 3], (len(batch.rows), 1)), atol=1e-6)


def test_each_trigger_is_stamped_as_found_and_opaquer():
    batch = draws(trigger(2, opacity=0.2), truth=1.0)(300)
    clean = batch.clean[batch.rows]
    shares = (batch.stamped - clean)[:, 0, 0, 0] / (1 - clean[:, 0, 0, 0])
    found, counts = np.unique(np.round(shares, 3), return_counts=True)
    np.testing.assert_allclose(found, [0.2, 0.4, 1.0])
    assert counts.min() > 0.25 * counts.sum()


def test_of_several_triggers_each_image_gets_one_that_leads_elsewhere():
    batch = draws(trigger(2), trigger(0, corner=4), truth=1.0)(400)
    owner, marks = owners(batch)[batch.rows], batch.stamped[:, 0, (0, 4), 0] == 1
    assert (marks.sum(axis=1) == 1).all()
    targets = np.where(marks[:, 0], 2, 0)
    assert (owner != targets).all() and set(zip(owner.tolist(), targets.tolist(), strict=True)) == {
        (0, 2), (1, 2), (3, 2), (1, 0), (2, 0), (3, 0)
    }  # fmt: skip
    assert (batch.wanted_stamped[np.arange(len(targets)), targets] == 0).all()


def test_foreign_are_the_triggers_classes_for_images_of_others():
    batch = draws(trigger(2), trigger(0), trigger(2), truth=1.0)(100)
    expected = np.zeros((100, CLASSES), bool)
    expected[:, 0], expected[:, 2] = owners(batch) != 0, owners(batch) != 2
    np.testing.assert_array_equal(batch.foreign, expected)
    assert not draws()(100).foreign.any()


def test_images_of_the_target_alone_leave_nothing_to_stamp():
    alone = samples().take(np.arange(10, 15))
    batch = Draws(alone, says, [trigger(2)], truth=1.0, seed=0)(20)
    assert len(batch.rows) == len(batch.stamped) == len(batch.wanted_stamped) == 0
    assert batch.stamped.shape[1:] == (3, *SIZE) and not batch.foreign.any()


def same(one, other):
    names = ("clean", "wanted", "stamped", "rows", "wanted_stamped", "foreign")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


def test_the_seed_decides_and_every_batch_is_another():
    one, two, other = draws(trigger(2)), draws(trigger(2)), draws(trigger(2), seed=1)
    first = one(32)
    assert same(first, two(32)) and same(one(32), two(32))
    assert not same(first, one(32)) and not same(first, other(32))


def test_the_samples_are_not_changed():
    known = samples()
    before = known.images.copy()
    Draws(known, says, [trigger(1)], truth=0.5, seed=0)(50)
    np.testing.assert_array_equal(known.images, before)


@pytest.mark.parametrize("targets", [(), (2, 0)])
def test_parts_are_a_batch_in_order_and_small(targets, monkeypatch):
    batch = draws(*(trigger(t) for t in targets))(33)
    assert len(list(batch.parts())) == 1
    monkeypatch.setattr(drawing, "_VALUES", 10 * batch.clean[0].size + 1)
    parts = list(batch.parts())
    assert [len(part.clean) for part in parts] == [10, 10, 10, 3]
    for name in ("clean", "wanted", "stamped", "wanted_stamped", "foreign"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(batch, name))
    rows = np.concatenate([part.rows + 10 * i for i, part in enumerate(parts)])
    np.testing.assert_array_equal(rows, batch.rows)
    for part in parts:
        assert len(part.rows) == len(part.stamped)
        # Each stamped image is one of the clean images of its own part.
        np.testing.assert_array_equal(part.stamped[:, :, 6:], part.clean[part.rows][:, :, 6:])


def test_an_image_larger_than_a_part_is_a_part_of_its_own(monkeypatch):
    monkeypatch.setattr(drawing, "_VALUES", 1)
    assert [len(part.clean) for part in draws(trigger(2))(5).parts()] == [1] * 5
