"""Heads merged with the batch: found in what PyTorch writes, in nothing that looks alike, and exact when one is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from architectures import network, shape_of
from debride.graph.read import read_model
from debride.graph.walk import Index
from debride.sessions import Runtime
from debride.slimming import slim
from debride.slimming.axes import Axes
from debride.slimming.heads import find_heads, hold_heads, interior, known_heads, parameters
from debride.slimming.observe import observe
from debride.slimming.prepare import prepared
from exports import export
from graph_models import Builder, run

LENGTH, WIDTH, HEADS, SIZE = 5, 6, 4, 3
EMBED = HEADS * SIZE
EXPORTS = [("torchscript", 14), ("torchscript", 20), ("dynamo", 18), ("dynamo", 23)]


def look(proto, tmp_path):
    """(the groups found, each once, what was observed) of a model."""
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = read_model(path)
    ready = prepared(model.graph, observe(model.proto, model.graph, None, Runtime(threads=1), path.name))
    found = find_heads(ready.graph, ready.observed, Index(ready.graph))
    assert all(name in {node.name for node in heads.nodes} for name, heads in found.items())
    return list({id(heads): heads for heads in found.values()}.values()), ready.observed


class Attention(nn.Module):
    """PyTorch's attention over eight tokens, or a whole layer of its encoder."""

    def __init__(self, kind, first):
        super().__init__()
        layer = kind in ("gelu", "relu")
        self.first, self.kind = first, kind
        self.make = nn.TransformerEncoderLayer(12, 3, 24, activation=kind, batch_first=first) if layer else None
        self.attend = None if layer else nn.MultiheadAttention(12, 3, batch_first=first)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = x if self.first else x.transpose(0, 1)
        if self.make is not None:
            y = self.make(x)
        else:
            weights = {"need_weights": self.kind != "plain", "average_attn_weights": self.kind == "mean"}
            y = self.attend(x, x, x, **weights)[0]
        return self.head(y.mean(1 if self.first else 0))


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize(
    ("kind", "first"),
    [("gelu", True), ("relu", False), ("plain", True), ("plain", False), ("mean", True), ("each", False)],
)
def test_the_heads_of_pytorch_s_attention_are_found(tmp_path, exporter, opset, kind, first):
    torch.manual_seed(0)
    module = Attention(kind, first).eval()
    groups, observed = look(export(module, (8, 12), exporter=exporter, opset=opset), tmp_path)
    assert all(heads.heads == 3 for heads in groups)
    outer = [heads for heads in groups if any(side.step == 4 for side in heads.inputs)]
    assert all(observed.shapes[side.tensor] == (8, 3, 12) for heads in outer for side in heads.inputs)
    if kind in ("mean", "each"):  # scores computed with heads and batch merged
        assert [len(heads.inputs) for heads in groups] == [3]
        assert [(side.axis, side.step) for side in groups[0].outs] == [(1, 4)]
        assert sum(node.op == "MatMul" for node in groups[0].nodes) == 2
    else:  # merged only on the way: queries, keys and values each by themselves
        assert [len(heads.inputs) for heads in outer] == [1, 1, 1]
        assert all((side.axis, side.step) == (1, 1) for heads in groups for side in heads.outs)


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
def test_a_vision_transformer_has_them_in_every_layer(tmp_path, exporter, opset):
    groups, _ = look(export(network("vit"), shape_of("vit"), exporter=exporter, opset=opset), tmp_path)
    assert [heads.heads for heads in groups if heads.inputs[0].step == 8] == [2] * 6


@pytest.mark.parametrize("name", ["deit", "swin", "mixer", "convnext", "shufflenet_v2", "poolformer"])
def test_there_are_none_in_networks_that_keep_heads_and_batch_apart(tmp_path, name):
    assert look(export(network(name), shape_of(name), exporter="torchscript", opset=14), tmp_path)[0] == []


SPELLINGS = {
    "plain": {},
    "scaled before": {"before": True},
    "scaled by a computed number": {"scale": "computed"},
    "divided": {"scale": "Div"},
    "masked": {"mask": (LENGTH, LENGTH)},
    "masked alike in all": {"mask": (1, LENGTH, LENGTH)},
    "cast and dropped out": {"through": ("Cast", "Dropout", "Identity")},
    "batch first": {"start": "split"},
    "rows of all images": {"end": "flat"},
    "shared out between places, heads second": {"turned": True, "softmax": 0},
    "opset 9": {"opset": 9},
    "opset 12": {"opset": 12},
    "opset 21": {"opset": 21},
}
OTHERS = {
    "a mask for every head": {"mask": (HEADS, LENGTH, LENGTH), "tiled": True},
    "a scale for every head": {"scale": "heads"},
    "read elsewhere": {"leak": "read"},
    "an output inside": {"leak": "output"},
    "heads before the batch": {"start": "heads first"},
    "softmax over heads": {"softmax": 0},
    "softmax over heads and all behind": {"softmax": 0, "opset": 12},
    "softmax over heads that are second": {"turned": True, "softmax": 1},
    "softmax from before the heads on": {"turned": True, "softmax": 0, "opset": 12},
    "heads along two axes": {"start": "two axes"},
    "summed over heads": {"through": ("ReduceSum",)},
    "a size that is counted": {"leak": "shape"},
    "mixed by a layer": {"through": ("layer",)},
    "another number of heads at the end": {"end": "wrong"},
}


def attention(arrays, heads=HEADS, **spelling):
    """Tokens (N, L, C) attending to each other; `arrays` are the three projections and the one behind."""
    return _Maker(spelling.pop("opset", 13), heads, spelling).model(arrays)


class _Maker:
    def __init__(self, opset, heads, spelling):
        self.b, self.heads, self.get = Builder(opset, 10 if opset > 20 else 8), heads, spelling.get
        self.outputs = []

    def model(self, arrays):
        b, (q, k, v, o) = self.b, arrays
        tokens = b.op("Transpose", "x", perm=[1, 0, 2]) if self.get("start") is None else "x"
        q, k, v = (b.op("MatMul", tokens, b.const(w)) for w in (q, k, v))
        q = self.scaled(q) if self.get("before") else q
        q, k, v = self.merged(q), self.merged(k), self.merged(v)
        q = q if self.get("before") else self.scaled(q)
        scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
        if self.get("mask"):
            scores = b.op("Add", scores, self.mask(scores))
        scores = b.op("Transpose", scores, perm=[1, 0, 2]) if self.get("turned") else scores
        weights = b.op("Softmax", scores, axis=self.get("softmax", 2))
        weights = b.op("Transpose", weights, perm=[1, 0, 2]) if self.get("turned") else weights
        out = b.op("MatMul", self.through(weights), v)
        self.leak(weights)
        y = b.op("MatMul", self.parted(out), b.const(o))
        y = self.leaked(b.op("Reshape", y, b.const(np.int64([-1, LENGTH * 2]))))
        return b.model(["n", LENGTH, WIDTH], "y", ["n", LENGTH * 2], outputs=self.outputs)

    def scaled(self, x):
        b, kind = self.b, self.get("scale", "Mul")
        if kind == "computed":
            return b.op("Mul", x, b.op("Sqrt", b.const(np.float32([0.25]))))
        if kind == "heads":  # one number per image and head, as long as the batch is what it is
            shape = b.op("Shape", b.op("ReduceSum", x, b.const(np.int64([1, 2])), keepdims=0))
            ones = b.op("ConstantOfShape", shape, value=numpy_helper.from_array(np.ones(1, np.float32)))
            return b.op("Mul", x, b.op("Unsqueeze", ones, b.const(np.int64([1, 2]))))
        return b.op(kind, x, b.const(np.float32(0.5)))

    def merged(self, x):
        b = self.b
        if self.get("start") is None:
            return b.op("Transpose", b.op("Reshape", x, b.const(np.int64([LENGTH, -1, SIZE]))), perm=[1, 0, 2])
        apart = [2, self.heads // 2] if self.get("start") == "two axes" else [self.heads]
        x = b.op("Reshape", x, b.const(np.int64([-1, LENGTH, *apart, SIZE])))
        orders = {"split": [0, 2, 1, 3], "heads first": [2, 0, 1, 3], "two axes": [0, 2, 3, 1, 4]}
        x = b.op("Transpose", x, perm=orders[self.get("start")])
        return b.op("Reshape", x, b.const(np.int64([-1, LENGTH, SIZE])))

    def mask(self, scores):
        b = self.b
        mask = b.const(np.random.default_rng(1).standard_normal(self.get("mask")).astype(np.float32))
        if not self.get("tiled"):
            return mask
        images = b.op("Gather", b.op("Shape", "x"), b.const(np.int64([0])))
        return b.op("Tile", mask, b.op("Concat", images, b.const(np.int64([1, 1])), axis=0))

    def through(self, x):
        b = self.b
        for op in self.get("through", ()):
            if op == "layer":
                x = b.op("MatMul", x, b.weight(LENGTH, LENGTH))
            elif op == "ReduceSum":
                x = b.op("Mul", x, b.op(op, x, b.const(np.int64([0]))))
            else:
                x = b.op(op, x, **({"to": 1} if op == "Cast" else {}))
        return x

    def leak(self, x):
        self.read = None
        if self.get("leak") == "output":
            self.outputs = [helper.make_tensor_value_info(x, TensorProto.FLOAT, [None, LENGTH, LENGTH])]
        elif self.get("leak") == "read":
            self.read = self.b.op("ReduceMean", x)
        elif self.get("leak") == "shape":
            self.read = self.b.op("Cast", self.b.op("ReduceSum", self.b.op("Shape", x)), to=1)

    def leaked(self, y):
        return y if self.read is None else self.b.op("Add", y, self.read)

    def parted(self, x):
        b = self.b
        if self.get("start") is not None:
            first = [self.heads, -1] if self.get("start") == "heads first" else [-1, self.heads]
            x = b.op("Reshape", x, b.const(np.int64([*first, LENGTH, SIZE])))
            x = b.op("Transpose", x, perm=[0, 2, 1, 3] if first[0] == -1 else [1, 2, 0, 3])
            return b.op("Reshape", x, b.const(np.int64([-1, LENGTH, self.heads * SIZE])))
        x = b.op("Transpose", x, perm=[1, 0, 2])
        if self.get("end") == "wrong":  # two heads of half the width: the other projection sees them so
            x = b.op("Reshape", x, b.const(np.int64([LENGTH, -1, 2 * SIZE])))
            return b.op("Reshape", b.op("Relu", x), b.const(np.int64([LENGTH, -1, self.heads * SIZE])))
        target = [-1, self.heads * SIZE] if self.get("end") == "flat" else [LENGTH, -1, self.heads * SIZE]
        return b.op("Reshape", x, b.const(np.int64(target)))


def projections(dead=()):
    """Queries, keys and values (C, E), and what reads the result (E, 2); the values of `dead` heads are zero."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((WIDTH, EMBED)).astype(np.float32) for _ in range(3))
    for head in dead:
        v[:, head * SIZE : (head + 1) * SIZE] = 0
    return q, k, v, rng.standard_normal((EMBED, 2)).astype(np.float32)


@pytest.mark.parametrize("name", SPELLINGS)
def test_one_group_holds_all_of_an_attention(tmp_path, name):
    groups, observed = look(attention(projections(), **SPELLINGS[name]), tmp_path)
    (heads,) = groups
    assert (heads.heads, len(heads.inputs), len(heads.outs)) == (HEADS, 3, 1)
    inside = set(interior(heads))
    assert all(len(observed.varying[tensor]) == 1 for tensor in inside)
    assert not inside & {side.tensor for side in (*heads.inputs, *heads.outs)}
    assert not set(parameters(heads)) & inside


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("head", range(HEADS))
def test_without_a_dead_head_on_both_sides_the_others_say_the_same(name, head):
    arrays = projections(dead=[head])
    slab = range(head * SIZE, (head + 1) * SIZE)
    cut = [np.delete(a, slab, axis=axis) for a, axis in zip(arrays, (1, 1, 1, 0), strict=True)]
    whole, less = attention(arrays, **SPELLINGS[name]), attention(cut, HEADS - 1, **SPELLINGS[name])
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, LENGTH, WIDTH)).astype(np.float32)
        np.testing.assert_allclose(run(less, {"x": x})[0], run(whole, {"x": x})[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_what_does_not_go_head_by_head_is_no_group(tmp_path, name):
    proto = attention(projections(), **OTHERS[name])
    run(proto, {"x": np.zeros((2, LENGTH, WIDTH), np.float32)})
    assert look(proto, tmp_path)[0] == []


def test_a_group_has_an_end(tmp_path):
    """A file made to be looked at again and again from each of its nodes."""
    through = ("Identity",) * 120
    assert look(attention(projections(), through=through[:20]), tmp_path)[0]
    assert look(attention(projections(), through=through), tmp_path)[0] == []


def test_an_index_that_stays_holds_its_head_on_every_side(tmp_path):
    (heads,), observed = look(attention(projections()), tmp_path)
    axes = Axes(observed)
    value, out = heads.inputs[2], heads.outs[0]
    axes.keep(value.tensor, value.axis, "needed", np.arange(EMBED) == SIZE)  # the first of head 1
    axes.keep(out.tensor, out.axis, "read", np.arange(EMBED) == EMBED - 1)  # the last of head 3
    hold_heads(axes, heads)
    for side in (*heads.inputs, *heads.outs):
        leaves = axes.leaves(side.tensor, side.axis).reshape(HEADS, SIZE)
        assert leaves.all(axis=1).tolist() == [True, False, True, False] == leaves.any(axis=1).tolist()
        assert axes.reason(side.tensor, side.axis, SIZE) == "needed"
        assert axes.reason(side.tensor, side.axis, EMBED - SIZE) == "read"
        others = set(range(axes.rank(side.tensor))) - {side.axis}
        assert not any(axes.leaves(side.tensor, axis).any() for axis in others)


@pytest.mark.parametrize("name", ["plain", "batch first", "rows of all images", "cast and dropped out"])
def test_what_is_zero_of_the_values_is_zero_of_the_result(tmp_path, name):
    (heads,), observed = look(attention(projections(), **SPELLINGS[name]), tmp_path)
    side, out = heads.inputs[2], heads.outs[0]
    dead = np.isin(np.arange(observed.shapes[side.tensor][side.axis]), [1] if side.step == 1 else [3, 4, 5, 7])
    places = observed.shapes[side.tensor].index(LENGTH)
    value = np.full([1] * len(observed.shapes[side.tensor]), np.nan)
    value = np.where(_along(dead, side.axis, value.ndim), 0.0, value)

    found = known_heads(heads, out.tensor, {side.tensor: value}.get, observed.shapes)
    assert found is not None
    zero = np.broadcast_to(found == 0, observed.shapes[out.tensor])
    assert np.array_equal(zero, np.broadcast_to(_along(dead, out.axis, zero.ndim), zero.shape))
    assert np.isnan(found[found != 0]).all()
    assert known_heads(heads, next(interior(heads)), {side.tensor: value}.get, observed.shapes) is None
    # Neither what is zero at one place alone,
    part = np.full(observed.shapes[side.tensor], np.nan)
    part[tuple(0 if a == places else slice(None) for a in range(part.ndim))] = 0
    assert known_heads(heads, out.tensor, {side.tensor: part}.get, observed.shapes) is None
    # nor zero queries, which make all scores alike.
    assert known_heads(heads, out.tensor, {heads.inputs[0].tensor: value}.get, observed.shapes) is None


def _along(mask, axis, rank):
    return mask.reshape([-1 if a == axis else 1 for a in range(rank)])


@pytest.mark.parametrize(("exporter", "opset"), EXPORTS)
@pytest.mark.parametrize(("kind", "first"), [("gelu", True), ("plain", False), ("mean", True)])
def test_a_dead_head_leaves_all_of_pytorch_s_attention(tmp_path, exporter, opset, kind, first):
    torch.manual_seed(0)
    module = Attention(kind, first).eval()
    layer = module.attend if module.make is None else module.make.self_attn
    with torch.no_grad():
        layer.in_proj_weight[28:32], layer.in_proj_bias[28:32] = 0, 0  # the values of the second head
    path = tmp_path / "model.onnx"
    path.write_bytes(export(module, (8, 12), exporter=exporter, opset=opset).SerializeToString())
    model = read_model(path)
    found = slim(model, runtime=Runtime(threads=1))
    assert (found.facts.reason, found.facts.dead, found.facts.left, found.facts.stayed) == ("", 4, 4, ())
    assert found.facts.channels == 12  # queries, keys and values
    for batch in (1, 2, 5):
        x = np.random.default_rng(batch).standard_normal((batch, 8, 12)).astype(np.float32)
        np.testing.assert_allclose(run(found.proto, {"x": x})[0], run(model.proto, {"x": x})[0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_dead_head_leaves_in_every_spelling(tmp_path, name):
    proto = attention(projections(dead=[2]), **SPELLINGS[name])
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    found = slim(read_model(path), runtime=Runtime(threads=1))
    assert (found.facts.reason, found.facts.channels) == ("", 3 * SIZE)
    x = np.random.default_rng(0).standard_normal((4, LENGTH, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(found.proto, {"x": x})[0], run(proto, {"x": x})[0], rtol=0, atol=2e-6)
