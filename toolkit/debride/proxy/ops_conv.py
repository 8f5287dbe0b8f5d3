"""Convolutions, and the padding arithmetic that pooling shares (ONNX: `auto_pad`, asymmetric `pads`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from debride.errors import UnsupportedOpError
from debride.proxy.op import bounded, op

_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE: dict[int, Callable[..., Tensor]] = {
    1: F.conv_transpose1d,
    2: F.conv_transpose2d,
    3: F.conv_transpose3d,
}


def spatial(x: Tensor) -> int:
    """Number of spatial axes of (N, C, ...); 1 to 3, else `UnsupportedOpError`."""
    if not 3 <= x.ndim <= 5:
        raise UnsupportedOpError(f"{x.ndim - 2} spatial axes; the proxy computes 1 to 3")
    return x.ndim - 2


def window_pads(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> list[tuple[int, int]]:
    """(begin, end) padding of every spatial axis."""
    rank = len(size)
    if auto_pad == "VALID":
        return [(0, 0)] * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, strides, dilations, strict=True)
        ]
        return [(t // 2, t - t // 2) if auto_pad == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
    flat = list(pads or [0] * (2 * rank))
    return list(zip(flat[:rank], flat[rank:], strict=True))


def pad_window(x: Tensor, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Tensor:
    """`x` with its spatial axes padded by a constant; negative pads crop."""
    if not any(begin or end for begin, end in pads):
        return x
    bounded([*x.shape[:2], *(n + b + e for n, (b, e) in zip(x.shape[2:], pads, strict=True))])
    return F.pad(x, [p for pair in reversed(pads) for p in pair], value=value)


@op(since=(1, 11, 22))
def Conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = spatial(x)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    both = window_pads(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if all(begin == end >= 0 for begin, end in both):
        return _CONV[rank](x, w, b, strides, [begin for begin, _ in both], dilations, group)
    return _CONV[rank](pad_window(x, both), w, b, strides, 0, dilations, group)


@op(since=(1, 11, 22))
def ConvTranspose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    rank = spatial(x)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    extra = list(output_padding or [0] * rank)
    full = [
        s * (n - 1) + o + (k - 1) * d + 1
        for n, s, o, k, d in zip(x.shape[2:], strides, extra, w.shape[2:], dilations, strict=True)
    ]
    crops = _transpose_crops(full, x.shape[2:], strides, auto_pad, output_shape, pads)
    # Computed uncropped, so that any mix of begin, end and extra padding is one F.pad, before the bias.
    y = _CONV_TRANSPOSE[rank](x, w, None, strides, 0, 0, group, dilations)
    y = pad_window(y, [(-begin, o - end) for (begin, end), o in zip(crops, extra, strict=True)])
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _transpose_crops(
    full: Sequence[int],
    size: Sequence[int],
    strides: Sequence[int],
    auto_pad: str,
    output_shape: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> list[tuple[int, int]]:
    """What to take off either end of every axis (ONNX ConvTranspose: `total_padding`)."""
    rank = len(full)
    if output_shape is None and auto_pad in ("NOTSET", "VALID"):
        flat = list(pads or [0] * (2 * rank))
        return list(zip(flat[:rank], flat[rank:], strict=True))
    wanted = [n * s for n, s in zip(size, strides, strict=True)] if output_shape is None else output_shape[-rank:]
    totals = [f - o for f, o in zip(full, wanted, strict=True)]
    return [(t // 2, t - t // 2) if auto_pad == "SAME_UPPER" else (t - t // 2, t // 2) for t in totals]
