"""Sampling at places that the graph computes, and laying overlapping windows back into an image."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from debride.errors import UnsupportedOpError
from debride.proxy.op import bounded, ints, op
from debride.proxy.ops_conv import pad_window


@op(since=(16, 20, 22))
def GridSample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    names = {"linear": "bilinear", "cubic": "bicubic"}
    return F.grid_sample(x, grid, names.get(mode, mode), padding_mode, bool(align_corners))


@op(since=(20,))
def AffineGrid(theta: Tensor, size: Tensor, *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, bounded(ints(size)), bool(align_corners))


@op(since=(18,))
def Col2Im(
    x: Tensor,
    image_shape: Tensor,
    block_shape: Tensor,
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    image, block = ints(image_shape), ints(block_shape)
    rank = len(image)
    dilations, strides, flat = dilations or [1] * rank, strides or [1] * rank, list(pads or [0] * (2 * rank))
    both = list(zip(flat[:rank], flat[rank:], strict=True))
    size = bounded([n + b + e for n, (b, e) in zip(image, both, strict=True)])
    cells = torch.zeros((), dtype=torch.int64, device=x.device)
    for i in range(rank):  # the cell that each place of the block (first axes) reads in each window (last axes)
        starts = torch.arange(0, size[i] - (block[i] - 1) * dilations[i], strides[i], device=x.device)
        offsets = torch.arange(block[i], device=x.device) * dilations[i]
        shape = [1] * (2 * rank)
        shape[i], shape[rank + i] = len(offsets), len(starts)
        cells = cells * size[i] + (offsets[:, None] + starts).reshape(shape)
    parts = x.reshape(x.shape[0], x.shape[1] // prod(block), -1)
    y = x.new_zeros(*parts.shape[:2], prod(size)).index_add(2, cells.reshape(-1), parts)
    return pad_window(y.reshape(*parts.shape[:2], *size), [(-b, -e) for b, e in both])


@op(since=(19, 22))
def DeformConv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    if x.ndim != 4:
        raise UnsupportedOpError(f"{x.ndim - 2} spatial axes; the proxy deforms convolutions over 2")
    n, rows, columns = x.shape[0], *offset.shape[2:]
    height, width = w.shape[2:]
    moves = offset.reshape(n * offset_group, height * width, 2, rows, columns)
    grids = []
    for i, (kernel, out) in enumerate(((height, rows), (width, columns))):
        step, begin, reach = (strides or (1, 1))[i], (pads or (0, 0))[i], (dilations or (1, 1))[i]
        cells = torch.arange(kernel, device=x.device)[:, None] * reach + torch.arange(out, device=x.device) * step
        base = (cells - begin).reshape((kernel, 1, out, 1) if i == 0 else (1, kernel, 1, out))
        at = moves[:, :, i] + base.expand(height, width, rows, columns).reshape(height * width, rows, columns)
        grids.append((2 * at + 1) / x.shape[2 + i] - 1)  # grid_sample's places: -1 and 1 are the image's borders
    places = torch.stack(grids[::-1], -1).flatten(1, 2)
    taken = F.grid_sample(x.reshape(n * offset_group, -1, *x.shape[2:]), places, align_corners=False)
    taken = taken.reshape(n, offset_group, -1, height * width, rows * columns)
    if mask is not None:
        taken = taken * mask.reshape(n, offset_group, 1, height * width, rows * columns)
    weights = w.reshape(group, w.shape[0] // group, -1)
    y = (weights @ taken.reshape(n, group, -1, rows * columns)).reshape(n, -1, rows, columns)
    return y if b is None else y + b.reshape(1, -1, 1, 1)
