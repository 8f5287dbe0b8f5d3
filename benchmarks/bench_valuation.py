"""Valuing a model's channel groups: screened and then played, beside everybody's marginals played exactly.

Run `python benchmarks/bench_valuation.py`. The trigger is the one that `debride scan` inverts for the first suspect;
nothing of the manifest but names and files is read. Both estimators are timed in this one run: compare the ratio.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import numpy as np

from debride.game import ChannelGame
from debride.graph.parse import parse
from debride.graph.parts import gated_parts
from debride.loading import Loaded, load
from debride.proxy.interpreter import Proxy
from debride.proxy.screen import ProxyGame
from debride.sanitize import scan
from debride.sessions import probabilities
from debride.settings import Settings
from debride.shapley import Budget, hybrid
from debride.stakes import Stake, attack_stake, log_odds, utility_stake, variations
from debride.types import BoolArray, DoubleArray, Game, ShapleyValues, Trigger

ROOT = Path(__file__).resolve().parents[1]
TOP, ATTACK_IMAGES, UTILITY_IMAGES = 5, 120, 256
SHORTLIST, PASSES, PRESENT, WEIGHT = 16, 40, 0.95, 0.5


def stakes_of(loaded: Loaded, trigger: Trigger, seed: int) -> tuple[Stake, Stake]:
    """Attack and utility, as a first round of the loop plays for them."""
    assert loaded.fit.labels is not None
    stamped = attack_stake(loaded.fit, [trigger], loaded.n_classes, ATTACK_IMAGES, seed)
    clean = loaded.fit.images[loaded.fit.labels != trigger.target]
    low, high = (
        float(log_odds(probabilities(loaded.predict(x))[:, trigger.target].astype(np.float64)).mean())
        for x in (clean, stamped.images)
    )
    attack = Stake(images=stamped.images, wanted=stamped.wanted, span=(low, max(high, low + 1.0)))
    varied = variations(loaded.fit, UTILITY_IMAGES, seed)
    return attack, utility_stake(varied, probabilities(loaded.predict(varied.images)))


def fresh_game(loaded: Loaded, stakes: Sequence[Stake]) -> ChannelGame:
    """The exact game with no session made yet, so that each estimator pays for its own."""
    scores = loaded.spec.output or loaded.model.graph.outputs[0].name
    return ChannelGame(
        len(loaded.groups),
        lambda columns: gated_parts(loaded.model.working, [loaded.groups[i] for i in columns], scores),
        loaded.spec,
        stakes,
        loaded.runtime,
    )


def screened_and_played(loaded: Loaded, stakes: Sequence[Stake], evaluations: int, seed: int) -> ShapleyValues:
    """What the loop does in every round."""
    proxy = Proxy(parse(loaded.model.working), loaded.spec, precision="bfloat16")
    return hybrid(
        fresh_game(loaded, stakes),
        screen=ProxyGame(proxy, loaded.groups, stakes),
        budget=Budget(evaluations=evaluations),
        seed=seed,
        shortlist=min(SHORTLIST, len(loaded.groups)),
        top=min(3, len(loaded.groups)),
        weight=WEIGHT,
        passes=PASSES,
        low=PRESENT,
    )


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
    stakes = stakes_of(loaded, trigger, options.seed)
    started = perf_counter()
    few = screened_and_played(loaded, stakes, options.few, options.seed)
    middle = perf_counter()
    exact, spent = marginals(fresh_game(loaded, stakes), options.evaluations, options.seed)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="holds vendor/ and data/")
    parser.add_argument("--model", default="cifar-wrn-grid5", help="a name in the manifest")
    parser.add_argument("--evaluations", type=int, default=2000, help="of the exact marginals")
    parser.add_argument("--few", type=int, default=80, help="evaluations of the hybrid")
    parser.add_argument("--per-class", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Finds the suspect, then values its attack twice."""
    options = arguments()
    path = options.shared / "vendor" / "manifest.json"
    if not path.is_file():
        print(f"skipped: {path} is not there; point --shared at a folder with vendor/ and data/")
        return
    entry = json.loads(path.read_text()).get(options.model)
    if entry is None or not entry["file"].endswith(".onnx"):
        sys.exit(f"no ONNX model {options.model!r} in {path}")
    settings = Settings(per_class=options.per_class, seed=options.seed, threads=options.threads)
    model, images = path.parent / entry["file"], options.shared / "data" / f"{entry['data']}_pool.npz"
    detection = scan(model, images, settings=settings).detection
    if not detection.suspects:
        sys.exit(f"{options.model}: no class is suspected with seed {options.seed}; try another")
    compare(load(model, images, settings), detection.findings[detection.suspects[0]].trigger, options)


if __name__ == "__main__":
    main()
