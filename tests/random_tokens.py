"""Blocks of random graphs on tokens (batch, T, C): dense layers, norms, attention; and the ways from and to maps."""

from __future__ import annotations

import numpy as np

from random_maker import Flow, Maker
from random_maps import activation


def to_tokens(b: Maker, x: Flow) -> Flow:
    """Each place of a map is a token; large maps are pooled first."""
    c, h, w = x.shape
    name = x.name
    if h * w > 16:
        h, w = -(-h // 4), -(-w // 4)
        size = [-(-n // m) for n, m in zip(x.shape[1:], (h, w), strict=True)]
        h, w = x.shape[1] // size[0], x.shape[2] // size[1]
        name = b.op("MaxPool", name, kernel_shape=size, strides=size)
    if b.flag():
        name = b.op("Transpose", b.reshape(name, c, b.pick(h * w, -1), computed=b.rarely()), perm=[0, 2, 1])
    else:
        name = b.reshape(b.op("Transpose", name, perm=[0, 2, 3, 1]), h * w, c)
    return Flow(name=name, shape=(h * w, c))


def to_map(b: Maker, x: Flow) -> Flow:
    t, c = x.shape
    return Flow(name=b.reshape(b.op("Transpose", x.name, perm=[0, 2, 1]), c, t, 1), shape=(c, t, 1))


def linear(b: Maker, x: Flow, width: int) -> Flow:
    """A dense layer on the last axis of tokens."""
    c = x.shape[-1]
    if b.opset >= 12 and b.rarely():
        name = b.op("Einsum", x.name, b.weight(c, width), equation=b.pick("btc,cd->btd", "...c,cd->...d"))
    else:
        name = b.op("MatMul", x.name, b.weight(c, width))
    if b.flag():
        bias = b.weight(width, spread=1.0)
        name = b.op("Add", *b.pick((name, bias), (bias, name)))
    return Flow(name=name, shape=(*x.shape[:-1], width))


def mlp(b: Maker, x: Flow) -> Flow:
    hidden = activation(b, linear(b, x, b.whole(1, 8)))
    y = linear(b, hidden, x.shape[-1])
    return Flow(name=b.op("Add", x.name, y.name), shape=x.shape) if b.flag() else y


def layer_norm(b: Maker, x: Flow) -> Flow:
    c = x.shape[-1]
    scale, shift = b.weight(c, spread=1.0), b.weight(c, spread=1.0)
    if b.opset >= 17 and b.flag():
        return Flow(name=b.op("LayerNormalization", x.name, scale, shift, axis=-1, epsilon=0.05), shape=x.shape)
    centred = b.op("Sub", x.name, b.mean(x.name, -1, keep=True))
    square = b.op("Pow", centred, b.const(np.float32(2))) if b.flag() else b.op("Mul", centred, centred)
    spread = b.op("Sqrt", b.op("Add", b.mean(square, -1, keep=True), b.const(np.float32(0.05))))
    name = b.op("Add", b.op("Mul", b.op("Div", centred, spread), scale), shift)
    return Flow(name=name, shape=x.shape)


def mixer(b: Maker, x: Flow) -> Flow:
    """Dense layers over the tokens."""
    t, c = x.shape
    y = Flow(name=b.op("Transpose", x.name, perm=[0, 2, 1]), shape=(c, t))
    if b.flag():
        y = activation(b, linear(b, y, b.whole(1, 4)))
    y = linear(b, y, t)
    return Flow(name=b.op("Add", x.name, b.op("Transpose", y.name, perm=[0, 2, 1])), shape=x.shape)


def attention(b: Maker, x: Flow) -> Flow:
    """Attention of one or more heads, with its queries, keys and values in one of several layouts, and a projection."""
    t, c = x.shape
    heads, size = b.whole(1, 3), b.whole(1, 3)
    q, k, v = b.pick(_apart, _fused_front, _fused_split, _fused_inner, _merged)(b, x, heads, size)
    merged = isinstance(q, tuple)
    q, k, v = (q[0], k[0], v[0]) if merged else (q, k, v)
    turned = b.op("Transpose", k, perm=[0, 2, 1] if merged else [0, 1, 3, 2])
    scale = b.const(np.float32(1 / np.sqrt(size)))
    scores = (
        b.op("MatMul", b.op("Mul", q, scale), turned) if b.flag() else b.op("Mul", b.op("MatMul", q, turned), scale)
    )
    mixed = b.op("MatMul", b.op("Softmax", scores, axis=-1 if b.opset >= 11 else (2 if merged else 3)), v)
    if merged:  # (batch * heads, T, size)
        mixed = b.op("Reshape", mixed, b.ints(-1, heads, t, size))
    joined = b.reshape(b.op("Transpose", mixed, perm=[0, 2, 1, 3]), t, heads * size)
    y = linear(b, Flow(name=joined, shape=(t, heads * size)), c)
    return Flow(name=b.op("Add", x.name, y.name), shape=x.shape) if b.flag() else y


def _heads(b: Maker, name: str, t: int, heads: int, size: int) -> str:
    return b.op("Transpose", b.reshape(name, t, heads, size, computed=b.rarely()), perm=[0, 2, 1, 3])


def _apart(b: Maker, x: Flow, heads: int, size: int) -> list[str]:
    return [_heads(b, linear(b, x, heads * size).name, x.shape[0], heads, size) for _ in range(3)]


def _fused_split(b: Maker, x: Flow, heads: int, size: int) -> list[str]:
    parts = b.split(linear(b, x, 3 * heads * size).name, (heads * size,) * 3, b.pick(2, -1) if b.opset >= 11 else 2)
    return [_heads(b, part, x.shape[0], heads, size) for part in parts]


def _fused_front(b: Maker, x: Flow, heads: int, size: int) -> list[str]:
    """(batch, T, 3, heads, size), turned to have the three in front."""
    y = b.reshape(linear(b, x, 3 * heads * size).name, x.shape[0], 3, heads, size)
    y = b.op("Transpose", y, perm=[2, 0, 3, 1, 4])
    if b.flag():
        return [b.op("Gather", y, b.const(np.int64(i)), axis=0) for i in range(3)]
    return [b.squeeze(part, 0) for part in b.split(y, (1, 1, 1), 0)]


def _fused_inner(b: Maker, x: Flow, heads: int, size: int) -> list[str]:
    """(batch, heads, T, 3 * size): each head has its own three."""
    y = _heads(b, linear(b, x, 3 * heads * size).name, x.shape[0], heads, 3 * size)
    if b.flag():
        return b.split(y, (size,) * 3, 3)
    return [b.slice(y, i * size, (i + 1) * size, 3) for i in range(3)]


def _merged(b: Maker, x: Flow, heads: int, size: int) -> list[str]:
    """(batch * heads, T, size)."""
    return [(b.op("Reshape", name, b.ints(-1, x.shape[0], size)),) for name in _apart(b, x, heads, size)]


def einsum_attention(b: Maker, x: Flow) -> Flow:
    """Attention as Keras writes it: weights (C, heads, size), and every product an Einsum."""
    if b.opset < 12:
        return attention(b, x)
    c, heads, size = x.shape[1], b.whole(1, 3), b.whole(1, 3)
    q, k, v = (b.op("Einsum", x.name, b.weight(c, heads, size), equation="abc,cde->abde") for _ in range(3))
    q, v = (b.op("Add", name, b.weight(heads, size, spread=1.0)) for name in (q, v))
    scores = b.op("Einsum", k, b.op("Mul", q, b.const(np.float32(1 / np.sqrt(size)))), equation="aecd,abcd->acbe")
    mixed = b.op("Einsum", b.op("Softmax", scores, axis=3), v, equation="acbe,aecd->abcd")
    y = b.op("Einsum", mixed, b.weight(heads, size, c), equation="abcd,cde->abe")
    return Flow(name=b.op("Add", x.name, b.op("Add", y, b.weight(c, spread=1.0))), shape=x.shape)


def whole_attention(b: Maker, x: Flow) -> Flow:
    """The Attention operator, on (batch, T, heads * size) or on heads apart."""
    if b.opset < 23:
        return attention(b, x)
    (t, c), heads, size = x.shape, b.whole(1, 3), b.whole(1, 3)
    parts = [linear(b, x, heads * size).name for _ in range(3)]
    if b.flag():
        y = b.op("Attention", *parts, q_num_heads=heads, kv_num_heads=heads)
    else:
        y = b.op("Attention", *(_heads(b, part, t, heads, size) for part in parts))
        y = b.reshape(b.op("Transpose", y, perm=[0, 2, 1, 3]), t, heads * size)
    y = linear(b, Flow(name=y, shape=(t, heads * size)), c)
    return Flow(name=b.op("Add", x.name, y.name), shape=x.shape)


TOKEN_BLOCKS = (
    mlp,
    mlp,
    layer_norm,
    attention,
    attention,
    einsum_attention,
    whole_attention,
    mixer,
    lambda b, x: linear(b, x, b.whole(1, 8)),
)
