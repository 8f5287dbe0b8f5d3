"""Networks for small devices: depthwise, inverted, shuffled. Written from the papers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from architectures_parts import CLASSES, ConvNorm, SqueezeExcite, head


def mobilenet_v1(width: int = 8) -> nn.Module:
    """Howard et al. 2017: depthwise and pointwise in turn."""
    body, before = [ConvNorm(3, width, 3, 2)], width
    for wide, stride in ((2 * width, 1), (4 * width, 2), (4 * width, 1), (8 * width, 2)):
        body += [ConvNorm(before, before, 3, stride, groups=before), ConvNorm(before, wide, 1)]
        before = wide
    return nn.Sequential(*body, head(before))


class Inverted(nn.Module):
    """Expand, depthwise, (gate,) project; added to the input where shapes allow (Sandler et al. 2018)."""

    def __init__(
        self,
        before: int,
        width: int,
        stride: int,
        expand: int,
        *,
        kernel: int = 3,
        act: type[nn.Module] = nn.ReLU6,
        gate: nn.Module | None = None,
        fused: bool = False,
    ) -> None:
        super().__init__()
        wide = before * expand
        if fused:
            body: list[nn.Module] = [ConvNorm(before, wide, kernel, stride, act=act)]
        else:
            body = [ConvNorm(before, wide, 1, act=act)] if expand > 1 else []
            body.append(ConvNorm(wide, wide, kernel, stride, groups=wide, act=act))
        body += [gate] if gate is not None else []
        self.body = nn.Sequential(*body, ConvNorm(wide, width, 1, act=None))
        self.skip = stride == 1 and before == width

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet_v2(width: int = 8) -> nn.Module:
    w = width
    blocks = [
        Inverted(w, w, 1, 1),
        Inverted(w, 2 * w, 2, 6),
        Inverted(2 * w, 2 * w, 1, 6),
        Inverted(2 * w, 3 * w, 2, 6),
    ]
    return nn.Sequential(
        ConvNorm(3, w, 3, 2, act=nn.ReLU6), *blocks, ConvNorm(3 * w, 8 * w, 1, act=nn.ReLU6), head(8 * w)
    )


def mobilenet_v3(width: int = 8) -> nn.Module:
    """Howard et al. 2019: hard swish, hard sigmoid gates, a hidden layer after the pool."""
    w, swish = width, nn.Hardswish

    def gate(n: int) -> nn.Module:
        return SqueezeExcite(n, n // 4, gate=nn.Hardsigmoid)

    body = [ConvNorm(3, w, 3, 2, act=swish), Inverted(w, w, 2, 1, act=nn.ReLU, gate=gate(w))]
    body += [Inverted(w, 2 * w, 2, 4, kernel=5, act=swish, gate=gate(4 * w))]
    body += [Inverted(2 * w, 2 * w, 1, 3, kernel=5, act=swish, gate=gate(6 * w)), ConvNorm(2 * w, 6 * w, 1, act=swish)]
    rest = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6 * w, 8 * w), swish(), nn.Dropout(0.2)]
    return nn.Sequential(*body, *rest, nn.Linear(8 * w, CLASSES))


def mnasnet(width: int = 8) -> nn.Module:
    """Tan et al. 2019: a separable stem, kernels of 3 and 5."""
    w = width
    stem = [ConvNorm(3, w, 3, 2), ConvNorm(w, w, groups=w), ConvNorm(w, w, 1, act=None)]
    blocks = [Inverted(w, 2 * w, 2, 3, act=nn.ReLU), Inverted(2 * w, 2 * w, 1, 3, kernel=5, act=nn.ReLU)]
    return nn.Sequential(*stem, *blocks, ConvNorm(2 * w, 6 * w, 1), head(6 * w))


def _silu(before: int, width: int, stride: int, expand: int, kernel: int = 3, fused: bool = False) -> nn.Module:
    wide = before * expand
    gate = None if fused else SqueezeExcite(wide, max(before // 4, 2), act=nn.SiLU)
    return Inverted(before, width, stride, expand, kernel=kernel, act=nn.SiLU, gate=gate, fused=fused)


def efficientnet(width: int = 8) -> nn.Module:
    """Tan & Le 2019: SiLU, and a gate in every block."""
    w = width
    blocks = [_silu(w, w, 1, 1), _silu(w, 2 * w, 2, 6), _silu(2 * w, 2 * w, 1, 6, 5), _silu(2 * w, 3 * w, 2, 6, 5)]
    return nn.Sequential(
        ConvNorm(3, w, 3, 2, act=nn.SiLU), *blocks, ConvNorm(3 * w, 8 * w, 1, act=nn.SiLU), head(8 * w)
    )


def efficientnet_v2(width: int = 8) -> nn.Module:
    """Tan & Le 2021: the first blocks fused."""
    w = width
    blocks = [_silu(w, w, 1, 2, fused=True), _silu(w, 2 * w, 2, 4, fused=True), _silu(2 * w, 2 * w, 1, 4)]
    return nn.Sequential(
        ConvNorm(3, w, 3, 2, act=nn.SiLU), *blocks, ConvNorm(2 * w, 8 * w, 1, act=nn.SiLU), head(8 * w)
    )


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of the groups dealt out in turn."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleV1(nn.Module):
    """Grouped 1x1, shuffle, depthwise, grouped 1x1; strided blocks concatenate (Zhang et al. 2018)."""

    def __init__(self, before: int, width: int, stride: int, groups: int) -> None:
        super().__init__()
        self.groups, self.stride, middle = groups, stride, width // 4
        after = width - before if stride > 1 else width
        self.down = ConvNorm(before, middle, 1, groups=groups)
        self.depth = ConvNorm(middle, middle, 3, stride, groups=middle, act=None)
        self.up = ConvNorm(middle, after, 1, groups=groups, act=None)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.depth(shuffled(self.down(x), self.groups)))
        if self.stride > 1:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


def shufflenet_v1(width: int = 24, groups: int = 3) -> nn.Module:
    w = width
    body = [ConvNorm(3, w, 3, 2), ShuffleV1(w, 4 * w, 2, groups), ShuffleV1(4 * w, 4 * w, 1, groups)]
    return nn.Sequential(*body, head(4 * w))


class ShuffleV2(nn.Module):
    """Half of the channels pass by; both halves are shuffled (Ma et al. 2018)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        half, self.stride = width // 2, stride
        enter = before if stride > 1 else half
        self.side = nn.Identity()
        if stride > 1:
            self.side = nn.Sequential(
                ConvNorm(before, before, 3, stride, groups=before, act=None), ConvNorm(before, half, 1)
            )
        middle = ConvNorm(half, half, 3, stride, groups=half, act=None)
        self.body = nn.Sequential(ConvNorm(enter, half, 1), middle, ConvNorm(half, half, 1))

    def forward(self, x: Tensor) -> Tensor:
        side, x = (x, x) if self.stride > 1 else x.chunk(2, 1)
        return shuffled(torch.cat([self.side(side), self.body(x)], 1), 2)


def shufflenet_v2(width: int = 16) -> nn.Module:
    w = width
    body = [ConvNorm(3, w, 3, 2), nn.MaxPool2d(3, 2, 1), ShuffleV2(w, 2 * w, 2), ShuffleV2(2 * w, 2 * w, 1)]
    return nn.Sequential(*body, ConvNorm(2 * w, 4 * w, 1), head(4 * w))


class Ghost(nn.Module):
    """Half of the channels by a convolution, the others cheaply from these (Han et al. 2020)."""

    def __init__(self, before: int, width: int, act: type[nn.Module] | None = nn.ReLU) -> None:
        super().__init__()
        self.half, self.width = (width + 1) // 2, width
        self.first = ConvNorm(before, self.half, 1, act=act)
        self.cheap = ConvNorm(self.half, self.half, 3, groups=self.half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return torch.cat([x, self.cheap(x)], 1)[:, : self.width]


class GhostBlock(nn.Module):
    def __init__(self, before: int, middle: int, width: int, stride: int) -> None:
        super().__init__()
        steps: Sequence[nn.Module] = [Ghost(before, middle)]
        if stride > 1:
            steps = [*steps, ConvNorm(middle, middle, 3, stride, groups=middle, act=None)]
        gate = SqueezeExcite(middle, middle // 4, gate=nn.Hardsigmoid)
        self.body = nn.Sequential(*steps, gate, Ghost(middle, width, None))
        depth = ConvNorm(before, before, 3, stride, groups=before, act=None)
        plain = stride == 1 and before == width
        self.short = nn.Identity() if plain else nn.Sequential(depth, ConvNorm(before, width, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.short(x)


def ghostnet(width: int = 8) -> nn.Module:
    w = width
    blocks = [GhostBlock(w, 2 * w, w, 1), GhostBlock(w, 4 * w, 2 * w, 2), GhostBlock(2 * w, 5 * w - 1, 2 * w, 1)]
    return nn.Sequential(ConvNorm(3, w, 3, 2), *blocks, ConvNorm(2 * w, 6 * w, 1), head(6 * w))
