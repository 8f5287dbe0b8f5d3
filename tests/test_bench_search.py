"""What the benchmark of the search counts and reckons, without the rival that it measures."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from bench_search import (
    Cost,
    Counted,
    Line,
    Searched,
    from_report,
    outliers,
    repair,
    spread_classes,
    success,
    told,
    total,
)
from debride.triggers import stamp
from debride.types import Rate, Samples, Trigger


def test_images_are_counted_and_the_step_is_done():
    step = Counted(lambda images, labels: (len(images), labels))
    assert [step(np.zeros((n, 2)), "y") for n in (32, 14)] == [(32, "y"), (14, "y")]
    assert step.images == 46


def test_the_repair_sets_the_learning_rate_again_after_each_reset():
    rate = SimpleNamespace(value=0.1)
    rate.assign = lambda value: setattr(rate, "value", value)
    cleanser = SimpleNamespace(opt=SimpleNamespace(learning_rate=rate), learning_rate=0.1, reset=lambda: rate.assign(0))
    cleanser.reset()
    assert rate.value == 0
    repair(cleanser)
    cleanser.reset()
    assert rate.value == 0.1


def test_the_rivals_rule_names_small_outliers_alone():
    norms = {c: 50.0 + c for c in range(9)}
    assert outliers(norms) == ()
    assert outliers(norms | {3: 5.0, 7: 500.0}) == (3,)


def test_the_classes_are_the_target_and_others_apart():
    assert spread_classes(1, 43) == (1, 15, 29)
    assert spread_classes(5, 10) == (5, 8, 1)
    assert spread_classes(1, 2) == (1, 0)


@pytest.mark.parametrize(
    ("suspects", "words"),
    [
        ((1,), "yes (suspects: 1)"),
        ((), "no (suspects: none)"),
        (None, "smallest of those measured"),
    ],
)
def test_what_is_said_of_the_target(suspects, words):
    assert told({0: 40.0, 1: 7.0}, suspects, 1) == words


def test_what_is_said_of_a_target_that_is_not_smallest_or_not_there():
    assert told({0: 4.0, 1: 7.0}, None, 1) == "no: class 0 is no larger"
    assert told({0: 7.0, 1: 7.0}, None, 1) == "no: class 0 is no larger"
    assert told({0: 4.0}, None, 1) == "-"


@pytest.mark.parametrize(
    ("cost", "passes"), [({"inversion": {"passes": 3000}}, "1,000"), ({"inversion": {}}, "-"), ({}, "-"), (None, "-")]
)
def test_a_report_with_and_without_its_cost_is_a_line(cost, passes):
    triggers = [{"target": c, "l1": norm} for c, norm in enumerate((40.0, 7.0, 44.0))]
    report = {"triggers": triggers, "seconds": {"inversion": 6.0}, "suspects": [1]}
    line = from_report(report if cost is None else report | {"cost": cost}, 0.975)
    assert line.cells(1) == (*("debride scan", "3 of 3", passes, "2.0", "7.0", "97.50%", "42.0", "yes (suspects: 1)"),)


def test_the_cost_of_all_classes_says_what_it_is_reckoned_from():
    line = Line(
        method="ART", cost=Cost(passes=100, seconds=2.0), norms={1: 7.0}, n_classes=43, suspects=None, success=None
    )
    assert total(line) == "- All 43 classes by ART: 4,300 image passes, 86.0 seconds, reckoned from 1."


def test_success_is_of_other_classes_and_a_mask_of_three_equal_channels_counts_as_one():
    rng = np.random.default_rng(0)
    test = Samples(images=rng.random((6, 3, 4, 4), np.float32), labels=np.array([0, 1, 2, 0, 1, 2]))
    seen = []

    def predict(images, verbose):
        seen.append(images)
        return np.eye(3)[[1, 1, 1, 0]]

    mask, pattern = rng.random((1, 4, 4), np.float32), rng.random((3, 4, 4), np.float32)
    network = SimpleNamespace(predict=predict)
    assert [success(network, test, 1, m, pattern) for m in (mask, np.repeat(mask, 3, 0))] == [0.75, 0.75]
    np.testing.assert_array_equal(*seen)
    trigger = Trigger(target=1, mask=mask, pattern=pattern, l1=float(mask.sum()), success=Rate(0, 0))
    np.testing.assert_allclose(seen[0].transpose(0, 3, 1, 2), stamp(test.images[[0, 2, 3, 5]], trigger), atol=1e-6)
    one = Searched(mask=np.repeat(mask, 3, 0), pattern=pattern, passes=1, seconds=1.0)
    assert one.l1 == pytest.approx(trigger.l1)
