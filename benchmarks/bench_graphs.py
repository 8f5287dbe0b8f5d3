"""Every graph of the zoo: does it load, is the proxy right, are its channels found, does what is zeroed really leave?

    make bench-graphs
    python benchmarks/bench_graphs.py --quick
    python benchmarks/bench_graphs.py --only resnet18,swin,MobileNetV2
    python benchmarks/bench_graphs.py --frameworks torch --seed 1

Small networks with drawn weights: PyTorch's by both exporters, Keras' by debride's adapter and by tf2onnx alone. In
each graph 40 % of the channel indices are zeroed, at random, the same ones in all layers of a width. "Parity" is the
proxy against onnxruntime, "masked" the same with the channels masked and zeroed, as shares of the scores; "gradient"
is the input gradient against central differences in float64; "slim difference" is the slimmed file against the zeroed
one in onnxruntime, as a share of the scores' spread. Ratios are slimmed / zeroed. Then the time of a ResNet-18 for
224x224 pixels, half of the inner channels of its blocks zeroed, before and after slimming.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from time import perf_counter

import numpy as np
import onnx
import torch

from vendor import ROOT

sys.path.insert(0, str(ROOT / "tests"))

import architectures
import exports
from architectures_parts import lived_in
from architectures_residual import resnet18
from debride.graph.read import read_model
from debride.graph.surgery import zero
from debride.sessions import Runtime, Session
from debride.slimming import slim
from debride.types import ChannelGroup
from zoo_checks import ONE, Slim, Subject

HEAD = (
    *("architecture", "exporter", "opset", "parity", "gradient", "masked", "groups", "refused", "zeroed", "left"),
    *("slim difference", "parameters", "MACs", "bytes"),
)
TORCH = (("dynamo", 18), ("dynamo", 23), ("torchscript", 11), ("torchscript", 17), ("torchscript, not folded", 14))
_PARITY, _GRADIENT = 1e-4, 1e-4
_ROUNDS = 60


@dataclass(frozen=True, kw_only=True)
class Case:
    """One graph: `make` exports it."""

    name: str
    exporter: str
    opset: int
    make: Callable[[], onnx.ModelProto]
    nhwc: bool = False
    high: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one case; `slim` is None and `error` says why where it failed before."""

    case: Case
    cells: tuple[str, ...]
    matches: bool = False
    slim: Slim | None = None
    error: str = ""


def torch_cases(quick: bool, seed: int) -> Iterator[Case]:
    """All architectures by both of PyTorch's exporters; `quick`: by the older one at one opset."""
    for name in architectures.ARCHITECTURES:
        for exporter, opset in TORCH[3:4] if quick else TORCH:
            yield Case(name=name, exporter=exporter, opset=opset, make=_torch_export(name, exporter, opset, seed))


def _torch_export(name: str, exporter: str, opset: int, seed: int) -> Callable[[], onnx.ModelProto]:
    def make() -> onnx.ModelProto:
        return exports.export(
            architectures.network(name, seed),
            architectures.shape_of(name),
            exporter="dynamo" if exporter == "dynamo" else "torchscript",
            opset=opset,
            fold="not folded" not in exporter,
        )

    return make


def keras_cases(seed: int) -> Iterator[Case]:
    """Keras' networks by the adapter at opset 18, and by tf2onnx alone at 13, 15 and 18 in turn."""
    import keras_architectures as zoo

    for name, opset in zip(zoo.ARCHITECTURES, cycle((13, 15, 18)), strict=False):
        for exporter, write, at in (("Keras adapter", zoo.by_adapter, 18), ("tf2onnx", zoo.by_tf2onnx, opset)):

            def make(name: str = name, write: Callable[..., onnx.ModelProto] = write, at: int = at) -> onnx.ModelProto:
                zoo.keras.backend.clear_session()
                return write(zoo.network(name, seed), at)

            yield Case(name=name, exporter=exporter, opset=at, make=make, nhwc=True, high=zoo.high_of(name))


def judged(case: Case, seed: int) -> Outcome:
    """One row. Whatever fails is that row's: its message goes in place of the figures."""
    start = (case.name, case.exporter, str(case.opset))
    try:
        proto = case.make()
    except Exception as error:
        return Outcome(case=case, cells=start, error=f"not written: {_line(error)}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _judged(case, Subject(proto, Path(folder), nhwc=case.nhwc, high=case.high, seed=seed), start)
    except Exception as error:
        return Outcome(case=case, cells=start, error=_line(error))


def _judged(case: Case, subject: Subject, start: tuple[str, ...]) -> Outcome:
    parity, gradient, chosen = subject.parity(), subject.gradient_error(), subject.chosen()
    masked = subject.masked_difference(chosen)
    result = subject.slimmed(chosen)
    before, after = result.facts.before, result.facts.after
    cells = (
        *start,
        *(f"{value:.1e}" for value in (parity, gradient, masked)),
        *(str(n) for n in (len(subject.groups), len(subject.refused), len(chosen), result.facts.left)),
        f"{result.difference:.1e}" if result.facts.left else f"none left: {_reason(result)}",
        *(f"{a / b:.2f}" for a, b in ((after.parameters, before.parameters), (after.macs, before.macs))),
        f"{after.size / before.size:.2f}",
    )
    return Outcome(case=case, cells=cells, matches=parity <= _PARITY and gradient <= _GRADIENT, slim=result)


def _reason(result: Slim) -> str:
    why = result.facts.reason or next((refused.reason for refused in result.facts.stayed), "")
    return _clean(why)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {_clean(lines[0] if lines else '')}"


def _clean(text: str) -> str:
    return text.replace("|", "/").replace(tempfile.gettempdir(), "")[:160]


def totals(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What the table adds up to, line by line."""
    written = [o for o in outcomes if not o.error.startswith("not written")]
    matching = [o for o in written if o.matches]
    slims = [o for o in written if o.slim and o.slim.equal]
    pairs = {(o.case.name, o.case.exporter) for o in written}
    dead = sum(o.slim.facts.dead for o in written if o.slim)
    left = sum(o.slim.facts.left for o in written if o.slim)
    yield f"{len(pairs)} pairs of architecture and exporter, {len({name for name, _ in pairs})} architectures."
    if not written or not dead:
        return
    yield f"{len(matching)} of {len(written)} load and match (100 % asked)."
    share = 100 * len(slims) / len(written)
    yield f"{len(slims)} of {len(written)} slim with equality: {share:.1f} % (95 % asked)."
    yield f"{left} of {dead} zeroed channels left: {100 * left / dead:.1f} %."
    for name, among in (("not written", [o for o in outcomes if o not in written]), ("no match", written)):
        wrong = [o for o in among if not o.matches]
        if wrong:
            yield f"{name}: " + "; ".join(f"{o.case.name} ({o.case.exporter} {o.case.opset})" for o in wrong) + "."
    stuck = [o for o in matching if not (o.slim and o.slim.equal)]
    if stuck:
        yield "no channel left: " + "; ".join(f"{o.case.name} ({o.case.exporter} {o.case.opset})" for o in stuck) + "."


def race(seed: int) -> Iterator[str]:
    """ResNet-18 as in its paper, half of the channels between the two convolutions of each block zeroed."""
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        module = lived_in(resnet18(64, imagenet=True, classes=1000), (3, 224, 224))
        proto = exports.export(module, (3, 224, 224), exporter="torchscript", opset=17)
        subject = Subject(proto, Path(folder), seed=seed)
        half: dict[str, list[ChannelGroup]] = {}
        rng = np.random.default_rng(seed)
        for group in subject.groups:
            if "/first/" in group.layer:
                half.setdefault(group.layer, []).append(group)
        gone = [g for layer in half.values() for g in rng.permutation(np.array(layer, object))[: len(layer) // 2]]
        path = Path(folder) / "zeroed.onnx"
        path.write_bytes(zero(subject.model, gone).SerializeToString())
        zeroed = read_model(path)
        slimmed = slim(zeroed, runtime=ONE)
        facts, old, new = slimmed.facts, slimmed.facts.before, slimmed.facts.after
        yield f"{facts.left} of {facts.dead} zeroed channels left; difference {facts.difference:.1e} of the spread;"
        yield f"parameters {old.parameters:,} -> {new.parameters:,}; MACs {old.macs:,} -> {new.macs:,};"
        yield f"bytes {old.size:,} -> {new.size:,}."
        for threads in (1, 2):
            before, after = _times([zeroed.proto, slimmed.proto], threads, seed)
            ratio = float(np.median(before / after))
            yield (
                f"Threads {threads}: {1e3 * np.median(before):.1f} ms -> {1e3 * np.median(after):.1f} ms, "
                f"median ratio {ratio:.2f} (1.5 asked)."
            )


def _times(protos: Sequence[onnx.ModelProto], threads: int, seed: int) -> list[np.ndarray]:
    """Seconds per image of each, one run of each in turn."""
    sessions = [Session(proto.SerializeToString(), Runtime(threads=threads)) for proto in protos]
    x = {"x": np.random.default_rng(seed).random((1, 3, 224, 224), np.float32)}
    found = np.empty((len(sessions), _ROUNDS))
    for turn in range(-3, _ROUNDS):  # the first ones warm up
        for row, session in enumerate(sessions):
            started = perf_counter()
            session.run(x)
            found[row, max(turn, 0)] = perf_counter() - started
    return list(found)


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", default="", help="names of architectures, separated by commas (default: all)")
    options.add_argument("--frameworks", default="torch,keras", help="default: torch,keras")
    options.add_argument("--quick", action="store_true", help="PyTorch's older exporter at opset 17 alone")
    options.add_argument("--no-race", action="store_true", help="leave out the ResNet-18's time")
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """The cases asked for."""
    wanted = set(filter(None, options.only.split(",")))
    frameworks = options.frameworks.split(",")
    found = list(torch_cases(options.quick, options.seed)) if "torch" in frameworks else []
    if "keras" in frameworks and not options.quick:
        if find_spec("keras") is None or find_spec("tensorflow") is None:
            sys.exit("Keras or TensorFlow is missing: install debride[keras,tensorflow], or give --frameworks torch")
        found += keras_cases(options.seed)
    unknown = wanted - {case.name for case in found}
    if unknown:
        sys.exit(f"no architecture {sorted(unknown)[0]!r}; there are {', '.join(dict.fromkeys(c.name for c in found))}")
    yield from (case for case in found if not wanted or case.name in wanted)


def main() -> None:
    """Prints the table as Markdown, line by line as the cases end, then the totals and the race."""
    options = arguments()
    torch.set_num_threads(1)
    chosen, outcomes = list(cases(options)), []
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    for case in chosen:
        outcomes.append(outcome := judged(case, options.seed))
        filled = outcome.cells if not outcome.error else (*outcome.cells, outcome.error, *["-"] * (len(HEAD) - 4))
        print("| " + " | ".join(filled) + " |", flush=True)
    print()
    for line in totals(outcomes):
        print(line)
    if not options.no_race:
        print("\nResNet-18, 224x224, batch 1, half of the inner channels zeroed:", flush=True)
        for line in race(options.seed):
            print(line, flush=True)


if __name__ == "__main__":
    main()
