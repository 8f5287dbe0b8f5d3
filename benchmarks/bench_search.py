"""The search for triggers beside the Keras Neural Cleanse of adversarial-robustness-toolbox (ART), on one vendor model.

Run `make bench-search`, or `python benchmarks/bench_search.py --classes 1,15,29 --steps 200`. The model and images lie
in a folder `shared` beside the checkout and are not part of it. Both are given the same images; debride fits to 70 % of
them and holds the others out, ART fits to all. An image pass is one image sent through the network and its gradient
back. Of ART a few classes are measured, and what all of them cost at its default of 1,000 steps (rounds over all
images) is reckoned from those, and said to be. Seconds are those of the search alone, without loading and conversion;
the manifest's target is read to choose the classes and to grade.

ART is called as it stands, with its own defaults, but for two repairs. With Keras 3, `reset` of ART 1.20.1, which every
search begins with, zeroes all variables of the optimiser, and there the learning rate is one of them: the mask never
moves. It does so with tf_keras too, since ART takes Adam from `keras`. Here the rate is set again after each reset;
`--unrepaired` leaves it as it is. And `reset` leaves mask and pattern as the class before left them, where the
published procedure begins anew: here each class has an object of its own.

What else was found in its code is left alone. After five steps of success in a row, which should raise the weight on
the mask, that weight is set to its first value and the count towards raising it begins anew: it is never raised, a mask
shrinks no further than the first weight makes it, and early stopping, which waits for a weight raised and lowered,
never comes. So every class takes all steps, and cost is in proportion to them. ART's mask has three channels; the norms
here are sums over pixels of the mean over channels.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter
from typing import Any

import numpy as np

from bench_vendor import child
from debride.images import draw_per_class, load_images
from debride.triggers import load_trigger
from debride.types import FloatArray, Samples
from debride_adapters.keras.load import load_model
from vendor import manifest, parser

MODEL = "gtsrb-badnet-yellow1"
DEFAULT_STEPS = 1000
ANOMALY = 2.0
"""ART suspects a class whose norm lies more than so many MAD below the median."""

HEAD = (
    "method",
    "classes measured",
    "image passes per class (forward and backward)",
    "seconds per class",
    "L1 norm of the true target's trigger",
    "its success on test images",
    "median L1 norm of the others",
    "found the target",
)


class Counted:
    """A training step of ART that counts the images that it is given."""

    def __init__(self, step: Callable[[Any, Any], Any]) -> None:
        self.step, self.images = step, 0

    def __call__(self, images: Any, labels: Any) -> Any:
        """One step."""
        self.images += len(images)
        return self.step(images, labels)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Image passes (None: not told) and seconds."""

    passes: float | None
    seconds: float

    def times(self, factor: float) -> Cost:
        """`factor` times as much."""
        return Cost(passes=None if self.passes is None else self.passes * factor, seconds=self.seconds * factor)

    def cells(self) -> tuple[str, str]:
        """Passes and seconds in words."""
        return ("-" if self.passes is None else f"{self.passes:,.0f}", f"{self.seconds:,.1f}")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """One class searched by ART: mask and pattern (C, H, W) and what they cost."""

    mask: FloatArray
    pattern: FloatArray
    passes: int
    seconds: float

    @property
    def l1(self) -> float:
        """Pixels of the mask, the mean over its channels."""
        return float(self.mask.sum(dtype=np.float64)) / len(self.mask)


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method: cost per class, norm per class measured, and suspects where all classes were."""

    method: str
    cost: Cost
    norms: Mapping[int, float]
    n_classes: int
    suspects: tuple[int, ...] | None
    success: float | None

    def cells(self, target: int) -> tuple[str, ...]:
        """One line of the table."""
        others = [norm for c, norm in self.norms.items() if c != target]
        return (
            self.method,
            f"{len(self.norms)} of {self.n_classes}",
            *self.cost.cells(),
            f"{self.norms[target]:.1f}" if target in self.norms else "-",
            "-" if self.success is None else f"{self.success:.2%}",
            f"{median(others):.1f}" if others else "-",
            told(self.norms, self.suspects, target),
        )


def told(norms: Mapping[int, float], suspects: tuple[int, ...] | None, target: int) -> str:
    """Whether the target was found; of a few classes, which no rule can judge, only whether its trigger is smallest."""
    if suspects is not None:
        named = " ".join(map(str, suspects)) or "none"
        return f"{'yes' if target in suspects else 'no'} (suspects: {named})"
    if target not in norms:
        return "-"
    below = [c for c, norm in norms.items() if c != target and norm <= norms[target]]
    return f"no: class {below[0]} is no larger" if below else "smallest of those measured"


def outliers(norms: Mapping[int, float]) -> tuple[int, ...]:
    """The suspects by ART's own rule, which needs the norms of all classes."""
    values = np.array(list(norms.values()))
    middle = np.median(values)
    spread = 1.4826 * np.median(np.abs(values - middle))
    return tuple(c for c, norm in norms.items() if norm <= middle and middle - norm > ANOMALY * spread)


def spread_classes(target: int, n_classes: int, count: int = 3) -> tuple[int, ...]:
    """The target and others as far apart as they can be."""
    return tuple(dict.fromkeys((target + k * n_classes // count) % n_classes for k in range(count)))


def repair(cleanser: Any) -> None:
    """Let `reset` of ART's object leave the learning rate as it was asked for."""
    reset = cleanser.reset

    def repaired() -> None:
        reset()
        cleanser.opt.learning_rate.assign(cleanser.learning_rate)

    cleanser.reset = repaired


def rival(network: Any, samples: Samples, target: int, options: argparse.Namespace) -> Searched:
    """ART's search for one class, on an object of its own."""
    import keras
    from art.estimators.poison_mitigation.neural_cleanse import KerasNeuralCleanse

    keras.utils.set_random_seed(options.seed)
    cleanser = KerasNeuralCleanse(network, steps=options.steps)
    if not options.unrepaired:
        repair(cleanser)
    cleanser.train = counted = Counted(cleanser.train)
    n_classes = network.output_shape[-1]
    labels = keras.utils.to_categorical(samples.labels, n_classes)
    images = np.ascontiguousarray(samples.images.transpose(0, 2, 3, 1))
    started = perf_counter()
    # Every step prints its success.
    with contextlib.redirect_stdout(io.StringIO()):
        mask, pattern = cleanser.generate_backdoor(images, labels, keras.utils.to_categorical(target, n_classes))
    seconds = perf_counter() - started
    return Searched(
        mask=mask.transpose(2, 0, 1),
        pattern=pattern.transpose(2, 0, 1),
        passes=counted.images,
        seconds=seconds,
    )


def success(network: Any, test: Samples, target: int, mask: FloatArray, pattern: FloatArray) -> float:
    """The share of other classes' test images that Keras's network, with the trigger, sends to `target`."""
    others = test.images[test.labels != target]
    stamped = ((1 - mask) * others + mask * pattern).transpose(0, 2, 3, 1)
    return float((network.predict(stamped, verbose=0).argmax(1) == target).mean())


def rival_lines(network: Any, samples: Samples, test: Samples, options: argparse.Namespace) -> list[Line]:
    """ART as measured, and, where that was with fewer steps, its cost with the default."""
    found = {c: rival(network, samples, c, options) for c in options.classes}
    norms = {c: one.l1 for c, one in found.items()}
    n_classes = network.output_shape[-1]
    known = found.get(options.target)
    name = "ART as it stands" if options.unrepaired else "ART, repaired"
    measured = Line(
        method=f"{name}, {options.steps} steps",
        cost=Cost(
            passes=fmean(one.passes for one in found.values()),
            seconds=fmean(one.seconds for one in found.values()),
        ),
        norms=norms,
        n_classes=n_classes,
        suspects=outliers(norms) if len(norms) == n_classes else None,
        success=success(network, test, options.target, known.mask, known.pattern) if known else None,
    )
    if options.steps == DEFAULT_STEPS:
        return [measured]
    cost = measured.cost.times(DEFAULT_STEPS / options.steps)
    method = f"{name}, {DEFAULT_STEPS} steps (cost reckoned, the rest after {options.steps})"
    return [measured, replace(measured, method=method, cost=cost)]


def own_line(network: Any, model: Path, pool: Path, test: Samples, options: argparse.Namespace, work: Path) -> Line:
    """`debride scan` in a process of its own, read from its report."""
    report, log = work / "report", work / "log"
    ran = child(
        [
            *("scan", str(model), "--images", str(pool), "--per-class", str(options.per_class)),
            *("--seed", str(options.seed), "--threads", str(options.threads), "--report", str(report), "--quiet"),
        ],
        log,
    )
    if not (report / "report.json").is_file():
        sys.exit(f"debride scan: exit code {ran.code}: {ran.said}")
    found = json.loads((report / "report.json").read_text())
    arrays = report / f"trigger-{options.target}.npz"
    if not arrays.is_file():
        return from_report(found, None)
    trigger = load_trigger(arrays)
    return from_report(found, success(network, test, options.target, trigger.mask, trigger.pattern))


def from_report(found: Mapping[str, Any], rate: float | None) -> Line:
    """What a report tells of the search; its cost is the mean over all classes, those of suspects searched again."""
    norms = {entry["target"]: entry["l1"] for entry in found["triggers"]}
    passes = ((found.get("cost") or {}).get("inversion") or {}).get("passes")
    return Line(
        method="debride scan",
        cost=Cost(passes=passes, seconds=found["seconds"]["inversion"]).times(1 / len(norms)),
        norms=norms,
        n_classes=len(norms),
        suspects=tuple(found["suspects"]),
        success=rate,
    )


def total(line: Line) -> str:
    """The cost of all classes at the mean of those measured."""
    passes, seconds = line.cost.times(line.n_classes).cells()
    reckoned = f", reckoned from {len(line.norms)}" if len(line.norms) < line.n_classes else ""
    return f"- All {line.n_classes} classes by {line.method}: {passes} image passes, {seconds} seconds{reckoned}."


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--classes", default="", help="what ART searches, as 1,15,29, or all (default: three)")
    options.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="of ART, each a round over all images")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--unrepaired", action="store_true", help="leave ART's learning rate at zero, as 1.20.1 does")
    return options.parse_args()


def chosen(asked: str, target: int, n_classes: int) -> tuple[int, ...]:
    """The classes asked for."""
    if asked == "all":
        return tuple(range(n_classes))
    return tuple(map(int, asked.split(","))) if asked else spread_classes(target, n_classes)


def main() -> None:
    """Prints the table as Markdown, and what all classes cost."""
    options = arguments()
    entries = manifest(options.shared)
    if entries is None:
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    entry, data = entries[MODEL], options.shared / "data"
    model, pool = options.shared / "vendor" / entry["file"], data / f"{entry['data']}_pool.npz"
    samples = draw_per_class(load_images(pool).samples(), options.per_class, options.seed)
    test = load_images(data / f"{entry['data']}_test.npz").samples()
    network, _ = load_model(model)
    options.target = entry["target"]
    options.classes = chosen(options.classes, options.target, network.output_shape[-1])
    with tempfile.TemporaryDirectory() as work:
        lines = [own_line(network, model, pool, test, options, Path(work))]
    lines += rival_lines(network, samples, test, options)
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for line in lines:
        print("| " + " | ".join(line.cells(options.target)) + " |")
    print("\n" + "\n".join(map(total, lines)))


if __name__ == "__main__":
    main()
