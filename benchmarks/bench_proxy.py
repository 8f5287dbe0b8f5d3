"""debride's differentiable proxy and onnx2fx, side by side: what runs, how equal, whose gradient, how fast.

Run `make bench-proxy`. ONNX's own node cases, the light models of the onnx package and the small networks of tests/,
by both of PyTorch's exporters and by Keras where it is there. "Parity" is the largest difference from onnxruntime as a
share of the largest score (a pass is 1e-4). "Gradient" is how far the image's gradient is from the native module's in
float64; where there is none, how far the gradient of the model made double is from a central difference along itself.
That difference has one step for all, `STEP`. onnx2fx is in the extra `bench`; `pip install --no-deps onnx2fx` does too.

The light models' own weights are all one number, under which every image has the same scores and no gradient; they are
drawn at random here, and what is compared is the tensor before the last Softmax, which they saturate. As they are,
tests/test_conformance_graphs.py runs them.

    python benchmarks/bench_proxy.py --quick            the node cases, and one exporter's networks
    python benchmarks/bench_proxy.py --only timing
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from debride.graph.parse import parse
from debride.graph.read import model_of
from debride.proxy.convert import to_tensor
from debride.proxy.plan import logits_edge
from debride.proxy.runner import GraphRunner
from debride.sessions import Runtime, Session
from vendor import ROOT

sys.path.insert(0, str(ROOT / "tests"))

import architectures
import exports
from architectures_parts import lived_in
from architectures_residual import resnet18
from conformance import Case, compare, left_out, node_cases, run_proxy

try:
    import onnx2fx
except ImportError:
    onnx2fx = None

EXPORTS = (("torchscript", 17), ("dynamo", 18))
TIMED = ("resnet18", "mobilenet_v1", "mobilenet_v2", "efficientnet", "vit", "deit", "swin", "mixer", "convnext")
TIMED_EXPORTS = (("torchscript", 13), ("torchscript", 17), ("dynamo", 18))
QUANTISED = ("resnet18", "mobilenet_v2", "vgg_bn", "densenet", "efficientnet", "vit", "deit", "swin", "convnext")
PARTS = ("nodes", "light", "torch", "keras", "quantised", "timing")
PARITY = GRADIENT = 1e-4
STEP = 1e-9
"""The share of themselves by which a central difference's step changes the scores. Rounding costs it some epsilons of
float64 over this; a network's kinks (ReLU, maxima) cost a multiple of this, which on deep ones is near 1e4: with
epsilon's cube root, best for smooth functions, errors were up to 5e-2. This makes both about 1e-5."""
Run = Callable[[Tensor], Tensor]
Make = Callable[..., Run]


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """One model with an image for it, and the module that it was exported from, in float64, where there is one."""

    kind: str
    name: str
    model: onnx.ModelProto
    image: np.ndarray[Any, Any]
    native: nn.Module | None = None


def ours(model: onnx.ModelProto, *, double: bool = False) -> Run:
    """The proxy's first output, of the model as debride reads it."""
    graph = model_of(model.SerializeToString(), Path("model.onnx")).graph
    runner = GraphRunner(graph)
    runner = runner.double() if double else runner
    return lambda x: runner.run({graph.inputs[0].name: x}, [graph.outputs[0].name])[graph.outputs[0].name]


def theirs(model: onnx.ModelProto, *, double: bool = False) -> Run:
    """onnx2fx's first output."""
    module = onnx2fx.convert(model).eval().requires_grad_(False)
    module = module.double() if double else module

    def run(x: Tensor) -> Tensor:
        made = module(x)
        first: Tensor = made[0] if isinstance(made, tuple | list) else made
        return first

    return run


def run_theirs(case: Case) -> list[Tensor]:
    """What onnx2fx makes of a node case."""
    module = onnx2fx.convert(case.model).eval()
    with torch.no_grad():
        made = module(*(_datum(v) for v in case.feeds.values()))
    return list(made) if isinstance(made, tuple | list) else [made]


def _datum(value: Any) -> Any:
    """An input for a module of torch: a tensor, or for a sequence a list of them."""
    return [_datum(v) for v in value] if isinstance(value, list) else to_tensor(np.asarray(value))


def _flat(values: Any) -> list[Any]:
    """Sequences among the outputs are compared part by part."""
    return [part for v in values for part in (_flat(v) if isinstance(v, list | tuple) else [v])]


def passes(case: Case, run: Callable[[Case], list[Tensor]]) -> bool:
    """Whether `run` gives what the case says; whatever it raises is a no, and what torch.fx prints of it is dropped."""
    try:
        with redirect_stderr(StringIO()):
            compare(case, _flat(run(case)), _flat(case.expected))
    except Exception:
        return False
    return True


def nodes() -> Iterator[str]:
    """Counts over the node cases: all, those for which debride has no excuse, and those that only one passes."""
    cases = node_cases()
    mine = {c.name for c in cases if passes(c, run_proxy)}
    other = {c.name for c in cases if passes(c, run_theirs)} if onnx2fx else set()
    due = {c.name for c in cases if left_out(c) is None}
    yield "| node cases | of | debride | onnx2fx |\n|---|---|---|---|"
    yield f"| all | {len(cases)} | {len(mine)} | {len(other)} |"
    yield f"| not left out by debride | {len(due)} | {len(mine & due)} | {len(other & due)} |"
    yield f"| passed by one only | {len(mine ^ other)} | {len(mine - other)} | {len(other - mine)} |"


def light(_: bool) -> Iterator[Subject]:
    """The light models of the onnx package; under their own, constant weights all images have the same scores."""
    for path in sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx")):
        model = _unsaturated(_lived_in(onnx.load(path)))
        shape = [d or 1 for d in Session(path, Runtime(threads=1)).inputs[0].shape]
        yield Subject(kind="light", name=path.stem, model=model, image=_image(shape))


def _lived_in(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with random weights in the place of its ConstantOfShape nodes; positive, where they are vectors."""
    graph, rng = parse(model), np.random.default_rng(0)
    drawn = {}
    for node in graph.nodes:
        if node.op == "ConstantOfShape":
            shape = [int(n) for n in graph.constants[node.inputs[0]]]
            weights = rng.normal(0, np.sqrt(2 / max(np.prod(shape[1:]), 1)), shape)
            weights = weights if len(shape) > 1 else 0.5 + 0.5 * rng.random(shape)
            drawn[node.outputs[0]] = numpy_helper.from_array(weights.astype(np.float32), node.outputs[0])
    kept = [node for node in model.graph.node if node.output[0] not in drawn]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(drawn.values())
    model.ir_version = max(model.ir_version, 4)  # from there on, initializers need not be inputs
    return model


def _unsaturated(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` up to what its last Softmax reads."""
    edge = logits_edge(parse(model), model.graph.output[0].name)
    last = next(i for i, node in enumerate(model.graph.node) if edge in node.output)
    del model.graph.node[last + 1 :]
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(edge, onnx.TensorProto.FLOAT, None))
    shape = Session(model.SerializeToString(), Runtime(threads=1)).outputs[0].shape  # as onnxruntime infers it
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(edge, onnx.TensorProto.FLOAT, shape))
    return model


def networks(quick: bool) -> Iterator[Subject]:
    """The networks of tests/architectures.py."""
    for exporter, opset in EXPORTS[:1] if quick else EXPORTS:
        for name in architectures.ARCHITECTURES:
            torch.manual_seed(0)
            net, shape = architectures.network(name).eval(), architectures.shape_of(name)
            model = exports.export(net, shape, exporter=exporter, opset=opset)  # type: ignore[arg-type]
            kind = f"torch {exporter} {opset}"
            yield Subject(kind=kind, name=name, model=model, image=_image((2, *shape)), native=net.double())


def keras(_: bool) -> Iterator[Subject]:
    """The networks of tests/keras_architectures.py, by debride's adapter."""
    try:
        import keras_architectures as zoo
    except ImportError as error:
        print(f"Keras is not there ({error}): its networks are left out")
        return
    for name in zoo.ARCHITECTURES:
        net = zoo.network(name)
        _, height, width, _ = net.input_shape
        # Smooth and rough, as those that the norms' statistics were taken from.
        coarse = _image((2, 4, 4, 3)).repeat(-(-height // 4), 1).repeat(-(-width // 4), 2)[:, :height, :width]
        image = (coarse + _image((2, height, width, 3))) / 2 * np.float32(zoo.high_of(name))
        yield Subject(kind="keras", name=name, model=zoo.by_adapter(net, 18), image=image)


def _image(shape: Sequence[int]) -> np.ndarray[Any, Any]:
    return np.random.default_rng(2).random(tuple(shape), np.float32)


def parity(run: Run, subject: Subject, expected: np.ndarray[Any, Any]) -> float:
    """The largest difference from onnxruntime, as a share of the largest score."""
    with torch.no_grad():
        actual = run(torch.from_numpy(subject.image)).numpy()
    return float(np.abs(actual - expected).max() / (np.abs(expected).max() + 1e-6))


def gradient(run: Run, image: Tensor) -> Tensor:
    """That of a fixed mix of the scores."""
    image = image.clone().requires_grad_()
    _mix(run(image)).backward()
    assert image.grad is not None
    return image.grad.double()


def _mix(scores: Tensor) -> Tensor:
    return (scores * torch.linspace(-1, 2, scores.numel(), dtype=scores.dtype).reshape(scores.shape).cos()).sum()


def gradient_error(make: Make, subject: Subject) -> float:
    """See the head of this file; a gradient that is nought is measured by the scores' size."""
    image = torch.from_numpy(subject.image)
    if subject.native is not None:
        found = gradient(make(subject.model), image)
        exact = gradient(subject.native.requires_grad_(False), image.double())
        return float((found - exact).norm() / exact.norm())
    wide, image = make(subject.model, double=True), image.double()
    found, length = gradient(wide, image), float(image.norm())
    direction = found / found.norm() if found.any() else image / length
    claimed = float((found * direction).sum())
    with torch.no_grad():
        size = float(wide(image).norm())
        step = STEP * size / max(claimed, 1e-3 * size / length)
        high, low = (float(_mix(wide(image + k * step * direction))) for k in (1, -1))
    return abs((high - low) / (2 * step) - claimed) / max(claimed, 1e-3 * size / length)


def judged(
    make: Callable[[onnx.ModelProto], Run], subject: Subject, expected: np.ndarray[Any, Any]
) -> tuple[str, bool]:
    """Parity and gradient as a cell, and whether both pass."""
    try:
        away, wrong = parity(make(subject.model), subject, expected), gradient_error(make, subject)
    except Exception as error:
        return f"{type(error).__name__} | -", False
    return f"{away:.1e} | {wrong:.1e}", away <= PARITY and wrong <= GRADIENT


def models(subjects: Iterator[Subject]) -> Iterator[str]:
    """A row per model, then how many pass."""
    yield "| exporter | model | debride: parity | gradient | onnx2fx: parity | gradient |\n|---|---|---|---|---|---|"
    passed = np.zeros(3, int)
    for subject in subjects:
        session = Session(subject.model.SerializeToString(), Runtime(threads=1))
        expected = session.run({session.inputs[0].name: subject.image})[0]
        mine, good = judged(ours, subject, expected)
        other, also = judged(theirs, subject, expected) if onnx2fx else ("- | -", False)
        passed += np.array([1, good, also])
        yield f"| {subject.kind} | {subject.name} | {mine} | {other} |"
    yield f"| all | {passed[0]} | {passed[1]} pass | | {passed[2]} pass | |"


def quantised() -> Iterator[str]:
    """Networks in 8 bits: how far the proxy is from onnxruntime as they are written, and how far its own fusing is."""
    yield "| model | scales | debride: largest | mean | onnxruntime fusing: largest | mean |\n|---|---|---|---|---|---|"
    for name in QUANTISED:
        for scales in ("per tensor", "per channel"):
            shape = architectures.shape_of(name)
            data, images = _in_integers(name, scales == "per channel"), _image((32, *shape))
            plain, fused = (Session(data, Runtime(threads=1, optimised=o)).run({"x": images})[0] for o in (False, True))
            with torch.no_grad():
                mine = ours(onnx.load_from_string(data))(torch.from_numpy(images)).numpy()
            away = [np.abs(y - plain) / np.abs(plain).max() for y in (mine, fused)]
            yield f"| {name} | {scales} | " + " | ".join(f"{a.max():.1e} | {a.mean():.1e}" for a in away) + " |"


def _in_integers(name: str, per_channel: bool) -> bytes:
    """The network `name` by onnxruntime's quantiser, with QuantizeLinear and DequantizeLinear around its layers."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    shape = architectures.shape_of(name)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            rng = np.random.default_rng(0)
            self.batches = iter([{"x": rng.random((8, *shape), np.float32)} for _ in range(4)])

        def get_next(self) -> Any:
            return next(self.batches, None)

    with TemporaryDirectory() as folder:
        before, after = Path(folder, "float.onnx"), Path(folder, "integer.onnx")
        onnx.save(exports.export(architectures.network(name), shape, exporter="torchscript", opset=17), before)
        logging.disable(logging.WARNING)
        quantize_static(
            before,
            after,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        logging.disable(logging.NOTSET)
        return after.read_bytes()


def timing(repeats: int) -> Iterator[str]:
    """Forward and backward at batch 16, one thread, interleaved: the median of the ratios to the native module."""
    yield "| model | exporter | native, ms | debride / native | onnx2fx / native |\n|---|---|---|---|---|"
    torch.set_num_threads(1)
    for name in TIMED:
        net, shape = architectures.network(name).requires_grad_(False), architectures.shape_of(name)
        for exporter, opset in TIMED_EXPORTS:
            yield _timed(name, net, shape, (exporter, opset), repeats)
    torch.manual_seed(0)
    wide = lived_in(resnet18(width=64), (3, 64, 64)).requires_grad_(False)
    for export in EXPORTS:
        yield _timed("resnet18, width 64, 64x64", wide, (3, 64, 64), export, max(repeats // 8, 1))


def _timed(name: str, net: nn.Module, shape: tuple[int, ...], export: tuple[str, int], repeats: int) -> str:
    """A row of the table; of an export that PyTorch cannot write, its name."""
    exporter, opset = export
    start = [name, f"{exporter} {opset}"]
    try:
        model = exports.export(net, shape, exporter=exporter, opset=opset)  # type: ignore[arg-type]
    except torch.onnx.errors.UnsupportedOperatorError:
        return "| " + " | ".join([*start, "cannot be written", "-", "-"]) + " |"
    runs: list[Run] = [net, ours(model), *([theirs(model)] if onnx2fx else [])]
    times = np.array([[_seconds(run, _image((16, *shape))) for run in runs] for _ in range(repeats + 3)])[3:]
    ratios = [f"{median(times[:, i] / times[:, 0]):.2f}" for i in range(1, len(runs))]
    cells = [*start, f"{1e3 * median(times[:, 0]):.1f}", *ratios]
    return "| " + " | ".join(cells + ["-"] * (5 - len(cells))) + " |"


def _seconds(run: Run, image: np.ndarray[Any, Any]) -> float:
    x = torch.from_numpy(image).contiguous(memory_format=torch.channels_last).requires_grad_()
    start = perf_counter()
    run(x).square().sum().backward()
    return perf_counter() - start


def main() -> None:
    """Prints the tables as Markdown, line by line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="PyTorch's older exporter alone")
    options.add_argument("--only", default=",".join(PARTS), metavar="PART,...", help=f"of {', '.join(PARTS)}")
    options.add_argument("--repeats", type=int, default=40, help="of each timing")
    found = options.parse_args()
    wanted = found.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        options.error(f"--only: no part {unknown[0]!r}; name some of {', '.join(PARTS)}")
    if onnx2fx is None:
        print("onnx2fx is not there: its columns stay empty; pip install --no-deps onnx2fx==0.0.1", file=sys.stderr)
    warnings.simplefilter("ignore")
    parts: dict[str, Callable[[], Iterator[str]]] = {
        "nodes": nodes,
        **{k: partial(lambda f: models(f(found.quick)), f) for k, f in _SUBJECTS.items()},
        "quantised": quantised,
        "timing": partial(timing, found.repeats),
    }
    for part in (p for p in PARTS if p in wanted):
        print(f"\n{part}\n")
        for line in parts[part]():
            print(line, flush=True)


_SUBJECTS: dict[str, Callable[[bool], Iterator[Subject]]] = {"light": light, "torch": networks, "keras": keras}

if __name__ == "__main__":
    main()
