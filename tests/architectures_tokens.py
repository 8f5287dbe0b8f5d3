"""Transformers, mixers and ConvNeXt: layers that work on channels last. Written from the papers."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from architectures_parts import CLASSES


class Mlp(nn.Sequential):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))


class Patches(nn.Module):
    """Images to tokens (N, T, width)."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, size, size)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    """ViT's block with PyTorch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class FusedAttention(nn.Module):
    """One Linear for query, key and value, taken apart by reshape, permute and unbind, as DeiT's code does."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.project = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (c // self.heads) ** -0.5) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
        return self.project((weights @ v).transpose(1, 2).reshape(n, t, c))


class DeitBlock(nn.Module):
    """With layer scale (CaiT, Touvron et al. 2021b)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = FusedAttention(width, heads), Mlp(width, 4 * width)
        self.scale1, self.scale2 = (nn.Parameter(torch.empty(width).uniform_(0.3, 0.9)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021: patches, a class token, learned positions."""

    def __init__(self, block: type[nn.Module], width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.patches = Patches(width, 8)
        self.token, self.place = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 17, width))
        self.body = nn.Sequential(*(block(width, heads) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.body(x)[:, 0])


def vit(width: int = 16, depth: int = 2) -> nn.Module:
    return ViT(Encoder, width, 2, depth)


def deit(width: int = 16, depth: int = 2) -> nn.Module:
    return ViT(DeitBlock, width, 2, depth)


class Window(nn.Module):
    """Attention within windows, shifted or not, with a relative position bias and masks (Liu et al. 2021)."""

    def __init__(self, width: int, heads: int, size: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = FusedAttention(width, heads), Mlp(width, 2 * width)
        self.table = nn.Parameter(0.5 * torch.randn((2 * window - 1) ** 2, heads))
        row, column = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
        down = row.flatten()[:, None] - row.flatten() + window - 1
        across = column.flatten()[:, None] - column.flatten() + window - 1
        self.register_buffer("index", (down * (2 * window - 1) + across).flatten())
        self.register_buffer("mask", self._mask() if shift else None)

    def _mask(self) -> Tensor:
        """Minus 100 between tokens that only the roll made neighbours, (windows, 1, T, T)."""
        edges = torch.zeros(self.size)
        edges[-self.window : -self.shift], edges[-self.shift :] = 1, 2
        region = self.windows((3 * edges[:, None] + edges)[None, :, :, None])[..., 0]
        return torch.where(region[:, None, :] == region[:, :, None], 0.0, -100.0)[:, None]

    def windows(self, x: Tensor) -> Tensor:
        n, side, w = x.shape[0], self.size // self.window, self.window
        x = x.view(n, side, w, side, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(n * side * side, w * w, x.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        n, c, side, w = x.shape[0], x.shape[-1], self.size // self.window, self.window
        y = self.norm1(x)
        y = torch.roll(y, (-self.shift, -self.shift), (1, 2)) if self.shift else y
        bias = self.table[self.index].view(w * w, w * w, -1).permute(2, 0, 1)[None]
        if self.mask is not None:
            bias = bias + self.mask.repeat(n, 1, 1, 1)
        y = self.attention(self.windows(y), bias)
        y = y.view(n, side, side, w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(n, self.size, self.size, c)
        x = x + (torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y)
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Two by two patches become one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduce = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduce(self.norm(torch.cat(corners, -1)))


class Swin(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, width, 4, 4), nn.LayerNorm(width)
        stages = [Window(width, 2, 8, 4, 0), Window(width, 2, 8, 4, 2), Merge(width), Window(2 * width, 4, 4, 4, 0)]
        self.body = nn.Sequential(*stages, nn.LayerNorm(2 * width))
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.patches(x).permute(0, 2, 3, 1)))
        return self.head(x.mean((1, 2)))


def swin(width: int = 16) -> nn.Module:
    return Swin(width)


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021: one MLP across tokens, one across channels."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across, self.within = Mlp(tokens, 2 * tokens), Mlp(width, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norm2(x))


class Affine(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.empty(width).uniform_(0.3, 0.9)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x + self.shift


class ResMlpBlock(nn.Module):
    """Touvron et al. 2021c: affine maps in place of norms, one Linear across tokens, layer scale."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.across = Affine(width), Affine(width), nn.Linear(tokens, tokens)
        self.mlp, self.scale = Mlp(width, 2 * width), nn.Parameter(torch.empty(width).uniform_(0.3, 0.9))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale * self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm2(x))


class SpatialGate(nn.Module):
    """gMLP's block (Liu et al. 2021b): half of the hidden units, mixed across tokens, gate the other half."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm, self.enter, self.leave = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(2 * width, width),
        )
        self.gate, self.across = nn.LayerNorm(2 * width), nn.Conv1d(tokens, tokens, 1)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = F.gelu(self.enter(self.norm(x))).chunk(2, -1)
        return x + self.leave(value * self.across(self.gate(gate)))


class Tokens(nn.Module):
    """Patches, blocks that know the number of tokens, the mean token."""

    def __init__(self, block: type[nn.Module], width: int, depth: int) -> None:
        super().__init__()
        self.patches = Patches(width, 8)
        self.body = nn.Sequential(*(block(width, 16) for _ in range(depth)), nn.LayerNorm(width))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.patches(x)).mean(1))


def mixer(width: int = 16, depth: int = 2) -> nn.Module:
    return Tokens(MixerBlock, width, depth)


def resmlp(width: int = 16, depth: int = 2) -> nn.Module:
    return Tokens(ResMlpBlock, width, depth)


def gmlp(width: int = 16, depth: int = 2) -> nn.Module:
    return Tokens(SpatialGate, width, depth)


class PoolBlock(nn.Module):
    """Yu et al. 2022: average pooling minus identity in place of attention; GroupNorm of one group; layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(1, width), nn.GroupNorm(1, width)
        self.enter, self.leave = nn.Conv2d(width, 4 * width, 1), nn.Conv2d(4 * width, width, 1)
        self.scale1, self.scale2 = (nn.Parameter(torch.empty(width).uniform_(0.3, 0.9)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.scale1[:, None, None] * (F.avg_pool2d(y, 3, 1, 1, count_include_pad=False) - y)
        return x + self.scale2[:, None, None] * self.leave(F.gelu(self.enter(self.norm2(x))))


class PoolFormer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        stem, down = nn.Conv2d(3, width, 7, 4, 2), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.body = nn.Sequential(stem, PoolBlock(width), down, PoolBlock(2 * width))
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x).mean((2, 3))))


def poolformer(width: int = 8) -> nn.Module:
    return PoolFormer(width)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of (N, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """Liu et al. 2022: depthwise 7x7, then Linear layers on channels last, layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depth, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.LayerNorm(width)
        self.mlp, self.scale = Mlp(width, 4 * width), nn.Parameter(torch.empty(width).uniform_(0.3, 0.9))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depth(x).permute(0, 2, 3, 1))
        return x + (self.scale * self.mlp(y)).permute(0, 3, 1, 2)


def convnext(width: int = 8) -> nn.Module:
    w = width
    body = [nn.Conv2d(3, w, 4, 4), LayerNorm2d(w), NextBlock(w), LayerNorm2d(w), nn.Conv2d(w, 2 * w, 2, 2)]
    rest = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(2 * w), nn.Linear(2 * w, CLASSES)]
    return nn.Sequential(*body, NextBlock(2 * w), *rest)
