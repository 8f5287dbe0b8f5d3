"""Many classes: a short look at each finds the planted one, and the others are held against a random sample."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from debride.detect import anomaly_indices, calibrated_threshold, detect
from debride.graph.read import read_model
from debride.inversion.invert import planned_steps
from debride.inversion.options import InversionOptions
from debride.inversion.survey import search, settled, shortlist
from debride.overall import Overall, scanning
from debride.proxy.interpreter import Proxy
from debride.report import to_json, to_text
from debride.sessions import Runtime, Session, predictor
from debride.settings import Settings
from debride.types import WHOLE, InputSpec, Rate, Repeated, Samples, Trigger, surveyed_trigger
from graph_models import Builder
from test_report import report

SIZE, CLASSES, TARGET = 16, 70, 41
SPEC = InputSpec(name="x", layout="NCHW", channels="L", size=(SIZE, SIZE), output="scores")
FEW = InversionOptions(steps=80, trial=25, most_classes=20, sample=8, shortlist=3, finalists=1, again=2)
SAMPLE = CLASSES // 5


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A net of one layer: each class counts the light in pixels of its own, the target's also in a dark corner."""
    rng = np.random.default_rng(0)
    places = np.array([rng.permutation(SIZE * SIZE - 1)[:12] for _ in range(CLASSES)])
    matrix = np.zeros((SIZE * SIZE, CLASSES), np.float32)
    for label, ours in enumerate(places):
        matrix[ours, label] = 1
    matrix[-1, TARGET] = 40
    b = Builder(13)
    b.op("Gemm", b.op("Flatten", "x"), b.const(matrix), b.const(np.zeros(CLASSES, np.float32)))
    path = tmp_path_factory.mktemp("survey") / "net.onnx"
    path.write_bytes(b.model(["n", 1, SIZE, SIZE], "scores", ["n", CLASSES]).SerializeToString())
    model = read_model(path)
    predict = predictor(Session(model.proto.SerializeToString(), Runtime(threads=1)), SPEC)
    parts = [images(places, rng) for _ in range(2)]
    assert (predict(parts[0].images).argmax(1) == parts[0].labels).mean() > 0.9
    return Proxy(model.graph, SPEC), predict, *parts


def images(places, rng):
    labels = np.arange(2 * CLASSES) % CLASSES
    flat = rng.uniform(0, 0.2, (len(labels), SIZE * SIZE)).astype(np.float32)
    for row, label in zip(flat, labels, strict=True):
        row[places[label]] = rng.uniform(0.8, 1.0, places.shape[1])
    flat[:, -1] = 0
    return Samples(images=flat.reshape(-1, 1, SIZE, SIZE), labels=labels)


@pytest.fixture(scope="module")
def searched(subject):
    proxy = subject[0]
    before = proxy.compute.meter.passes
    found = search(*subject, CLASSES, options=FEW, seed=0)
    return found, proxy.compute.meter.passes - before


def found_in(searched):
    made, _ = searched
    best = [made.triggers[c][0] if c in made.triggers else surveyed_trigger(c, (1, SIZE, SIZE)) for c in range(CLASSES)]
    return detect(best, compared=made.compared, repeated=made.repeated)


def test_the_planted_class_is_among_the_few_that_are_inverted(searched):
    made, _ = searched
    assert TARGET in made.triggers
    assert len(made.compared) == SAMPLE and set(made.compared) <= set(made.triggers)
    assert len(made.triggers) <= SAMPLE + FEW.shortlist


def drawn(target, norm, hits=9):
    plane = np.zeros((1, SIZE, SIZE), np.float32)
    return (Trigger(target=target, mask=plane, pattern=plane, l1=norm, success=Rate(hits, 9)),)


def test_the_smallest_trigger_that_works_stands_by_the_median_of_several_inversions(subject, monkeypatch):
    norms, asked = iter([9.0, 2.0, 30.0, 8.0, 1.0]), []

    def invert(*data, seed, **_):
        classes = data[4]
        asked.append((list(classes), seed))
        smallest = next(norms)
        # Every other class has a smaller one that does not work.
        return {c: drawn(c, smallest) if c == TARGET else drawn(c, 0.3, hits=0) for c in classes}

    monkeypatch.setattr("debride.inversion.survey.invert", invert)
    made = search(*subject, CLASSES, options=replace(FEW, again=4), seed=3)
    assert asked[0][1] == 3 and asked[1:] == [([TARGET], seed) for seed in (4, 5, 6, 7)]
    assert made.triggers[TARGET][0].l1 == 8.0
    assert all(made.triggers[c][0].l1 == 0.3 for c in made.triggers if c != TARGET)


def test_inversions_that_do_not_work_are_the_largest(subject, monkeypatch):
    rest = iter([drawn(TARGET, 9.0, hits=0), drawn(TARGET, 12.0), drawn(TARGET, 9.5, hits=0), drawn(TARGET, 11.0)])
    monkeypatch.setattr("debride.inversion.survey.invert", lambda *_, **__: {TARGET: next(rest)})
    found, repeated = settled(*subject, {TARGET: drawn(TARGET, 8.0)}, options=replace(FEW, again=4), seed=0)
    # Of the later four, two work.
    assert (repeated.classes, repeated.times, repeated.freedom) == ((TARGET,), 4, 1)
    assert repeated.scatter == pytest.approx(np.log(12 / 11) / 2**0.5)
    assert found[TARGET][0].l1 == 12.0 and found[TARGET][0].success.hits == 9


def test_the_whole_of_a_search_is_done_when_the_search_is(subject):
    told = []
    loaded, settings = SimpleNamespace(n_classes=CLASSES), Settings(inversion=FEW)
    whole = Overall(lambda *call: told.append(call[:3]), scanning(loaded, settings))
    search(*subject, CLASSES, options=FEW, seed=0, progress=whole)
    shares = [done / total for stage, done, total in told if stage == WHOLE]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert [s for s in shares if s == 1.0] == [1.0]


def test_large_masks_are_learnt_in_blocks_of_classes(subject, monkeypatch):
    monkeypatch.setattr("debride.inversion.invert._BLOCK_VALUES", 6 * 2 * SIZE * SIZE)
    options, told = replace(FEW, steps=3, trial=None, most_classes=CLASSES), []
    made = search(*subject, CLASSES, options=options, seed=0, progress=lambda *call: told.append(call))
    assert sorted(made.triggers) == list(range(CLASSES))
    assert {call[3] for call in told} == {"6 triggers", "3 classes", "2 triggers", "1 classes"}
    shares = [done / total for _, done, total, _ in told]
    assert shares == sorted(shares) and shares[-1] == 1.0


def test_the_planted_class_is_the_only_suspect(searched):
    detection = found_in(searched)
    assert detection.suspects == (TARGET,)
    assert detection.surveyed == CLASSES - len(searched[0].triggers)
    left = next(f for f in detection.findings if f.trigger.surveyed)
    assert np.isnan(left.trigger.l1) and np.isnan(left.anomaly) and "briefly" in left.reason


def test_a_short_look_costs_a_fraction_of_full_inversions(searched):
    _, passes = searched
    assert passes < 0.6 * CLASSES * planned_steps(FEW) * FEW.images


def test_the_planted_class_comes_first_in_the_short_list(subject):
    proxy, _, fit, _ = subject
    told = []
    listed = shortlist(
        proxy,
        fit,
        CLASSES,
        options=FEW,
        seed=1,
        progress=lambda stage, done, total, note="": told.append((done, total)),
    )
    assert listed[0] == TARGET and len(set(listed)) == FEW.shortlist
    assert [done for done, _ in told] == sorted(done for done, _ in told) and told[-1][0] == told[-1][1]


def test_blocks_of_classes_give_a_list_too(subject, monkeypatch):
    monkeypatch.setattr("debride.inversion.invert._BLOCK_VALUES", 11 * 2 * SIZE * SIZE)
    assert shortlist(subject[0], subject[2], CLASSES, options=FEW, seed=1)[0] == TARGET


def test_few_classes_are_all_inverted_and_compared(subject):
    made = search(*subject, CLASSES, options=InversionOptions(steps=2, restarts=1, most_classes=CLASSES), seed=0)
    assert sorted(made.triggers) == list(range(CLASSES)) == list(made.compared)


def test_the_report_says_how_many_classes_were_only_looked_at(searched):
    detection = found_in(searched)
    document = json.loads(to_json(report(detection=detection)))
    assert document["compared"] == list(detection.compared)
    assert document["repeated"]["classes"] == [TARGET] and document["repeated"]["times"] == FEW.again
    left = [t for t in document["triggers"] if t["l1"] is None]
    assert len(left) == detection.surveyed and {t["anomaly"] for t in left} == {None}
    text = " ".join(to_text(report(detection=detection)).split())
    assert f"{detection.surveyed} of {CLASSES} classes were looked at briefly" in text
    assert "1 class with the smallest stand" in text and "by the median of 3 inversions" in text


@pytest.mark.parametrize(("n_classes", "compared"), [(100, 32), (1283, 32)])
def test_the_threshold_holds_its_level_with_a_sample_to_compare_with(n_classes, compared):
    draws = np.exp(0.3 * np.random.default_rng(3).standard_normal((600, n_classes)))
    yard = np.arange(n_classes) < compared
    over = np.mean([anomaly_indices(row, yard).max() > calibrated_threshold(n_classes, compared) for row in draws])
    assert 0.02 <= over <= 0.08


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.6])
def test_the_limit_of_classes_inverted_again_holds_its_level(noise):
    """Clean models of 400 classes, 80 of them compared; a share `noise` of the variance is within classes."""
    n_classes, held, finalists, times = 400, 80, 3, 4
    rng, plane = np.random.default_rng(7), np.broadcast_to(np.float32(0), (1, 32, 32))
    flagged, limits = 0, []
    for _ in range(200):
        means = np.sqrt(1 - noise) * rng.standard_normal(n_classes)
        logs = means + np.sqrt(noise) * rng.standard_normal(n_classes)
        smallest = np.argsort(logs)[:finalists]
        more = means[smallest] + np.sqrt(noise) * rng.standard_normal((times, finalists))
        logs[smallest] = np.median([logs[smallest], *more], axis=0)
        scatter, freedom = float(np.sqrt(more.var(0, ddof=1).mean())), finalists * (times - 1)
        found = [
            Trigger(target=k, mask=plane, pattern=plane, l1=60 * np.exp(0.4 * log), success=Rate(50, 50))
            for k, log in enumerate(logs)
        ]
        told = Repeated(classes=tuple(smallest.tolist()), times=times, scatter=0.4 * scatter, freedom=freedom)
        detection = detect(found, compared=range(held), repeated=told)
        flagged += bool(detection.suspects)
        limits.append(detection.threshold)
    assert flagged <= 16
    once = calibrated_threshold(n_classes, held)
    assert max(limits) <= once and (np.median(limits) < once - noise / 2 if noise else min(limits) == once)


def test_only_classes_inverted_again_are_held_to_the_lower_limit():
    rng, plane = np.random.default_rng(7), np.broadcast_to(np.float32(0), (1, 32, 32))
    limits = [calibrated_threshold(400, 80)]
    index = limits[0] - 0.1
    logs = np.sort(rng.standard_normal(80))
    logs = (logs - np.median(logs)) / np.median(np.abs(logs - np.median(logs))) * 0.6745
    found = [
        Trigger(target=k, mask=plane, pattern=plane, l1=60 * np.exp(0.4 * log), success=Rate(50, 50))
        for k, log in enumerate([*logs, -index, -index])
    ] + [surveyed_trigger(k, (1, 32, 32)) for k in range(82, 400)]
    told = Repeated(classes=(81,), times=4, scatter=0.3, freedom=9)
    assert detect(found, compared=range(80), repeated=told).suspects == (81,)
    assert detect(found, compared=range(80), repeated=replace(told, freedom=0)).suspects == ()
    assert detect(found, compared=range(80)).suspects == ()


def test_winners_do_not_move_what_they_are_held_against():
    norms = [60.0, 55.0, 66.0, 52.0, 63.0, 9.0, 8.0, 10.0, 7.0, 9.5, 8.5]
    plane = np.zeros((1, 32, 32), np.float32)
    found = [
        Trigger(target=k, mask=plane, pattern=plane, l1=norm, success=Rate(50, 50)) for k, norm in enumerate(norms)
    ]
    assert detect(found, compared=range(5)).suspects == (5, 6, 7, 8, 9, 10)
    assert detect(found).suspects == ()


def test_few_clean_models_of_many_classes_are_flagged():
    plane = np.broadcast_to(np.float32(0), (1, 32, 32))
    flagged = 0
    for norms in 60 * np.exp(0.4 * np.random.default_rng(5).standard_normal((100, 400))):
        # The survey finds the smallest of them all; a random sample is there to compare with.
        norms[40:] = np.sort(norms)[:360]
        found = [
            Trigger(target=k, mask=plane, pattern=plane, l1=norm, success=Rate(50, 50))
            if k < 60
            else surveyed_trigger(k, (1, 32, 32))
            for k, norm in enumerate(norms)
        ]
        flagged += bool(detect(found, compared=range(32)).suspects)
    assert flagged <= 8
