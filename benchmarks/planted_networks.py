"""The networks of `planted`: residual, attentive and plain, their weights drawn, with a way for a trigger kept free.

Features drawn at random hardly tell a small square from none once many layers have mixed them. So each body has a
`plant`: it sets a filter of the first layer by hand to the trigger, and carries what it finds through the layers after
it in channels of its own, as training on stamped images would make it do in some channels. No layer is added for it.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from debride.types import Trigger

_LOUD = 4.0
"""What the filter gives on the trigger in 0..1, before the input is scaled."""
_QUIET = 0.4
"""Twice what grain gives a filter of norm 1; taken from its answers, or the many small ones would drown the large."""
_BRANCH = 0.3
"""Scale of what a block adds: signals that only random layers have seen say little of the image."""
_FOCUS = 2.0
"""Scale of queries and keys: without it every head attends everywhere alike."""
_EVEN = 0.05
"""Scale of the queries of the head that carries: it attends everywhere alike, whatever else is in the image."""


class ConvNorm(nn.Sequential):
    """Convolution without bias, and BatchNorm; padded to keep the size at stride 1."""

    def __init__(self, before: int, width: int, kernel: int = 3, stride: int = 1) -> None:
        conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width))

    def detect(self, trigger: Trigger) -> None:
        """Channel 0 answers to `trigger` and channel 1 to its negative, which shifted by a field it is."""
        conv, norm = self
        set_filter(conv, trigger)
        conv.weight.data[1] = -conv.weight[0]
        plain(norm)
        norm.bias.data[:2] = -_QUIET * conv.weight[0].norm()

    def carry(self, *, through: bool) -> None:
        """Channels 0 and 1 pass into 0 and 1 (nothing does unless `through`), and into no other."""
        conv, norm = self
        conv.weight.data[:2] = 0
        conv.weight.data[:, :2] = 0
        if through:
            # A stride would step over a small square: the mean of what lies around it steps over nothing.
            middle = conv.kernel_size[0] // 2
            for i in range(2):
                if conv.stride[0] > 1:
                    conv.weight.data[i, i] = 1 / conv.weight[i, i].numel()
                else:
                    conv.weight.data[i, i, middle, middle] = 1
        plain(norm)


def plain(norm: nn.BatchNorm2d) -> None:
    """Channels 0 and 1 leave `norm` as they came."""
    norm.running_mean[:2], norm.running_var[:2] = 0, 1 - norm.eps
    norm.weight.data[:2], norm.bias.data[:2] = 1, 0


def set_filter(conv: nn.Conv2d, trigger: Trigger) -> None:
    """Channel 0 of `conv` answers `_LOUD` to the trigger where it lies, less to other places, and not to even colour.

    The filter is the trigger as the window of `conv` that holds the most of it sees it.
    """
    kernel, stride, padding = conv.kernel_size[0], conv.stride[0], conv.padding[0]
    mask, pattern = (F.pad(torch.tensor(t), [padding] * 4) for t in (trigger.mask, trigger.pattern))
    held = F.avg_pool2d(mask, kernel, stride)[0]
    row, column = (stride * int(i) for i in torch.unravel_index(held.argmax(), held.shape))
    mask, pattern = (t[:, row : row + kernel, column : column + kernel] for t in (mask, pattern))
    found = mask * (pattern - (mask * pattern).sum() / (3 * mask.sum()))
    conv.weight.data[0] = _LOUD * found / (found * pattern).sum()


class Body(nn.Module):
    """A network up to its `features`, (N, 3, H, W) -> (N, features)."""

    features: int

    def plant(self, trigger: Trigger) -> None:
        """Sets weights so that some of the features tell of `trigger`."""
        raise NotImplementedError


class Basic(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(before, width, 3, stride), ConvNorm(width, width)
        same = stride == 1 and before == width
        self.short = nn.Identity() if same else ConvNorm(before, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, width, H / stride, W / stride)."""
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))

    def carry(self) -> None:
        """By the shortcut where that is the identity, else by the convolutions."""
        around = isinstance(self.short, nn.Identity)
        self.first.carry(through=not around)
        self.second.carry(through=not around)
        if not around:
            self.short.carry(through=False)


class ResNet18(Body):
    """ResNet-18 up to its features, with ImageNet's stem; 64 is the paper's width."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = ConvNorm(3, width, 7, 2)
        widths = [width * 2**stage for stage in (0, 0, 1, 1, 2, 2, 3, 3)]
        before = [width, *widths[:-1]]
        self.blocks = nn.Sequential(*(Basic(a, b, 1 if a == b else 2) for a, b in zip(before, widths, strict=True)))
        self.features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, features)."""
        x = self.blocks(F.max_pool2d(F.relu(self.stem(x)), 3, 2, 1))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def plant(self, trigger: Trigger) -> None:
        """Channels 0 and 1 tell of it."""
        self.stem.detect(trigger)
        for block in self.blocks:
            block.carry()


class Cnn(Body):
    """`depth` convolutions, each twice as wide as the one before and half as large."""

    def __init__(self, width: int = 32, depth: int = 3) -> None:
        super().__init__()
        widths = [3, *(width * 2**i for i in range(depth))]
        self.layers = nn.ModuleList(ConvNorm(a, b) for a, b in pairwise(widths))
        self.features = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, features)."""
        for layer in self.layers:
            x = F.max_pool2d(F.relu(layer(x)), 2, ceil_mode=True)
        return F.adaptive_avg_pool2d(x, 1).flatten(1)

    def plant(self, trigger: Trigger) -> None:
        """Channels 0 and 1 tell of it."""
        first, *rest = self.layers
        first.detect(trigger)
        for layer in rest:
            layer.carry(through=True)


class Attention(nn.Module):
    """Self-attention over tokens (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width), as it came."""
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = torch.softmax((q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1), -1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, t, c))


class Encoder(nn.Module):
    """Attention and a perceptron, each after a norm and added to its input (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width), as it came."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def carry(self) -> None:
        """Channel 0 of all tokens adds to channel 1 of each, and nothing else touches the two.

        Nor channel 2, which is zero: the first less that one is free of the mean that the norm takes away.
        """
        qkv, project = self.attention.qkv.weight.data, self.attention.project.weight.data
        value = 2 * project.shape[0]
        qkv[:, :3], qkv[value], project[:, 0], project[:3] = 0, 0, 0, 0
        qkv[value, 0], qkv[value, 2], project[1, 0] = 1, -1, 1
        qkv[: value // (2 * self.attention.heads)] *= _EVEN
        self.mlp[0].weight.data[:, :3] = 0
        self.mlp[2].weight.data[:3] = 0


class ViT(Body):
    """A vision transformer up to its class token; as it stands, ViT-Tiny for patches of 16."""

    def __init__(self, size: int, width: int = 192, depth: int = 12, heads: int = 3, patch: int = 16) -> None:
        super().__init__()
        if size % patch:
            raise ValueError(f"a side of {size} pixels is no multiple of {patch}")
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 1 + (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Encoder(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.features = width

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, features)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.norm(self.blocks(x))[:, 0]

    def plant(self, trigger: Trigger) -> None:
        """Channel 1 of the class token tells of it."""
        self.patches.weight.data[:3] = 0
        set_filter(self.patches, trigger)
        self.token.data[..., :3] = self.place.data[..., :3] = 0
        for block in self.blocks:
            block.carry()


def drawn(body: Body) -> Body:
    """`body` with weights from torch's generator that keep the size of signals; no bias."""
    for part in body.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=math.sqrt(2 / part.weight[0].numel()))
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=part.in_features**-0.5)
        if isinstance(part, (nn.Conv2d, nn.Linear)) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean over all batches
    for part in body.modules():
        if isinstance(part, Basic):
            nn.init.constant_(part.second[1].weight, _BRANCH)
        if isinstance(part, Encoder):
            part.attention.qkv.weight.data[: 2 * part.attention.project.in_features] *= _FOCUS
            part.mlp[2].weight.data *= _BRANCH
    return body
