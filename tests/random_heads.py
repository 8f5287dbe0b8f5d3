"""Blocks of random graphs on vectors (batch, C), the ways there from maps and tokens, and the ends."""

from __future__ import annotations

import numpy as np

from random_maker import Flow, Maker
from random_maps import activation, norm


def to_vector(b: Maker, x: Flow) -> Flow:
    """All places averaged, or laid side by side, in one of the spellings of exporters."""
    return _tokens_to_vector(b, x) if len(x.shape) == 2 else _map_to_vector(b, x)


def _tokens_to_vector(b: Maker, x: Flow) -> Flow:
    t, c = x.shape
    kind = b.pick("mean", "first", "all")
    if kind == "mean":
        return Flow(name=b.mean(x.name, 1, keep=False), shape=(c,))
    if kind == "first":
        return Flow(name=b.op("Gather", x.name, b.const(np.int64(0)), axis=1), shape=(c,))
    return Flow(name=b.op("Flatten", x.name), shape=(t * c,))


def _map_to_vector(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    if b.flag():
        size, name = c * h * w, x.name
        if min(h, w) >= 4:
            name, size = b.op("MaxPool", name, kernel_shape=[4, 4], strides=[4, 4]), c * (h // 4) * (w // 4)
        kind = b.pick("flatten", "reshape", "rest", "last")
        if kind == "last":
            name = b.op("Flatten", b.op("Transpose", name, perm=[0, 2, 3, 1]))
        else:
            name = b.op("Flatten", name) if kind == "flatten" else b.reshape(name, -1 if kind == "rest" else size)
        return Flow(name=name, shape=(size,))
    if b.flag():
        return Flow(name=b.mean(x.name, 2, 3, keep=False), shape=(c,))
    pooled = b.op(b.pick("GlobalAveragePool", "GlobalMaxPool"), x.name)
    spellings = (
        lambda: b.op("Flatten", pooled),
        lambda: b.squeeze(pooled, 2, 3),
        lambda: b.reshape(pooled, b.pick(c, -1)),
    )
    return Flow(name=b.pick(*spellings)(), shape=(c,))


def gemm(b: Maker, x: Flow, width: int) -> Flow:
    c, transposed = x.shape[0], b.flag()
    weight = b.weight(width, c) if transposed else b.weight(c, width)
    bias = [b.weight(*b.pick((width,), (width,), (1, width), (1,)), spread=1.0)] if b.flag() or b.opset < 11 else []
    factors = {"alpha": 0.5, "beta": b.pick(2.0, 0.0, 1.0)} if b.rarely() else {}
    return Flow(name=b.op("Gemm", x.name, weight, *bias, transB=int(transposed), **factors), shape=(width,))


def matmul(b: Maker, x: Flow, width: int) -> Flow:
    name, bias = b.op("MatMul", x.name, b.weight(x.shape[0], width)), b.weight(width, spread=1.0)
    return Flow(name=b.op("Add", *b.pick((name, bias), (bias, name))), shape=(width,))


HEADS = (gemm, matmul)


def dense(b: Maker, x: Flow) -> Flow:
    return activation(b, b.pick(*HEADS)(b, x, b.whole(1, 8)))


def deep(b: Maker, x: Flow) -> Flow:
    """A residual of dense layers."""
    y = b.pick(*HEADS)(b, dense(b, x), x.shape[0])
    return Flow(name=b.op("Add", x.name, y.name), shape=x.shape)


VECTOR_BLOCKS = (dense, dense, norm, deep)


def ending(b: Maker, x: Flow) -> Flow:
    kind = b.pick("", "", "Softmax", "Sigmoid", "LogSoftmax")
    return Flow(name=b.op(kind, x.name, **({} if kind == "Sigmoid" else {"axis": 1})), shape=x.shape) if kind else x
