"""A network whose weights are trained: what stays at zero, its features, and one step computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import debride.retrain.network
from debride.errors import ModelError
from debride.graph.surgery import zero
from debride.retrain import draws as drawing
from debride.retrain.draws import Batch
from debride.retrain.loss import Loss, set_gradients
from debride.retrain.network import Network
from debride.retrain.options import Method
from debride.types import Compute
from graph_models import Builder
from retraining_parts import (
    FULL,
    PLAIN,
    QUICK,
    SPEC,
    images,
    look,
    loss_of,
    made,
    same,
    trained,
    value,
)
from trainable_models import end, groups_of, net, plain, read


def test_silent_entries_stay_exactly_zero_and_the_others_move():
    network = made(plain(), gone=(0, 2))
    assert network.silent and any(mask.any() for mask in network.silent.values())
    before = network.snapshot()
    for method in (PLAIN, replace(PLAIN, radius=0.5)):
        trained(network, method, replace(QUICK, steps=40))
    assert not same(before, network.snapshot())
    for name, mask in network.silent.items():
        for values in (network.arrays().get(name), network.proxy.tensors[name].detach().numpy()):
            assert values is None or not values[mask].any()


def test_without_groups_nothing_is_held_at_zero():
    model = read(plain())
    dead = read(zero(model, groups_of(model)[:1]))
    assert Network(dead, SPEC, groups_of(model)).silent and not Network(dead, SPEC, ()).silent


def test_of_what_cannot_be_trained_nothing_is_held_at_zero(monkeypatch):
    everything = made(gone=(0, 2)).silent
    real = debride.retrain.network.trainable

    def but_one(*args):
        weights, fixed = real(*args)
        return tuple(w for w in weights if w.name != min(everything)), fixed

    monkeypatch.setattr(debride.retrain.network, "trainable", but_one)
    network = made(gone=(0, 2))
    assert everything.keys() - network.silent.keys() == {min(everything)}
    assert network.silent.keys() <= network.masters.keys() and min(everything) not in network.masters


def test_an_untrainable_model_is_refused_with_the_reason():
    b = Builder()
    b.op("Flatten", b.op("GlobalAveragePool", "x"))
    with pytest.raises(ModelError, match=r"m\.onnx: no weight can be trained: it has no layer with weights"):
        made(net(b))


def test_a_model_whose_weights_are_computed_names_each_reason_once():
    b = Builder()
    numbers = [b.const(np.ones((3, 4), np.int8)), b.const(np.ones((4, 3), np.int8))]
    y = b.op("Flatten", b.op("GlobalAveragePool", "x"))
    for number in numbers:
        y = b.op("MatMul", y, b.op("DequantizeLinear", number, b.const(np.float32(0.1))))
    with pytest.raises(ModelError, match=r"trained: its weight is computed in the graph, by \w+; export it with"):
        made(net(b))


def test_features_are_those_that_the_last_linear_layer_reads():
    network = made(plain())
    x = torch.from_numpy(images(5))
    logits, features = network.logits_and_features(x)
    assert torch.equal(logits, network.logits(x)) and features.shape == (5, 4)
    weight, bias = (network.proxy.tensors[name] for name in list(network.masters)[-2:])
    np.testing.assert_allclose((features @ weight + bias).detach(), logits.detach(), rtol=0, atol=1e-6)


def test_a_network_without_a_linear_layer_has_no_features():
    b = Builder()
    pooled = b.op("Flatten", b.op("GlobalAveragePool", b.bn("x", 3)))
    b.op("Identity", pooled)
    network = made(net(b))
    with pytest.raises(ModelError, match="no linear layer"):
        network.logits_and_features(torch.from_numpy(images(2)))


def test_of_a_model_that_ends_in_a_softmax_the_logits_are_before_it():
    b = Builder()
    b.op("Softmax", end(b, b.op("Relu", b.conv("x", 3, 4)), 4), axis=1)
    network = made(net(b))
    logits, features = network.logits_and_features(torch.from_numpy(images(5)))
    assert float((logits.sum(1) - 1).abs().min().detach()) > 1e-3 and features.shape == (5, 4)
    assert torch.equal(logits, network.logits(torch.from_numpy(images(5))))


def cast(to, back=None):
    """A classifier that computes in the type `to`, weights and all; or casts its scores to it."""
    b = Builder()
    x = b.op("Cast", "x", to=to) if back else "x"
    y = end(b, b.op("Relu", b.conv(x, 3, 4)), 4)
    b.op("Cast", y if back else b.op("Cast", y, to=to), to=TensorProto.FLOAT)
    proto = net(b, check=False)
    for tensor in proto.graph.initializer if back else ():
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(back), tensor.name))
    return proto


def test_scores_that_are_cast_behind_all_weights_are_refused_and_others_are_not():
    with pytest.raises(ModelError, match="no weight can be trained: what the image becomes is rounded or cast"):
        made(cast(TensorProto.INT32)).check(images(1))
    made(plain()).check(images(1))


def test_weights_in_double_precision_are_mastered_in_it():
    network = made(cast(TensorProto.DOUBLE, np.float64))
    assert {m.dtype for m in network.masters.values()} == {torch.float64}
    found = trained(network)
    assert found.best > 0 and {m.grad.dtype for m in network.masters.values()} == {torch.float64}
    assert {values.dtype for values in network.arrays().values()} == {np.dtype(np.float64)}


# One step by hand


def linear(weight, bias):
    """Scores of a 1 x 1 image of three channels: its pixels times `weight` (3, 3), and `bias`."""
    constants = {"w": np.float32(weight), "b": np.float32(bias)}
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["scores"], name="g")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 1, 1])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


W = np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [-0.6, 0.2, 0.7]])
B = np.array([0.1, -0.3, 0.2])
X = np.array([[0.2, 0.9, 0.4], [0.8, 0.1, 0.5], [0.3, 0.3, 0.9]])
GOAL = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def slopes(w, b, extra=0.0):
    """Gradients of the mean cross entropy in weight and bias, `extra` added to the scores."""
    error = (softmax(X @ w + b + extra) - GOAL) / len(X)
    return X.T @ error, error.sum(axis=0)


def by_hand(margin=False):
    network = made(linear(W, B), replace(SPEC, size=(1, 1)))
    foreign = np.zeros((3, 3), bool)
    foreign[1:, 0] = margin
    batch = Batch(
        clean=X.astype(np.float32).reshape(3, 3, 1, 1),
        wanted=GOAL.astype(np.float32),
        stamped=np.zeros((0, 3, 1, 1), np.float32),
        rows=np.zeros(0, np.int64),
        wanted_stamped=np.zeros((0, 3), np.float32),
        foreign=foreign,
    )
    return network, batch


def close(network, weight, bias):
    for name, expected in (("w", weight), ("b", bias)):
        np.testing.assert_allclose(network.masters[name].grad, expected, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_cross_entropy():
    network, batch = by_hand()
    set_gradients(network, Loss(Method()), batch)
    close(network, *slopes(W, B))
    expected = -(GOAL * np.log(softmax(X @ W + B))).sum(axis=1).mean()
    assert value(Loss(Method()), network, batch) == pytest.approx(expected, abs=1e-6)


def test_a_margin_is_added_to_foreign_targets():
    network, batch = by_hand(margin=True)
    set_gradients(network, Loss(Method(margin=2.0)), batch)
    close(network, *slopes(W, B, 2.0 * batch.foreign))


def test_the_sharpness_aware_step_is_the_gradient_at_the_worst_place_nearby():
    network, batch = by_hand()
    before = network.snapshot()
    set_gradients(network, Loss(Method(radius=0.3)), batch)
    dw, db = slopes(W, B)
    # Equation 7 of FT-SAM: w + rho * T^2 g / |T g|, with T = diag(|w|).
    length = np.sqrt(((W * dw) ** 2).sum() + ((B * db) ** 2).sum())
    worst = (W + 0.3 * W**2 * dw / length, B + 0.3 * B**2 * db / length)
    close(network, *slopes(*worst))
    assert np.abs(slopes(*worst)[0] - dw).max() > 1e-3
    assert same(before, network.snapshot())
    for name, values in before.items():
        assert torch.equal(network.proxy.tensors[name], values)


def test_stamped_images_weigh_as_the_method_says():
    network, batch = by_hand()
    stamped = np.full((1, 3, 1, 1), 0.5, np.float32)
    goal = np.float32([[0.5, 0, 0.5]])
    batch = replace(batch, stamped=stamped, rows=np.array([1]), wanted_stamped=goal)
    clean = -(GOAL * np.log(softmax(X @ W + B))).sum(axis=1).mean()
    extra = -(goal * np.log(softmax(stamped.reshape(1, 3) @ W + B))).sum()
    for weight in (0.0, 0.25, 2.0):
        found = value(Loss(Method(stamped=weight)), network, batch)
        assert found == pytest.approx(clean + weight * extra, abs=1e-6)


def test_the_margin_holds_for_stamped_images_too():
    network, batch = by_hand(margin=True)
    goal = np.float32([[0.0, 0.5, 0.5]])
    batch = replace(batch, stamped=batch.clean[1:2], rows=np.array([1]), wanted_stamped=goal)
    one, none = (value(Loss(Method(stamped=weight, margin=2.0)), network, batch) for weight in (1.0, 0.0))
    raised = X[1:2] @ W + B + 2.0 * batch.foreign[1:2]
    assert one - none == pytest.approx(-(goal * np.log(softmax(raised))).sum(), abs=1e-5)


def test_features_apart_are_told_in_shares_of_their_size():
    network, batch = by_hand()
    delivered = Network(read(linear(W, B)), replace(SPEC, size=(1, 1)), ())
    half = batch.clean[:1] * np.float32(0.5)
    stamped = replace(batch, stamped=half, rows=np.array([0]), wanted_stamped=batch.wanted[:1])
    one = value(Loss(Method(stamped=1.0, features=3.0), delivered), network, stamped)
    none = value(Loss(Method(stamped=1.0)), network, stamped)
    # The features are the pixels themselves: those of the stamped image are half as large, of the others equal.
    assert one - none == pytest.approx(3 * np.mean((X[0] / 2) ** 2) / np.mean(X**2), abs=1e-5)


@pytest.mark.parametrize(
    ("method", "apart"),
    # Features are told in shares of their size in the part that they are of.
    [(PLAIN, 0), (replace(FULL, features=0.0), 0), (replace(FULL, features=0.0, radius=0.5), 0), (FULL, 0.01)],
    ids=["plain", "stamped", "sam", "features"],
)
def test_parts_of_a_batch_add_up_to_the_whole(method, apart, monkeypatch):
    network, loss, batch = made(), loss_of(method), look(method)
    if loss.delivered is not None:
        network.load({name: values * 1.1 for name, values in network.snapshot().items()})

    def told():
        parts = list(loss(network, batch))
        set_gradients(network, loss, batch)
        total = float(torch.stack(parts).sum().detach())
        return len(parts), total, {name: master.grad.clone() for name, master in network.masters.items()}

    count, whole, slope = told()
    monkeypatch.setattr(drawing, "_VALUES", 7 * batch.clean[0].size)
    pieces, total, summed = told()
    assert (count, pieces) == (1, 10)
    assert total == pytest.approx(whole, abs=1e-6 + apart)
    for name, gradient in slope.items():
        assert gradient.abs().max() > 1e-5
        np.testing.assert_allclose(summed[name], gradient, rtol=1e-4 + apart, atol=1e-6 + apart)


def test_what_is_trained_may_compute_in_bfloat16_by_masters_in_float32():
    network, x = made(compute=Compute(precision="bfloat16")), torch.from_numpy(images(5))
    rounded = network.logits(x).detach()
    assert rounded.dtype == torch.float32 and {m.dtype for m in network.masters.values()} == {torch.float32}
    apart = (rounded - made().logits(x).detach()).abs().max() / rounded.abs().max()
    assert 1e-6 < float(apart) < 0.02
