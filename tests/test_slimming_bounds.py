"""What slimming costs on graphs made to cost much, counted as work done, and how it judges what differs."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper

from debride.errors import UsageError
from debride.graph.parse import parse
from debride.graph.walk import Index
from debride.settings import Settings
from debride.slimming import TOLERANCE, slim
from debride.slimming.axes import Axes
from debride.slimming.compare import difference_of
from debride.slimming.observe import observe
from debride.slimming.products import sum_of_products
from debride.slimming.shuffles import find_shuffles
from debride.types import InputSpec
from graph_models import Builder
from test_slimming import ONE, classifier, reasons, slimmed, zeroed
from test_slimming_hostile import assert_same, ints, layer

SLIM, SOLVE = sys.modules[slim.__module__], sys.modules["debride.slimming.solve"]
linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")

# VmHWM, not getrusage: what that calls the most includes the process that started this one.
_CHILD = """
import resource, sys
from pathlib import Path
from debride.graph.read import read_model
from debride.sessions import Runtime
from debride.slimming import slim

resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))
facts = slim(read_model(Path(sys.argv[1])), runtime=Runtime(threads=1)).facts
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(facts.left, int(peak.split()[1]) // 1024, facts.reason)
"""


def flat(b, size, dead):
    """(N, size): the means of a layer behind another one whose channel 2 is dead."""
    x = b.op("Relu", layer(b, "x", 3, 5, [2]))
    return b.op("Flatten", b.op("GlobalAveragePool", layer(b, x, 5, size, dead)))


def scores(b, x, size):
    b.op("Gemm", x, b.weight(size, 3), b.weight(3))
    return b.model(["n", 3, 8, 8], "scores", ["n", 3])


def in_child(proto, folder):
    """(dead channels that left, peak memory in MB) of slimming in a process of its own, bounded to 8 GiB."""
    path = folder / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    done = subprocess.run([sys.executable, "-c", _CHILD, str(path)], check=True, capture_output=True, text=True)
    left, peak, *reason = done.stdout.split()
    assert not reason
    return int(left), int(peak)


@linux
def test_tensors_are_measured_without_being_kept(tmp_path):
    b = Builder(13)
    x = flat(b, 4, [1])
    wide = b.op("Expand", b.op("ReduceMean", x, axes=[1]), ints(b, 1, 1_000_000))
    for _ in range(100):  # 12 MB each, for a batch of three
        wide = b.op("Neg", wide)
    x = b.op("Relu", b.op("Gemm", x, b.weight(4, 5), b.weight(5)))
    left, peak = in_child(scores(b, b.op("Add", x, b.op("ReduceMean", wide, axes=[1])), 5), tmp_path)
    assert peak < 400
    assert left == 1  # the other one is read by the mean that is made so long


@linux
def test_an_axis_too_long_for_memory_is_not_looked_at(tmp_path):
    b = Builder(14)
    x = layer(b, "x", 3, 4, [1])
    empty = b.op("ConstantOfShape", ints(b, 0, 2**44))
    total = b.op("ReduceSum", empty, ints(b, 0, 1), keepdims=0)
    left, peak = in_child(classifier(b, b.op("Add", x, total), 4), tmp_path)
    assert left == 1
    assert peak < 400


def shifting(steps):
    """What leaves of a long vector falls one index after another: each is added to the one before it."""
    b = Builder(13)
    padded = b.op("Relu", b.op("Pad", flat(b, 4, [1]), ints(b, 0, 0, 0, steps)))
    later = b.op("Slice", padded, ints(b, 1), ints(b, 2**31), ints(b, 1))
    total = b.op("Add", padded, b.op("Pad", later, ints(b, 0, 0, 0, 1)))
    return scores(b, b.op("Slice", total, ints(b, 0), ints(b, 3), ints(b, 1)), 3)


def test_beyond_a_bound_of_work_all_stays_and_says_so(tmp_path, monkeypatch):
    model = zeroed(shifting(400), tmp_path, {})
    applied, right = Counter(), SOLVE.apply
    monkeypatch.setattr(SOLVE, "apply", lambda problem, node: (applied.update([node.op]), right(problem, node)))
    found = slim(model, runtime=ONE)
    assert (found.facts.dead, found.facts.left) == (2, 1)
    assert not any("too tangled" in text for text in reasons(found.facts))
    whole = applied.total()
    assert whole > 400
    applied.clear()
    monkeypatch.setattr(SOLVE, "_MOST_WORK", 10**5)
    found = slim(model, runtime=ONE)
    assert applied.total() < whole / 5
    assert (found.facts.dead, found.facts.left) == (2, 0)
    assert "in a graph too tangled to be followed" in reasons(found.facts)
    assert found.proto.SerializeToString() == model.proto.SerializeToString()


def reshaped(b, count):
    x, same = flat(b, 4, [1]), ints(b, 0, 0)
    for _ in range(count):
        x = b.op("Reshape", x, same)
    return scores(b, x, 4)


def test_the_search_for_shuffles_takes_each_step_a_few_times(monkeypatch):
    looked = []
    for count in (50, 100):
        proto = reshaped(Builder(13), count)
        graph = parse(proto)
        observed = observe(proto, graph, None, ONE, "model")
        index, asked = Index(graph), Counter()
        right = index.sole_reader
        monkeypatch.setattr(Index, "sole_reader", lambda self, t, a=asked, r=right: (a.update([t]), r(t))[1])
        find_shuffles(graph, observed, index)
        monkeypatch.undo()
        looked.append(asked.total())
    assert looked[0] > 0
    assert looked[1] < 2.5 * looked[0]


def of_dead_products(b, count):
    x = flat(b, 4, [1])
    for _ in range(count):
        x = b.op("Relu", b.op("MatMul", x, b.const(np.zeros((4, 4), np.float32))))
    return scores(b, x, 4)


def of_sigmoids(b, count):
    x, channels = "x", 3
    for _ in range(count):
        x, channels = b.op("Sigmoid", layer(b, x, channels, 8, [0, 1, 2])), 8
    return classifier(b, x, 8)


@pytest.mark.parametrize("make", [of_dead_products, of_sigmoids])
def test_twice_as_many_layers_take_twice_as_many_looks(tmp_path, monkeypatch, make):
    counts = []
    right = Axes.leaves
    for count in (40, 80):
        model = zeroed(make(Builder(13), count), tmp_path, {})
        asked = Counter()
        monkeypatch.setattr(Axes, "leaves", lambda self, t, axis, a=asked: (a.update([t]), right(self, t, axis))[1])
        monkeypatch.setattr(SLIM, "_MOST_PASSES", 1)
        observed = observe(model.proto, model.graph, None, ONE, "model")
        SOLVE.solve(model.graph, observed)
        monkeypatch.undo()
        counts.append(asked.total())
    assert counts[0] > 40
    assert counts[1] < 2.5 * counts[0]


def test_products_of_computed_weights_are_bounded_by_their_multiplications(monkeypatch):
    def product(size):
        arrays = [np.full((size, size), 0.5)] * 2
        return sum_of_products(node, arrays, [array.shape for array in arrays])

    b = Builder(13)
    node = parse(scores(b, b.op("MatMul", "x", b.weight(8, 8)), 8)).nodes[0]
    monkeypatch.setattr("debride.slimming.products._MOST", 20_000)
    np.testing.assert_array_equal(product(20), np.full((20, 20), 5.0))
    assert product(60) is None  # 7,200 numbers, 216,000 multiplications


BYTES = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), range=(0.0, 255.0))


def of_bytes():
    """A classifier of images in 0..255, whose filters stay silent on anything much smaller."""
    b = Builder(13)
    x = b.op("Relu", layer(b, "x", 3, 6, [1, 4], bias=dict.fromkeys((0, 2, 3, 5), -30.0)))
    return classifier(b, b.op("Relu", b.conv(x, 6, 4)), 4)


def changed(monkeypatch, change):
    """Let slimming be wrong: `change` is called with what was cut."""
    right = SLIM.edited

    def wrong(*arguments):
        result = right(*arguments)
        change(result.graph)
        return result

    monkeypatch.setattr(SLIM, "edited", wrong)


def doubled(graph):
    first = next(t for t in graph.initializer if len(t.dims) == 4)
    first.raw_data = (2 * numpy_helper.to_array(first)).tobytes()


@pytest.mark.parametrize("spec", [None, BYTES, replace(BYTES, range=(0.0, 1.0))])
def test_filters_that_only_bright_images_wake_are_compared(tmp_path, monkeypatch, spec):
    proto = of_bytes()
    _, facts = slimmed(proto, tmp_path, {}, spec=spec)
    assert facts.left == 2
    changed(monkeypatch, doubled)
    model = zeroed(proto, tmp_path, {})
    found = slim(model, runtime=ONE, spec=spec)
    assert "differ" in found.facts.reason
    assert found.proto.SerializeToString() == model.proto.SerializeToString()


def nudged(graph):
    """The largest entry of the last bias one unit in its last place further."""
    bias = [t for t in graph.initializer if tuple(t.dims) == (3,)][-1]
    array = numpy_helper.to_array(bias).copy()
    place = np.abs(array).argmax()
    array[place] = np.nextafter(array[place], np.float32(np.inf) * np.sign(array[place]))
    bias.raw_data = array.tobytes()


@pytest.mark.parametrize(("common", "limit"), [(0, TOLERANCE), (1000, 1e-2)])
def test_a_difference_in_the_last_digits_is_told_and_refused_by_nobody(tmp_path, monkeypatch, common, limit):
    b = Builder(13)
    proto = classifier(b, b.op("Relu", layer(b, "x", 3, 4, [1])), 4)
    bias = proto.graph.initializer[-1]
    bias.raw_data = (numpy_helper.to_array(bias) + np.float32(common)).tobytes()
    assert slimmed(proto, tmp_path, {})[1].difference < limit
    changed(monkeypatch, nudged)
    found = slim(zeroed(proto, tmp_path, {}), runtime=ONE)
    assert (found.facts.left, found.facts.reason) == (1, "")
    assert 0 < found.facts.difference < limit
    assert (found.facts.difference > TOLERANCE) == (common > 0)


@pytest.mark.parametrize("ulps", [1, 4, 5, 40])
def test_scores_that_lie_close_may_differ_by_their_last_digits(ulps):
    digit = np.spacing(np.float32(1000))
    old = np.float32(1000) + 100 * digit * np.arange(6, dtype=np.float32).reshape(2, 3)
    new = old.copy()
    new[1, 2] += ulps * digit
    difference, beyond = difference_of("scores", old, new)
    spread = np.abs(old - old.mean(axis=1, keepdims=True, dtype=np.float64)).max()
    assert difference == pytest.approx(ulps * digit / spread)
    assert beyond == pytest.approx(max(0, ulps - 4) * digit / spread, rel=1e-6, abs=1e-12)
    assert (beyond > TOLERANCE) == (ulps > 4)


def test_the_digits_of_one_image_excuse_no_other():
    old = np.array([[1e6, 2e6, 3e6], [0.1, 0.2, 0.3]], np.float32)
    new = old.copy()
    new[1] += np.float32(0.5)
    assert difference_of("scores", old, new)[1] == pytest.approx(0.5 / 1e6, rel=1e-3)
    new = old.copy()
    new[0, 0] += 4 * np.spacing(np.float32(3e6))
    assert difference_of("scores", old, new)[1] == 0


def unread(proto):
    graph = proto.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    return {tensor.name for tensor in graph.initializer} - read


def test_no_constant_of_a_slim_file_is_unread_but_those_that_were(tmp_path):
    b = Builder(13)
    shared = b.const(np.zeros(8, np.float32))
    x = b.op("Conv", "x", b.weight(8, 3, 1, 1), shared)
    y = b.op("Conv", b.op("Relu", layer(b, "x", 3, 6, [1])), b.weight(8, 6, 1, 1), shared)
    joined = b.op("Relu", b.op("Concat", x, y, axis=1))
    channels = b.op("Gather", b.op("Shape", joined), ints(b, 1))
    half = b.op("Div", channels, ints(b, 2))
    one, two = b.op("Slice", joined, ints(b, 0), half, ints(b, 1)), b.op("Slice", joined, half, channels, ints(b, 1))
    parts = b.op("Reshape", b.op("Mul", one, two), b.op("Concat", ints(b, 0, 8), ints(b, 64), axis=0))
    y = b.op("Reshape", parts, b.op("Concat", ints(b, 0), half, ints(b, 8, 8), axis=0))
    b.weight(7)
    proto = classifier(b, y, 8)
    idle = unread(proto)
    assert len(idle) == 1
    slim_proto, facts = slimmed(proto, tmp_path, {0: [2, 5]})
    assert facts.left >= 2
    assert unread(slim_proto) == idle
    assert_same(zeroed(proto, tmp_path, {0: [2, 5]}).proto, slim_proto)


def test_a_width_to_keep_needs_something_that_slims():
    with pytest.raises(UsageError, match="--slim"):
        Settings(align=4)
    assert Settings(align=4, slim=True).align == 4
