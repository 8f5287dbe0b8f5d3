"""Plain, branching and concatenating CNNs, and a few with parts that are rare. Written from the papers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from architectures_parts import CLASSES, ConvNorm, head


def alexnet(width: int = 16, norm: Callable[[], nn.Module] = nn.Identity) -> nn.Module:
    """Krizhevsky et al. 2012, as frameworks ship it: large first kernels, grouped convolutions, three Linear layers."""
    w = width
    return nn.Sequential(
        *(nn.Conv2d(3, w, 11, 4, 2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(w, 2 * w, 5, padding=2, groups=2), nn.ReLU(), norm(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(2 * w, 3 * w, 3, padding=1), nn.ReLU(), nn.Conv2d(3 * w, 2 * w, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(2 * w, 4 * w), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(4 * w, 4 * w), nn.ReLU(), nn.Linear(4 * w, CLASSES)),
    )


def alexnet_lrn(width: int = 16) -> nn.Module:
    """With the paper's local response normalisation."""
    return alexnet(width, lambda: nn.LocalResponseNorm(5))


def vgg_bn(width: int = 8) -> nn.Module:
    """Simonyan & Zisserman 2015 with BatchNorm: 3x3 convolutions, the map flattened into Linear layers."""
    w = width
    body = [ConvNorm(3, w), ConvNorm(w, w), nn.MaxPool2d(2), ConvNorm(w, 2 * w), ConvNorm(2 * w, 2 * w)]
    body += [nn.MaxPool2d(2), ConvNorm(2 * w, 4 * w), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64 * w, 8 * w)]
    return nn.Sequential(*body, nn.ReLU(), nn.Dropout(), nn.Linear(8 * w, 8 * w), nn.ReLU(), nn.Linear(8 * w, CLASSES))


class DenseLayer(nn.Module):
    def __init__(self, before: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(F.relu(self.norm2(y)))], 1)


def densenet(growth: int = 4, depth: int = 3) -> nn.Module:
    """Huang et al. 2017, with bottlenecks and a compressing transition."""
    n = 2 * growth
    body: list[nn.Module] = [nn.Conv2d(3, n, 3, padding=1, bias=False)]
    for last in (False, True):
        body += [DenseLayer(n + i * growth, growth) for i in range(depth)]
        n += depth * growth
        body += [nn.BatchNorm2d(n), nn.ReLU()]
        if not last:
            body += [nn.Conv2d(n, n // 2, 1, bias=False), nn.AvgPool2d(2)]
            n //= 2
    return nn.Sequential(*body, head(n))


class Branches(nn.Module):
    """Several ways side by side, concatenated."""

    def __init__(self, *ways: nn.Module) -> None:
        super().__init__()
        self.ways = nn.ModuleList(ways)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([way(x) for way in self.ways], 1)


def inception_v1(before: int, a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> nn.Module:
    return Branches(
        ConvNorm(before, a, 1),
        nn.Sequential(ConvNorm(before, b[0], 1), ConvNorm(b[0], b[1])),
        nn.Sequential(ConvNorm(before, c[0], 1), ConvNorm(c[0], c[1], 5)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvNorm(before, d, 1)),
    )


def googlenet(width: int = 4) -> nn.Module:
    """Szegedy et al. 2015."""
    w = width
    stem = [
        ConvNorm(3, 2 * w, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        ConvNorm(2 * w, 2 * w, 1),
        ConvNorm(2 * w, 4 * w),
    ]
    first = inception_v1(4 * w, 2 * w, (3 * w, 4 * w), (w, w), w)
    second = inception_v1(8 * w, 3 * w, (2 * w, 4 * w), (w, 2 * w), w)
    return nn.Sequential(
        *stem,
        first,
        nn.MaxPool2d(3, 2, ceil_mode=True),
        second,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(10 * w, CLASSES),
    )


class Pooled(nn.Module):
    """An average pool that counts no padding, then a 1x1 convolution."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.conv = ConvNorm(before, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


def inception_v3(width: int = 4) -> nn.Module:
    """Szegedy et al. 2016: factorised, asymmetric convolutions, branches within branches, unpadded reductions."""
    w = width
    stem = [ConvNorm(3, w, 3, 2, padding=0), ConvNorm(w, w, padding=0), ConvNorm(w, 2 * w), nn.MaxPool2d(3, 2)]
    doubled = nn.Sequential(ConvNorm(2 * w, 2 * w, 1), ConvNorm(2 * w, 3 * w), ConvNorm(3 * w, 3 * w))
    five = nn.Sequential(ConvNorm(2 * w, w, 1), ConvNorm(w, 2 * w, 5))
    a = Branches(ConvNorm(2 * w, 2 * w, 1), five, doubled, Pooled(2 * w, w))
    wide = nn.Sequential(ConvNorm(8 * w, 2 * w, 1), ConvNorm(2 * w, 2 * w), ConvNorm(2 * w, 2 * w, 3, 2, padding=0))
    b = Branches(ConvNorm(8 * w, 4 * w, 3, 2, padding=0), wide, nn.MaxPool2d(3, 2))
    n = 14 * w
    seven = nn.Sequential(ConvNorm(n, 2 * w, 1), ConvNorm(2 * w, 2 * w, (1, 7)), ConvNorm(2 * w, 4 * w, (7, 1)))
    c = Branches(ConvNorm(n, 4 * w, 1), seven, Pooled(n, 2 * w))
    n = 10 * w
    split = nn.Sequential(
        ConvNorm(n, 2 * w, 1), Branches(ConvNorm(2 * w, 2 * w, (1, 3)), ConvNorm(2 * w, 2 * w, (3, 1)))
    )
    return nn.Sequential(*stem, a, b, c, Branches(ConvNorm(n, 2 * w, 1), split, Pooled(n, 2 * w)), head(8 * w))


class Fire(nn.Module):
    def __init__(self, before: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(before, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1)


def squeezenet(width: int = 8) -> nn.Module:
    """Iandola et al. 2016: fire modules, and a convolution that makes the scores."""
    w = width
    body = [
        nn.Conv2d(3, 2 * w, 3, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(2 * w, w, w),
        Fire(2 * w, w, 2 * w),
    ]
    body += [nn.MaxPool2d(3, 2, ceil_mode=True), Fire(4 * w, w, 2 * w), nn.Dropout(), nn.Conv2d(4 * w, CLASSES, 1)]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Separable(nn.Sequential):
    def __init__(self, before: int, width: int) -> None:
        depth = nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False)
        super().__init__(depth, nn.Conv2d(before, width, 1, bias=False), nn.BatchNorm2d(width))


class XceptionBlock(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        pool = [nn.MaxPool2d(3, 2, 1)] if stride > 1 else []
        self.body = nn.Sequential(nn.ReLU(), Separable(before, width), nn.ReLU(), Separable(width, width), *pool)
        self.short = ConvNorm(before, width, 1, stride, act=None) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.short(x)


def xception(width: int = 8) -> nn.Module:
    """Chollet 2017."""
    w = width
    body = [ConvNorm(3, w, 3, 2, padding=0), ConvNorm(w, 2 * w, padding=0), XceptionBlock(2 * w, 4 * w, 2)]
    body += [XceptionBlock(4 * w, 4 * w, 1), Separable(4 * w, 6 * w), nn.ReLU()]
    return nn.Sequential(*body, head(6 * w))


class RepBlock(nn.Module):
    """RepVGG's block before it is fused (Ding et al. 2021): 3x3, 1x1 and identity, each with a BatchNorm, added."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.three, self.one = (
            ConvNorm(before, width, 3, stride, act=None),
            ConvNorm(before, width, 1, stride, act=None),
        )
        self.same = nn.BatchNorm2d(before) if stride == 1 and before == width else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.three(x) + self.one(x)
        return F.relu(y if self.same is None else y + self.same(x))


def repvgg(width: int = 8) -> nn.Module:
    w = width
    blocks = [RepBlock(3, w, 2), RepBlock(w, w, 1), RepBlock(w, 2 * w, 2), RepBlock(2 * w, 2 * w, 1)]
    return nn.Sequential(*blocks, head(2 * w))


class Gated(nn.Module):
    """Half of the channels gate the other half: GLU, and the same with chunk."""

    def __init__(self, before: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, 2 * width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.first(x), 1)
        value, gate = self.second(x).chunk(2, 1)
        return value * F.silu(gate) + x


def glu(width: int = 8) -> nn.Module:
    """Gated linear units (Dauphin et al. 2017)."""
    return nn.Sequential(Gated(3, width), Gated(width, 2 * width), head(2 * width))


class Tied(nn.Module):
    """One convolution applied at every depth, as in recurrent and pyramid networks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.again, self.head = ConvNorm(3, width, 3, 2), nn.Conv2d(width, width, 3, padding=1), head(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = F.max_pool2d(F.relu(self.again(x)) + x, 2)
        return self.head(x)


def tied(width: int = 12) -> nn.Module:
    return Tied(width)


class Hourglass(nn.Module):
    """Down by strides and up by ConvTranspose, with a connection across (U-Net, Ronneberger et al. 2015)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.first, self.down = ConvNorm(3, w, 3, 2), ConvNorm(w, 2 * w, 3, 2)
        self.up, self.norm = nn.ConvTranspose2d(2 * w, w, 2, 2), nn.BatchNorm2d(w)
        self.last = nn.Sequential(ConvNorm(2 * w, 2 * w), nn.Upsample(scale_factor=0.5, mode="nearest"), head(2 * w))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(torch.cat([x, F.relu(self.norm(self.up(self.down(x))))], 1))


def hourglass(width: int = 8) -> nn.Module:
    return Hourglass(width)
