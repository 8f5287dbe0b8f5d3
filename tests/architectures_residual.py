"""Residual families: ResNet and what was made of it. Written from the papers; small by default."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from architectures_parts import ConvNorm, LinearExcite, SqueezeExcite, head


def shortcut(before: int, width: int, stride: int) -> nn.Module:
    """A projection where the shape changes."""
    return nn.Identity() if stride == 1 and before == width else ConvNorm(before, width, 1, stride, act=None)


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    growth = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(before, width, 3, stride), ConvNorm(width, width, act=None)
        self.short = shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + self.short(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 (in `groups`: ResNeXt, Xie et al. 2017) and 1x1, with a gate where `excite` says so."""

    growth = 4

    def __init__(self, before: int, width: int, stride: int, groups: int = 1, excite: bool = False) -> None:
        super().__init__()
        after = self.growth * width
        self.down, self.middle = ConvNorm(before, width, 1), ConvNorm(width, width, 3, stride, groups=groups)
        self.up = ConvNorm(width, after, 1, act=None)
        self.gate = LinearExcite(after, after // 4) if excite else nn.Identity()
        self.short = shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gate(self.up(self.middle(self.down(x)))) + self.short(x))


class OptionA(nn.Module):
    """A block whose shortcut drops every other pixel and pads the channels with zeros: CIFAR's ResNet."""

    growth = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(before, width, 3, stride), ConvNorm(width, width, act=None)
        self.stride, self.more = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        short = x
        if self.stride > 1:
            short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(self.second(self.first(x)) + short)


class PreAct(nn.Module):
    """Norm and activation before each convolution (He et al. 2016b); the projection reads the activated input."""

    growth = 1

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(before), nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        plain = stride == 1 and before == width
        self.short = None if plain else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        short = self.short(y) if self.short is not None else x
        return self.conv2(F.relu(self.norm2(self.conv1(y)))) + short


class RegNetBlock(nn.Module):
    """RegNet's Y block (Radosavovic et al. 2020): no bottleneck, groups of fixed width, a gate in the middle."""

    growth = 1

    def __init__(self, before: int, width: int, stride: int, group: int = 4) -> None:
        super().__init__()
        self.down, self.middle = ConvNorm(before, width, 1), ConvNorm(width, width, 3, stride, groups=width // group)
        self.gate, self.up = SqueezeExcite(width, max(before // 4, 2)), ConvNorm(width, width, 1, act=None)
        self.short = shortcut(before, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.up(self.gate(self.middle(self.down(x)))) + self.short(x))


class GroupNormBlock(nn.Module):
    """Pre-activation bottleneck with GroupNorm and standardised weights (BiT, Kolesnikov et al. 2020)."""

    growth = 2

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = self.growth * width
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(8, n) for n in (before, width, width))
        self.conv1, self.conv2 = StandardConv(before, width, 1), StandardConv(width, width, 3, stride, 1)
        self.conv3 = StandardConv(width, after, 1)
        self.short = None if stride == 1 and before == after else StandardConv(before, after, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        short = self.short(y) if self.short is not None else x
        y = self.conv2(F.relu(self.norm2(self.conv1(y))))
        return self.conv3(F.relu(self.norm3(y))) + short


class StandardConv(nn.Conv2d):
    """A convolution whose weight is standardised in the graph (Qiao et al. 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class ScaledConv(nn.Conv2d):
    """Standardised weight times a gain per output channel, without a norm after it (NFNet, Brock et al. 2021)."""

    def __init__(self, *arguments: int, **more: int) -> None:
        super().__init__(*arguments, **more)
        self.gain = nn.Parameter(torch.empty(self.out_channels, 1, 1, 1).uniform_(0.5, 1.5))

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, correction=0)
        scale = torch.rsqrt(torch.clamp(variance * self.weight[0].numel(), min=1e-4)) * self.gain
        weight = (self.weight - mean) * scale
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class NormFree(nn.Module):
    """NFNet's block: scaled activations, a gate doubled, a learned scalar on the branch."""

    growth = 2

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = self.growth * width
        self.conv1, self.conv2 = ScaledConv(before, width, 1), ScaledConv(width, width, 3, stride, 1)
        self.conv3, self.gate = ScaledConv(width, after, 1), SqueezeExcite(after, after // 4)
        self.short = None if stride == 1 and before == after else ScaledConv(before, after, 1)
        self.stride, self.strength = stride, nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        y = 1.7 * F.gelu(x)
        short = x
        if self.short is not None:
            short = self.short(F.avg_pool2d(y, self.stride) if self.stride > 1 else y)
        y = self.conv2(1.7 * F.gelu(self.conv1(y)))
        return 2 * self.strength * self.gate(self.conv3(1.7 * F.gelu(y))) + short


Block = Callable[[int, int, int], nn.Module]


class ResNet(nn.Module):
    """Stages of blocks; `stem` is CIFAR's 3x3 convolution or ImageNet's 7x7 with pooling; `last` a norm at the end."""

    def __init__(
        self,
        block: Block,
        growth: int,
        depths: Sequence[int] = (1, 1, 1),
        width: int = 8,
        *,
        imagenet: bool = False,
        last: Callable[[int], nn.Module] | None = None,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        small = [ConvNorm(3, width)] if last is None else [nn.Conv2d(3, width, 3, padding=1)]
        self.stem = nn.Sequential(ConvNorm(3, width, 7, 2), nn.MaxPool2d(3, 2, 1)) if imagenet else small[0]
        stages: list[nn.Module] = []
        before = width
        for stage, depth in enumerate(depths):
            for i in range(depth):
                wide = width * 2**stage
                stages.append(block(before, wide, 2 if stage and not i else 1))
                before = growth * wide
        self.body = nn.Sequential(*stages)
        self.end = nn.Sequential(last(before), nn.ReLU()) if last else nn.Identity()
        self.head = head(before)
        if classes:
            self.head[2] = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.end(self.body(self.stem(x))))


def resnet18(width: int = 8, *, imagenet: bool = False, classes: int | None = None) -> nn.Module:
    """ResNet-18; `width=64, imagenet=True, classes=1000` is the paper's own, for 224x224 pixels."""
    return ResNet(Basic, 1, (2, 2, 2, 2), width, imagenet=imagenet, classes=classes)


def resnet50(width: int = 8, depths: Sequence[int] = (2, 2, 1)) -> nn.Module:
    """Bottlenecks; ImageNet's stem."""
    return ResNet(Bottleneck, 4, depths, width, imagenet=True)


def resnext(width: int = 8, groups: int = 4) -> nn.Module:
    return ResNet(lambda a, b, s: Bottleneck(a, b, s, groups=groups), 4, (2, 1), width)


def se_resnet(width: int = 8) -> nn.Module:
    return ResNet(lambda a, b, s: Bottleneck(a, b, s, excite=True), 4, (2, 1), width)


def resnet_option_a(width: int = 8) -> nn.Module:
    return ResNet(OptionA, 1, (2, 2, 1), width)


def preact_resnet(width: int = 8) -> nn.Module:
    return ResNet(PreAct, 1, (2, 2), width, last=nn.BatchNorm2d)


def wide_resnet(width: int = 8, factor: int = 2) -> nn.Module:
    """Zagoruyko & Komodakis 2016: pre-activation blocks, `factor` times as wide as the stem."""
    return ResNet(lambda a, b, s: PreAct(a, factor * b, s), factor, (1, 1, 1), width, last=nn.BatchNorm2d)


def regnet_y(width: int = 16) -> nn.Module:
    return ResNet(RegNetBlock, 1, (1, 2), width)


def bit(width: int = 16) -> nn.Module:
    return ResNet(GroupNormBlock, 2, (1, 1), width, last=lambda n: nn.GroupNorm(8, n))


def nfnet(width: int = 8) -> nn.Module:
    return ResNet(NormFree, 2, (1, 1), width, last=lambda n: nn.Identity())
