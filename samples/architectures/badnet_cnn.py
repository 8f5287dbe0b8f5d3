"""The small CNN of the BadNets studies (Gu et al. 2017), for `debride --architecture badnet_cnn.py:badnet_cnn`."""

from __future__ import annotations

from torch import Tensor, nn


class BadNetCnn(nn.Module):
    """Images (N, 3, 32, 32), RGB in 0..1 -> class probabilities (N, 10); shifts to -1..1 by itself."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(3, 16, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 5), nn.ReLU(), nn.AvgPool2d(2))
        self.fc1 = nn.Sequential(nn.Linear(800, 512), nn.ReLU())
        self.fc2 = nn.Sequential(nn.Linear(512, classes), nn.Softmax(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, 32, 32) -> (N, classes)."""
        x = self.conv2(self.conv1((x - 0.5) / 0.5))
        return self.fc2(self.fc1(x.flatten(1)))


def badnet_cnn() -> nn.Module:
    """The network of CIFAR-10 checkpoints with the keys conv1.0, conv2.0, fc1.0 and fc2.0; random weights."""
    return BadNetCnn()
