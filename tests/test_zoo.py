"""The usual image classifiers through PyTorch's exporters: read, run, differentiated, zeroed and slimmed alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch

import exports
from architectures import ARCHITECTURES, network, shape_of
from zoo_checks import Subject

PARITY = 1e-5
DEEP = 1e-4
"""For the networks of Keras in their full depth, where rounding adds up."""
GRADIENT = 1e-6
MASKED = 1e-5
ALIVE = 1e-3
"""Scores that hardly depend on the image would make every comparison easy."""

# Every family of parts once, in the quick tests; each exporter and each of torchscript's ways of an opset among them.
QUICK = [
    ("vgg_bn", "torchscript", 9),
    ("densenet", "torchscript", 11),
    ("googlenet", "torchscript", 13),
    ("resnet50", "torchscript", 20),
    ("resnet_option_a", "torchscript", 16),
    ("resnext", "dynamo", 18),
    ("se_resnet", "torchscript", 12),
    ("mobilenet_v3", "torchscript", 17),
    ("efficientnet", "torchscript", 15),
    ("ghostnet", "torchscript", 14),
    ("repvgg", "dynamo", 23),
    ("deit", "dynamo", 20),
    ("swin", "torchscript", 19),
    ("convnext", "torchscript", 17),
]
REST = [
    (name, exporter, opset)
    for exporter, opsets in (("dynamo", (18, 23)), ("torchscript", (11, 17)))
    for opset in opsets
    for name in ARCHITECTURES
    if (name, exporter, opset) not in {*QUICK, ("vit", "torchscript", 11)}  # its unflatten needs opset 13
]
# Channels that are zeroed at random may leave none of these: norms over many channels count the zeroed ones too.
HELD_TOGETHER = ("gmlp",)


KERAS = [
    ("MobileNetV2", "by_adapter", 18),
    ("MobileNet", "by_tf2onnx", 13),
    ("small-resnext", "by_adapter", 18),
    ("small-resnet", "by_tf2onnx", 15),
    ("small-densenet", "by_tf2onnx", 13),
]
KERAS_REST = ("MobileNetV3Small", "EfficientNetB0", "DenseNet121", "ResNet50V2", "InceptionV3", "Xception", "small-vit")


@pytest.fixture(scope="module")
def keras_zoo():
    import keras_architectures

    return keras_architectures


def _subject(case, folder, **options):
    name, exporter, opset = case
    module, shape = network(name), shape_of(name)
    subject = Subject(exports.export(module, shape, exporter=exporter, opset=opset, **options), folder)
    with torch.no_grad():
        expected = module(torch.from_numpy(subject.images)).numpy()
        actual = subject.proxy.scores(torch.from_numpy(subject.images)).numpy()
    assert np.abs(actual - expected).max() <= PARITY * np.abs(expected).max()
    return subject


def _hold(subject, parity=PARITY):
    assert subject.parity() <= parity
    assert subject.gradient_error() <= GRADIENT
    chosen = subject.chosen()
    assert chosen, "no channel can be chosen: no group was found"
    assert subject.masked_difference(chosen) <= MASKED
    slim = subject.slimmed(chosen)
    assert slim.alive >= ALIVE
    assert slim.facts.dead == len(chosen)
    assert slim.difference <= 1e-5
    return slim


def _slims(slim):
    assert slim.facts.left > 0, slim.facts.reason or slim.facts.stayed[:3]
    assert slim.facts.after.parameters < slim.facts.before.parameters
    assert slim.facts.after.size < slim.facts.before.size


@pytest.mark.parametrize("case", QUICK, ids=lambda c: "-".join(map(str, c)))
def test_an_architecture_is_read_run_differentiated_zeroed_and_slimmed(case, tmp_path):
    subject = _subject(case, tmp_path)
    assert subject.refused == ()
    _slims(_hold(subject))


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=lambda c: "-".join(map(str, c)))
def test_the_rest_of_the_zoo_too(case, tmp_path):
    slim = _hold(_subject(case, tmp_path))
    if case[0] not in HELD_TOGETHER:
        _slims(slim)


@pytest.mark.frameworks
@pytest.mark.parametrize("case", KERAS, ids=lambda c: "-".join(map(str, c)))
def test_networks_of_keras_hold_too(case, keras_zoo, tmp_path):
    _slims(_hold(_keras_subject(keras_zoo, case, tmp_path), DEEP))


@pytest.mark.frameworks
@pytest.mark.slow
@pytest.mark.parametrize("name", KERAS_REST)
def test_the_rest_of_keras_too(name, keras_zoo, tmp_path):
    _slims(_hold(_keras_subject(keras_zoo, (name, "by_adapter", 18), tmp_path), DEEP))


def _keras_subject(zoo, case, folder):
    name, exporter, opset = case
    model = zoo.network(name)
    subject = Subject(getattr(zoo, exporter)(model, opset), folder, nhwc=True, high=zoo.high_of(name))
    pixels = subject.images.transpose(0, 2, 3, 1) * np.float32(zoo.high_of(name))
    expected = np.asarray(model(pixels, training=False))
    actual = subject.proxy.scores(torch.from_numpy(subject.images)).detach().numpy()
    assert np.abs(actual - expected).max() <= DEEP * np.abs(expected).max()
    return subject


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("preact_resnet", {"fold": False}),
        ("mobilenet_v2", {"fold": False, "listed": True}),
        ("xception", {"batch": "fixed"}),
        ("efficientnet_v2", {"listed": True}),
    ],
)
def test_the_ways_to_export_make_no_difference(name, options, tmp_path):
    _slims(_hold(_subject((name, "torchscript", 13), tmp_path, **options)))


def test_zeroing_other_channels_than_those_masked_is_noticed(tmp_path):
    subject = _subject(("repvgg", "torchscript", 17), tmp_path)
    chosen = subject.chosen()
    assert subject.masked_difference(chosen, zeroed=chosen[:-3]) > 100 * MASKED


def test_a_network_has_the_same_weights_every_time():
    first, second = (network("shufflenet_v2").state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = network("shufflenet_v2", seed=1).state_dict()
    assert not torch.equal(first["0.0.weight"], third["0.0.weight"])


def test_exports_say_nothing_and_have_the_opset_asked_for(capfd):
    for exporter, opset in (("dynamo", 18), ("torchscript", 9)):
        proto = exports.export(network("tied"), (3, 32, 32), exporter=exporter, opset=opset)
        assert {o.version for o in proto.opset_import if not o.domain} == {opset}
        onnx.checker.check_model(proto)
    assert capfd.readouterr() == ("", "")
