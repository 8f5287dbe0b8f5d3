"""What `debride.serve.Classifier` costs: its import, its overhead over a bare onnxruntime session, files by threads.

- import: fresh processes, by turns, that import debride.serve or numpy, onnxruntime and cv2.
- overhead: `classify` of decoded arrays beside `InferenceSession.run` of the same session on the same images, encoded
  beforehand; by turns, medians. What lies beyond the sum of its parts is that a small model's run leaves cold caches.
- files: `classify` of JPEG files beside reading, running and ranking them batch by batch in one thread.

Run `python benchmarks/bench_classifier.py`; `--threads` is what onnxruntime takes (default 1).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from debride.framing import fitted
from debride.pixels import encode
from debride.serve import Classifier
from debride.sessions import Runtime, Session
from debride.spec import declare
from debride.types import InputSpec

ROOT = Path(__file__).resolve().parents[1]
VENDOR = ROOT.parent / "shared" / "vendor"
MODELS = (
    ROOT / "samples" / "fashion-backdoored.onnx",
    VENDOR / "cifar-wrn-grid5.onnx",
    VENDOR / "gtsrb-resnet-clean.onnx",
    VENDOR / "mnist-enc-clean.onnx",
)
_THREE = "import numpy, onnxruntime, cv2"
_OURS = "import debride.serve"


def by_turns(
    first: Callable[[], object],
    second: Callable[[], object],
    pairs: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[float, float]:
    """Median seconds of each, on `clock`."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * pairs):
        # The order changes from pair to pair: who comes second finds other caches.
        which = (turn + turn // 2) % 2
        start = clock()
        (first, second)[which]()
        times[which].append(clock() - start)
    return median(times[0]), median(times[1])


def children() -> float:
    """Seconds of processor time that finished child processes took: other load on the machine is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def imports(pairs: int) -> None:
    """Print what importing takes, and the ratio, by the clock and in processor time."""

    def process(code: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    process(_OURS)()
    for what, clock in (("wall clock", time.perf_counter), ("processor time", children)):
        three, ours = by_turns(process(_THREE), process(_OURS), pairs, clock)
        print(
            f"import, {what}, median of {pairs} pairs: {_THREE[7:]} {three:.3f} s, "
            f"debride.serve {ours:.3f} s: {ours / three:.3f}"
        )
    print()


def opened(path: Path, threads: int) -> Classifier:
    """The classifier; where nothing says how pixels become its input, one that needs work: mean and std."""
    session = Session(path, Runtime(threads=threads))
    declared = declare(session)
    if declared.source != "measured":
        return Classifier(session, batch=32)
    spec = InputSpec(
        name=declared.name,
        layout=declared.layout,
        channels="L" if declared.depth == 1 else "RGB",
        size=declared.size or (224, 224),
        mean=(0.5,) if declared.depth == 1 else (0.485, 0.456, 0.406),
        std=(0.5,) if declared.depth == 1 else (0.229, 0.224, 0.225),
        output=declared.output,
    )
    return Classifier(session, spec=spec, batch=32)


def overhead(path: Path, threads: int, seconds: float) -> None:
    """Print one row per batch size."""
    classifier = opened(path, threads)
    spec, bare = classifier.spec, classifier.session._session
    rng = np.random.default_rng(0)
    assert classifier.splits  # tried here, not in the first measured batch
    for size in (1, 32):
        images = list(rng.integers(0, 256, (size, *spec.size, spec.depth), np.uint8))
        fed = {spec.name: encode(np.stack([fitted(i, spec.depth, spec.size) for i in images]), spec)}
        outputs = [spec.output]

        def run(fed: dict[str, np.ndarray] = fed, outputs: list[str] = outputs) -> object:
            return bare.run(outputs, fed)

        def ours(images: list[np.ndarray] = images) -> object:
            return classifier.classify(images)

        once, _ = by_turns(run, ours, 5)
        pairs = max(15, int(seconds / 2 / once))
        lower, upper = by_turns(run, ours, pairs)
        print(
            f"| {path.stem} | {size} | {1e6 * lower:,.0f} | {1e6 * upper:,.0f} | {100 * (upper / lower - 1):.1f} % "
            f"| {pairs} |",
            flush=True,
        )


def files(path: Path, threads: int, count: int, size: tuple[int, int]) -> None:
    """Print one row: `count` JPEG files of `size` (height, width) with and without threads that read ahead."""
    classifier = opened(path, threads)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.jpg" for i in range(count)]
        for file in paths:
            rough = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
            cv2.imwrite(str(file), cv2.resize(rough, size[::-1], interpolation=cv2.INTER_CUBIC))

        def plainly() -> None:
            for start in range(0, count, 32):
                rows = [classifier.prepare(file, "") for file in paths[start : start + 32]]
                classifier.ranked(classifier.scores(np.stack(rows)), 5)

        one, ahead = by_turns(plainly, lambda: classifier.classify(paths), 3)
    rates = f"{count / one:.0f} | {count / ahead:.0f} | {one / ahead:.2f}"
    print(f"| {path.stem} | {count} | {size[1]}x{size[0]} | {rates} |", flush=True)


def resnet18(folder: Path) -> Path:
    """ResNet-18 for 224x224 pixels and 1000 classes, with random weights."""
    sys.path.insert(0, str(ROOT / "tests"))
    import exports
    from architectures_parts import lived_in
    from architectures_residual import resnet18 as make

    shape = (3, 224, 224)
    network = lived_in(make(64, imagenet=True, classes=1000), shape)
    path = folder / "resnet18-224.onnx"
    path.write_bytes(exports.export(network, shape, exporter="torchscript", opset=17).SerializeToString())
    return path


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=25, help="of processes that import")
    parser.add_argument("--seconds", type=float, default=8.0, help="per row of the overhead's table, about")
    parser.add_argument("--files", type=int, default=500)
    options = parser.parse_args()
    imports(options.pairs)
    with tempfile.TemporaryDirectory() as folder:
        models = [*(path for path in MODELS if path.is_file()), resnet18(Path(folder))]
        print("| model | batch | onnxruntime, us | classify, us | overhead | pairs |\n|---|---|---|---|---|---|")
        for path in models:
            overhead(path, options.threads, options.seconds)
        print("\n| model | files | pixels | one by one, files/s | ahead, files/s | times |\n|---|---|---|---|---|---|")
        for size, path in (((32, 32), models[0]), ((480, 640), models[0]), ((480, 640), models[-1])):
            files(path, options.threads, options.files, size)


if __name__ == "__main__":
    main()
