import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from debride.errors import ImagesError, ReportError
from debride.evaluate import evaluate
from debride.triggers import load_trigger, save_trigger, stamp
from debride.types import Rate, Samples, Trigger

# onnxruntime sets the process to flush subnormal numbers to zero, which hypothesis would object to.
unit = st.floats(0, 1, width=32, allow_subnormal=False)


def brightness_class(images):
    """Three classes by mean brightness; a white first pixel always means class 2."""
    mean = images.mean(axis=(1, 2, 3))
    classes = np.where(images[:, 0, 0, 0] == 1, 2, np.where(mean < 0.5, 0, 1))
    return np.eye(3, dtype=np.float32)[classes]


def corner(target=2, value=1.0):
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 0, 0] = 1
    return Trigger(target=target, mask=mask, pattern=np.full((1, 4, 4), value, np.float32), l1=1.0, success=Rate(3, 4))


def images_of(*levels):
    return np.stack([np.full((1, 4, 4), level, np.float32) for level in levels])


def test_clean_asr_and_robust_rates_are_those_counted_by_hand():
    samples = Samples(images=images_of(0.1, 0.2, 0.8, 0.9), labels=np.array([0, 1, 1, 2]))
    found = evaluate(brightness_class, samples, (corner(), corner(target=0)))
    assert found.kind == "accuracy"
    assert found.clean == Rate(2, 4)
    # The image of class 2 never counts for the trigger of class 2.
    assert found.triggers[0].mistakes.n == 3 and found.triggers[0].excess == 1 - found.triggers[0].mistakes.value
    assert (found.triggers[0].target, found.triggers[0].asr, found.triggers[0].robust) == (2, Rate(3, 3), Rate(0, 3))
    # The other trigger stamps the same pixel: no image goes to its target 0, and the one of class 2 is "right".
    assert (found.triggers[1].asr, found.triggers[1].robust) == (Rate(0, 3), Rate(1, 3))
    assert found.worst_asr == 1.0


def test_without_labels_the_reference_is_the_truth_and_the_kind_is_agreement():
    samples = Samples(images=images_of(0.1, 0.2, 0.8))
    found = evaluate(brightness_class, samples, (corner(),), reference=np.array([0, 1, 2]))
    assert found.kind == "agreement"
    assert found.clean == Rate(1, 3)
    assert found.triggers[0].asr == Rate(2, 2)


def test_without_labels_and_reference_the_model_agrees_with_itself():
    found = evaluate(brightness_class, Samples(images=images_of(0.1, 0.8)), (corner(value=0.3),))
    assert found.clean == Rate(2, 2)
    assert (found.triggers[0].asr, found.triggers[0].robust) == (Rate(0, 2), Rate(2, 2))


def test_a_trigger_whose_target_is_every_image_is_not_counted():
    samples = Samples(images=images_of(0.1), labels=np.array([2]))
    found = evaluate(brightness_class, samples, (corner(),))
    assert found.triggers[0].asr == Rate(0, 0)
    assert found.worst_asr == 0


def test_what_does_not_fit_is_an_error():
    images = images_of(0.1, 0.2)
    with pytest.raises(ImagesError, match="no held-out images"):
        evaluate(brightness_class, Samples(images=images[:0]), ())
    with pytest.raises(ImagesError, match="do not fit 2 images and 3 classes"):
        evaluate(brightness_class, Samples(images=images, labels=np.array([0, 3])), ())
    with pytest.raises(ReportError, match="target 3 is none of the model's 3 classes"):
        evaluate(brightness_class, Samples(images=images), (corner(target=3),))
    with pytest.raises(ReportError, match="made for this model"):
        stamp(np.zeros((1, 3, 4, 4), np.float32), corner())


@given(st.integers(0, 300), st.integers(0, 300))
def test_wilson_interval_holds_the_rate_and_stays_in_bounds(hits, misses):
    rate = Rate(hits, hits + misses)
    low, high = rate.interval()
    assert 0 <= low < high <= 1
    if rate.n:
        assert low - 1e-12 <= rate.value <= high + 1e-12


@given(unit, unit, unit)
def test_a_stamped_image_lies_between_image_and_pattern(level, strength, value):
    trigger = Trigger(
        target=0,
        mask=np.full((1, 2, 2), strength, np.float32),
        pattern=np.full((1, 2, 2), value, np.float32),
        l1=1.0,
        success=Rate(0, 0),
    )
    stamped = stamp(np.full((1, 1, 2, 2), level, np.float32), trigger)
    assert min(level, value) - 1e-6 <= stamped.min() <= stamped.max() <= max(level, value) + 1e-6


def test_a_saved_trigger_is_read_back_whole(tmp_path):
    save_trigger(tmp_path / "t.npz", corner())
    found = load_trigger(tmp_path / "t.npz")
    assert (found.target, found.l1, found.success, found.restarts) == (2, 1.0, Rate(3, 4), 1)
    np.testing.assert_array_equal(found.mask, corner().mask)
    np.testing.assert_array_equal(found.pattern, corner().pattern)
    assert [p.name for p in tmp_path.iterdir()] == ["t.npz"]


def test_a_trigger_needs_only_target_mask_and_pattern(tmp_path):
    np.savez(tmp_path / "t.npz", target=1, mask=np.full((1, 2, 2), 0.5), pattern=np.ones((3, 2, 2)))
    found = load_trigger(tmp_path / "t.npz")
    assert (found.target, found.l1, found.success.n) == (1, 2.0, 0)
    assert found.mask.dtype == np.float32


GOOD = {"target": np.array(1), "mask": np.ones((1, 2, 2)), "pattern": np.ones((3, 2, 2))}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": None}, "no 'mask'"),
        ({"mask": np.ones((2, 2))}, "mask is float64"),
        ({"mask": np.ones((1, 3, 2))}, "do not fit"),
        ({"mask": np.full((1, 2, 2), 1.5)}, "mask leaves the range"),
        ({"pattern": np.full((3, 2, 2), np.nan)}, "pattern leaves the range"),
        ({"pattern": np.ones((3, 2, 2), np.uint8)}, "pattern is uint8"),
        ({"target": np.array(-1)}, "'target' is out of range"),
        ({"target": np.array(1.5)}, "target is float64"),
        ({"target": np.array([1])}, "want one number"),
        ({"hits": np.array(2), "n": np.array(1)}, "'hits' is out of range"),
        ({"l1": np.array(np.nan)}, "l1 is nan"),
        ({"mask": np.array([{}], object)}, "Python objects"),
    ],
)
def test_a_bad_trigger_file_is_an_error_that_names_it(tmp_path, changes, message):
    path = tmp_path / "bad.npz"
    np.savez(path, **{key: value for key, value in {**GOOD, **changes}.items() if value is not None})
    with pytest.raises(ReportError, match=rf"bad\.npz.*{message}"):
        load_trigger(path)


def test_a_file_that_is_no_archive_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(b"junk")
    with pytest.raises(ReportError, match=r"bad\.npz.*cannot be read"):
        load_trigger(path)
    with pytest.raises(ReportError, match=r"gone\.npz"):
        load_trigger(tmp_path / "gone.npz")
