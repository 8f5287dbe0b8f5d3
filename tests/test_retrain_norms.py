"""Running statistics estimated anew, against what numpy makes of the same tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import debride.retrain.norms
from debride.errors import ModelError
from debride.graph.read import model_of, read_model
from debride.graph.weights import statistics
from debride.proxy.interpreter import Proxy
from debride.retrain.norms import estimate
from graph_models import Builder, run
from retraining_parts import SPEC, images, samples
from trainable_models import SAMPLE, end, net, plain, read


def with_tensor(proto, *names):
    """`proto` that gives these tensors too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    return copy


def two_norms():
    b = Builder()
    y = b.op("Relu", b.bn(b.conv("x", 3, 4), 4))
    end(b, b.op("Relu", b.bn(b.conv(y, 4, 5), 5)), 5)
    return net(b)


def prepared(proto):
    model = read(proto)
    proxy = Proxy(model.graph, SPEC)
    return model, proxy, statistics(model, proxy.output)


def test_mean_and_biased_variance_are_those_of_the_images():
    model, proxy, norms = prepared(plain())
    x = images(30)
    found = estimate(proxy, norms, x)
    (norm,) = norms
    (data,) = run(with_tensor(model.proto, norm.data), {"x": x}, [norm.data])
    assert found.keys() == {norm.mean, norm.variance}
    wide = data.astype(np.float64)
    np.testing.assert_allclose(found[norm.mean], wide.mean(axis=(0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[norm.variance], wide.var(axis=(0, 2, 3)), rtol=1e-5, atol=1e-7)
    assert {values.dtype for values in found.values()} == {np.dtype(np.float32)}


def test_each_norm_sees_what_those_before_it_make_of_the_images():
    model, proxy, norms = prepared(two_norms())
    first, second = norms
    x = images(20)
    found = estimate(proxy, norms, x)
    changed = onnx.ModelProto()
    changed.CopyFrom(model.proto)
    for tensor in changed.graph.initializer:
        if tensor.name in (first.mean, first.variance):
            tensor.CopyFrom(onnx.numpy_helper.from_array(found[tensor.name], tensor.name))
    (data,) = run(with_tensor(changed, second.data), {"x": x}, [second.data])
    (stale,) = run(with_tensor(model.proto, second.data), {"x": x}, [second.data])
    np.testing.assert_allclose(found[second.mean], data.mean(axis=(0, 2, 3)), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[second.variance], data.var(axis=(0, 2, 3)), rtol=1e-4, atol=1e-7)
    assert np.abs(found[second.mean] - stale.mean(axis=(0, 2, 3))).max() > 1e-3


def test_what_is_normalised_then_has_mean_0_and_variance_1():
    model, proxy, norms = prepared(plain())
    x = images(30)
    estimate(proxy, norms, x)
    node = next(node for node in model.graph.nodes if node.op == "BatchNormalization")
    scale, shift = (torch.from_numpy(model.graph.constants[name].copy()) for name in node.inputs[1:3])
    with torch.no_grad():
        given = proxy.edges(torch.from_numpy(x), node.outputs)[node.outputs[0]]
    given = (given - shift[:, None, None]) / scale[:, None, None]
    np.testing.assert_allclose(given.mean((0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(given.var((0, 2, 3), correction=0), 1, atol=1e-3)  # epsilon keeps it a little below


def test_the_proxy_computes_with_them_and_nothing_else_of_it_changed():
    _, proxy, norms = prepared(two_norms())
    before = {name: tensor.clone() for name, tensor in proxy.tensors.items()}
    found = estimate(proxy, norms, images(20))
    for name, tensor in proxy.tensors.items():
        assert torch.equal(tensor, torch.from_numpy(found[name]) if name in found else before[name])
    assert len(found) == 4 and all(not torch.equal(before[name], torch.from_numpy(found[name])) for name in found)


def test_a_dense_norm_is_estimated_over_the_images_alone():
    b = Builder()
    hidden = b.bn(b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 4)), 4)
    b.op("MatMul", b.op("Relu", hidden), b.weight(4, 3))
    model, proxy, norms = prepared(net(b))
    x = images(25)
    (norm,), found = norms, estimate(proxy, norms, x)
    (data,) = run(with_tensor(model.proto, norm.data), {"x": x}, [norm.data])
    np.testing.assert_allclose(found[norm.mean], data.mean(axis=0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found[norm.variance], data.var(axis=0), rtol=1e-4)


def test_images_are_not_changed_and_no_norms_are_nothing():
    known = samples()
    before = known.images.copy()
    model = read_model(SAMPLE)
    assert statistics(model) == ()  # its exporter folded them
    _, proxy, norms = prepared(plain())
    assert estimate(proxy, (), known.images) == {}
    estimate(proxy, norms, known.images)
    np.testing.assert_array_equal(known.images, before)


def test_data_that_are_not_finite_are_refused_by_the_norms_name():
    _, proxy, norms = prepared(plain())
    x = images(4)
    x[1, 0, 0, 0] = np.nan
    with pytest.raises(ModelError, match=f"'{norms[0].node}' normalises is not finite .* keep its statistics"):
        estimate(proxy, norms, x)


def test_a_graph_bound_to_its_batch_is_refused_with_the_mend():
    b = Builder()
    end(b, b.op("Relu", b.bn(b.conv("x", 3, 4), 4)), 4)
    model = model_of(net(b, batch=2).SerializeToString(), Path("m.onnx"), free=False)
    proxy = Proxy(model.graph, SPEC)
    with pytest.raises(ModelError, match="takes 2 images at a time; export it with a dynamic batch"):
        estimate(proxy, statistics(model), images(6))


def test_parts_of_unequal_size_weigh_by_their_images():
    model, proxy, norms = prepared(plain())
    x = np.concatenate([images(32), images(5, 1) * 0.1])
    assert debride.retrain.norms._AT_ONCE == 32
    (norm,), found = norms, estimate(proxy, norms, x)
    (data,) = run(with_tensor(model.proto, norm.data), {"x": x}, [norm.data])
    wide = data.astype(np.float64)
    np.testing.assert_allclose(found[norm.mean], wide.mean(axis=(0, 2, 3)), rtol=0, atol=1e-6)
    np.testing.assert_allclose(found[norm.variance], wide.var(axis=(0, 2, 3)), rtol=1e-5, atol=1e-7)
    parts = np.mean([wide[:32].mean(axis=(0, 2, 3)), wide[32:].mean(axis=(0, 2, 3))], axis=0)
    assert np.abs(parts - wide.mean(axis=(0, 2, 3))).max() > 1e-3


def test_a_small_spread_far_from_zero_is_not_lost_in_rounding():
    b = Builder()
    end(b, b.op("Relu", b.bn(b.op("Add", "x", b.const(np.float32(1000))), 3)), 3)
    _, proxy, norms = prepared(net(b))
    x = images(70)
    found, data = estimate(proxy, norms, x), (x + np.float32(1000)).astype(np.float64)
    np.testing.assert_allclose(found[norms[0].variance], data.var(axis=(0, 2, 3)), rtol=1e-5)
