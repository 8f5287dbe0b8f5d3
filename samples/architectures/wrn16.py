"""WideResNet-16-1 with pre-activation (Zagoruyko & Komodakis 2016), for `debride --architecture wrn16.py:wrn16`."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class Layer(nn.Module):
    """Twice normalise, relu, convolve; where the width changes, the shortcut is a convolution of relu(bn1(x))."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.convShortcut = nn.Conv2d(before, width, 1, stride, bias=False) if before != width else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, width, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        y = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class Block(nn.Module):
    """Two layers, the first of which sets width and stride."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.layer = nn.Sequential(Layer(before, width, stride), Layer(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) -> (N, width, H / stride, W / stride)."""
        return self.layer(x)


class WideResNet16(nn.Module):
    """Images (N, 3, 32, 32), RGB in 0..1 -> class scores (N, 10)."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.block1 = Block(16, 16, 1)
        self.block2 = Block(16, 32, 2)
        self.block3 = Block(32, 64, 2)
        self.bn1 = nn.BatchNorm2d(64)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes)."""
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


def wrn16() -> nn.Module:
    """The network of CIFAR-10 checkpoints with keys such as `block1.layer.0.bn1.weight`; random weights."""
    return WideResNet16()
