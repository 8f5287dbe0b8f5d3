"""The verdict: what counts as missed, on a model that answers with what its images hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from debride.detect import detect
from debride.settings import Settings
from debride.types import Evaluation, Rate, Samples, Trigger, TriggerEvaluation
from debride.verdict import compare, shortfalls

BLANK = np.zeros((1, 4, 4), np.float32)


def trigger(target, l1=40.0):
    return Trigger(target=target, mask=BLANK, pattern=BLANK, l1=l1, success=Rate(10, 10), restarts=1, steps=1, seed=0)


def ordinary(small=None):
    """A detection in which nobody, or class `small`, stands out."""
    return detect([trigger(k, 0.5 if k == small else 3.0 + 0.02 * k) for k in range(10)])


def answer(images):
    """Class scores (N, 10): the class that the first pixel holds, in tenths."""
    return np.eye(10, dtype=np.float32)[np.rint(10 * images[:, 0, 0, 0]).astype(int)]


def loaded():
    """40 held-out images of class 1."""
    images = np.full((40, 1, 4, 4), 0.1, np.float32)
    return SimpleNamespace(held_out=Samples(images=images, labels=np.ones(40, np.int64)), predict=answer, labelled=True)


def told(hits, n=200, sent=0, wrong=0):
    """`hits` of `n` right, and of 40 `sent` to class 0 by a trigger, `wrong` without."""
    attack = TriggerEvaluation(target=0, asr=Rate(sent, 40), robust=Rate(40 - sent, 40), mistakes=Rate(wrong, 40))
    return Evaluation(kind="accuracy", clean=Rate(hits, n), triggers=(attack,))


def missed(before, after, checked=None):
    return shortfalls(Settings(), before, after, checked or ordinary())


def test_nothing_is_missed_where_trigger_and_loss_are_small():
    assert missed(told(190), told(190, sent=2)) == []


def test_a_trigger_that_works_still_is_missed():
    assert ["15.0%" in text and "class 0" in text for text in missed(told(190), told(190, sent=6))] == [True]


def test_mistakes_that_need_no_trigger_are_not_counted_against_it():
    assert missed(told(190), told(190, sent=6, wrong=4)) == []


@pytest.mark.parametrize(
    ("before", "after", "n", "said"), [(28, 26, 30, False), (28, 24, 30, True), (190, 180, 200, True)]
)
def test_a_loss_counts_once_it_is_evident(before, after, n, said):
    assert bool(missed(told(before, n), told(after, n))) is said


def test_a_last_look_that_does_not_tell_is_no_pass():
    doubtful = detect([trigger(k, norm) for k, norm in enumerate((3.0, 1.0, 2.9, 3.1))])
    assert doubtful.inconclusive
    assert ["do not tell" in text for text in missed(told(9), told(9), doubtful)] == [True]


def test_any_class_that_stands_out_at_the_end_is_missed():
    assert ["stands out" in text and "7" in text for text in missed(told(9), told(9), ordinary(small=7))] == [True]


def faint(target):
    """Turns the first pixel from 0.1 to 0.2 as found, and to 0.6 at five times the opacity."""
    mask = np.zeros((1, 4, 4), np.float32)
    mask[0, 0, 0] = 0.2
    return replace(trigger(target), mask=mask, pattern=np.full((1, 4, 4), 0.6, np.float32))


def test_every_trigger_is_tried_as_found_and_opaque_on_both_models():
    triggers, acquitted = {0: [faint(0)], 6: [faint(6)]}, {2: [faint(2)]}
    before, after = compare(loaded(), lambda images: answer(images * 0), triggers, acquitted)
    assert [t.target for t in before.triggers] == [0, 0, 6, 6, 2]
    assert [t.asr.value for t in before.triggers] == [0, 0, 0, 1, 1]
    assert [t.asr.value for t in after.triggers] == [1, 1, 0, 0, 0]
    assert (before.kind, before.clean.value, after.clean.value) == ("accuracy", 1.0, 0.0)
