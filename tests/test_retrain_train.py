"""The course of a retraining on tiny graphs: what it lowers, and which weights remain."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

from debride.errors import ModelError, UsageError
from debride.graph.read import model_of
from debride.retrain import train as course
from debride.retrain.draws import Draws
from debride.retrain.loss import Loss
from debride.retrain.network import Network
from debride.retrain.options import METHODS, Method, RetrainOptions
from debride.retrain.train import train
from graph_models import Builder
from retraining_parts import (
    FULL,
    PLAIN,
    QUICK,
    SPEC,
    draws,
    images,
    look,
    loss_of,
    made,
    same,
    samples,
    says,
    trained,
    value,
)
from trainable_models import dense, end, groups_of, net, nhwc, plain, read


@pytest.mark.parametrize("what", [plain, dense], ids=["norm", "matmul"])
@pytest.mark.parametrize("method", [PLAIN, replace(PLAIN, radius=0.5), FULL], ids=["plain", "sam", "all terms"])
def test_the_loss_on_other_images_falls(what, method):
    network, loss = made(what()), loss_of(method, what())
    before = value(loss, network, look(method))
    found = train(network, loss, draws(method), look(method), replace(QUICK, steps=60))
    assert found.loss < 0.9 * before and found.best > 0
    assert value(loss, network, look(method)) == found.loss


@pytest.mark.parametrize("name", METHODS)
def test_every_method_that_is_offered_runs_and_lowers_its_loss(name):
    network, method = made(), METHODS[name]
    before = value(loss_of(method), network, look(method))
    found = trained(network, method, replace(QUICK, steps=60))
    assert found.best > 0 and found.loss < before


def test_unlearning_takes_stamped_images_out_of_the_target():
    network, method = made(), Method(stamped=1.0)
    stamped = torch.from_numpy(look(method).stamped)
    taught = Draws(samples(), lambda x: np.tile(np.float32([0, 1, 0]), (len(x), 1)), [], truth=0.0, seed=0)
    train(network, Loss(Method()), taught, taught(64), replace(QUICK, steps=60))
    assert (network.logits(stamped).argmax(1) == 1).all()
    trained(network, method, replace(QUICK, steps=100))
    assert (network.logits(stamped).argmax(1) == 1).float().mean() < 0.05


def test_features_hold_a_network_to_what_it_was():
    apart = []
    for weight in (0.0, 1000.0):
        network, method = made(), Method(truth=1.0, features=weight)
        x = torch.from_numpy(images(20, 5))
        _, before = network.logits_and_features(x)
        trained(network, method, replace(QUICK, steps=60))
        _, after = network.logits_and_features(x)
        apart.append(float((after - before).detach().norm() / before.detach().norm()))
    assert apart[1] < 0.25 * apart[0]


def test_fixed_batches_are_trained_portion_by_portion():
    spec = replace(SPEC, layout="NHWC")
    model = read(nhwc())
    network = Network(model, spec, groups_of(model))
    assert model.rewritten is None or network.proxy.graph.inputs[0].shape[0] in (None, 1)
    found = train(network, Loss(PLAIN), draws(), look(), replace(QUICK, steps=40))
    assert found.best > 0


def bound(batch=4):
    """A classifier that takes `batch` images at a time, since its own shape says so, and cannot be freed."""
    b = Builder()
    b.fixed = True
    y = b.op("Relu", b.conv("x", 3, 4))
    y = b.op("Reshape", y, b.const(np.array([batch * 4, 1, 8, 8], np.int64)))
    y = b.op("Reshape", b.op("GlobalAveragePool", y), b.const(np.array([batch, 4], np.int64)))
    b.op("Gemm", y, b.weight(4, 3), b.weight(3))
    return net(b, batch=batch)


def test_a_graph_bound_to_its_batch_trains_in_portions_and_says_what_it_cannot_do():
    model = model_of(bound().SerializeToString(), Path("m.onnx"), free=False)
    network = Network(model, SPEC, groups_of(model))
    assert network.proxy.graph.inputs[0].shape[0] == 4
    found = train(network, Loss(PLAIN), draws(), look(), replace(QUICK, images=10, steps=40))
    assert found.best > 0
    with pytest.raises(ModelError, match="takes 4 images at a time; export it with a dynamic batch"):
        network.logits_and_features(torch.from_numpy(images(10)))


def half():
    """`plain` without its norm, in float16 between two casts."""
    b = Builder()
    x = b.op("Cast", "x", to=TensorProto.FLOAT16)
    y = b.op("Relu", b.conv(x, 3, 4))
    b.op("Cast", end(b, y, 4), to=TensorProto.FLOAT)
    proto = net(b, check=False)
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def test_half_precision_learns_in_steps_smaller_than_it_can_tell():
    network = made(half())
    assert {t.dtype for t in network.masters.values()} == {torch.float32}
    before = network.snapshot()
    # Adam's steps are of about the rate: a tenth of what float16 tells at 0.5.
    found = trained(network, options=RetrainOptions(steps=100, images=16, rate=5e-5))
    assert found.best > 0
    moved = {name: network.masters[name] - before[name] for name in before}
    assert all(0 < float(m.abs().max()) < 0.01 for m in moved.values())
    for name, tensor in network.proxy.tensors.items():
        if name in network.masters:
            assert tensor.dtype == torch.float16
            assert torch.equal(tensor, network.masters[name].half())


# The course


def scripted(monkeypatch, losses):
    """The losses on watched images come from a list; the weights at each look are kept."""
    seen = []

    def watch(network, loss, batch):
        seen.append(network.snapshot())
        return losses[len(seen) - 1]

    monkeypatch.setattr(course, "_watch", watch)
    return seen


def test_the_weights_of_the_best_step_remain(monkeypatch):
    network = made()
    seen = scripted(monkeypatch, [5.0, 4.0, 3.0, 3.5, 3.2, 3.1, 3.3, 3.3, 3.3])
    found = trained(network)
    assert (found.steps, found.best, found.loss) == (16, 4, 3.0)  # six looks of two steps without a better one
    assert same(network.snapshot(), seen[2]) and not same(seen[2], seen[3])
    for name, values in seen[2].items():
        assert torch.equal(network.proxy.tensors[name], values)


def test_step_0_is_kept_where_nothing_helps(monkeypatch):
    network = made()
    before = network.snapshot()
    scripted(monkeypatch, [1.0] + [2.0] * 11)
    found = trained(network)
    assert (found.best, found.loss) == (0, 1.0) and found.steps == 12
    assert same(network.snapshot(), before)
    np.testing.assert_array_equal(network.arrays().keys(), before.keys())


def test_labels_that_are_noise_leave_a_good_network_as_it_was():
    network = made()
    trained(network, options=replace(QUICK, steps=200))
    before = network.snapshot()
    rng = np.random.default_rng(0)
    noise = Draws(samples(), says, [], truth=0.0, seed=0)
    noise._delivered = lambda x: np.eye(3, dtype=np.float32)[rng.integers(3, size=len(x))]
    found = train(network, Loss(PLAIN), noise, look(), replace(QUICK, steps=40))
    assert found.best == 0 and same(network.snapshot(), before)


def test_the_last_step_is_looked_at_whatever_the_stride(monkeypatch):
    seen = scripted(monkeypatch, [9.0 - i for i in range(9)])
    found = trained(made(), options=replace(QUICK, steps=23))
    assert (found.steps, found.best, len(seen)) == (23, 23, 9)  # after 3, 6, ... 21 and 23


def test_no_step_is_taken_after_the_deadline():
    network = made()
    before = network.snapshot()
    found = trained(network, deadline=time.monotonic() - 1)
    assert (found.steps, found.best) == (0, 0) and same(network.snapshot(), before)


@pytest.mark.parametrize(("last", "best"), [(5.0, 7), (6.5, 6)])
def test_at_a_deadline_within_the_course_the_last_step_is_looked_at_too(monkeypatch, last, best):
    now = iter(range(100))
    monkeypatch.setattr(course, "time", SimpleNamespace(monotonic=lambda: next(now)))
    network = made()
    seen = scripted(monkeypatch, [9.0, 8.0, 7.0, 6.0, last])  # before, and after 2, 4, 6 and 7 steps
    found = trained(network, deadline=6.5)
    assert (found.steps, found.best, len(seen)) == (7, best, 5)
    assert same(network.snapshot(), seen[4 if best == 7 else 3])


def test_a_loss_that_is_not_finite_leaves_the_last_good_weights():
    network, batches = made(), draws()
    good = []

    def spoilt(count):
        good.append(network.snapshot())
        batch = batches(count)
        return replace(batch, clean=batch.clean * np.nan) if len(good) > 6 else batch

    found = train(network, Loss(PLAIN), spoilt, look(), QUICK)
    assert found.best in (2, 4, 6) and math.isfinite(found.loss)
    assert same(network.snapshot(), good[found.best])
    assert all(np.isfinite(values).all() for values in network.arrays().values())


def test_a_network_that_never_gives_a_finite_loss_stays_as_it_is():
    network = made()
    before = network.snapshot()
    hopeless = replace(look(), clean=look().clean * np.nan)
    found = train(network, Loss(PLAIN), draws(), hopeless, QUICK)
    assert (found.best, found.loss) == (0, math.inf) and same(network.snapshot(), before)


@pytest.mark.parametrize("method", [PLAIN, FULL, Method(radius=0.5, stamped=0.5)], ids=["plain", "all", "sam"])
def test_the_same_seed_gives_the_same_bits(method):
    one, other, third = made(), made(), made()
    trained(one, method)
    trained(other, method)
    train(third, Loss(replace(method, features=0.0)), draws(method, seed=1), look(method), QUICK)
    assert same(one.snapshot(), other.snapshot()) and not same(one.snapshot(), third.snapshot())


def test_progress_is_told_step_by_step_and_ends():
    told = []
    trained(made(), options=replace(QUICK, steps=5), progress=lambda *args: told.append(args), stage="here")
    assert [(stage, done, total) for stage, done, total, _ in told] == [("here", i, 5) for i in (1, 2, 3, 4, 5, 5)]
    assert all(note.startswith("loss ") for *_, note in told)


def test_the_rate_rises_then_falls_to_nothing():
    shares = [course._share(step, 100) for step in range(101)]
    assert shares[0] == pytest.approx(1 / 20) and max(shares) == max(shares[15:25]) > 0.85
    assert all(one < other for one, other in pairwise(shares[:16]))
    assert shares[100] == pytest.approx(0) and all(a > b for a, b in pairwise(shares[20:]))


@pytest.mark.parametrize(
    "bad",
    [{"steps": 0}, {"steps": 100_001}, {"images": 1}, {"images": 4097}, {"rate": 0.0}, {"rate": 1.1}, {"method": "x"}],
)
def test_options_out_of_range_are_wrong_usage(bad):
    with pytest.raises(UsageError):
        RetrainOptions(**bad)
