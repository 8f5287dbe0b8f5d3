"""Reports of retrained networks, made by hand."""

from __future__ import annotations

from debride.types import Evaluation, Rate, Refused, Relearning, Report, Retraining, TriggerEvaluation, WeightChange
from test_report import detection, evaluation, report

CHANGES = (
    WeightChange(name="conv1.weight", shape=(16, 3, 3, 3), changed=405, largest=0.02134, relative=0.0345),
    WeightChange(name="bn1.bias", shape=(16,), changed=15, largest=0.5, relative=float("inf")),
    WeightChange(name="fc.weight", shape=(10, 16), changed=160, largest=3e-7, relative=1.25e-6),
    WeightChange(name="scale", shape=(), changed=1, largest=float("nan"), relative=float("nan")),
)
FIXED = (
    *(Refused(layer=f"/block{i}/conv", channel=None, reason="its weight is computed in the graph") for i in range(5)),
    Refused(layer="/head", channel=None, reason="its weight lies inside a function"),
)
RELEARNING = (
    Relearning(
        target=1,
        images=20,
        steps=(0, 5, 20),
        planted=(Rate(1, 90), Rate(30, 90), Rate(90, 90)),
        fresh=(Rate(0, 90), Rate(2, 90), Rate(80, 90)),
    ),
    Relearning(target=3, images=1, steps=(0,), planted=(Rate(0, 0),), fresh=(Rate(3, 4),)),
)


def retraining(**changes) -> Retraining:
    """Unlearning on 100 labelled images, delivered, that took the attack from 24 to 1 of 90."""
    values = {
        "method": "unlearning",
        "kept": True,
        "reason": "pruning left an attack success of 26.7 %, more than 10 %",
        "labels": "given",
        "images": 100,
        "per_step": 32,
        "steps": 160,
        "budget": 200,
        "best": 120,
        "statistics": "estimated",
        "changes": CHANGES,
        "fixed": FIXED,
        "before": evaluation(74, [24, 3]),
        "after": evaluation(73, [1, 0]),
        "relearning": RELEARNING,
    }
    return Retraining(**(values | changes))


def retrained(**changes) -> Report:
    """The report of `debride retrain` on a network from which no channel was cut."""
    return report(**{"command": "retrain", "pruned": (), "rounds": (), "retraining": retraining(), **changes})


BARE = {
    "labels": "delivered",
    "statistics": "none",
    "images": 1,
    "per_step": 0,
    "steps": 0,
    "best": 0,
    "changes": (),
    "fixed": (),
    "relearning": (),
    "before": Evaluation(kind="agreement", clean=Rate(0, 0), triggers=()),
    "after": Evaluation(kind="agreement", clean=Rate(0, 0), triggers=()),
}
"""Of a network that nothing could be learned for: no labels, no triggers, no held-out images."""


def large(classes: int = 43) -> Report:
    """GTSRB-like: 43 named classes, two of them targets, 60 initializers, two triggers each."""
    targets = (7, 40)
    found = tuple(
        TriggerEvaluation(target=t, asr=Rate(a, 200), robust=Rate(200 - a, 200)) for t in targets for a in (3, 1)
    )
    after = Evaluation(kind="accuracy", clean=Rate(211, 215), triggers=found)
    names = tuple(f"sign number {i}: no overtaking by heavy vehicles" for i in range(classes))
    base = report()
    spec = type(base.spec)(name="x", layout="NCHW", channels="RGB", size=(32, 32), class_names=names)
    changes = tuple(
        WeightChange(
            name=f"/features/features.{i}/Conv/weight_of_a_rather_long_name",
            shape=(512, 512, 3, 3),
            changed=2_359_296 - i,
            largest=0.001 * i,
            relative=0.0005 * i,
        )
        for i in range(60)
    )
    steps = (0, 1, 2, 5, 10, 20, 50, 100)
    rates = tuple(Rate(min(4 * s, 200), 200) for s in steps)
    relearning = tuple(Relearning(target=t, images=20, steps=steps, planted=rates, fresh=rates) for t in targets)
    return report(
        spec=spec,
        detection=detection(
            [60.0 + i for i in range(7)] + [4.0] + [60.0 + i for i in range(8, 40)] + [5.0, 61.0, 62.0], targets
        ),
        before=after,
        after=after,
        retraining=retraining(changes=changes, before=after, after=after, relearning=relearning),
    )
