"""Every method of retraining on models that others poisoned, pruned first and by itself, graded with the true trigger.

`make bench-retrain`, or `python benchmarks/bench_retrain.py --models a,b --seeds 0 --per-class 1,10 --methods unlearn`.
Per model, seed and number of images it is searched and pruned once; each row then begins from there. A row tells the
network as retrained, also where debride would deliver the other one ("delivered": no). `--relearning` measures instead
how many updates bring the planted backdoor back, beside a clean model of the same architecture. The models and images
lie in a folder `shared` beside the checkout and are not part of it. The manifest's `trigger` and `target` are read to
grade, and nowhere else. Seconds depend on the machine.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench_vendor import Grade, chosen, graded, stamped
from debride.ending import End, zeroed
from debride.errors import DebrideError
from debride.graph.read import Model, model_of
from debride.images import load_images
from debride.loading import Loaded, load
from debride.mending import Cleaned, Triggers, tried
from debride.retrain.network import Network
from debride.retrain.options import METHODS, MethodName
from debride.retrain.relearn import relearn
from debride.retrain.teacher import Teacher
from debride.rounds import State, clean_all
from debride.settings import Settings
from debride.stages import Clock, more_triggers, searched, source_of
from debride.stages import prepared as prepared_model
from debride.types import Rate, Relearning, Samples, Trigger, no_progress
from vendor import manifest, parser

TRAINED_ON = {"cifar10": ("CIFAR-10", 50_000), "mnist": ("MNIST", 60_000), "gtsrb": ("GTSRB", 39_209)}
"""The training sets, and their sizes."""
CLEAN = {"gtsrb-resnet-patch": "gtsrb-resnet-clean", "mnist-badnet-white1": "mnist-enc-clean"}
"""Poisoned models whose architecture a clean one has too."""
STEPS = (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
HEAD = (
    "model",
    "seed",
    "images per class (all, share of the training set)",
    "cut",
    "method",
    "delivered",
    "accuracy before -> after",
    "true ASR before -> after",
    "DER",
    "seconds",
    "relearnt after steps: planted / fresh",
)
HEAD_RELEARNING = (
    "network",
    "seed",
    "images per class",
    "accuracy",
    "true ASR",
    "true trigger: steps to 50 % / 90 %",
    "unplanted ones: steps to 50 % / 90 %",
    "true trigger after 0, 8, 16, 32, 64, 128, 256 steps",
)
_TRIED = 1000
"""Test images that a relearning test is tried on."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model searched and pruned: the network to begin from, by what was cut, each with its detection and triggers.

    `acquitted` are triggers of suspects that stood out no longer once others were cleaned.
    """

    name: str
    entry: Mapping[str, Any]
    settings: Settings
    loaded: Loaded
    test: Samples
    vendor: Path
    delivered: Cleaned
    pruned: Cleaned
    groups: int
    acquitted: Triggers

    def grade(self, cleaned: Cleaned) -> Grade:
        """Accuracy and attack success with the true trigger, on images that no stage has seen."""
        return graded(cleaned.end.predict, self.entry, self.test, self.vendor)

    def retrained(self, start: Cleaned, method: MethodName) -> Cleaned:
        """`start` retrained by `method`, whether debride would deliver it or not."""
        settings = replace(self.settings, retraining=replace(self.settings.retraining, method=method))
        acquitted = self.acquitted if start is self.pruned else {}
        return tried(self.loaded, settings, start, acquitted, "it is measured", deadline=None, progress=no_progress)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table; `after` and `der` (in per cent) are what the means are taken of."""

    key: tuple[int, str, str]
    cells: tuple[str, ...]
    after: Grade
    der: float


def prepared(name: str, entry: Mapping[str, Any], seed: int, per_class: int, options: argparse.Namespace) -> Case:
    """Searched and pruned, as `debride sanitize` does it.

    Raises a `DebrideError` where the images do not do, and `LookupError` where no class is suspected.
    """
    vendor, data = options.shared / "vendor", options.shared / "data"
    images = data / f"{entry['data']}_pool.npz"
    settings = Settings(per_class=per_class, seed=seed, threads=options.threads)
    clock, state = Clock(), State()
    with source_of(vendor / entry["file"], images, settings, no_progress, clock) as source:
        found = searched(prepared_model(source, images, settings, no_progress, clock), settings, no_progress, clock)
    loaded, known = found.loaded, more_triggers(found, settings, no_progress, clock)
    if not known:
        raise LookupError(found.detection.inconclusive or "no class is suspected")
    checked = clean_all(loaded, settings, found.detection, known, state, deadline=None, progress=no_progress)
    whole = End(proto=loaded.model.proto, predict=loaded.predict)
    return Case(
        name=name,
        entry=entry,
        settings=settings,
        loaded=loaded,
        test=load_images(data / f"{entry['data']}_test.npz").samples(),
        vendor=vendor,
        delivered=Cleaned(end=whole, checked=found.detection, triggers=known),
        pruned=Cleaned(end=zeroed(loaded, state.gone), checked=checked, triggers=state.triggers),
        groups=len(state.gone),
        acquitted={target: triggers for target, triggers in known.items() if target not in state.triggers},
    )


def rows(case: Case, methods: Sequence[MethodName]) -> Iterator[Row | str]:
    """Pruning only, pruning and each method, each method alone; in words what could not be done."""
    before = case.grade(case.delivered)
    cut = f"pruned ({case.groups} groups)"
    yield row(case, "pruned", cut, "none", before, case.grade(case.pruned), ("-", "-", "-"))
    for start, key, named in ((case.pruned, "pruned", cut), (case.delivered, "delivered", "delivered")):
        for method in methods:
            started = perf_counter()
            try:
                made = case.retrained(start, method)
            except DebrideError as error:
                yield f"{case.name}, {named}, {method}: {error}"
                continue
            seconds = perf_counter() - started
            facts = made.retraining
            assert facts is not None  # `tried` always tells
            told = ("yes" if facts.kept else "no", f"{seconds:.0f}", relearnt(facts.relearning))
            yield row(case, key, named, method, before, case.grade(made), told)


def row(case: Case, key: str, cut: str, method: str, before: Grade, after: Grade, told: tuple[str, str, str]) -> Row:
    """A line; `told` are whether it is delivered, the seconds, and how fast it relearns."""
    kept, seconds, steps = told
    effect = der(before, after)
    per_class = case.settings.per_class
    assert per_class is not None
    cells = (
        case.name,
        str(case.settings.seed),
        f"{per_class} ({share(case)})",
        cut,
        method,
        kept,
        f"{before.accuracy:.2%} -> {after.accuracy:.2%}",
        f"{before.asr:.2%} -> {after.asr:.2%}",
        f"{effect:.2f}",
        seconds,
        steps,
    )
    return Row(key=(per_class, key, method), cells=cells, after=after, der=effect)


def der(before: Grade, after: Grade) -> float:
    """Defence effectiveness rating in per cent (Zhu et al., FT-SAM, arXiv 2304.11823, section 4.1)."""
    attack, accuracy = before.asr - after.asr, before.accuracy - after.accuracy
    return 50 * (max(0.0, attack) - max(0.0, accuracy) + 1)


def share(case: Case) -> str:
    """How many images the defender has, those that only judge counted in, and of what."""
    data, size = TRAINED_ON[case.entry["data"]]
    count = len(case.loaded.fit) + len(case.loaded.held_out)
    return f"{count}, {count / size:.2%} of {data}"


def relearnt(tests: Sequence[Relearning]) -> str:
    """When the success of the found trigger passes one half, and that of one that nobody planted."""
    return "; ".join(f"{passed(t.steps, t.planted, 0.5)} / {passed(t.steps, t.fresh, 0.5)}" for t in tests) or "-"


def passed(steps: Sequence[int], rates: Sequence[Rate], level: float) -> str:
    """The first of `steps` at which a rate reaches `level`."""
    return next((str(s) for s, rate in zip(steps, rates, strict=True) if rate.value >= level), f"> {steps[-1]}")


def means(found: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """A line per number of images, cut and method: accuracy, attack success and DER, over all models and seeds."""
    together = defaultdict(list)
    for one in found:
        together[one.key].append((one.after.accuracy, one.after.asr, one.der))
    for (per_class, cut, method), figures in together.items():
        accuracy, asr, effect = np.mean(figures, axis=0)
        yield (str(per_class), cut, method, str(len(figures)), f"{accuracy:.2%}", f"{asr:.2%}", f"{effect:.2f}")


def planted(entry: Mapping[str, Any], shape: tuple[int, ...], vendor: Path) -> Trigger:
    """The manifest's trigger (a patch) for images of `shape` (C, H, W): what it leaves of white and of black ones."""
    white, black = (stamped(np.full((1, *shape), level, np.float32), entry["trigger"], vendor)[0] for level in (1, 0))
    mask = 1 - (white - black).mean(axis=0, keepdims=True)
    pattern = np.divide(black, mask, out=np.zeros_like(black), where=np.broadcast_to(mask > 0, black.shape))
    return Trigger(target=entry["target"], mask=mask, pattern=pattern, l1=float(mask.sum()), success=Rate(0, 0))


def relearning_rows(case: Case, clean: Loaded, methods: Sequence[MethodName]) -> Iterator[tuple[str, ...]]:
    """How fast the true trigger is learnt: by the network pruned, by that retrained, by one that was never poisoned."""
    loaded = case.loaded
    yield relearning_row(case, f"{case.name}, pruned", case.pruned, loaded)
    for method in methods:
        yield relearning_row(case, f"{case.name}, pruned, {method}", case.retrained(case.pruned, method), loaded)
    whole = Cleaned(
        end=End(proto=clean.model.proto, predict=clean.predict), checked=case.delivered.checked, triggers={}
    )
    yield relearning_row(case, CLEAN[case.name], whole, clean)


def relearning_row(case: Case, name: str, cleaned: Cleaned, loaded: Loaded) -> tuple[str, ...]:
    """A line for the network `cleaned`, which came of `loaded`."""
    seed, trigger = case.settings.seed, planted(case.entry, loaded.fit.images.shape[1:], case.vendor)
    tried_on = case.test.take(np.random.default_rng(seed).permutation(len(case.test))[:_TRIED])
    network = Network(read(cleaned, loaded), loaded.spec, loaded.groups, loaded.compute)
    teacher = Teacher(
        loaded.model, loaded.spec, case.settings.retraining, labelled=loaded.labelled, compute=loaded.compute
    )
    found = relearn(network, loaded.fit, tried_on, trigger, teacher.answers, seed=seed, steps=STEPS)
    now = case.grade(cleaned)
    curve = dict(zip(found.steps, found.planted, strict=True))
    return (
        name,
        str(seed),
        str(case.settings.per_class),
        f"{now.accuracy:.2%}",
        f"{now.asr:.2%}",
        *(
            " / ".join(passed(found.steps, rates, level) for level in (0.5, 0.9))
            for rates in (found.planted, found.fresh)
        ),
        ", ".join(f"{curve[step].value:.0%}" for step in (0, 8, 16, 32, 64, 128, 256)),
    )


def read(cleaned: Cleaned, loaded: Loaded) -> Model:
    """What a reader of the written file would get."""
    return model_of(cleaned.end.proto.SerializeToString(), loaded.model.path, free=not loaded.model.bound)


def whole_numbers(text: str) -> list[int]:
    """Numbers separated by commas."""
    return [int(part) for part in text.split(",")]


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__, per_class=whole_numbers)
    options.add_argument("--models", default="", help="names in the manifest (default: all with a trigger for a class)")
    options.add_argument("--seeds", type=whole_numbers, default="0,1,2")
    options.add_argument("--methods", default=",".join(METHODS), help="of debride.retrain.options.METHODS")
    options.add_argument("--relearning", action="store_true", help="how fast the planted backdoor is learnt again")
    options.set_defaults(per_class=[1, 2, 10, 50], threads=1)
    return options.parse_args()


def table(head: Sequence[str]) -> None:
    """Begins a table."""
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)


def line(cells: Sequence[str]) -> None:
    """A line of a table."""
    print("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |", flush=True)


def cases(entries: Mapping[str, Any], options: argparse.Namespace, models: str) -> Iterator[Case]:
    """All that is asked for, each prepared when its turn comes; what cannot be is said on stderr."""
    for name in chosen(entries, models):
        for seed in options.seeds:
            for per_class in options.per_class:
                try:
                    yield prepared(name, entries[name], seed, per_class, options)
                except (DebrideError, LookupError) as error:
                    print(f"{name}, seed {seed}, {per_class} images per class: {error}", file=sys.stderr, flush=True)


def compared(entries: Mapping[str, Any], options: argparse.Namespace, methods: Sequence[MethodName]) -> None:
    """Prints the table of methods, line by line as they end, and the means."""
    poisoned = [n for n, e in entries.items() if isinstance(e["target"], int) and e["file"].endswith(".onnx")]
    found = []
    table(HEAD)
    for case in cases(entries, options, options.models or ",".join(poisoned)):
        for one in rows(case, methods):
            if isinstance(one, str):
                print(one, file=sys.stderr, flush=True)
                continue
            found.append(one)
            line(one.cells)
    print()
    table(("images per class", "cut", "method", "runs", "accuracy", "true ASR", "DER"))
    for cells in means(found):
        line(cells)


def relearning(entries: Mapping[str, Any], options: argparse.Namespace, methods: Sequence[MethodName]) -> None:
    """Prints the table of relearning tests."""
    table(HEAD_RELEARNING)
    for case in cases(entries, options, options.models or ",".join(CLEAN)):
        if case.name not in CLEAN:
            sys.exit(f"no clean model of the architecture of {case.name}; there is one of {', '.join(CLEAN)}")
        entry = entries[CLEAN[case.name]]
        images = options.shared / "data" / f"{entry['data']}_pool.npz"
        with source_of(case.vendor / entry["file"], images, case.settings, no_progress, Clock()) as source:
            clean = load(source, images, case.settings)
        for cells in relearning_rows(case, clean, methods):
            line(cells)


def main() -> None:
    """Prints a table as Markdown."""
    options = arguments()
    methods = [name for name in METHODS if name in options.methods.split(",")]
    unknown = set(options.methods.split(",")) - set(METHODS)
    if unknown:
        sys.exit(f"no method {min(unknown)!r}; there are {', '.join(METHODS)}")
    entries = manifest(options.shared)
    if entries is not None:
        (relearning if options.relearning else compared)(entries, options, methods)


if __name__ == "__main__":
    main()
