"""Slimming beside tensors without elements: empty lists of numbers, and axes that are long for nothing."""

from __future__ import annotations

import numpy as np
import pytest

from graph_models import Builder
from test_slimming import classifier, slimmed
from test_slimming_hostile import assert_same, ints, layer, pointwise


@pytest.mark.parametrize("store", ["initializer", "constant"])
def test_lists_of_numbers_that_are_left_empty_hold_nothing(tmp_path, store):
    b = Builder(11, store=store)
    none = b.const(np.zeros(0, np.float32))
    x = b.op("Sigmoid", layer(b, "x", 3, 6, [1, 4]))
    y = b.op("Resize", x, none, b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    factor = b.op("Reshape", b.const(np.array([2], np.float32)), ints(b))
    proto = classifier(b, b.op("Relu", pointwise(b, b.op("Mul", y, factor), 6, 5)), 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert facts.left == 2
    assert_same(proto, slim_proto)


LONG = 2**40  # an axis that costs onnxruntime nothing, since another one is empty


def joined(b, bare):
    tall = b.op("Reshape", bare, ints(b, 0, LONG), allowzero=1)
    return b.op("Concat", tall, tall, axis=1)


def cut(b, bare):
    return b.op("Slice", b.op("Reshape", bare, ints(b, 0, LONG), allowzero=1), ints(b, 0), ints(b, 9), ints(b, 1))


def padded(b, bare):
    return b.op("Pad", bare, ints(b, 0, 0, 0, LONG, 0, 0, 0, LONG))


def multiplied(b, bare):
    filled = b.op("ConstantOfShape", ints(b, 0, 4))
    return b.op("MatMul", filled, b.const(np.ones((4, 3), np.float32)))


@pytest.mark.parametrize("make", [joined, cut, padded, multiplied])
def test_nothing_is_computed_of_tensors_without_elements(tmp_path, make):
    b = Builder(14)
    x = b.op("Relu", layer(b, b.op("Relu", layer(b, "x", 3, 5, [2])), 5, 4, [1]))
    bare = b.op("Slice", x, ints(b, 0), ints(b, 0), ints(b, 2))
    proto = classifier(b, b.op("Add", x, b.op("ReduceSum", make(b, bare), keepdims=0)), 4)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert make is not multiplied or facts.left == 1
    assert_same(proto, slim_proto)


def dense(b, x, sides, cin, cout, dead):
    """A Dense layer over the last axis of `x` (N, H, W, cin), as TensorFlow's tensordot writes it."""
    shape = b.op("Shape", x)
    free, own = (b.op("Gather", shape, ints(b, *axes), axis=0) for axes in ((0, 1, 2), (3,)))
    if sides == "Size":
        rows = b.op("Reshape", b.op("Div", b.op("Size", x), b.const(np.int64(cin))), ints(b, 1))
    else:
        rows = b.op("ReduceProd", free, axes=[0], keepdims=1)
    weight = b.rng.standard_normal((cin, cout)).astype(np.float32)
    bias = b.rng.standard_normal(cout).astype(np.float32)
    weight[:, dead] = bias[dead] = 0
    flat = b.op("Reshape", x, b.op("Concat", rows, b.op("ReduceProd", own, axes=[0], keepdims=1), axis=0))
    wide = b.op("Reshape", b.op("MatMul", flat, b.const(weight)), b.op("Concat", free, ints(b, cout), axis=0))
    return b.op("Add", wide, b.const(bias))


@pytest.mark.parametrize("sides", ["ReduceProd", "Size"])
def test_a_product_with_the_batch_is_one_unknown_number(tmp_path, sides):
    b = Builder(13)
    x = b.op("Transpose", b.op("Relu", layer(b, "x", 3, 6, [1, 4])), perm=[0, 2, 3, 1])
    x = b.op("Relu", dense(b, x, sides, 6, 8, [2, 3]))
    x = b.op("Relu", b.op("Transpose", dense(b, x, sides, 8, 5, [0]), perm=[0, 3, 1, 2]))
    proto = classifier(b, x, 5)
    slim_proto, facts = slimmed(proto, tmp_path, {})
    assert (facts.dead, facts.left) == (5, 5)
    for batch in (1, 7):
        assert_same(proto, slim_proto, batch)
