"""The loop of the method: random cuts, value, cut by weight, attack again, and inversion once the attack is gone.

ShapPruning (Guan et al., CVPR 2022), steps 3 and 4, one suspect class at a time, on the model as it stands.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from debride.detect import detect
from debride.game import ChannelGame
from debride.graph.parse import parse
from debride.graph.parts import gated_parts
from debride.graph.surgery import working_zero
from debride.inversion.invert import invert
from debride.loading import Loaded
from debride.proxy.interpreter import Proxy
from debride.proxy.screen import ProxyGame
from debride.prune import Cut, Limits, choose, coalitions, propose
from debride.sessions import Session, predictor, probabilities
from debride.settings import Settings
from debride.shapley import Budget, hybrid
from debride.stakes import Stake, attack_stake, log_odds, utility_stake, variations
from debride.types import Detection, DoubleArray, Game, Predict, Progress, Pruned, Round, Trigger

_GONE = 0.1
"""Attack payoff (0: as clean images, 1: as delivered) at which a set of triggers counts as spent."""
_MOST_ROUNDS = 16
_ATTACK_IMAGES = 120
_UTILITY_IMAGES = 256
_EVALUATIONS = 60
_SHORTLIST = 12
_TRIGGERS = 8
_RANDOM = 3
_CONVERGED = 0.02
"""A round that lowers the attack by less has converged: what is left costs accuracy and brings nothing."""
_FIDELITY = 2.5
"""How much further than accuracy the overlap with the delivered probabilities may fall: it moves first."""


@dataclass(slots=True)
class State:
    """What the loop has found and cut so far; grows in place, one loop per run."""

    gone: list[int] = field(default_factory=list)
    pruned: list[Pruned] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    triggers: dict[int, list[Trigger]] = field(default_factory=dict)


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
    images = variations(loaded.fit, _UTILITY_IMAGES, settings.seed)
    utility = utility_stake(images, probabilities(loaded.predict(images)))
    span = _span(loaded, target, found)
    for number in range(_MOST_ROUNDS):
        progress(stage, number, _MOST_ROUNDS, f"{len(state.gone)} groups cut")
        attack = attack_stake(loaded.fit, found[-_TRIGGERS:], loaded.n_classes, _ATTACK_IMAGES, number, span)
        reason = _round(loaded, settings, target, state, (attack, utility), number)
        if not reason and state.rounds[-1].attack_before - state.rounds[-1].attack_after < _CONVERGED:
            reason = "the attack has converged"
        late = deadline is not None and time.monotonic() > deadline
        if not reason and not late:
            continue
        checked, again = recheck(loaded, settings, detection, target, state, number)
        if not checked.findings[target].suspect:
            break
        # Only a trigger that joins gives a round that was stuck something new to value; so many may join.
        if late or (reason != "the triggers are spent" and (not again or len(found) >= 3 * _TRIGGERS)):
            break
        found.extend(again)
    progress(stage, _MOST_ROUNDS, _MOST_ROUNDS, f"{len(state.gone)} groups cut")
    return recheck(loaded, settings, detection, target, state, _MOST_ROUNDS)[0]


def _span(loaded: Loaded, target: int, triggers: Sequence[Trigger]) -> tuple[float, float]:
    """Mean log-odds of the target on clean images of other classes, and on stamped ones, as delivered."""
    assert loaded.fit.labels is not None  # `load` labels unlabelled images
    clean = loaded.fit.images[loaded.fit.labels != target]
    stamped = attack_stake(loaded.fit, triggers[-_TRIGGERS:], loaded.n_classes, _ATTACK_IMAGES, 0).images
    low, high = (
        float(log_odds(probabilities(loaded.predict(images))[:, target].astype(np.float64)).mean())
        for images in (clean, stamped)
    )
    return low, max(high, low + 1.0)


def _round(
    loaded: Loaded, settings: Settings, target: int, state: State, stakes: tuple[Stake, Stake], number: int
) -> str:
    """Value on the model as it stands and cut once; why nothing was cut, or ""."""
    players = len(loaded.groups)
    proto = working_zero(loaded.model, [loaded.groups[i] for i in state.gone])
    scores = loaded.spec.output or loaded.model.graph.outputs[0].name
    game = ChannelGame(
        players,
        lambda columns: gated_parts(proto, [loaded.groups[i] for i in columns], scores),
        loaded.spec,
        stakes,
        loaded.runtime,
    )
    now = game(np.ones((1, players), np.bool_))[0]
    if now[0] <= _GONE:
        return "the triggers are spent"
    allowed = int(settings.group_budget * players) - len(state.gone)
    if allowed < 1:
        return "the group budget is spent"
    limits = Limits(utility=1 - _FIDELITY * settings.utility_budget, groups=allowed)
    values = hybrid(
        game,
        screen=ProxyGame(Proxy(parse(proto), loaded.spec, precision="bfloat16"), loaded.groups, stakes),
        budget=Budget(evaluations=_EVALUATIONS),
        seed=settings.seed + number,
        shortlist=min(_SHORTLIST, players),
        top=min(3, players),
        weight=1.0,
    )
    cuts = propose(values, limits, gone=np.array(state.gone, np.int64))
    payoffs = game(coalitions(cuts, players))
    cut, reason = choose(cuts, payoffs, limits)
    if cut is None:
        return reason
    chance = _random_cuts(game, state, len(cut.players), settings.seed + number)
    after = payoffs[1 + cuts.index(cut)]
    state.gone.extend(cut.players)
    for player in cut.players:
        attack, utility = (float(v) for v in values.values[player])
        state.pruned.append(Pruned(group=loaded.groups[player], attack=attack, utility=utility))
    state.rounds.append(_told(target, state, cut, now, chance, after, (values.evaluations, values.passes)))
    return ""


def _random_cuts(game: Game, state: State, count: int, seed: int) -> float:
    """Mean attack payoff after `count` random groups are cut instead: what the chosen ones are held against."""
    rng = np.random.default_rng(seed)
    players = game.n_players
    left = np.setdiff1d(np.arange(players), state.gone)
    rows = np.ones((_RANDOM, players), np.bool_)
    for row in rows:
        row[rng.permutation(left)[:count]] = False
    return float(game(rows)[:, 0].mean())


def _told(
    target: int,
    state: State,
    cut: Cut,
    before: DoubleArray,
    chance: float,
    after: DoubleArray,
    spent: tuple[int, int],
) -> Round:
    return Round(
        target=target,
        trigger=len(state.triggers[target]),
        removed=len(cut.players),
        attack_before=float(before[0]),
        attack_random=chance,
        attack_after=float(after[0]),
        utility=float(after[1]),
        weight=cut.weight,
        evaluations=spent[0],
        passes=spent[1],
        reason="",
    )


def cleaned_predict(loaded: Loaded, state: State) -> tuple[Predict, Proxy]:
    """The model as it stands, in onnxruntime and as a proxy."""
    proto = working_zero(loaded.model, [loaded.groups[i] for i in state.gone])
    predict = predictor(Session(proto.SerializeToString(), loaded.runtime, "the pruned model"), loaded.spec)
    return predict, Proxy(parse(proto), loaded.spec, precision="bfloat16")


def recheck(
    loaded: Loaded, settings: Settings, detection: Detection, target: int, state: State, number: int
) -> tuple[Detection, tuple[Trigger, ...]]:
    """Invert `target` anew on the model as it stands: the detection with its new trigger, and those that still work."""
    predict, proxy = cleaned_predict(loaded, state)
    # The same procedure as for the norms that it is held against: more restarts would make any class look small.
    options = settings.inversion
    seed = settings.seed + 1000 * (number + 1) + target
    triggers = invert(proxy, predict, loaded.fit, loaded.held_out, [target], options=options, seed=seed)[target]
    all_triggers = [f.trigger for f in detection.findings]
    all_triggers[target] = triggers[0]
    checked = detect(all_triggers, transfer=options.transfer)
    median = float(np.median([t.l1 for t in all_triggers]))
    return checked, tuple(t for t in triggers if t.l1 <= median / 2 and t.success.value >= 0.5)
