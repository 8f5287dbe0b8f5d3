"""How far a whole run is, from its stages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from debride.inversion.options import InversionOptions
from debride.overall import Overall, cleaning, scanning
from debride.settings import Settings
from debride.types import WHOLE, Compute

PLAN = {"inversion": 60, "inversion of class": 10, "pruning": 20, "retraining": 10}


@pytest.fixture
def told():
    """An `Overall` by `PLAN`, and the calls that it makes."""
    calls = []
    return Overall(lambda *call: calls.append(call), PLAN), calls


def test_a_stage_counts_by_its_share_of_the_plan_and_is_handed_on(told):
    whole, calls = told
    whole("inversion", 1, 4, "8 triggers")
    whole("inversion of class 7", 1, 2)
    whole("pruning class 7", 2, 5, "1 group cut")
    assert calls == [
        (WHOLE, 15, 100),
        ("inversion", 1, 4, "8 triggers"),
        (WHOLE, 65, 100),
        ("inversion of class 7", 1, 2, ""),
        (WHOLE, 78, 100),
        ("pruning class 7", 2, 5, "1 group cut"),
    ]


def test_it_never_goes_back_and_what_was_passed_over_is_done(told):
    whole, calls = told
    for call in (("retraining", 0, 9), ("pruning class 3", 0, 5), ("inversion anew", 1, 2), ("retraining", 9, 9)):
        whole(*call)
    assert [done for stage, done, *_ in calls if stage == WHOLE] == [90, 90, 90, 100]


def test_stages_outside_the_plan_and_without_an_end_say_nothing_of_the_whole(told):
    whole, calls = told
    whole("verification", 1, 1)
    whole("inversion", 0, 0)
    assert [stage for stage, *_ in calls] == ["verification", "inversion"]


def loaded(n_classes=10, batch=64):
    return SimpleNamespace(n_classes=n_classes, compute=Compute(batch=batch))


def test_a_scan_of_many_classes_has_a_survey_and_fewer_full_inversions():
    settings = Settings(inversion=InversionOptions(sample=300, shortlist=16, finalists=3, again=4))
    few, many = (scanning(loaded(n), settings) for n in (10, 1283))
    assert few == {"inversion": 10 * 840}
    assert many == {
        "survey": 4 * (1283 * 24 + 160 * 40),
        "inversion": (300 + 16) * 840,
        "inversion of the smallest": 12 * 840,
    }


def test_cleaning_is_expected_to_take_what_it_will_do():
    plan = cleaning(loaded(), Settings(), pruning=True)
    assert plan["inversion of class"] == 4 * 165 * 4 and plan["pruning"] > 0 < plan["retraining"]
    alone = cleaning(loaded(), Settings(retrain="never"), pruning=True)
    assert alone["retraining"] == alone["inversion anew"] == alone["relearning"] == 0
    assert plan["inversion anew"] == 840 and plan["relearning"] == 2 * 4 * 32 * 40
    whole = cleaning(loaded(), Settings(), pruning=False)
    assert whole["pruning"] == 0 and whole["retraining"] == 2 * plan["retraining"]
    large = cleaning(loaded(batch=16), Settings(), pruning=True)
    assert large["retraining"] == plan["retraining"] / 2
    assert plan["pruning"] / 2 < large["pruning"] < 0.6 * plan["pruning"]  # what values the short list is no less
