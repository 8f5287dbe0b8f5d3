"""Tiny networks to be retrained, images whose class is their brightest channel, and a trigger."""

from __future__ import annotations

import numpy as np
import torch

from debride.graph.surgery import zero
from debride.retrain.draws import Draws
from debride.retrain.loss import Loss
from debride.retrain.network import Network
from debride.retrain.options import Method, RetrainOptions
from debride.retrain.train import train
from debride.sessions import probabilities
from debride.types import InputSpec, Rate, Samples, Trigger
from trainable_models import groups_of, plain, read

SPEC = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), output="scores")
CLASSES = 3
PLAIN = Method(truth=1.0)
FULL = Method(stamped=0.5, margin=1.0, features=1.0, truth=0.5)
QUICK = RetrainOptions(steps=20, images=16, rate=0.01)


def images(n, seed=0):
    return np.random.default_rng(seed).random((n, 3, 8, 8), dtype=np.float32)


def samples(n=24, seed=0):
    """Images whose class is their brightest channel."""
    x = images(n, seed) * 0.5
    labels = np.arange(n) % CLASSES
    x[np.arange(n), labels] += 0.4
    return Samples(images=x, labels=labels)


def says(x):
    """The delivered model's probabilities: as sure of the brightest channel as ten times its lead."""
    return probabilities(10 * x.mean(axis=(2, 3)))


def trigger(target=1):
    mask = np.zeros((1, 8, 8), np.float32)
    mask[0, :3, :3] = 1
    return Trigger(target=target, mask=mask, pattern=np.ones((3, 8, 8), np.float32), l1=9.0, success=Rate(9, 10))


def made(proto=None, spec=SPEC, gone=(), compute=None):
    """A network of `proto` with groups `gone` zeroed."""
    model = read(proto or plain())
    groups = groups_of(model)
    if gone:
        model = read(zero(model, [groups[i] for i in gone]))
    return Network(model, spec, groups, compute)


def draws(method=PLAIN, seed=0, n=24):
    stamps = [trigger()] if method.stamped else []
    return Draws(samples(n, seed), says, stamps, truth=method.truth, seed=seed)


def look(method=PLAIN):
    return draws(method, seed=9)(64)


def loss_of(method=PLAIN, proto=None):
    """The loss of `method`, held to the features of `proto` where it asks for any."""
    return Loss(method, made(proto) if method.features else None)


def value(loss, network, batch):
    """The loss as a number: the sum of its parts."""
    with torch.no_grad():
        return sum(float(part) for part in loss(network, batch))


def trained(network, method=PLAIN, options=QUICK, **more):
    """`network`, made of `plain()`, trained by `method`."""
    return train(network, loss_of(method), draws(method), look(method), options, **more)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
