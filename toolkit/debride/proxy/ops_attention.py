"""Scaled dot-product attention (Vaswani et al. 2017), as ONNX's operator of opset 23 has it."""

from __future__ import annotations

import torch
from torch import Tensor

from debride.proxy.op import dtype_of, op


def _heads(x: Tensor, heads: int | None) -> Tensor:
    """(B, S, heads * size) as (B, heads, S, size); four axes are left alone."""
    if x.ndim == 4:
        return x
    if not heads:
        raise ValueError("inputs of three axes need q_num_heads and kv_num_heads")
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _bias(scores: Tensor, mask: Tensor | None, is_causal: int, past: int) -> Tensor:
    """What is added to the scores: 0 or the float mask where a key may be seen, minus infinity where not."""
    bias = torch.zeros((), dtype=scores.dtype, device=scores.device)
    never = torch.full_like(bias, float("-inf"))
    if mask is not None:
        given = torch.where(mask, bias, never) if mask.dtype == torch.bool else mask.to(scores.dtype)
        missing = scores.shape[-1] - given.shape[-1]
        bias = bias + torch.constant_pad_nd(given, (0, missing), float("-inf"))
    if is_causal:
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(past)
        bias = bias + torch.where(seen, torch.zeros_like(never), never)
    return bias


@op(since=(23,))
def Attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    query, key, value = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    past = 0 if past_key is None else past_key.shape[2]
    key = key if past_key is None else torch.cat([past_key, key], 2)
    value = value if past_value is None else torch.cat([past_value, value], 2)
    repeats = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    root = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    raw = (query * root) @ (keys * root).transpose(-1, -2)
    capped = softcap * torch.tanh(raw / softcap) if softcap else raw
    biased = capped + _bias(capped, attn_mask, is_causal, past)
    wide = biased if softmax_precision is None else biased.to(dtype_of(softmax_precision))
    # A query that may see no key gets zeros, not NaN.
    blind = torch.isneginf(wide).all(-1, keepdim=True)
    weights = torch.softmax(wide.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0).to(q.dtype)
    y = weights @ values
    y = y if q.ndim == 4 else y.transpose(1, 2).reshape(q.shape[0], q.shape[1], -1)
    return y, key, value, (raw, capped, biased, weights)[qk_matmul_output_mode]


def _turned(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Pairs of the last axis (its two halves, or neighbours) turned by the angles of (..., size / 2)."""
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    real, imaginary = first * cos - second * sin, first * sin + second * cos
    return torch.stack([real, imaginary], -1).flatten(-2) if interleaved else torch.cat([real, imaginary], -1)


@op(since=(23,))
def RotaryEmbedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    y = _heads(x, num_heads)
    size = rotary_embedding_dim or y.shape[-1]
    cos, sin = (c if position_ids is None else c[position_ids.long()] for c in (cos_cache, sin_cache))
    # (B, S, size / 2) beside (B, heads, S, size / 2).
    cos, sin = (c[..., : size // 2].unsqueeze(1) for c in (cos, sin))
    y = torch.cat([_turned(y[..., :size], cos, sin, bool(interleaved)), y[..., size:]], -1)
    return y if x.ndim == 4 else y.transpose(1, 2).reshape(x.shape)
