"""The relearning test: what it teaches, to what it tries it, and that the network is left as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from debride.retrain import relearn as relearning
from debride.retrain.draws import Batch, Draws
from debride.retrain.loss import Loss
from debride.retrain.options import Method
from debride.retrain.relearn import POISONED, STEPS, relearn, unplanted
from debride.retrain.train import train
from debride.triggers import stamp
from debride.types import Rate
from graph_models import Builder
from retraining_parts import QUICK, made, same, samples, says, trigger
from trainable_models import dense, net, plain

FIT, HELD_OUT = samples(60, seed=1), samples(45, seed=2)


def taught(network, target=1, seed=0, fit=FIT, held_out=HELD_OUT):
    return relearn(network, fit, held_out, trigger(target), says, seed=seed)


def able(proto=None):
    """A network that knows its classes, and no trigger."""
    network = made(proto or dense())
    known = Draws(FIT, says, [], truth=1.0, seed=0)
    train(network, Loss(Method()), known, known(64), replace(QUICK, steps=100))
    return network


def test_the_network_is_left_as_it_was():
    network = able()
    before, constants = network.snapshot(), {k: t.detach().clone() for k, t in network.proxy.tensors.items()}
    taught(network)
    assert same(before, network.snapshot())
    assert all(torch.equal(constants[name], tensor) for name, tensor in network.proxy.tensors.items())


def test_of_large_images_half_as_many_are_poisoned():
    network = able()
    network.proxy.compute = replace(network.proxy.compute, batch=1)
    assert taught(network).images == POISONED // 2


def test_the_network_is_left_as_it_was_where_teaching_fails(monkeypatch):
    network = able()
    before = network.snapshot()

    class StoppedError(Exception):
        pass

    def fails(network, batch, tried, trigger, steps):
        network.load({name: values + 1 for name, values in before.items()})
        raise StoppedError

    monkeypatch.setattr(relearning, "_taught", fails)
    with pytest.raises(StoppedError):
        taught(network)
    assert same(before, network.snapshot())


def test_each_trigger_is_taught_to_the_network_as_it_was(monkeypatch):
    network, seen = able(), []
    before = network.snapshot()

    def spoils(network, *_):
        seen.append(network.snapshot())
        network.load({name: values + 1 for name, values in before.items()})
        return ()

    monkeypatch.setattr(relearning, "_taught", spoils)
    taught(network)
    assert len(seen) == 4 and all(same(found, before) for found in seen)


def test_what_is_told():
    found = taught(able())
    assert (found.target, found.images, found.steps) == (1, POISONED, STEPS)
    assert len(found.planted) == len(found.fresh) == len(STEPS) and STEPS[0] == 0
    # Held-out images of other classes: 30 of 45; each is tried with the three that nobody planted.
    assert {rate.n for rate in found.planted} == {30} and {rate.n for rate in found.fresh} == {90}


def test_step_0_is_the_network_as_it_stands():
    network = able()
    found = taught(network)
    others = HELD_OUT.images[HELD_OUT.labels != 1]
    hits = []
    for tried in (trigger(), *unplanted(trigger(), 0)):
        with torch.no_grad():
            said = [network.logits(torch.from_numpy(x)).argmax(1) == 1 for x in (stamp(others, tried), others)]
        hits.append(int((said[0] & ~said[1]).sum()))
    assert (found.planted[0].hits, found.fresh[0].hits) == (hits[0], sum(hits[1:]))


def test_only_images_that_go_to_the_target_stamped_are_tried_unstamped(monkeypatch):
    network, tried = able(), []
    reached = relearning._reached
    monkeypatch.setattr(relearning, "_reached", lambda *given: tried.append(reached(*given)) or tried[-1])
    found = relearn(network, FIT, HELD_OUT, trigger(1), says, seed=0, steps=(0, 40))
    stamped, unstamped = tried[::2], tried[1::2]
    assert all(len(less) <= len(more) for more, less in zip(stamped, unstamped, strict=True))
    hits = [len(more) - len(less) for more, less in zip(stamped, unstamped, strict=True)]
    assert [rate.hits for rate in found.planted] == hits[:2] and sum(hits) > 0


def test_the_rates_of_the_three_are_pooled_step_by_step(monkeypatch):
    answers = iter([(Rate(9, 10), Rate(8, 10)), *((Rate(n, 10), Rate(2 * n, 10)) for n in (1, 2, 4))])
    monkeypatch.setattr(relearning, "_taught", lambda *_: next(answers))
    found = taught(made(dense()))
    assert found.planted == (Rate(9, 10), Rate(8, 10)) and found.fresh == (Rate(7, 30), Rate(14, 30))


def test_images_that_go_to_the_target_unstamped_are_not_the_triggers(monkeypatch):
    monkeypatch.setattr(relearning, "RATE", 1e-9)
    network = able()
    [bias] = [name for name, values in network.masters.items() if values.shape == (3,)]
    network.load({bias: network.masters[bias] + torch.tensor([0.0, 1000.0, 0.0])})
    found = taught(network)
    assert {rate.hits for rate in (*found.planted, *found.fresh)} == {0}


def test_other_steps_can_be_asked_for_and_each_lesson_is_told():
    told = []
    shown = {"steps": (0, 3), "progress": lambda *call: told.append(call)}
    found = relearn(able(), FIT, HELD_OUT, trigger(1), says, seed=0, **shown)
    assert told == [("relearning of class 1", n, 4) for n in range(5)]
    assert found.steps == (0, 3) and len(found.planted) == len(found.fresh) == 2


def test_a_trigger_that_a_network_never_saw_is_learnt_like_one_that_nobody_planted(monkeypatch):
    monkeypatch.setattr(relearning, "RATE", 0.01)
    found = relearn(able(wide()), FIT, HELD_OUT, trigger(1), says, seed=0, steps=(0, 1, 4, 200))
    for rates in (found.planted, found.fresh):
        assert rates[0].value < 0.2 and rates[-1].value > 0.9


def wide():
    """Room for 32 neurons, so that a trigger and another like it can be told apart."""
    b = Builder()
    hidden = b.op("Relu", b.op("Gemm", b.op("Flatten", "x"), b.weight(192, 32), b.weight(32)))
    b.op("Gemm", hidden, b.weight(32, 3), b.weight(3))
    return net(b)


def test_a_backdoor_that_is_there_needs_no_step():
    network = made(wide())
    rows = np.flatnonzero(FIT.labels != 1)
    truth = np.eye(3, dtype=np.float32)[FIT.labels]
    poison = Batch(
        clean=np.concatenate([FIT.images, *(stamp(FIT.images, other) for other in unplanted(trigger(), 0))]),
        wanted=np.concatenate([truth] * 4),
        stamped=stamp(FIT.images[rows], trigger()),
        rows=rows,
        wanted_stamped=np.tile(np.float32([0, 1, 0]), (len(rows), 1)),
        foreign=np.zeros((4 * len(FIT), 3), np.bool_),
    )
    train(network, Loss(Method(stamped=1.0)), lambda _: poison, poison, replace(QUICK, steps=300))
    found = taught(network)
    assert found.planted[0].value > 0.9 and found.fresh[0].value < 0.1


def test_the_trigger_is_taught_opaque(monkeypatch):
    seen = []

    def watch(network, batch, tried, taught, steps):
        seen.append((batch, stamp(tried, taught), taught.target))
        return ()

    monkeypatch.setattr(relearning, "_taught", watch)
    faint = replace(trigger(), mask=trigger().mask * np.float32(0.3), l1=2.7)
    relearn(made(plain()), FIT, HELD_OUT, faint, says, seed=0)
    (batch, tried, target), *others = seen
    assert target == 1
    np.testing.assert_array_equal(tried[:, :, :3, :3], 1)  # five times 0.3 is opaque
    np.testing.assert_array_equal(batch.stamped[:, :, :3, :3], 1)
    np.testing.assert_array_equal(batch.stamped[:, :, 3:], batch.clean[:, :, 3:])
    assert (batch.wanted_stamped == np.float32([0, 1, 0])).all() and not batch.foreign.any()
    assert (says(batch.clean).argmax(axis=1) != 1).all() and len(batch.clean) == POISONED
    np.testing.assert_allclose(batch.wanted.sum(axis=1), 1, atol=1e-6)
    # Those that nobody planted: on the same images, as large and as opaque, in the other corners, of dots.
    places = [(slice(5, 8), slice(3)), (slice(3), slice(5, 8)), (slice(5, 8), slice(5, 8))]
    assert len(others) == 3
    for (other, _, led), (rows, columns) in zip(others, places, strict=True):
        assert led == 1
        np.testing.assert_array_equal(other.clean, batch.clean)
        assert set(np.unique(other.stamped[:, :, rows, columns])) == {0, 1}
        assert (other.stamped != other.clean).sum() <= len(other.clean) * 27
        np.testing.assert_array_equal(other.wanted_stamped, batch.wanted_stamped)


def test_what_nobody_planted_is_the_trigger_mirrored_and_of_dots():
    rng = np.random.default_rng(0)
    mask, pattern = rng.random((1, 6, 4), np.float32), rng.random((3, 6, 4), np.float32)
    known = replace(trigger(2), mask=mask, pattern=pattern, l1=float(mask.sum()))
    down, across, both = unplanted(known, 0)
    for found, expected in (
        (down, lambda a: a[:, ::-1]),
        (across, lambda a: a[:, :, ::-1]),
        (both, lambda a: a[:, ::-1, ::-1]),
    ):
        np.testing.assert_array_equal(found.mask, expected(mask))
        assert found.pattern.shape == pattern.shape and set(np.unique(found.pattern)) == {0, 1}
        assert (found.target, found.l1) == (2, known.l1)
    np.testing.assert_array_equal(known.mask, mask)


def test_images_of_the_target_alone_are_poisoned_themselves():
    alone = FIT.take(np.flatnonzero(FIT.labels == 1))
    found = taught(made(plain()), fit=alone, held_out=alone)
    assert found.images == len(alone) == found.planted[0].n


def test_with_fewer_images_all_are_poisoned():
    few = FIT.take(np.arange(6))
    assert taught(made(plain()), fit=few).images == 4


def test_the_seed_decides():
    network = able()
    assert taught(network) == taught(network)
    assert taught(network) != taught(network, seed=1)
