"""The zoo: the usual image classifiers in plain torch, small, with lived-in norms. `network(name)` makes one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

import architectures_classic as classic
import architectures_mobile as mobile
import architectures_residual as residual
import architectures_tokens as tokens
from architectures_parts import CLASSES, lived_in

__all__ = ["ARCHITECTURES", "CLASSES", "network", "shape_of"]

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make
    for make in (
        classic.alexnet,
        classic.alexnet_lrn,
        classic.vgg_bn,
        classic.densenet,
        classic.googlenet,
        classic.inception_v3,
        classic.squeezenet,
        classic.xception,
        classic.repvgg,
        classic.glu,
        classic.tied,
        classic.hourglass,
        residual.resnet18,
        residual.resnet50,
        residual.preact_resnet,
        residual.wide_resnet,
        residual.resnext,
        residual.se_resnet,
        residual.resnet_option_a,
        residual.regnet_y,
        residual.bit,
        residual.nfnet,
        mobile.mobilenet_v1,
        mobile.mobilenet_v2,
        mobile.mobilenet_v3,
        mobile.mnasnet,
        mobile.efficientnet,
        mobile.efficientnet_v2,
        mobile.shufflenet_v1,
        mobile.shufflenet_v2,
        mobile.ghostnet,
        tokens.vit,
        tokens.deit,
        tokens.swin,
        tokens.mixer,
        tokens.resmlp,
        tokens.gmlp,
        tokens.poolformer,
        tokens.convnext,
    )
}
"""Each makes a network of `CLASSES` classes for images of `shape_of(name)`; the weights come from torch's generator."""

_SHAPES = {"alexnet": (3, 64, 64), "alexnet_lrn": (3, 64, 64), "inception_v3": (3, 64, 64), "resnet50": (3, 64, 64)}


def shape_of(name: str) -> tuple[int, int, int]:
    """(channels, height, width) of the images that the network `name` takes."""
    return _SHAPES.get(name, (3, 32, 32))


def network(name: str, seed: int = 0) -> nn.Module:
    """The network `name` in inference mode, always with the same weights for a seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return lived_in(ARCHITECTURES[name](), shape_of(name))
