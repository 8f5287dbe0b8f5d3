"""The loop on the shipped sample: its budgets end it, its cuts weaken the trigger, and idle groups come back."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from debride import rounds
from debride.conversion.source import Source
from debride.detect import detect
from debride.errors import ImagesError
from debride.inversion.options import InversionOptions
from debride.loading import load
from debride.rounds import State, answers, clean_class
from debride.settings import Settings
from debride.triggers import load_trigger, stamp
from debride.types import Rate, Trigger, no_progress

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
MODEL = SAMPLES / "fashion-backdoored.onnx"
QUICK = InversionOptions(restarts=1, steps=20, trial=None)
TARGET = 7


@pytest.fixture(scope="module")
def loaded():
    return load(Source(origin=MODEL, path=MODEL), SAMPLES / "images", Settings(per_class=6, threads=1))


@pytest.fixture(scope="module")
def planted():
    return load_trigger(SAMPLES / "true-trigger.npz")


@pytest.fixture(scope="module")
def detection(planted):
    """Class 7 with the planted trigger, the others with large ones."""
    plane = np.full((1, 28, 28), 0.1, np.float32)
    others = [
        Trigger(target=k, mask=plane, pattern=plane, l1=78.0 + k, success=Rate(9, 10), restarts=1, steps=1, seed=0)
        for k in range(10)
    ]
    found = detect([planted if k == TARGET else t for k, t in enumerate(others)])
    assert found.suspects == (TARGET,)
    return found


def cleaned(loaded, detection, planted, deadline=None, **settings):
    state = State()
    state.triggers[TARGET] = [planted]
    chosen = Settings(inversion=QUICK, threads=1, **settings)
    clean_class(loaded, chosen, detection, TARGET, state, deadline=deadline, progress=no_progress)
    return state


def test_no_round_begins_after_the_deadline(loaded, detection, planted):
    state = cleaned(loaded, detection, planted, deadline=0.0)
    assert (state.gone, state.rounds, state.stopped) == ([], [], {TARGET: "the time budget is spent"})


def test_nothing_is_cut_without_a_group_budget(loaded, detection, planted):
    state = cleaned(loaded, detection, planted, group_budget=0.0)
    assert (state.gone, state.stopped) == ([], {TARGET: "the group budget is spent"})


def test_cuts_spend_the_trigger_within_the_budget(loaded, detection, planted):
    state = cleaned(loaded, detection, planted)
    assert 0 < len(state.gone) == len(state.pruned) <= 0.05 * len(loaded.groups)
    assert [p.group for p in state.pruned] == [loaded.groups[i] for i in state.gone]
    stamped = stamp(loaded.fit.images[loaded.fit.labels != TARGET], planted)
    before, after = (
        (predict(stamped).argmax(1) == TARGET).mean() for predict in (loaded.predict, answers(loaded, state.gone))
    )
    assert before > 0.95 and after < 0.1
    assert state.rounds[0].attack_random > state.rounds[0].attack_after


def order_of_cleaning(monkeypatch, detections, working):
    """Which classes `clean_all` cleans where class 1's cut changes the detection to `detections[1]`, and so on."""
    cleaned = []

    def clean(loaded, settings, detection, target, state, **_):
        cleaned.append(target)
        state.gone.append(len(cleaned))
        return detections.get(target, detection)

    monkeypatch.setattr(rounds, "clean_class", clean)
    monkeypatch.setattr(rounds, "recheck", lambda loaded, settings, detection, *_: (detection, norms()[0]))
    monkeypatch.setattr(rounds, "_working", lambda *_: working)
    found = {1: [norms()[1]], 2: [norms()[2]]}
    rounds.clean_all(None, None, detect(norms(one=3, two=5)), found, State(), deadline=None, progress=no_progress)
    return cleaned


def norms(**small):
    """Triggers of ten classes, large but for those named."""
    plane, names = np.zeros((1, 32, 32), np.float32), ("zero", "one", "two", "three", "four", "five")
    sizes = [60.0 + k for k in range(10)]
    for name, size in small.items():
        sizes[names.index(name)] = float(size)
    return [
        Trigger(target=k, mask=plane, pattern=plane, l1=size, success=Rate(10, 10), restarts=1, steps=1, seed=0)
        for k, size in enumerate(sizes)
    ]


def test_suspects_are_cleaned_the_smallest_first(monkeypatch):
    assert order_of_cleaning(monkeypatch, {}, working=False) == [1, 2]


def test_a_suspect_that_the_first_cut_healed_is_left_alone(monkeypatch):
    assert order_of_cleaning(monkeypatch, {1: detect(norms())}, working=False) == [1]


def test_a_suspect_whose_trigger_still_works_is_cleaned_though_it_stands_out_no_longer(monkeypatch):
    assert order_of_cleaning(monkeypatch, {1: detect(norms())}, working=True) == [1, 2]


def test_a_class_that_stands_out_later_is_cleaned_too(monkeypatch):
    assert order_of_cleaning(monkeypatch, {1: detect(norms(five=4))}, working=False) == [1, 5]


def test_an_idle_group_comes_back_and_those_of_other_classes_stay(monkeypatch):
    def payoff(stake, coalitions):
        # Only group 5 matters to the attack; nothing matters to utility.
        return np.full(len(coalitions), 0.9) if stake else 0.1 + 0.8 * coalitions[:, 5]

    monkeypatch.setattr(rounds, "exact_game", lambda *_: SimpleNamespace(payoff=payoff))
    model = SimpleNamespace(groups=range(10))
    state = State(gone=[3, 5, 8], pruned=["three", "five", "eight"])
    rounds._give_back(model, state, None, 1)
    assert (state.gone, state.pruned, state.kept) == ([3, 5], ["three", "five"], {8})
    rounds._give_back(model, state, None, 1)
    assert state.gone == [3, 5]


def test_a_side_that_shows_one_class_is_refused(tmp_path):
    path = tmp_path / "two.npz"
    np.savez(path, x=np.random.default_rng(0).integers(0, 255, (2, 28, 28), dtype=np.uint8), y=np.array([3, 7]))
    with pytest.raises(ImagesError, match=r"two\.npz.*two images of every class"):
        load(Source(origin=MODEL, path=MODEL), path, Settings(threads=1))
