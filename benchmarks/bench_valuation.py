"""Valuing a model's channel groups: screened and then played, beside everybody's marginals played exactly.

Run `python benchmarks/bench_valuation.py`. The trigger is the one that `debride scan` inverts for the first suspect;
nothing of the manifest but names and files is read. Both estimators are timed in this one run: compare the ratio.
"""

from __future__ import annotations

import argparse
import sys
from time import perf_counter

import numpy as np

from debride.conversion.source import Source
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
from debride.settings import Settings
from debride.types import BoolArray, DoubleArray, Game, Trigger
from vendor import manifest, parser

TOP = 5


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
    # Each plays a game with no session made yet, and so pays for its own.
    game = exact_game(loaded, (), stakes)
    few = valued(loaded, State(), game, stakes, options.seed, evaluations=options.few)
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
    print(f"of the exact top {TOP}, {listed} were short-listed and {both} are in hybrid's top {TOP}")


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
