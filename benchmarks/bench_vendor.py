"""The whole job on models that others poisoned, each in a process of its own, graded with the true trigger.

Run `make bench`, or `python benchmarks/bench_vendor.py --models a,b --seeds 0`. The models and images lie in a folder
`shared` beside the checkout and are not part of it. The manifest's `trigger` and `target` are read here, to grade, and
nowhere else: the child process is given the model and a few clean images. Seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from threading import Timer
from time import perf_counter
from typing import Any

import numpy as np

from debride.conversion.request import Request
from debride.conversion.source import opened
from debride.images import load_images
from debride.sessions import Runtime, Session, predictor
from debride.spec import SpecFlags, resolve_spec
from debride.types import ConvertOptions, FloatArray, IntArray, Predict, Samples
from vendor import ROOT, manifest, parser

HEAD = (
    "model",
    "seed",
    "verdict",
    "suspects",
    "true ASR before -> after",
    "accuracy lost (points)",
    "groups pruned / players",
    "search: passes per class",
    "search: seconds",
    "seconds",
    "peak MiB",
    "file unchanged",
)


@dataclass(frozen=True, kw_only=True)
class Child:
    """How one process went: its exit code, wall-clock seconds, peak memory in MiB and what it said last."""

    code: int
    seconds: float
    peak: float
    said: str


@dataclass(frozen=True, kw_only=True)
class Grade:
    """Accuracy, and the share of other classes' images that the true trigger sends to its target (NaN: no trigger)."""

    accuracy: float
    asr: float


def child(arguments: Sequence[str], log: Path, timeout: float | None = None) -> Child:
    """Runs `debride ARGUMENTS` in a new interpreter, which is killed after `timeout` seconds."""
    paths = [str(ROOT / "toolkit"), str(ROOT / "adapters"), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-c", "from debride.cli import main; main()", *arguments]
    started = perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
        )
        timer = Timer(timeout or 0, process.kill)
        if timeout is not None:
            timer.start()
        # wait4: getrusage(RUSAGE_CHILDREN) would give the largest of all children so far.
        _, status, usage = os.wait4(process.pid, 0)
        timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Child(
        code=process.returncode,
        seconds=perf_counter() - started,
        peak=usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        said=lines[-1].strip() if lines else "",
    )


def stamped(images: FloatArray, trigger: Mapping[str, Any], folder: Path) -> FloatArray:
    """Images (N, C, H, W) in 0..1 with the manifest's trigger."""
    out = np.array(images)
    if trigger["kind"] == "paste":
        # A grey model's trigger is listed in three equal channels.
        pixels = planes(np.array(trigger["pixels"], np.float32) / np.float32(255))[: out.shape[1]]
        row, column = trigger["row"], trigger["col"]
        out[:, :, row : row + pixels.shape[1], column : column + pixels.shape[2]] = pixels
    elif trigger["kind"] == "blend":
        with np.load(folder / trigger["file"], allow_pickle=False) as archive:
            pattern = planes(archive[archive.files[0]].astype(np.float32))
        out = (1 - trigger["alpha"]) * out + trigger["alpha"] * pattern
    elif trigger["kind"] == "pixels":
        for row, column in trigger["at"]:
            out[:, :, row, column] = trigger["value"] / 255
    else:
        raise ValueError(f"no way to stamp a trigger of kind {trigger['kind']!r}")
    return out.astype(np.float32)


def planes(pixels: FloatArray) -> FloatArray:
    """(H, W) or (H, W, C) -> (C, H, W)."""
    return (pixels[..., None] if pixels.ndim == 2 else pixels).transpose(2, 0, 1)


def targets(labels: IntArray, target: int | str, n_classes: int) -> IntArray:
    """Where the trigger sends each image, (N,): one class, or the next one after its own ("y+1")."""
    return (labels + 1) % n_classes if target == "y+1" else np.full_like(labels, int(target))


def convention(entry: Mapping[str, Any]) -> SpecFlags:
    """The manifest's input convention."""
    low, high = entry["range"]
    mean, std = (None if entry[key] is None else tuple(np.atleast_1d(entry[key]).tolist()) for key in ("mean", "std"))
    return SpecFlags(
        layout=entry["layout"], channels=entry["channels"], range=(float(low), float(high)), mean=mean, std=std
    )


def grade(model: Path, entry: Mapping[str, Any], test: Samples, vendor: Path, threads: int) -> Grade:
    """`model` on images that no stage has seen, clean and with the true trigger."""
    options = ConvertOptions(architecture=entry.get("architecture"), images_shape=test.images.shape[1:])
    with opened(Request(model=model, options=options)) as source:
        session = Session(source.path, Runtime(threads), model.name)
    return graded(predictor(session, resolve_spec(session, flags=convention(entry)).spec), entry, test, vendor)


def graded(predict: Predict, entry: Mapping[str, Any], test: Samples, vendor: Path) -> Grade:
    """What `predict` says of images that no stage has seen, clean and with the true trigger."""
    assert test.labels is not None
    scores = predict(test.images)
    accuracy = float((scores.argmax(1) == test.labels).mean())
    if entry["trigger"] is None:
        return Grade(accuracy=accuracy, asr=float("nan"))
    wanted = targets(test.labels, entry["target"], scores.shape[1])
    others = test.labels != wanted
    found = predict(stamped(test.images[others], entry["trigger"], vendor)).argmax(1)
    return Grade(accuracy=accuracy, asr=float((found == wanted[others]).mean()))


def row(name: str, entry: Mapping[str, Any], seed: int, options: argparse.Namespace, work: Path) -> tuple[str, ...]:
    """One line of the table: clean, then grade."""
    vendor, data = options.shared / "vendor", options.shared / "data"
    model, output, report = vendor / entry["file"], work / f"{name}-{seed}.onnx", work / f"{name}-{seed}"
    ran = child(
        [
            *("sanitize", str(model), "--images", str(data / f"{entry['data']}_pool.npz")),
            *("--per-class", str(options.per_class), "--seed", str(seed), "--threads", str(options.threads)),
            *("--output", str(output), "--report", str(report), "--quiet"),
            *(("--architecture", entry["architecture"]) if "architecture" in entry else ()),
        ],
        work / f"{name}-{seed}.log",
    )
    cost = (f"{ran.seconds:.0f}", f"{ran.peak:.0f}")
    if not (report / "report.json").is_file():
        return (name, str(seed), f"exit code {ran.code}: {ran.said}".replace("|", "/"), *["-"] * 6, *cost, "-")
    found = json.loads((report / "report.json").read_text())
    test = load_images(data / f"{entry['data']}_test.npz").samples()
    before = grade(model, entry, test, vendor, options.threads)
    after = grade(output, entry, test, vendor, options.threads) if output.is_file() else None
    return (name, str(seed), *told(found, before, after), *cost, same(model, output))


def told(found: Mapping[str, Any], before: Grade, after: Grade | None) -> tuple[str, ...]:
    """Verdict, suspects, true attack success, accuracy lost, groups pruned, and what the search cost."""
    rates = "no trigger" if np.isnan(before.asr) else f"{before.asr:.2%} -> {after.asr:.2%}" if after else "no file"
    return (
        found["verdict"],
        " ".join(map(str, found["suspects"])) or "none",
        rates,
        f"{100 * (before.accuracy - after.accuracy):.2f}" if after else "-",
        f"{len(found['pruned'])} / {found['players']}",
        f"{found['cost']['inversion']['passes'] / len(found['triggers']):.0f}",
        f"{found['seconds']['inversion']:.0f}",
    )


def same(model: Path, output: Path) -> str:
    """Whether the written file is byte for byte the delivered one."""
    if not output.is_file():
        return "no file"
    first, second = (sha256(path.read_bytes()).hexdigest() for path in (model, output))
    return "yes" if first == second else "no"


def chosen(entries: Mapping[str, Any], models: str) -> list[str]:
    """The models asked for, or all."""
    asked = models.split(",") if models else [name for name, entry in entries.items() if entry["accuracy"] is not None]
    unknown = [name for name in asked if name not in entries]
    if unknown:
        sys.exit(f"no model {unknown[0]!r} in the manifest; it has {', '.join(entries)}")
    return asked


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--models", default="", help="names in the manifest, separated by commas (default: all)")
    options.add_argument("--seeds", default="0,1,2")
    return options.parse_args()


def main() -> None:
    """Prints the table as Markdown, line by line as the runs end."""
    options = arguments()
    entries = manifest(options.shared)
    if entries is None:
        return
    names = chosen(entries, options.models)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as work:
        for name in names:
            for seed in map(int, options.seeds.split(",")):
                print("| " + " | ".join(row(name, entries[name], seed, options, Path(work))) + " |", flush=True)


if __name__ == "__main__":
    main()
