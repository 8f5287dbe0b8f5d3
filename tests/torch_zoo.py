"""Small networks of the usual families in plain torch, random weights, BatchNorm statistics that matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

SHAPE = (3, 32, 32)
CLASSES = 7


def conv_bn(before: int, width: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.first, self.second = conv_bn(before, width, 3, stride), conv_bn(width, width)
        self.short = conv_bn(before, width, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.short(x))


def resnet() -> nn.Module:
    body = [conv_bn(3, 8), nn.ReLU(), nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1), Residual(8, 16, 2)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


class Squeeze(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        wide, self.skip = 4 * before, stride == 1 and before == width
        depthwise = [conv_bn(wide, wide, 3, stride, wide), nn.Hardswish(), Squeeze(wide)]
        self.body = nn.Sequential(conv_bn(before, wide, 1), nn.Hardswish(), *depthwise, conv_bn(wide, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.skip else self.body(x)


def mobilenet() -> nn.Module:
    body = [conv_bn(3, 8, 3, 2), nn.Hardswish(), Inverted(8, 8, 1), Inverted(8, 16, 2), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*body, nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, CLASSES))


class Dense(nn.Module):
    def __init__(self, before: int, growth: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(before), nn.Conv2d(before, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


def densenet() -> nn.Module:
    body = [nn.Conv2d(3, 8, 3, padding=1), *(Dense(8 + 4 * i, 4) for i in range(3)), nn.BatchNorm2d(20), nn.ReLU()]
    rest = [nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2), Dense(10, 4), nn.BatchNorm2d(14), nn.ReLU()]
    return nn.Sequential(*body, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, CLASSES))


class Encoder(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    def __init__(self, width: int = 16):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 17, width))
        self.body = nn.Sequential(Encoder(width), Encoder(width), nn.LayerNorm(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.body(x)[:, 0])


def vit() -> nn.Module:
    return ViT()


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Next(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), LayerNorm2d(width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x)).permute(0, 2, 3, 1)
        return x + (self.scale * self.narrow(F.gelu(self.wide(y)))).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    body = [nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8), Next(8), LayerNorm2d(8), nn.Conv2d(8, 16, 2, 2), Next(16)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, CLASSES))


ZOO = {f.__name__: f for f in (resnet, mobilenet, densenet, vit, convnext)}


def network(name: str, seed: int = 0) -> nn.Module:
    """A network of the zoo in inference mode; statistics and scales of its BatchNorms are drawn, not 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = ZOO[name]()
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                for tensor, low, high in (
                    (part.running_mean, -0.3, 0.3),
                    (part.running_var, 0.5, 1.5),
                    (part.weight.data, 0.5, 1.5),
                    (part.bias.data, -0.2, 0.2),
                ):
                    tensor.uniform_(low, high)
    return module.eval()
