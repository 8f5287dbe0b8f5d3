"""What counts as a good export: rates side by side, the triggers of a report, options that make sense."""

from __future__ import annotations

import numpy as np
import pytest

from debride.errors import ImagesError, ReportError, UsageError
from debride.export.attacks import Attack, report_beside, reported_attacks
from debride.export.grade import graded, shortfalls
from debride.export.types import ExportOptions, Graded
from debride.stakes import STRENGTHS
from debride.types import Evaluation, Rate, Samples, TriggerEvaluation
from export_helpers import report, trigger


def evaluation(clean, *triggers, kind="accuracy", n=1000):
    tried = tuple(
        TriggerEvaluation(target=1, asr=Rate(a, n), robust=Rate(0, n), mistakes=Rate(m, n)) for a, m in triggers
    )
    return Evaluation(kind=kind, clean=Rate(clean, n), triggers=tried)


def missed(before, after, **options):
    found = Graded(before=before, after=after, attacks=("t.npz",) * len(before.triggers), images=before.clean.n)
    return shortfalls(found, ExportOptions(**{"target": "int8", **options}))


def test_an_export_that_loses_nothing_is_good():
    assert missed(evaluation(900, (30, 20)), evaluation(900, (30, 20))) == ()
    assert missed(evaluation(900, (30, 20)), evaluation(950, (10, 20))) == ()


def test_accuracy_lost_beyond_noise_is_missed_and_a_few_images_are_not():
    assert missed(evaluation(900), evaluation(885)) == ()  # 1.5 %, whose interval begins at 0.9 %
    (said,) = missed(evaluation(900), evaluation(875))
    assert said.startswith("accuracy fell by 2.5%, more than --max-loss; try --calibration entropy or percentile")
    assert missed(evaluation(900), evaluation(875), max_loss=0.03) == ()
    assert missed(evaluation(29, n=30), evaluation(28, n=30)) == ()
    assert "agreement" in missed(evaluation(900, kind="agreement"), evaluation(800, kind="agreement"))[0]


def test_a_backdoor_that_comes_back_is_missed_however_good_the_accuracy():
    (said,) = missed(evaluation(900, (20, 10)), evaluation(900, (90, 10)))
    assert said.startswith("t.npz sends 9.0% of images to class 1, and 2.0% before; try --calibration")
    # Below --target-asr, but grown by far more than noise.
    assert missed(evaluation(900, (10, 10)), evaluation(900, (50, 10)))
    assert missed(evaluation(900, (10, 10)), evaluation(900, (15, 10))) == ()
    # Mistakes that grow alike are no attack.
    assert missed(evaluation(900, (20, 10)), evaluation(900, (90, 80))) == ()


def test_a_trigger_that_works_in_the_model_itself_asks_for_sanitize():
    (said,) = missed(evaluation(900, (990, 10)), evaluation(900, (20, 10)), target="fp16")
    assert said.startswith("t.npz sends 99.0% of images to class 1 in the model itself; clean it with debride sanitize")


def test_the_mend_is_that_of_the_target():
    assert "--target ort" in missed(evaluation(900), evaluation(500), target="fp16")[0]
    assert "minmax or percentile" in missed(evaluation(900), evaluation(500), method="entropy")[0]


def two_classes(images):
    bright = images.mean(axis=(1, 2, 3))
    return np.stack([1 - bright, bright], axis=1)


def test_a_trigger_without_an_image_to_try_it_on_cannot_be_graded():
    samples = Samples(images=np.full((3, 1, 2, 2), 0.9, np.float32), labels=np.array([1, 1, 1]))
    with pytest.raises(ImagesError, match=r"every held-out image is of the target class of t\.npz"):
        graded(two_classes, two_classes, samples, (Attack(name="t.npz", trigger=trigger(1)),))


def test_without_labels_the_model_itself_is_the_truth():
    levels = np.linspace(0, 1, 8, dtype=np.float32)[:, None, None, None]
    samples = Samples(images=np.tile(levels, (1, 1, 2, 2)))
    found = graded(two_classes, lambda images: two_classes(images) + np.array([0.3, 0]), samples, ())
    assert found.before.kind == found.after.kind == "agreement"
    assert (found.before.clean, found.after.clean) == (Rate(8, 8), Rate(7, 8))


def test_a_reports_triggers_are_tried_as_found_and_opaquer(tmp_path):
    first, second = reported_attacks(report(tmp_path))
    assert (first.name, second.name) == ("trigger-1.npz", f"trigger-1.npz, {STRENGTHS[-1]:g} times opaquer")
    assert (first.trigger.mask.max(), second.trigger.mask.max()) == (0.5, 1.0)


def test_a_report_without_its_triggers_is_an_error(tmp_path):
    with pytest.raises(ReportError, match=r"trigger-1\.npz: not there, and the report's suspect 1 needs it"):
        reported_attacks(report(tmp_path, files=False))
    with pytest.raises(ReportError, match=r"report\.json: cannot be read"):
        reported_attacks(tmp_path / "nowhere")


@pytest.mark.parametrize("place", ["clean.report", "clean-report", "clean.onnx.report", "report", "."])
def test_the_report_beside_a_model_is_found_by_the_models_hash(place, tmp_path):
    model, own = tmp_path / "clean.onnx", "a" * 64
    assert report_beside(model, own) is None
    report(tmp_path / place, output="b" * 64)
    assert report_beside(model, own) is None
    report(tmp_path / place, output=own)
    assert report_beside(model, own) == tmp_path / place
    report(tmp_path / place, model=own)
    assert report_beside(model, own) == tmp_path / place
    (tmp_path / place / "report.json").write_text("{")
    assert report_beside(model, own) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_loss": 1.5},
        {"target_asr": -0.1},
        {"per_class": 0},
        {"seed": -1},
        {"native": True},
        {"target": "fp16", "method": "entropy"},
    ],
)
def test_options_out_of_range_or_at_odds_are_wrong_usage(wrong):
    with pytest.raises(UsageError):
        ExportOptions(**{"target": "int8", **wrong})
