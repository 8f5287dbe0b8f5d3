"""What several architectures of the zoo share: a convolution with its norm and activation, squeeze and excitation."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CLASSES = 7


class ConvNorm(nn.Sequential):
    """Convolution without bias, BatchNorm, and `act` (None: no activation); padded to keep the size at stride 1."""

    def __init__(
        self,
        before: int,
        width: int,
        kernel: int | tuple[int, int] = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
        padding: int | tuple[int, int] | None = None,
    ) -> None:
        if padding is None:
            padding = kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)
        conv = nn.Conv2d(before, width, kernel, stride, padding, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(width), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """A gate per channel from the channel means (Hu et al. 2018): two 1x1 convolutions, `act` and `gate` between."""

    def __init__(self, width: int, middle: int, act: type[nn.Module] = nn.ReLU, gate: type[nn.Module] = nn.Sigmoid):
        super().__init__()
        self.down, self.up = nn.Conv2d(width, middle, 1), nn.Conv2d(middle, width, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.act(self.down(F.adaptive_avg_pool2d(x, 1)))))


class LinearExcite(nn.Module):
    """The same gate with Linear layers on flattened means, as SENet's authors wrote it."""

    def __init__(self, width: int, middle: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, middle), nn.Linear(middle, width)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


def head(width: int) -> nn.Sequential:
    """Global average pooling and the classifier."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


def pictures(count: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random images (count, *shape) in 0..1 that differ in the large too: nets that average a map see no mere noise."""
    draw = torch.Generator().manual_seed(seed)
    coarse = F.interpolate(torch.rand(count, shape[0], 4, 4, generator=draw), shape[1:])
    return (coarse * torch.rand(count, 1, 1, 1, generator=draw) + torch.rand(count, *shape, generator=draw)) / 2


def lived_in(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """`module` in inference mode, as if trained on images of `shape`: signals keep their size from layer to layer.

    BatchNorms have statistics near those of the data, all norms have scales and shifts, no bias is zero.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # the mean over batches: of one, here
        if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)) and part.weight is not None:
            part.weight.data.uniform_(0.7, 1.5)
            part.bias.data.uniform_(-0.2, 0.4)
        if isinstance(part, nn.MultiheadAttention):
            part.in_proj_bias.data.uniform_(-0.2, 0.2)
            part.out_proj.bias.data.uniform_(-0.2, 0.2)
    with torch.no_grad():
        module.train()(pictures(16, shape))
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean += part.running_var.sqrt() * torch.empty_like(part.running_var).uniform_(-0.2, 0.2)
                part.running_var *= torch.empty_like(part.running_var).uniform_(0.7, 1.4)
    return module.eval()
