"""Valuing a model's channel groups: screened and then played, beside everybody's marginals played exactly.

Run `python benchmarks/bench_valuation.py`. The trigger is the one that `debride scan` inverts for the first suspect;
nothing of the manifest but names and files is read. Both estimators are timed in this one run: compare the ratio. Where
onnxruntime runs on a GPU, coalitions a second there and on the CPU are compared too, in turn.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from time import perf_counter
from unittest.mock import patch

import numpy as np

from debride.conversion.source import Source
from debride.errors import RuntimeMissingError
from debride.loading import Loaded, load
from debride.rounds import (
    EVALUATIONS,
    PRESENT,
    WEIGHT,
    State,
    attack_of,
    exact_game,
    span_of,
    utility_of,
    valued,
)
from debride.sanitize import scan
from debride.sessions import Runtime, check_runtime, runtime_on
from debride.settings import Settings
from debride.stakes import Stake
from debride.types import BoolArray, DoubleArray, Game, Trigger
from vendor import manifest, parser

TOP = 5
ABSENT, COALITIONS, REPEATS = 16, 32, 3
"""Players that the coalitions of the devices' comparison may lack; coalitions in a call; calls timed."""
SIZES = (64, 256, 1024, 4096)
"""Images in a run that are tried on a GPU, beside what its memory says."""


def marginals(game: Game, evaluations: int, seed: int) -> tuple[DoubleArray, int]:
    """Everybody's mean marginal (P, 2), played exactly, and the evaluations spent.

    The first coalition is the whole network; in the others each player is present with a chance drawn from PRESENT
    to 1. It is what the screening estimates by gradients, and hybrid then decides by playing.
    """
    rng = np.random.default_rng(seed)
    players = game.n_players
    rounds = -(-evaluations // (players + 1))  # no fewer than asked for
    total = np.zeros((players, 2))
    for number in range(rounds):
        present = rng.random(players) < rng.uniform(PRESENT, 1.0) if number else np.ones(players, np.bool_)
        total += flips(game, present)
    return total / rounds, rounds * (players + 1)


def flips(game: Game, present: BoolArray) -> DoubleArray:
    """The marginal (P, 2) of each player, added to or taken from the coalition `present`."""
    rows = np.tile(present, (len(present) + 1, 1))
    places = np.arange(len(present))
    rows[places, places] ^= True
    payoffs = game(rows)
    return np.where(present[:, None], payoffs[-1] - payoffs[:-1], payoffs[:-1] - payoffs[-1])


def leaders(values: DoubleArray, played: BoolArray) -> list[int]:
    """The players of the highest attack - WEIGHT * utility among those that were played."""
    score = np.where(played, values[:, 0] - WEIGHT * values[:, 1], -np.inf)
    return [int(p) for p in np.argsort(-score, kind="stable")[:TOP]]


def compare(loaded: Loaded, trigger: Trigger, options: argparse.Namespace) -> None:
    """Times both and prints a Markdown table."""
    span = span_of(loaded, trigger.target, [trigger])
    stakes = (attack_of(loaded, [trigger], 0, span), utility_of(loaded, loaded.fit, options.seed)[0])
    started = perf_counter()
    few = valued(loaded, State(), stakes, options.seed, evaluations=options.few)
    middle = perf_counter()
    exact, spent = marginals(exact_game(loaded, (), stakes), options.evaluations, options.seed)
    seconds = (middle - started, perf_counter() - middle)
    found, wanted = leaders(few.values, few.counts > 0), leaders(exact, np.ones(len(exact), np.bool_))
    print(f"{len(loaded.groups)} players, trigger of class {trigger.target} ({trigger.l1:.1f} pixels)\n")
    print(f"| estimator | evaluations | backward passes | seconds | top {TOP} |\n|---|---|---|---|---|")
    print(f"| hybrid | {few.evaluations} | {few.passes} | {seconds[0]:.1f} | {found} |")
    print(f"| exact marginals | {spent} | 0 | {seconds[1]:.1f} | {wanted} |")
    listed = int((few.counts[wanted] > 0).sum())
    same, both = found[0] == wanted[0], len(set(found) & set(wanted))
    print(f"\nratio of seconds {seconds[1] / seconds[0]:.1f}; the first is {'the same' if same else 'another'}")
    print(f"of the exact top {TOP}, {listed} were short-listed and {both} are in hybrid's top {TOP}\n")
    compare_devices(loaded, stakes, options.seed)


def compare_devices(loaded: Loaded, stakes: tuple[Stake, Stake], seed: int) -> None:
    """Prints coalitions a second on the first GPU beside the CPU's, by images in a run; or that there is none."""
    threads = loaded.runtime.threads
    try:
        check_runtime(gpu := runtime_on("cuda", threads=threads))
    except RuntimeMissingError as error:
        print(f"no GPU to compare with: {error}")
        return
    cpu = runtime_on("cpu", threads=threads)
    ways: dict[str, tuple[Runtime, int]] = {
        "CPU": (cpu, 0),
        **{f"{n} images": (gpu, n) for n in SIZES},
        "GPU": (gpu, 0),
    }
    rates = rates_of(loaded, stakes, ways, seed)
    print("| images in a run | coalitions a second | of the CPU's |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.1f} | {rate / rates['CPU']:.2f} |")


def rates_of(
    loaded: Loaded, stakes: tuple[Stake, Stake], ways: dict[str, tuple[Runtime, int]], seed: int
) -> dict[str, float]:
    """Coalitions a second, the best of a few calls, of each way: a runtime, and images in a run (0: as it decides)."""
    rng, players = np.random.default_rng(seed), len(loaded.groups)
    mine = rng.permutation(players)[:ABSENT]
    games = {}
    best = dict.fromkeys(ways, 0.0)
    for turn in range(1 + REPEATS):
        rows = np.ones((COALITIONS, players), np.bool_)
        rows[:, mine] = rng.random((COALITIONS, len(mine))) < PRESENT
        rows[0, mine] = False  # all of them are gated from the first call on
        for name, (runtime, images) in ways.items():
            game = games.setdefault(name, exact_game(replace(loaded, runtime=runtime), (), stakes))
            with portioned(images) if images else nullcontext():
                started = perf_counter()
                game(rows)
                rate = COALITIONS / (perf_counter() - started)
            best[name] = max(best[name], rate) if turn else 0.0  # the first call makes sessions
    return best


@contextmanager
def portioned(images: int) -> Iterator[None]:
    """Within, a game plays so many images in a run."""
    with (
        patch("debride.game.images_at_once", lambda *_: images),
        patch("debride.tree.images_at_once", lambda *_: images),
    ):
        yield


def arguments() -> argparse.Namespace:
    """The command line."""
    options = parser(__doc__)
    options.add_argument("--model", default="cifar-wrn-grid5", help="a name in the manifest")
    options.add_argument("--evaluations", type=int, default=2000, help="of the exact marginals")
    options.add_argument("--few", type=int, default=EVALUATIONS, help="evaluations of the hybrid")
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


def main() -> None:
    """Finds the suspect, then values its attack twice."""
    options = arguments()
    entries = manifest(options.shared)
    if entries is None:
        return
    if options.model not in entries:
        sys.exit(f"no ONNX model {options.model!r} in the manifest; it has {', '.join(entries)}")
    entry = entries[options.model]
    settings = Settings(per_class=options.per_class, seed=options.seed, threads=options.threads)
    model, images = options.shared / "vendor" / entry["file"], options.shared / "data" / f"{entry['data']}_pool.npz"
    detection = scan(model, images, settings=settings).detection
    if not detection.suspects:
        sys.exit(f"{options.model}: no class is suspected with seed {options.seed}; try another")
    compare(
        load(Source(origin=model, path=model), images, settings),
        detection.findings[detection.suspects[0]].trigger,
        options,
    )


if __name__ == "__main__":
    main()
