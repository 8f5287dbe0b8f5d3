"""How much memory it takes to read, prune and write a model, as a multiple of the model's size.

The model (random convolutions and a multilayer perceptron, external data) is written piece by piece. A process of its
own then goes the whole way; counted is the most memory that it ever had, less what it had after its imports.

Run `python benchmarks/bench_memory.py --large`, on Linux.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

_CLASSES = 10
_FEATURES = 64


class _Weights:
    """Initializers whose data go straight to the file of external data."""

    def __init__(self, file: Path) -> None:
        self.file, self.offset, self.stream = file, 0, file.open("wb")
        self.rng = np.random.default_rng(0)
        self.tensors: list[onnx.TensorProto] = []

    def add(self, name: str, *dims: int) -> str:
        """A random initializer `name`, written row by row."""
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
        length = 4 * int(np.prod(dims))
        for key, value in (("location", self.file.name), ("offset", self.offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        scale = np.float32((2 / max(1, np.prod(dims[1:]))) ** 0.5)
        for _ in range(dims[0]):
            self.stream.write((self.rng.standard_normal(dims[1:], np.float32) * scale).tobytes())
        self.tensors.append(tensor)
        self.offset += length
        return name


def make(folder: Path, megabytes: int, *, width: int = 4096, batch: int | str = "n", named: bool = True) -> Path:
    """A model of about `megabytes`, most of them in square layers of `width`; returns its path.

    `batch` may be fixed; without node names (`named`) reading has to rewrite the graph too.
    """
    weights = _Weights(folder / "large.onnx.data")
    nodes = [
        helper.make_node("Conv", ["x", weights.add("cw", _FEATURES, 3, 3, 3), weights.add("cb", _FEATURES)], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["h"]),
        helper.make_node("Gemm", ["h", weights.add("w", _FEATURES, width), weights.add("b", width)], ["h0"]),
    ]
    depth = max(1, round(megabytes * 1e6 / (4 * width * width)))
    for i in range(depth):
        names = [weights.add(f"w{i}", width, width), weights.add(f"b{i}", width)]
        nodes += [helper.make_node("Gemm", [f"h{i}", *names], [f"g{i}"], transB=1)]
        nodes += [helper.make_node("Relu", [f"g{i}"], [f"h{i + 1}"])]
    last = [weights.add("we", width, _CLASSES), weights.add("be", _CLASSES)]
    nodes += [helper.make_node("Gemm", [f"h{depth}", *last], ["y"])]
    weights.stream.close()
    for number, node in enumerate(nodes if named else ()):
        node.name = f"node{number}"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [batch, 3, 32, 32]), ("y", [batch, _CLASSES]))
    ]
    graph = helper.make_graph(nodes, "large", ends[:1], ends[1:], weights.tensors)
    path = folder / "large.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())
    return path


# VmHWM, not getrusage: what that calls the most includes the process that started this one.
_CHILD = """
import sys
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import check_written, write_model, zero

def memory(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

def peak():
    return memory("VmHWM")

source, target, share, limit = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
base, seen = memory("VmRSS"), []
model = read_model(source); seen.append(peak() - base)
groups, _ = find_groups(model.graph, "y"); seen.append(peak() - base)
gone = groups[:: max(1, round(1 / share))]
after = zero(model, gone); seen.append(peak() - base)
check_written(model.proto, after, gone); seen.append(peak() - base)
write_model(after, target, limit=limit); seen.append(peak() - base)
print(len(gone), *seen)
"""
_SLIM = """
import sys
from debride.graph.read import read_model
from debride.graph.surgery import write_model
from debride.sessions import Runtime
from debride.slimming import slim

def memory(what):
    return int(next(line for line in open("/proc/self/status") if line.startswith(what)).split()[1])

base = memory("VmRSS")
slimmed = slim(read_model(sys.argv[1]), runtime=Runtime(threads=1))
write_model(slimmed.proto, sys.argv[2])
assert slimmed.facts.left and not slimmed.facts.reason, slimmed.facts
print(memory("VmHWM") - base)
"""
STEPS = ("read", "groups", "zero", "check", "write")


def measure(path: Path, target: Path, *, share: float = 0.05, limit: int = 2**31 - 1) -> dict[str, float]:
    """The most memory so far after each of `STEPS`, as a multiple of the model's size, in a process of its own.

    `limit` is that of `write_model`. Raises `CalledProcessError` where the process fails.
    """
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    command = [sys.executable, "-c", _CHILD, str(path), str(target), str(share), str(limit)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    _, *peaks = done.stdout.split()
    return {step: 1024 * int(kilobytes) / size for step, kilobytes in zip(STEPS, peaks, strict=True)}


def measure_slim(path: Path, target: Path) -> float:
    """The most memory that reading, slimming and writing the zeroed model `path` take, as a multiple of its size.

    Slimming runs the graph as it was and the slim one side by side in onnxruntime, which has its own copies.
    """
    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    done = subprocess.run(
        [sys.executable, "-c", _SLIM, str(path), str(target)], check=True, capture_output=True, text=True
    )
    return 1024 * int(done.stdout) / size


def main() -> None:
    """Print one row per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="a model of 2.4 GB too")
    cases = [("500 MB", 500, {}), ("500 MB, batch fixed, no names", 500, {"batch": 1, "named": False})]
    cases += [("500 MB in two layers", 500, {"width": 7900})]
    if parser.parse_args().large:
        cases.append(("2.4 GB", 2300, {"width": 8192}))
    print(f"| model | bytes | {' | '.join(STEPS)} | seconds | read, slim, write |")
    print("|---" * (len(STEPS) + 4) + "|")
    for name, megabytes, how in cases:
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder), megabytes, **how)
            size = sum(file.stat().st_size for file in Path(folder).iterdir())
            (Path(folder) / "out").mkdir()
            start = time.perf_counter()
            found = measure(path, Path(folder) / "out" / "cut.onnx")
            seconds = time.perf_counter() - start
            slim = measure_slim(Path(folder) / "out" / "cut.onnx", Path(folder) / "out" / "slim.onnx")
        shares = " | ".join(f"{found[s]:.2f}" for s in STEPS)
        print(f"| {name} | {size:,} | {shares} | {seconds:.0f} | {slim:.2f} |", flush=True)


if __name__ == "__main__":
    main()
