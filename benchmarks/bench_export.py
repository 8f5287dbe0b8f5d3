"""Exports of the vendor models and of the cleaned sample: accuracy, true attack success, size and speed of each.

`python benchmarks/bench_export.py --threads 1`, or `--models a,b`, or `--cleaned a,b` for vendor models that
`debride sanitize` cleans first, as it does the sample. Every export runs in a process of its own, which is given the
model, a few clean images and, of a cleaned model, the report; it is then graded on images that no stage has seen, with
the trigger of the manifest (read here and nowhere else). Ratios of time are measured side by side within one process,
one image at a time.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench_vendor import Grade, child, chosen, grade
from debride.evaluate import evaluate
from debride.images import load_images
from debride.sessions import Runtime, Session, predictor
from debride.spec import resolve_spec
from debride.triggers import load_trigger
from vendor import ROOT, manifest, parser

TARGETS: Mapping[str, tuple[str, ...]] = {
    "ort": ("--target", "ort"),
    "ort, native": ("--target", "ort", "--native"),
    "int8": ("--target", "int8"),
    "int8, entropy": ("--target", "int8", "--calibration", "entropy"),
    "int8, percentile": ("--target", "int8", "--calibration", "percentile"),
    "fp16": ("--target", "fp16"),
}
HEAD = ("model", "target", "accuracy", "true ASR", "size", "time per image", "exit code")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model to export: its file, its images, more flags, and what grades a file."""

    name: str
    model: Path
    images: Path
    flags: tuple[str, ...]
    grade: Callable[[Path], Grade]
    before: Grade


def rows(case: Case, options: argparse.Namespace, work: Path) -> Iterator[tuple[str, ...]]:
    """One line of the table per target."""
    yield (case.name, "as it is", *rates(case.before), "1", "1", "")
    for target, flags in TARGETS.items():
        output = work / f"{case.name}-{target.replace(', ', '-')}{'.ort' if target.startswith('ort') else '.onnx'}"
        log = work / "export.json"
        ran = child(
            [
                *("export", str(case.model), "--images", str(case.images), "--output", str(output)),
                *("--per-class", str(options.per_class), "--threads", str(options.threads), "--json", "--quiet"),
                *(*flags, *case.flags),
            ],
            log,
        )
        text = log.read_text()
        if ran.code not in (0, 1):
            yield (case.name, target, *["-"] * 4, f"{ran.code}: {ran.said}".replace("|", "/"))
            continue
        # Remarks on stderr come before, and, where it is refused, after the document.
        found = json.JSONDecoder().raw_decode(text, text.index("{\n"))[0]
        old, new = found["before"], found["after"]
        yield (
            case.name,
            target,
            *(rates(case.grade(output)) if output.is_file() else ("refused", found["missed"][0].replace("|", "/"))),
            f"{new['size'] / old['size']:.2f}",
            f"{new['latency'] / old['latency']:.2f}",
            str(ran.code),
        )


def rates(found: Grade) -> tuple[str, str]:
    """Accuracy and attack success in per cent."""
    return f"{found.accuracy:.2%}", "no trigger" if np.isnan(found.asr) else f"{found.asr:.2%}"


def vendor_case(name: str, entry: Mapping[str, Any], options: argparse.Namespace) -> Case:
    """A vendor model as it was delivered, with its backdoor."""
    vendor, data = options.shared / "vendor", options.shared / "data"
    test = load_images(data / f"{entry['data']}_test.npz").samples()

    def graded(path: Path) -> Grade:
        return grade(path, entry, test, vendor, options.threads)

    model = vendor / entry["file"]
    images = data / f"{entry['data']}_pool.npz"
    return Case(name=name, model=model, images=images, flags=(), grade=graded, before=graded(model))


def cleaned(name: str, model: Path, images: Path, options: argparse.Namespace, work: Path) -> tuple[Path, Path]:
    """What `debride sanitize` makes of `model`, and the report on it."""
    output, report = work / f"{name}-cleaned.onnx", work / f"{name}-cleaned-report"
    ran = child(
        [
            *("sanitize", str(model), "--images", str(images), "--quiet"),
            *("--per-class", str(options.per_class), "--threads", str(options.threads)),
            *("--output", str(output), "--report", str(report)),
        ],
        work / "sanitize.log",
    )
    if ran.code != 0:
        sys.exit(f"sanitize of {name} ended with {ran.code}: {ran.said}")
    return output, report


def cleaned_case(name: str, entry: Mapping[str, Any], options: argparse.Namespace, work: Path) -> Case:
    """A vendor model, cleaned first; its exports are tried with the triggers that were found."""
    case = vendor_case(name, entry, options)
    model, report = cleaned(name, case.model, case.images, options, work)
    flags = ("--report", str(report))
    return replace(case, name=f"{name}, cleaned", model=model, flags=flags, before=case.grade(model))


def sample_case(options: argparse.Namespace, work: Path) -> Case:
    """The shipped sample, cleaned; its own images grade it, and the trigger that it was poisoned with."""
    samples = ROOT / "samples"
    images = samples / "images"
    model, report = cleaned("sample", samples / "fashion-backdoored.onnx", images, options, work)
    test = load_images(images, depth=1).samples()
    trigger = load_trigger(samples / "true-trigger.npz")

    def graded(path: Path) -> Grade:
        session = Session(path, Runtime(options.threads), path.name)
        found = evaluate(predictor(session, resolve_spec(session).spec), test, (trigger,))
        return Grade(accuracy=found.clean.value, asr=found.triggers[0].asr.value)

    flags = ("--report", str(report))
    return Case(name="sample, cleaned", model=model, images=images, flags=flags, grade=graded, before=graded(model))


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--models", default="", help="names in the manifest, separated by commas (default: all)")
    options.add_argument("--cleaned", default="", help="these alone, each cleaned by debride sanitize first")
    return options.parse_args()


def cases(entries: Mapping[str, Any], options: argparse.Namespace, work: Path) -> Iterator[Case]:
    """What to export, each made when its turn comes."""
    if options.cleaned:
        for name in chosen(entries, options.cleaned):
            yield cleaned_case(name, entries[name], options, work)
        return
    for name in chosen(entries, options.models):
        if entries[name]["file"].endswith(".onnx"):
            yield vendor_case(name, entries[name], options)
    yield sample_case(options, work)


def main() -> None:
    """Prints the table as Markdown, line by line as the exports end."""
    options = arguments()
    entries = manifest(options.shared) or {}
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD), flush=True)
    with tempfile.TemporaryDirectory() as work:
        for case in cases(entries, options, Path(work)):
            for row in rows(case, options, Path(work)):
                print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
