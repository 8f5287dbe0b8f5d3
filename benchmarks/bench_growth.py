"""How the cost of a scan grows: with classes, images, pixels and parameters, one at a time from a small CNN.

    make bench-growth
    python benchmarks/bench_growth.py --axis classes,pixels --threads 1 --timeout 600 --plot growth.svg
    python benchmarks/bench_growth.py --large

The models are those of `planted`, so that every scan has a backdoor to find. Each scan is a process of its own; seconds
per stage and image passes (of one image, forward and backward) are those of its report, the whole includes the start.
`--large` scans and sanitizes a ResNet-18 and a ViT-Tiny of 224x224 pixels and grades them with the true trigger. Models
are kept in `--cache`, if given, for the next run. Seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from bench_vendor import Child, Grade, child
from planted import Files, Recipe, grade, write, write_images

BASE = Recipe(kind="cnn", size=32, classes=10, width=32)
PER_CLASS = 10
AXES: dict[str, tuple[int, ...]] = {
    "classes": (10, 43, 200, 1000, 1283),
    "images": (1, 10, 50),
    "pixels": (28, 32, 64, 224),
    "parameters": (16, 32, 64, 128),
}
"""What is varied, and through which values: `images` of each class, `pixels` of a side, `parameters` by the width."""
HEAD = (
    "value",
    "model MB",
    "verdict",
    "target found",
    "seconds by stage",
    "seconds",
    "passes by stage",
    "passes / class",
    "peak MiB",
)
LARGE = (Recipe(kind="resnet18", size=224), Recipe(kind="vit-tiny", size=224))
LARGE_HEAD = (
    *("model", "command", "verdict", "suspects", "target", "seconds by stage", "seconds", "passes by stage"),
    *("peak MiB", "true ASR before -> after", "accuracy before -> after"),
)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One scan: what was varied, to which value, the model's bytes, and how the scan went.

    `report` is empty where there is none.
    """

    axis: str
    value: int
    size: int
    ran: Child
    report: Mapping[str, Any]


def setting(axis: str, value: int) -> tuple[Recipe, int]:
    """The model to scan, and how many images of each class to scan it with."""
    if axis == "images":
        return BASE, value
    return replace(BASE, **{{"classes": "classes", "pixels": "size", "parameters": "width"}[axis]: value}), PER_CLASS


def apart(function: Callable[..., Any], *values: Any, threads: int) -> Any:
    """`function(*values)` in a process of its own: a child's peak memory begins at that of the process it came from."""
    context = get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,)) as pool:
        return pool.submit(function, *values).result()


def kept(recipe: Recipe, per_class: int, cache: Path, threads: int) -> tuple[Path, Path]:
    """The model and its images, from `cache` where they are there already."""
    width = "" if recipe.width is None else f"-{recipe.width}"
    files = Files.of(cache / f"{recipe.kind}-{recipe.size}-{recipe.classes}{width}")
    if not files.model.is_file():
        apart(write, recipe, files.model.parent, per_class, threads=threads)
    images = files.model.parent / f"images-{per_class}.npz"
    if not images.is_file():
        apart(write_images, recipe, images, per_class, threads=threads)
    return files.model, images


def scanned(axis: str, value: int, options: argparse.Namespace, work: Path) -> Point:
    """Makes the model, and scans it."""
    recipe, per_class = setting(axis, value)
    model, images = kept(recipe, per_class, options.cache, options.threads)
    report = work / f"{axis}-{value}.json"
    common = ("--images", str(images), "--threads", str(options.threads), "--quiet")
    ran = child(["scan", str(model), *common, "--output", str(report)], report.with_suffix(".log"), options.timeout)
    return Point(axis=axis, value=value, size=model.stat().st_size, ran=ran, report=read(report))


def read(report: Path) -> dict[str, Any]:
    """The report, or nothing."""
    found: dict[str, Any] = json.loads(report.read_text()) if report.is_file() else {}
    return found


def passes(report: Mapping[str, Any]) -> dict[str, int]:
    """Image passes, forward and backward, by stage; empty where the report has none."""
    found = {stage: spent["passes"] if isinstance(spent, Mapping) else spent for stage, spent in cost(report).items()}
    return {stage: int(n) for stage, n in found.items() if n}


def cost(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the report says of image passes."""
    found: Mapping[str, Any] = report.get("cost") or {}
    return found.get("passes", found)


def rows(
    axis: str, values: Sequence[int], options: argparse.Namespace, work: Path, points: list[Point]
) -> Iterator[tuple[str, ...]]:
    """The lines of one axis as its scans end; they are added to `points`."""
    for value in values:
        points.append(scanned(axis, value, options, work))
        yield row(points[-1])


def row(point: Point) -> tuple[str, ...]:
    """One line of a table."""
    found, spent = point.report, passes(point.report)
    start = (str(point.value), f"{point.size / 1e6:.2f}")
    seconds, peak = f"{point.ran.seconds:.1f}", f"{point.ran.peak:.0f}"
    if not found:
        return (*start, failure(point.ran), "-", "-", seconds, "-", "-", peak)
    recipe, _ = setting(point.axis, point.value)
    right = recipe.trigger().target in found["suspects"]
    others = len(found["suspects"]) - right
    target = ("yes" if right else "no") + (f", and {others} others" if others else "")
    return (
        *(*start, found["verdict"], target),
        *(by_stage(found["seconds"], ".1f"), seconds, by_stage(spent, ",")),
        *(f"{sum(spent.values()) / recipe.classes:,.0f}" if spent else "-", peak),
    )


def by_stage(values: Mapping[str, float], how: str) -> str:
    """Stage and value, one after the other, without the total."""
    return ", ".join(f"{stage} {value:{how}}" for stage, value in values.items() if stage != "total") or "-"


def failure(ran: Child) -> str:
    """Why there is no report."""
    return ("out of time" if ran.code < 0 else f"exit code {ran.code}: {ran.said}").replace("|", "/")


def growth(points: Sequence[Point]) -> str:
    """By which power of the value the seconds and the passes grow, between the smallest and the largest that ended."""
    ended = [point for point in points if point.report]
    if len(ended) < 2:
        return "Too few scans ended to tell how the cost grows."
    first, last = min(ended, key=lambda p: p.value), max(ended, key=lambda p: p.value)
    ratio = math.log(last.value / first.value)
    told = [f"seconds grow by the power {math.log(last.ran.seconds / first.ran.seconds) / ratio:.2f}"]
    before, after = (sum(passes(point.report).values()) for point in (first, last))
    if before and after:
        told.append(f"passes by {math.log(after / before) / ratio:.2f}")
    unit = "channels" if first.axis == "parameters" else first.axis
    return f"From {first.value} to {last.value} {unit}, {', '.join(told)}."


def large(options: argparse.Namespace, work: Path) -> Iterator[tuple[str, ...]]:
    """The lines of `--large`."""
    for recipe in LARGE:
        model, images = kept(recipe, options.per_class, options.cache, options.threads)
        before = apart(grade, recipe, model, options.threads, threads=options.threads)
        for command in ("scan", "sanitize"):
            yield measured(recipe, command, model, images, before, options, work / f"{recipe.kind}-{command}")


def measured(
    recipe: Recipe, command: str, model: Path, images: Path, before: Grade, options: argparse.Namespace, place: Path
) -> tuple[str, ...]:
    """One line of `--large`."""
    output = place.with_suffix(".onnx")
    written = ("--output", str(output)) if command == "sanitize" else ()
    common = ("--images", str(images), "--threads", str(options.threads), "--quiet", "--report", str(place))
    ran = child([command, str(model), *common, *written], place.with_suffix(".log"), options.timeout)
    found = read(place / "report.json")
    after = apart(grade, recipe, output, options.threads, threads=options.threads) if output.is_file() else None
    told = (found["verdict"], " ".join(map(str, found["suspects"])) or "none") if found else (failure(ran), "-")
    asr, accuracy = (None, None) if after is None else (after.asr, after.accuracy)
    return (
        *(f"{recipe.kind} {recipe.size}", command, *told, str(recipe.trigger().target)),
        *(by_stage(found.get("seconds", {}), ".0f"), f"{ran.seconds:.0f}", by_stage(passes(found), ",")),
        *(f"{ran.peak:.0f}", change(before.asr, asr), change(before.accuracy, accuracy)),
    )


def change(before: float, after: float | None) -> str:
    """Two rates; the second is missing where no file was written."""
    return f"{before:.2%} -> {'-' if after is None else f'{after:.2%}'}"


def plot(points: Sequence[Point], file: Path) -> None:
    """Seconds against each axis, both logarithmic."""
    from matplotlib.figure import Figure

    axes = list(dict.fromkeys(point.axis for point in points))
    figure = Figure(figsize=(4 * len(axes), 3), layout="constrained")
    for place, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
        here = sorted((p for p in points if p.axis == axis and p.report), key=lambda p: p.value)
        place.loglog([p.value for p in here], [p.ran.seconds for p in here], "o-", label="whole")
        for stage in dict.fromkeys(stage for p in here for stage in p.report["seconds"] if stage != "total"):
            there = [p for p in here if p.report["seconds"].get(stage)]
            place.loglog([p.value for p in there], [p.report["seconds"][stage] for p in there], ".--", label=stage)
        place.set_xlabel("width" if axis == "parameters" else axis)
        place.set_ylabel("seconds")
        place.legend(fontsize="small")
    figure.savefig(file)


def table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Prints Markdown, line by line as the runs end."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
    for cells in rows:
        print("| " + " | ".join(cells) + " |", flush=True)
    print()


def arguments() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--axis", default=",".join(AXES), help="separated by commas (default: all)")
    options.add_argument("--values", default="", help="in place of the axis' own, separated by commas; for one axis")
    options.add_argument("--large", action="store_true", help="the two models of 224x224 pixels in place of the axes")
    options.add_argument("--per-class", type=int, default=10, help="images of each class for --large")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--timeout", type=float, default=3600, help="seconds after which a run is stopped")
    options.add_argument("--plot", type=Path, help="write the curves here; needs matplotlib")
    options.add_argument("--cache", type=Path, help="folder to keep the models in")
    return options.parse_args()


def chosen(options: argparse.Namespace) -> dict[str, tuple[int, ...]]:
    """The axes asked for and their values."""
    names = options.axis.split(",")
    unknown = [name for name in names if name not in AXES]
    if unknown:
        sys.exit(f"no axis {unknown[0]!r}; there are {', '.join(AXES)}")
    if options.values and len(names) > 1:
        sys.exit("--values are those of one axis; name it by --axis")
    values = tuple(map(int, options.values.split(","))) if options.values else ()
    return {name: values or AXES[name] for name in names}


def main() -> None:
    """Prints a table for each axis, or the one of `--large`."""
    options = arguments()
    axes = chosen(options)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        options.cache = options.cache or work / "models"
        if options.large:
            table(LARGE_HEAD, large(options, work))
            return
        points: list[Point] = []
        for axis, values in axes.items():
            print(f"{axis.capitalize()} (else {BASE.classes} classes, {BASE.size} pixels, width {BASE.width}):\n")
            found: list[Point] = []
            table(HEAD, rows(axis, values, options, work, found))
            print(growth(found) + "\n", flush=True)
            points += found
    if options.plot:
        plot(points, options.plot)


if __name__ == "__main__":
    main()
