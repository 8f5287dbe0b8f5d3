"""Small models that store what can be trained in many ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from debride.graph.channels import find_groups
from debride.graph.read import model_of
from graph_models import Builder

SAMPLE = Path(__file__).parents[1] / "samples" / "fashion-backdoored.onnx"


def read(proto, path=Path("m.onnx")):
    return model_of(proto.SerializeToString(), path)


def groups_of(model):
    return find_groups(model.graph, model.graph.outputs[0].name)[0]


def end(b, x, c):
    """Global pooling and a Gemm into 3 classes."""
    return b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.weight(c, 3), b.weight(3))


def net(b, batch="n", shape=(3, 8, 8), **kwargs):
    return b.model([batch, *shape], "scores", [batch, 3], **kwargs)


def plain(**kwargs):
    b = Builder(**kwargs)
    end(b, b.op("Relu", b.bn(b.conv("x", 3, 4), 4)), 4)
    return net(b)


def dense(store="initializer", **kwargs):
    """MatMul and Add twice, one of them turned round."""
    b = Builder(store=store, **kwargs)
    hidden = b.op("Relu", b.op("Add", b.op("MatMul", b.op("Flatten", "x"), b.weight(192, 4)), b.weight(4)))
    b.op("Add", b.weight(3), b.op("MatMul", hidden, b.weight(4, 3)))
    return net(b)


def tied():
    b = Builder()
    weight = b.weight(3, 3, 1, 1)
    y = b.op("Conv", b.op("Tanh", b.op("Conv", "x", weight)), b.op("Identity", weight))
    end(b, y, 3)
    return net(b)


def nhwc(batch=1):
    b = Builder()
    b.fixed = True
    x = b.op("Transpose", b.op("Sub", "x", b.const(np.full((1, 1, 1, 3), 0.4, np.float32))), perm=[0, 3, 1, 2])
    y = b.op("Transpose", b.op("Relu", b.conv(x, 3, 4)), perm=[0, 2, 3, 1])
    y = b.op("MatMul", y, b.weight(4, 5))
    y = b.op("Add", y, b.weight(5))
    y = b.op("Reshape", b.op("ReduceMean", y, axes=[1, 2], keepdims=1), b.const(np.array([batch, 5], np.int64)))
    b.op("Gemm", y, b.weight(3, 5), b.weight(3), transB=1)
    return b.model([batch, 8, 8, 3], "scores", [batch, 3])


def decomposed():
    """Layer normalisation and one in groups, written in single nodes, and a PRelu."""
    b = Builder()
    x = b.op("Reshape", b.conv("x", 3, 4), b.const(np.array([0, 2, -1], np.int64)))
    y = b.op("InstanceNormalization", x, b.const(np.ones(2, np.float32)), b.const(np.zeros(2, np.float32)))
    y = b.op("Reshape", y, b.const(np.array([0, 4, 8, 8], np.int64)))
    y = b.op("PRelu", b.op("Add", b.op("Mul", y, b.weight(4, 1, 1)), b.weight(4, 1, 1)), b.weight(4, 1, 1))
    y = b.op("Transpose", y, perm=[0, 2, 3, 1])
    centred = b.op("Sub", y, b.op("ReduceMean", y, axes=[-1]))
    spread = b.op("ReduceMean", b.op("Mul", centred, centred), axes=[-1])
    y = b.op("Div", centred, b.op("Sqrt", b.op("Add", spread, b.const(np.float32(1e-5)))))
    y = b.op("Add", b.op("Mul", y, b.weight(4)), b.weight(4))
    end(b, b.op("Transpose", y, perm=[0, 3, 1, 2]), 4)
    return net(b)


MADE = {
    "norm": plain,
    "constant nodes": lambda: plain(store="constant"),
    "identity": lambda: plain(store="identity"),
    "ir 3": lambda: plain(opset=8, ir=3),
    "matmul": dense,
    "matmul of transposed": lambda: dense("transpose"),
    "tied": tied,
    "nhwc, batch 1": nhwc,
    "decomposed": decomposed,
}
