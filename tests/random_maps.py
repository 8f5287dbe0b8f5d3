"""Blocks of random graphs on maps (batch, C, H, W): convolutions, norms, gates, joins, and channels moved about."""

from __future__ import annotations

import numpy as np

from random_maker import Flow, Maker

_WIDEST = 8


def conv(b: Maker, x: Flow, width: int | None = None, *, same: bool = False, tail: bool = True) -> Flow:
    """A convolution of any kind; `same` keeps height and width, `tail` may add a norm and an activation."""
    c, h, w = x.shape
    group = b.pick(1, 1, 1, c, *(g for g in (2, 3) if c % g == 0))
    if width is None:
        width = group * b.whole(1, max(1, min(_WIDEST, 12 // group) if group < c else 2))
    elif width % group:
        group = 1
    kernel, attributes, size = _geometry(b, h, w, same)
    bias = [b.weight(width, spread=1.0)] if b.flag() else []
    weight = b.weight(width, c // group, kernel, kernel)
    out = Flow(name=b.op("Conv", x.name, weight, *bias, group=group, **attributes), shape=(width, *size))
    return b.pick(*_TAILS)(b, out) if tail else out


def _geometry(b: Maker, h: int, w: int, same: bool) -> tuple[int, dict, tuple[int, int]]:
    kernel, dilation = b.pick((1, 1), (3, 1), (3, 2))
    stride = 1 if same else b.pick(1, 1, 2)
    border = dilation * (kernel - 1)
    if kernel == 3 and dilation == 1 and b.rarely():
        size = (-(-h // stride), -(-w // stride))
        return kernel, {"auto_pad": b.pick("SAME_UPPER", "SAME_LOWER"), "strides": [stride, stride]}, size
    half = border // 2
    options = [(half,) * 4, (0, border, border, 0)]
    if not same:
        options += [(1, 1, 1, 1), (1, 0, 0, 1)] + ([(0, 0, 0, 0)] if min(h, w) > border else [])
    top, left, bottom, right = b.pick(*options)
    size = tuple((n + p - border - 1) // stride + 1 for n, p in ((h, top + bottom), (w, left + right)))
    if min(size) < 1:
        (top, left, bottom, right), stride, size = (half,) * 4, 1, (h, w)
    attributes = {"pads": [top, left, bottom, right], "strides": [stride, stride], "dilations": [dilation, dilation]}
    return kernel, attributes, size


def activation(b: Maker, x: Flow) -> Flow:
    kinds = ["Relu", "Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh", "Softplus", "Elu", "clip", "exp", "swish"]
    kinds += ["PRelu", "erf", *(["HardSwish"] if b.opset >= 14 else []), *(["Gelu", "Mish"] if b.opset >= 20 else [])]
    kind, name = b.pick(*kinds), x.name
    if kind == "clip":
        low, high = b.pick((0.0, 6.0), (-0.5, 1.0), (0.25, 2.0))
        name = b.clip(name, low, high)
    elif kind == "exp":
        name = b.op("Exp", b.clip(name, -2.0, 1.0))
    elif kind == "swish":
        name = b.op("Mul", name, b.op("Sigmoid", name))
    elif kind == "erf":
        half = b.op("Mul", name, b.const(np.float32(0.5)))
        error = b.op("Erf", b.op("Div", name, b.const(np.float32(np.sqrt(2)))))
        name = b.op("Mul", half, b.op("Add", error, b.const(np.float32(1))))
    elif kind == "PRelu":
        wide = (x.shape[0], 1, 1) if len(x.shape) == 3 else (x.shape[-1],)
        name = b.op("PRelu", name, b.weight(*b.pick(wide, (1,)), spread=0.5))
    else:
        name = b.op(kind, name)
    return Flow(name=name, shape=x.shape)


def norm(b: Maker, x: Flow) -> Flow:
    """BatchNormalization, or the constants that some exporters write in its place."""
    c = x.shape[0]
    if len(x.shape) == 3 and b.rarely():
        return constants(b, constants(b, x))
    var = b.const((b.rng.random(c) + 0.5).astype(np.float32), "initializer")
    inputs = [b.weight(c, spread=1.0), b.weight(c, spread=1.0), b.weight(c, spread=1.0), var]
    return Flow(name=b.op("BatchNormalization", x.name, *inputs, epsilon=1e-3), shape=x.shape)


_TAILS = (
    lambda b, x: x,
    activation,
    lambda b, x: activation(b, norm(b, x)),
    lambda b, x: norm(b, activation(b, x)),
    norm,
)


def constants(b: Maker, x: Flow) -> Flow:
    c = x.shape[0]
    constant = b.weight(*b.pick((1,), (c, 1, 1), (1, c, 1, 1)), spread=0.7, tie=False)
    op = b.pick("Add", "Sub", "Mul", "Div")
    if op == "Div":
        constant = b.const((b.rng.random((c, 1, 1)) + 0.5).astype(np.float32))
    pair = (constant, x.name) if op != "Div" and b.flag() else (x.name, constant)
    return Flow(name=b.op(op, *pair), shape=x.shape)


def transposed_conv(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    group = b.pick(1, 1, c)
    each = b.whole(1, 4) if group == 1 else b.whole(1, 2)
    bias = [b.weight(each * group, spread=1.0)] if b.flag() else []
    if h <= 4 and w <= 4:
        name = b.op("ConvTranspose", x.name, b.weight(c, each, 2, 2), *bias, strides=[2, 2], group=group)
        return Flow(name=name, shape=(each * group, 2 * h, 2 * w))
    name = b.op("ConvTranspose", x.name, b.weight(c, each, 3, 3), *bias, pads=[1, 1, 1, 1], group=group)
    return Flow(name=name, shape=(each * group, h, w))


def residual(b: Maker, x: Flow) -> Flow:
    c = x.shape[0]
    y = conv(b, x, b.whole(1, _WIDEST), same=True)
    y = conv(b, y, c, same=True, tail=b.flag())
    kind = b.pick("Add", "Add", "Sum", "Max", "twice")
    if kind == "twice":
        z = conv(b, x, c, same=True, tail=False)
        name = b.op("Sum", x.name, y.name, z.name) if b.flag() else b.op("Add", b.op("Add", x.name, y.name), z.name)
        return Flow(name=name, shape=x.shape)
    return Flow(name=b.op(kind, *b.pick((x.name, y.name), (y.name, x.name))), shape=x.shape)


def squeeze_excite(b: Maker, x: Flow) -> Flow:
    c, hidden = x.shape[0], b.whole(1, 4)
    pooled = b.op("GlobalAveragePool", x.name)
    if b.flag():
        y = activation(b, Flow(name=b.op("Conv", pooled, b.weight(hidden, c, 1, 1)), shape=(hidden, 1, 1)))
        y = b.op("Conv", y.name, b.weight(c, hidden, 1, 1), b.weight(c, spread=1.0))
    else:
        y = b.op("Gemm", b.op("Flatten", pooled), b.weight(c, hidden), b.weight(hidden, spread=1.0))
        y = b.op("Gemm", b.op("Relu", y), b.weight(c, hidden), b.weight(c, spread=1.0), transB=1)
        y = b.unsqueeze(y, 2, 3) if b.flag() else b.reshape(y, c, 1, 1)
    gate = b.op(b.pick("Sigmoid", "HardSigmoid"), y)
    return Flow(name=b.op("Mul", *b.pick((x.name, gate), (gate, x.name))), shape=x.shape)


def glu(b: Maker, x: Flow) -> Flow:
    half = b.whole(1, 4)
    y = conv(b, x, 2 * half, same=True, tail=False)
    one, other = b.split(y.name, (half, half), 1)
    return Flow(name=b.op("Mul", one, b.op(b.pick("Sigmoid", "Tanh"), other)), shape=(half, *y.shape[1:]))


def spatial_gate(b: Maker, x: Flow) -> Flow:
    average, most = b.mean(x.name, 1, keep=True), b.mean(x.name, 1, keep=True, op="ReduceMax")
    y = b.op("Conv", b.op("Concat", average, most, axis=1), b.weight(1, 2, 3, 3), pads=[1, 1, 1, 1])
    return Flow(name=b.op("Mul", x.name, b.op("Sigmoid", y)), shape=x.shape)


def concat(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    if c > _WIDEST:
        return conv(b, x, 3, same=True)
    branches = [conv(b, x, b.whole(1, 4), same=True) for _ in range(b.whole(0, 2))] + [x]
    branches += [x] if len(branches) == 1 or b.rarely() else []
    branches = branches[::-1] if b.flag() else branches
    name = b.op("Concat", *(f.name for f in branches), axis=b.pick(1, -3) if b.opset >= 11 else 1)
    return Flow(name=name, shape=(sum(f.shape[0] for f in branches), h, w))


def split(b: Maker, x: Flow) -> Flow:
    """Halves or other parts, one of them worked on, joined in either order."""
    c, h, w = x.shape
    if c < 2:
        return activation(b, x)
    first = c // 2 if c % 2 == 0 and b.flag() else b.whole(1, c - 1)
    one, other = b.split(x.name, (first, c - first), 1)
    kept, worked = Flow(name=one, shape=(first, h, w)), conv(b, Flow(name=other, shape=(c - first, h, w)), same=True)
    pair = (kept, worked) if b.flag() else (worked, kept)
    return Flow(name=b.op("Concat", *(f.name for f in pair), axis=1), shape=(first + worked.shape[0], h, w))


def sliced(b: Maker, x: Flow) -> Flow:
    c = x.shape[0]
    start = b.whole(0, c - 1)
    end = b.whole(start + 1, c)
    step = b.pick(1, 1, 1, 2) if b.opset >= 10 else 1
    size = len(range(start, end, step))
    first = b.pick(start, start - c)
    last = b.pick(*([end, 9999] if end == c else [end, end - c]))
    return Flow(name=b.slice(x.name, first, last, 1, step), shape=(size, *x.shape[1:]))


def shuffle(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    groups = b.pick(*(g for g in range(1, c + 1) if c % g == 0))
    y = b.op("Transpose", b.reshape(x.name, groups, c // groups, h, w), perm=[0, 2, 1, 3, 4])
    return Flow(name=b.reshape(y, b.pick(c, -1), h, w, computed=b.rarely()), shape=x.shape)


def gather(b: Maker, x: Flow) -> Flow:
    c = x.shape[0]
    size = b.whole(1, min(_WIDEST, c + 2))
    indices = b.rng.permutation(c) if b.flag() else b.rng.integers(-c if b.opset >= 11 else 0, c, size)
    return Flow(name=b.op("Gather", x.name, b.const(indices), axis=1), shape=(len(indices), *x.shape[1:]))


def channels_last(b: Maker, x: Flow) -> Flow:
    """Work in NHWC: a dense layer, a norm or constants there."""
    c, h, w = x.shape
    y, kind = b.op("Transpose", x.name, perm=[0, 2, 3, 1]), b.pick("dense", "dense", "constant", "pool")
    if kind == "dense":
        width = b.whole(1, _WIDEST)
        y, c = b.op("Add", b.op("MatMul", y, b.weight(c, width)), b.weight(width, spread=1.0)), width
    elif kind == "constant":
        y = b.op(b.pick("Add", "Mul"), y, b.weight(*b.pick((c,), (1, 1, c)), spread=1.0, tie=False))
    else:
        y = b.op("Mul", y, b.mean(y, 1, 2, keep=True))
    y = activation(b, Flow(name=y, shape=(h, w, c))).name if kind != "dense" else b.op("Sigmoid", y)
    return Flow(name=b.op("Transpose", y, perm=[0, 3, 1, 2]), shape=(c, h, w))


def padded(b: Maker, x: Flow) -> Flow:
    before, after, border = b.whole(0, 2), b.whole(0, 2), b.pick(0, 0, 1)
    pads = [0, before, border, border, 0, after, 0, 0]
    c, h, w = x.shape
    return Flow(name=b.pad(x.name, pads, b.pick(0.0, 0.5)), shape=(c + before + after, h + border, w + border))


def pool(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    op = b.pick("MaxPool", "AveragePool")
    if min(h, w) >= 2 and b.flag():
        return Flow(name=b.op(op, x.name, kernel_shape=[2, 2], strides=[2, 2]), shape=(c, h // 2, w // 2))
    counted = {"count_include_pad": int(b.flag())} if op == "AveragePool" else {}
    return Flow(name=b.op(op, x.name, kernel_shape=[3, 3], pads=[1, 1, 1, 1], **counted), shape=x.shape)


def group_norm(b: Maker, x: Flow) -> Flow:
    c, h, w = x.shape
    groups = b.pick(*(g for g in range(1, c + 1) if c % g == 0))
    if b.opset >= 21 and b.flag():
        scale = [b.weight(c, spread=1.0), b.weight(c, spread=1.0)]
        return Flow(name=b.op("GroupNormalization", x.name, *scale, num_groups=groups, epsilon=0.05), shape=x.shape)
    if b.flag():
        scale = [b.weight(c, spread=1.0), b.weight(c, spread=1.0)]
        return Flow(name=b.op("InstanceNormalization", x.name, *scale, epsilon=0.05), shape=x.shape)
    ones = [b.const(np.ones(groups, np.float32)), b.const(np.zeros(groups, np.float32))]
    y = b.op("InstanceNormalization", b.reshape(x.name, groups, -1), *ones, epsilon=0.05)
    y = b.op("Mul", b.reshape(y, c, h, w, computed=b.rarely()), b.weight(c, 1, 1, spread=1.0))
    return Flow(name=b.op("Add", y, b.weight(c, 1, 1, spread=1.0)), shape=x.shape)


def tied(b: Maker, x: Flow) -> Flow:
    """One kernel (and bias) in two layers."""
    c = x.shape[0]
    weight, bias = b.weight(c, c, 1, 1), [b.weight(c, spread=1.0)] if b.flag() else []
    y = b.op(b.pick("Relu", "Sigmoid"), b.op("Conv", x.name, weight, *bias))
    return Flow(name=b.op("Tanh", b.op("Conv", y, weight, *bias)), shape=x.shape)


def dead_branch(b: Maker, x: Flow) -> Flow:
    conv(b, x)
    return x


def quantised(b: Maker, x: Flow) -> Flow:
    """QDQ around the activation, and around a kernel of whole numbers."""
    if b.opset < 13:
        return activation(b, x)
    scale, zero = b.const(np.float32(0.0625), "initializer"), b.const(np.uint8(100), "initializer")
    y = b.op("DequantizeLinear", b.op("QuantizeLinear", x.name, scale, zero), scale, zero)
    c, width = x.shape[0], b.whole(1, 4)
    kernel = b.const(b.rng.integers(-127, 128, (width, c, 1, 1)).astype(np.int8), "initializer")
    scales = b.const((b.rng.random(width) * 0.01 + 0.005).astype(np.float32), "initializer")
    zeros = b.const(np.zeros(width, np.int8), "initializer")
    weight = b.op("DequantizeLinear", kernel, scales, zeros, axis=0)
    return Flow(name=b.op("Conv", y, weight, b.weight(width, spread=1.0)), shape=(width, *x.shape[1:]))


def moved(b: Maker, x: Flow) -> Flow:
    """Channels into space and back, repeated, or broadcast."""
    c, h, w = x.shape
    if c % 4 == 0 and b.flag():
        mode = {"mode": b.pick("DCR", "CRD")} if b.opset >= 11 else {}
        return Flow(name=b.op("DepthToSpace", x.name, blocksize=2, **mode), shape=(c // 4, 2 * h, 2 * w))
    if c <= 3 and h % 2 == w % 2 == 0:
        return Flow(name=b.op("SpaceToDepth", x.name, blocksize=2), shape=(4 * c, h // 2, w // 2))
    if c <= 4 and b.flag():
        return Flow(name=b.op("Tile", x.name, b.ints(1, 2, 1, 1)), shape=(2 * c, h, w))
    kind = b.pick("Softmax", "ReduceL2", "LRN", "Expand", *(["Resize"] if b.opset >= 13 and h <= 4 else []))
    if kind == "Softmax":
        return Flow(name=b.op("Softmax", x.name, axis=1 if b.opset >= 13 else 3), shape=x.shape)
    if kind == "Resize":
        scales = b.const(np.array([1, 1, 2, 2], np.float32), "initializer")
        modes = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return Flow(name=b.op("Resize", x.name, "", scales, **modes), shape=(c, 2 * h, 2 * w))
    if kind == "LRN":
        return Flow(name=b.op("LRN", x.name, size=3, alpha=0.1), shape=x.shape)
    if kind == "Expand":
        one = b.op("Conv", x.name, b.weight(1, c, 1, 1))
        return Flow(name=b.op("Expand", one, b.ints(1, 3, 1, 1)), shape=(3, h, w))
    length = b.op("Add", b.mean(x.name, 1, keep=True, op="ReduceL2"), b.const(np.float32(0.5)))
    return Flow(name=b.op("Div", x.name, length), shape=x.shape)


MAP_BLOCKS = (
    conv,
    conv,
    conv,
    activation,
    norm,
    constants,
    transposed_conv,
    residual,
    residual,
    squeeze_excite,
    glu,
    spatial_gate,
    concat,
    concat,
    split,
    sliced,
    shuffle,
    gather,
    channels_last,
    padded,
    pool,
    group_norm,
    tied,
    dead_branch,
    quantised,
    moved,
)
