"""The loop of the method: random cuts, value, cut by weight, attack again, and inversion once the attack is gone.

ShapPruning (Guan et al., CVPR 2022), steps 3 and 4, one class at a time, on the model as it stands.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from debride.detect import detect
from debride.evaluate import evaluate, mistakes
from debride.game import ChannelGame
from debride.graph.parse import parse
from debride.graph.parts import gated
from debride.graph.seen import bytes_per_image
from debride.graph.surgery import working_zero
from debride.inversion.invert import invert
from debride.inversion.survey import settled
from debride.loading import Loaded
from debride.memory import release
from debride.proxy.interpreter import Proxy
from debride.proxy.screen import ProxyGame
from debride.prune import PRICES, Cut, Limits, choose, coalitions, idle, propose
from debride.sessions import Session, predictor, probabilities
from debride.settings import Settings
from debride.shapley import Budget, hybrid
from debride.stakes import Stake, attack_stake, log_odds, utility_stake, variations
from debride.types import (
    Detection,
    DoubleArray,
    FloatArray,
    Predict,
    Progress,
    Pruned,
    Round,
    Samples,
    ShapleyValues,
    Trigger,
    no_progress,
)

_WEAK = 0.1
"""Attack payoff (0: as clean images, 1: as delivered) at which triggers that reach few images count as spent."""
_GONE = 0.05
_CHEAP = 1.0
_FEW = 0.01
"""From there down to `_GONE` cuts are made at this price or better, up to this share of the groups in all: the found
triggers fade before the true one does, but what is left of a spent attack is worth little."""
_MOST_ROUNDS = 16
_ATTACK_IMAGES = 120
_UTILITY_IMAGES = 256
_VALUED = 32
"""Images of a stake on which the short list is valued; what is cut is chosen on all of them. By 128 the cuts left no
less of the attack, and cost no less (four models, two seeds each, in benchmarks/RESULTS.md). Of large images the other
two are fewer (`Compute.images`)."""
_COALITIONS = 64
EVALUATIONS = 80
_SHORTLIST = 16
_PASSES = 20
"""Of `_COALITIONS` each. All eight that were best by 100 passes were among the 16 best by 20, in a whole WideResNet and
in one with two cuts, with two seeds each; by 10, seven were once."""
WEIGHT = 0.5
"""Of utility against attack in the score that makes the short list."""
PRESENT = 0.95
"""Least share of groups present while screening. What matters is one cut into a network otherwise whole: from a half
upwards, Spearman's correlation with all 560 single cuts played exactly was 0.73, from here upwards 0.91."""
_TRIGGERS = 8
_RANDOM = 3
_CONVERGED = 0.005
"""A round that lowers the attack by less has converged: what is left costs accuracy and brings nothing."""
MARGIN = 1.25
"""How much further than accuracy the utility payoff may fall. Of a loss of it, accuracy took a third in a WideResNet on
CIFAR-10 and four fifths in a net of two convolutions on MNIST."""
_IDLE_ROUNDS = 3
"""After so many rounds on end without a cut, each with one more trigger, no further one is tried."""
_USUAL_ROUNDS = 5
"""A class takes four to six of them in most models."""
_PLAYED = 0.15
"""What an image in a coalition takes of the time that it takes there and back through the proxy (a WideResNet)."""
SPENT = "the triggers are spent"
_NO_GROUP = "the group budget is spent"


@dataclass(slots=True)
class State:
    """What the loop has found and cut so far; grows in place, one loop per run.

    `gone` are the places of the cut groups, in the order of `pruned`; `kept` those that were cut and put back.
    `stopped` says per cleaned class why its rounds ended.
    """

    gone: list[int] = field(default_factory=list)
    kept: set[int] = field(default_factory=set)
    pruned: list[Pruned] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    triggers: dict[int, list[Trigger]] = field(default_factory=dict)
    stopped: dict[int, str] = field(default_factory=dict)


def clean_all(
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    found: Mapping[int, Sequence[Trigger]],
    state: State,
    *,
    deadline: float | None,
    progress: Progress,
) -> Detection:
    """Clean every suspect, then any class that stands out on the model as it is by then; the detection after it all.

    `found` are the triggers to begin with, by suspect. Once a worst suspect is ordinary, the norms spread less and
    another class may stand out; or a class that leaned on the first one's channels no longer does. So each is
    inverted anew before it is cleaned, the smallest first, and once more at the end where several were cleaned.
    """
    checked, seen = detection, set[int]()
    while waiting := {*found, *checked.suspects} - seen:
        target = min(waiting, key=lambda t: checked.findings[t].trigger.l1)
        seen.add(target)
        triggers = tuple(found.get(target, ()))
        if state.gone:
            checked, anew = recheck(loaded, settings, checked, target, state, _MOST_ROUNDS)
            if target not in checked.suspects and not _working(loaded, settings, state, triggers):
                continue
            triggers = (anew, *triggers)
        state.triggers[target] = list(triggers)
        checked = clean_class(loaded, settings, checked, target, state, deadline=deadline, progress=progress)
    if len(state.triggers) > 1:
        for target in state.triggers:
            checked, _ = recheck(loaded, settings, checked, target, state, _MOST_ROUNDS + 1)
    return checked


def _working(loaded: Loaded, settings: Settings, state: State, triggers: Sequence[Trigger]) -> bool:
    """Whether one of `triggers`, found in the delivered model, still reaches its class in the model as it stands."""
    predict = answers(loaded, state.gone)
    tried = evaluate(predict, loaded.fit, tuple(triggers)).triggers
    return any(t.excess > settings.target_asr for t in tried)


def clean_class(
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    target: int,
    state: State,
    *,
    deadline: float | None,
    progress: Progress,
) -> Detection:
    """Cut until the class's trigger is spent and a new one no longer stands out, or nothing more may go.

    Adds to `state`; returns the detection with the class's trigger as inverted last, on the model as it is then.
    """
    found = state.triggers[target]
    stage = f"pruning class {target}"
    utility, delivered = utility_of(loaded, loaded.fit, settings.seed)
    floor = delivered - MARGIN * settings.utility_budget
    span = span_of(loaded, target, found)
    checked, others, idle_rounds = detection, len(state.gone), 0
    reason = ""
    for number in range(_MOST_ROUNDS):
        if deadline is not None and time.monotonic() > deadline:
            reason = "the time budget is spent"
            break
        progress(stage, number, max(_USUAL_ROUNDS, number + 1), f"{len(state.gone)} groups cut")
        release()
        attack = attack_of(loaded, found, number, span)
        _give_back(loaded, state, (attack, utility), others)
        reason = _round(loaded, settings, target, state, (attack, utility), floor, number)
        idle_rounds = idle_rounds + 1 if reason else 0
        if not reason and state.rounds[-1].attack_before - state.rounds[-1].attack_after < _CONVERGED:
            reason = "the attack has converged"
        if not reason and number < _MOST_ROUNDS - 1:
            continue
        checked, anew = recheck(loaded, settings, detection, target, state, number)
        # Only a trigger that joins gives a round that was stuck something new to value; so many may join.
        stuck = reason == _NO_GROUP or (reason != SPENT and idle_rounds >= _IDLE_ROUNDS)
        if stuck or not checked.findings[target].suspect:
            break
        found.append(anew)
    state.stopped[target] = reason or "the rounds are spent"
    progress(stage, number + 1, number + 1, f"{len(state.gone)} groups cut")
    return checked


def attack_of(
    loaded: Loaded, triggers: Sequence[Trigger], number: int, span: tuple[float, float] | None = None
) -> Stake:
    """What round `number` attacks with: the latest of `triggers` on images to fit to."""
    size = loaded.compute.images(_ATTACK_IMAGES)
    return attack_stake(loaded.fit, triggers[-_TRIGGERS:], loaded.n_classes, size, number, span)


def utility_of(loaded: Loaded, samples: Samples, seed: int) -> tuple[Stake, float]:
    """The utility on varied `samples` (cuts are held to that of `loaded.fit`), and the delivered model's payoff."""
    varied = variations(samples, loaded.compute.images(_UTILITY_IMAGES), seed)
    delivered = probabilities(loaded.predict(varied.images))
    stake = utility_stake(varied, delivered)
    return stake, float(stake.payoff(delivered[None])[0])


def span_of(loaded: Loaded, target: int, triggers: Sequence[Trigger]) -> tuple[float, float]:
    """Mean log-odds of the target on clean images of other classes, and on stamped ones, as delivered."""
    assert loaded.fit.labels is not None  # `load` labels unlabelled images
    clean = loaded.fit.images[loaded.fit.labels != target]
    stamped = attack_of(loaded, triggers, 0).images
    low, high = (
        float(log_odds(probabilities(loaded.predict(images))[:, target].astype(np.float64)).mean())
        for images in (clean, stamped)
    )
    return low, max(high, low + 1.0)


def _give_back(loaded: Loaded, state: State, stakes: tuple[Stake, Stake], others: int) -> None:
    """Put one group back that is no longer worth its absence; it is not cut again.

    The first `others` went for classes that these stakes do not play for, and stay out.
    """
    ours = state.gone[others:]
    if len(ours) < 2:
        return
    rows = np.ones((1 + len(ours), len(loaded.groups)), np.bool_)
    rows[:, ours] = False
    rows[np.arange(1, len(rows)), ours] = True
    game = exact_game(loaded, state.gone[:others], stakes)
    place = idle(game.payoff(0, rows), lambda some: game.payoff(1, rows[some]))
    if place is not None:
        state.kept.add(state.gone.pop(others + place))
        state.pruned.pop(others + place)


def exact_game(loaded: Loaded, gone: Sequence[int], stakes: tuple[Stake, Stake]) -> ChannelGame:
    """The exact game of all groups on the model with `gone` cut already."""
    proto = working_zero(loaded.model, [loaded.groups[i] for i in gone])
    scores = loaded.spec.output or loaded.model.graph.outputs[0].name
    return ChannelGame(
        len(loaded.groups),
        lambda columns: gated(proto, [loaded.groups[i] for i in columns], scores, loaded.seen),
        loaded.spec,
        stakes,
        loaded.runtime,
        image_bytes=bytes_per_image(loaded.seen),
    )


def _round(
    loaded: Loaded,
    settings: Settings,
    target: int,
    state: State,
    stakes: tuple[Stake, Stake],
    floor: float,
    number: int,
) -> str:
    """Value on the model as it stands and cut once; why nothing was cut, or ""."""
    players = len(loaded.groups)
    if not players:
        return _NO_GROUP
    said = answers(loaded, state.gone)(stakes[0].images)
    now = float(stakes[0].payoff(probabilities(said)[None])[0])
    spent = now <= _WEAK and _success(loaded, said, target) <= settings.target_asr
    if spent and now <= _GONE:
        return SPENT
    share = min(settings.group_budget, _FEW) if spent else settings.group_budget
    allowed = int(share * players) - len(state.gone)
    if allowed < 1:
        return SPENT if spent else _NO_GROUP
    limits = Limits(utility=floor, groups=allowed, price=_CHEAP if spent else PRICES[-1])
    values = valued(loaded, state, stakes, settings.seed + number)
    cuts = propose(values, limits, gone=np.array([*state.gone, *sorted(state.kept)], np.int64))
    rows, game = coalitions(cuts, players), exact_game(loaded, state.gone, stakes)
    attack = game.payoff(0, rows)
    cut, reason = choose(cuts, attack, lambda some: game.payoff(1, rows[some]), limits)
    if cut is None:
        return SPENT if spent else reason
    chance = _random_cuts(game, state, len(cut.players), settings.seed + number)
    after = game(rows[1 + cuts.index(cut)][None])[0]
    state.gone.extend(cut.players)
    for player in cut.players:
        attacked, used = (float(v) for v in values.values[player])
        state.pruned.append(Pruned(group=loaded.groups[player], attack=attacked, utility=used))
    state.rounds.append(_told(target, state, cut, now, chance, after, (values.evaluations, values.passes)))
    return ""


def expected_passes(loaded: Loaded) -> float:
    """What the pruning of one class takes, in image passes of the proxy, for an estimate of the time."""
    images = loaded.compute.images
    screened = 2 * _PASSES * images(_COALITIONS)
    played = EVALUATIONS * 2 * _VALUED + 2 * _SHORTLIST * images(_ATTACK_IMAGES)
    return _USUAL_ROUNDS * (screened + _PLAYED * played)


def valued(
    loaded: Loaded, state: State, stakes: tuple[Stake, Stake], seed: int, *, evaluations: int = EVALUATIONS
) -> ShapleyValues:
    """Shapley values of all groups on the model as it stands."""
    attack, utility = (stake.thinned(_VALUED) for stake in stakes)
    return hybrid(
        exact_game(loaded, state.gone, (attack, utility)),
        screen=ProxyGame(_proxy(loaded, state), loaded.groups, stakes),
        budget=Budget(evaluations=evaluations),
        seed=seed,
        shortlist=min(_SHORTLIST, len(loaded.groups)),
        top=min(3, len(loaded.groups)),
        weight=WEIGHT,
        passes=_PASSES,
        images=loaded.compute.images(_COALITIONS),
        low=PRESENT,
        batch=evaluations,
    )


def _success(loaded: Loaded, said: FloatArray, target: int) -> float:
    """Share of the scores `said` (N, K) of stamped images that favour the target, beyond the share of its mistakes."""
    return float((said.argmax(axis=1) == target).mean()) - mistakes(loaded.predict, loaded.fit, target)


def _random_cuts(game: ChannelGame, state: State, count: int, seed: int) -> float:
    """Mean attack payoff after `count` random groups are cut instead: what the chosen ones are held against."""
    rng = np.random.default_rng(seed)
    players = game.n_players
    left = np.setdiff1d(np.arange(players), state.gone)
    rows = np.ones((_RANDOM, players), np.bool_)
    for row in rows:
        row[rng.permutation(left)[:count]] = False
    return float(game.payoff(0, rows).mean())


def _told(
    target: int,
    state: State,
    cut: Cut,
    before: float,
    chance: float,
    after: DoubleArray,
    spent: tuple[int, int],
) -> Round:
    return Round(
        target=target,
        trigger=len(state.triggers[target]),
        removed=len(cut.players),
        attack_before=before,
        attack_random=chance,
        attack_after=float(after[0]),
        utility=float(after[1]),
        weight=cut.weight,
        evaluations=spent[0],
        passes=spent[1],
    )


def answers(loaded: Loaded, gone: Sequence[int]) -> Predict:
    """The model with the groups `gone` cut, in onnxruntime."""
    proto = working_zero(loaded.model, [loaded.groups[i] for i in gone])
    return predictor(Session(proto.SerializeToString(), loaded.runtime, "the pruned model"), loaded.spec)


def _proxy(loaded: Loaded, state: State) -> Proxy:
    proto = working_zero(loaded.model, [loaded.groups[i] for i in state.gone])
    return Proxy(parse(proto), loaded.spec, compute=loaded.compute)


def recheck(
    loaded: Loaded, settings: Settings, detection: Detection, target: int, state: State, number: int
) -> tuple[Detection, Trigger]:
    """`inverted_anew` on the model as it stands in round `number`."""
    seed = settings.seed + 1000 * (number + 1) + target
    proxy, predict = _proxy(loaded, state), answers(loaded, state.gone)
    checked, anew = inverted_anew(loaded, settings, detection, [target], proxy, predict, seed=seed)
    return checked, anew[target]


def inverted_anew(
    loaded: Loaded,
    settings: Settings,
    detection: Detection,
    targets: Sequence[int],
    proxy: Proxy,
    predict: Predict,
    *,
    seed: int,
    progress: Progress = no_progress,
) -> tuple[Detection, dict[int, Trigger]]:
    """Invert `targets` anew, on a changed model: the detection with their new triggers, and these by class."""
    # The same procedure as in the search: more restarts would make any class look small.
    options, data = settings.inversion, (proxy, predict, loaded.fit, loaded.held_out)
    stage = "inversion anew"
    found = invert(*data, targets, options=options, seed=seed, progress=progress, stage=stage)
    if 0 < len(detection.compared) < len(detection.findings):
        found, _ = settled(*data, found, options=options, seed=seed, progress=progress, stage=stage)
    anew = {target: found[target][0] for target in targets}
    triggers = [anew.get(f.trigger.target, f.trigger) for f in detection.findings]
    # The limit is the one that the class was found by, and a class that was doubted before is not what was cleaned.
    held, repeated = detection.compared, detection.repeated
    return detect(triggers, transfer=options.transfer, compared=held, repeated=repeated, doubts=False), anew
