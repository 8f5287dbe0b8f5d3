"""Valuing a model's channel groups: screened and then played, beside permutations of everybody played exactly.

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
from debride.shapley import Budget, hybrid, permutation
from debride.stakes import Stake, attack_stake, log_odds, utility_stake, variations
from debride.types import ShapleyValues, Trigger

ROOT = Path(__file__).resolve().parents[1]
TOP, SHORTLIST, ATTACK_IMAGES, UTILITY_IMAGES = 5, 12, 120, 256


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
        weight=1.0,
    )


def leaders(found: ShapleyValues) -> list[int]:
    """The players of the highest attack - utility among those that were played."""
    score = np.where(found.counts > 0, found.values[:, 0] - found.values[:, 1], -np.inf)
    return [int(p) for p in np.argsort(-score, kind="stable")[:TOP]]


def compare(loaded: Loaded, trigger: Trigger, options: argparse.Namespace) -> None:
    """Times both and prints a Markdown table."""
    stakes = stakes_of(loaded, trigger, options.seed)
    started = perf_counter()
    few = screened_and_played(loaded, stakes, options.few, options.seed)
    middle = perf_counter()
    many = permutation(fresh_game(loaded, stakes), budget=Budget(evaluations=options.evaluations), seed=options.seed)
    seconds = (middle - started, perf_counter() - middle)
    print(f"{len(loaded.groups)} players, trigger of class {trigger.target} ({trigger.l1:.1f} pixels)\n")
    print(f"| estimator | evaluations | backward passes | seconds | top {TOP} |\n|---|---|---|---|---|")
    for name, found, spent in (("hybrid", few, seconds[0]), ("permutation", many, seconds[1])):
        print(f"| {name} | {found.evaluations} | {found.passes} | {spent:.1f} | {leaders(found)} |")
    both = set(leaders(few)) & set(leaders(many))
    print(f"\nratio of seconds {seconds[1] / seconds[0]:.1f}; {len(both)} of the top {TOP} are the same")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="holds vendor/ and data/")
    parser.add_argument("--model", default="cifar-wrn-grid5", help="a name in the manifest")
    parser.add_argument("--evaluations", type=int, default=2000, help="of the permutations")
    parser.add_argument("--few", type=int, default=60, help="evaluations of the hybrid")
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
