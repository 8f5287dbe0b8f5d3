"""Detection: the threshold holds its level on clean norms, and each test that a suspect must pass is decisive."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from debride.detect import anomaly_indices, calibrated_threshold, detect, with_suspects
from debride.types import Rate, Trigger, surveyed_trigger

AREA = 32 * 32
CLEAN = (52.0, 55.0, 58.0, 60.0, 61.0, 63.0, 66.0, 70.0, 57.0, 64.0)


def triggers(norms, hits=None):
    """One per norm; `hits` of 50 held-out images reached, all of them unless said."""
    hits = [50] * len(norms) if hits is None else hits
    plane = np.zeros((1, 32, 32), np.float32)
    return [
        Trigger(target=k, mask=plane, pattern=plane, l1=float(norm), success=Rate(hit, 50))
        for k, (norm, hit) in enumerate(zip(norms, hits, strict=True))
    ]


@pytest.mark.parametrize("n_classes", [5, 10, 43])
def test_the_index_exceeds_its_threshold_in_one_of_twenty_clean_models(n_classes):
    draws = np.exp(0.25 * np.random.default_rng(7).standard_normal((2000, n_classes)))
    over = np.mean([anomaly_indices(row).max() > calibrated_threshold(n_classes) for row in draws])
    assert 0.03 <= over <= 0.07


def test_few_clean_models_are_flagged():
    draws = 60 * np.exp(0.4 * np.random.default_rng(11).standard_normal((400, 10)))
    assert np.mean([bool(detect(triggers(row)).suspects) for row in draws]) <= 0.07


def test_the_index_does_not_depend_on_the_unit_or_the_order():
    norms = np.array(CLEAN)
    np.testing.assert_allclose(anomaly_indices(7 * norms), anomaly_indices(norms), rtol=1e-9)
    np.testing.assert_array_equal(anomaly_indices(norms[::-1]), anomaly_indices(norms)[::-1])


def test_the_index_is_zero_where_norms_do_not_spread():
    np.testing.assert_array_equal(anomaly_indices(np.full(10, 3.0)), np.zeros(10))


def test_a_planted_small_trigger_is_the_only_suspect():
    detection = detect(triggers([*CLEAN[:3], 4.0, *CLEAN[4:]]))
    assert detection.suspects == (3,)
    assert not detection.inconclusive
    assert detection.findings[3].anomaly > detection.threshold
    assert all(f.reason for f in detection.findings)


@pytest.mark.parametrize(("hits", "n", "suspected"), [(7, 9, True), (5, 9, False), (39, 50, False), (41, 50, True)])
def test_a_trigger_must_work_as_far_as_its_few_images_can_tell(hits, n, suspected):
    found = triggers([*CLEAN[:3], 4.0, *CLEAN[4:]])
    found[3] = replace(found[3], success=Rate(hits, n))
    assert detect(found).suspects == ((3,) if suspected else ())


def test_two_planted_triggers_are_both_suspects():
    assert detect(triggers([4.0, *CLEAN[1:9], 5.0])).suspects == (0, 9)


def test_clean_norms_give_no_suspect_and_no_doubt():
    detection = detect(triggers(CLEAN))
    assert detection.suspects == () and detection.inconclusive == ""


def test_a_small_trigger_that_fails_on_unseen_images_is_no_suspect():
    hits = [50] * 10
    hits[3] = 25
    found = detect(triggers([*CLEAN[:3], 4.0, *CLEAN[4:]], hits))
    assert found.suspects == ()
    assert "50%" in found.findings[3].reason
    assert detect(triggers([*CLEAN[:3], 4.0, *CLEAN[4:]], hits), transfer=0.4).suspects == (3,)


def test_a_trigger_that_no_image_could_try_is_no_suspect():
    found = triggers([*CLEAN[:9], 4.0])
    blind = Trigger(target=9, mask=found[9].mask, pattern=found[9].pattern, l1=4.0, success=Rate(0, 0))
    detection = detect([*found[:9], blind])
    assert detection.suspects == () and "no image" in detection.findings[9].reason


def test_a_mask_over_a_fifth_of_the_image_is_no_suspect():
    detection = detect(triggers([10 * n for n in (*CLEAN[:9], 22.0)]))
    assert detection.suspects == () and "covers 21%" in detection.findings[9].reason


def test_a_norm_above_half_the_median_is_no_suspect_however_far_out():
    detection = detect(triggers([60.0, 60.1, 60.2, 59.9, 59.8, 60.0, 60.1, 59.9, 60.0, 40.0]))
    assert detection.findings[9].anomaly > detection.threshold
    assert detection.suspects == ()


def test_below_five_classes_only_ratios_count():
    assert detect(triggers([60, 60, 60, 60])).threshold == float("inf")
    assert detect(triggers([60, 10, 55, 65])).suspects == (1,)
    assert detect(triggers([60, 2])).suspects == (1,)
    doubtful = detect(triggers([60, 20, 55, 65]))
    assert doubtful.suspects == () and "4 classes" in doubtful.inconclusive
    assert detect(triggers([60, 45, 55, 65])).inconclusive == ""


@pytest.mark.parametrize(
    ("index", "hits", "suspected", "doubted"),
    [
        (5.0, 50, True, False),
        (4.1, 50, False, True),
        (4.1, 40, False, True),
        (4.1, 20, False, False),
        (3.5, 50, False, False),
    ],
)
def test_of_many_classes_one_that_few_clean_models_reach_is_no_suspect_and_not_clean(index, hits, suspected, doubted):
    # 128 of 1283 classes are compared: 95 % of clean models stay below 4.26, and 80 % below 3.8.
    rng = np.random.default_rng(5)
    logs = np.sort(rng.standard_normal(128))
    logs = (logs - np.median(logs)) / np.median(np.abs(logs - np.median(logs))) * 0.6745
    logs = np.concatenate([logs, [-index], np.full(1283 - 129, np.nan)])
    found = [
        surveyed_trigger(k, (3, 32, 32))
        if np.isnan(log)
        else replace(triggers([100 * np.exp(0.36 * log)])[0], target=k)
        for k, log in enumerate(logs)
    ]
    found[128] = replace(found[128], success=Rate(hits, 50))
    detection = detect(found, compared=range(128))
    assert detection.suspects == ((128,) if suspected else ())
    assert detection.inconclusive.startswith("class 128 has a small trigger") == doubted
    assert bool(detection.inconclusive) == doubted
    # Of what was cleaned a class that was nearly a suspect before says nothing.
    assert detect(found, compared=range(128), doubts=False).inconclusive == ""


def test_tiny_triggers_for_half_of_the_classes_are_inconclusive():
    detection = detect(triggers([0.003 * AREA * (1 + 0.02 * k) for k in range(10)]))
    assert detection.suspects == () and "half of all classes" in detection.inconclusive


def test_triggers_that_never_work_are_inconclusive():
    detection = detect(triggers(CLEAN, [50] + [10] * 9))
    assert detection.suspects == () and "only 1 of 10" in detection.inconclusive


def test_classes_that_stood_out_later_join_the_suspects():
    detection = detect(triggers([*CLEAN[:3], 4.0, *CLEAN[4:]]))
    joined = with_suspects(detection, [3, 8], "for a reason")
    assert joined.suspects == (3, 8)
    assert joined.findings[8].reason == "for a reason"
    assert joined.findings[3] == detection.findings[3]


def test_well_below_a_third_of_the_median_an_index_of_three_is_enough():
    wide = np.exp(np.log(60) + 0.7 * np.array([-0.9, -0.6, -0.45, -0.3, 0.0, 0.3, 0.45, 0.6, 0.9]))
    small = detect(triggers([*wide, 8.0]))
    assert 3.0 < small.findings[9].anomaly < small.threshold
    assert small.suspects == (9,)
    larger = detect(triggers([*wide, 19.0]))
    assert larger.suspects == ()
