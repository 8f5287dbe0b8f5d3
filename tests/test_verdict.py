"""The verdict: what counts as missed, on a model that answers with what its images hold."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from debride.detect import detect
from debride.settings import Settings
from debride.types import Evaluation, Rate, Samples, Trigger, TriggerEvaluation
from debride.verdict import compare, forgotten, shortfalls, worse

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
    assert missed(told(190, wrong=4), told(190, sent=6, wrong=4)) == []


@pytest.mark.parametrize(("before", "after"), [(0, 4), (4, 0)])
def test_mistakes_of_one_of_the_two_alone_excuse_no_attack(before, after):
    (said,) = missed(told(190, wrong=before), told(190, sent=6, wrong=after))
    assert said == "a trigger still sends 15.0% of held-out images to class 0"


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


# Retrained against pruned


def judged_worse(pruned, retrained, utilities=(0.8, 0.8), delivered=None, floor=1.0):
    return worse(Settings(), delivered or told(190, sent=40), pruned, retrained, utilities, floor)


def test_less_attack_is_not_worse_and_more_is():
    assert judged_worse(told(190, sent=20), told(190, sent=2)) == ""
    said = judged_worse(told(190, sent=2), told(188, sent=20))
    assert said.startswith("on held-out images it is further from the goal")
    assert "attack success 50.0% against 5.0%" in said and "accuracy 94.0% against 95.0%" in said


def test_within_the_goal_only_utility_counts():
    # Attack success of 5 and 0 % are both within; so is a loss of one image in 200.
    assert judged_worse(told(190, sent=0), told(189, sent=2), (0.8, 0.81)) == ""
    said = judged_worse(told(189, sent=2), told(190, sent=0), (0.8, 0.77))
    assert said == "both reach the goal, and its utility on held-out images, 0.770, is below 0.800"
    assert judged_worse(told(190), told(190), (0.8, 0.7997)) == ""
    # Down to the floor it may fall, where nothing else is worse.
    assert judged_worse(told(190), told(190), (0.8, 0.785), floor=0.78) == ""
    assert "0.775, is below 0.780" in judged_worse(told(190), told(190), (0.8, 0.775), floor=0.78)
    assert "0.785, is below 0.800" in judged_worse(told(190, sent=0), told(189, sent=2), (0.8, 0.785), floor=0.78)


def test_equally_far_from_the_goal_utility_counts_and_nobody_says_that_it_was_reached():
    said = judged_worse(told(190, sent=20), told(190, sent=20), (0.8, 0.77))
    assert said == "it is no nearer to the goal, and its utility on held-out images, 0.770, is below 0.800"


def test_a_closer_one_may_cost_utility():
    assert judged_worse(told(190, sent=20), told(190, sent=2), (0.9, 0.73)) == ""


def test_no_attack_that_is_gone_makes_up_for_ruin():
    said = judged_worse(told(190, sent=20), told(190, sent=2), (0.9, 0.71))
    assert said == "it is ruined: its utility on held-out images is 0.710 against 0.900"


def test_less_attack_is_not_bought_with_more_accuracy():
    # 10 % of 40 are 5 points over; 184 of 200 lose 3 points, which is no evident loss of more than 2.
    attacked, costly, dear = told(190, sent=4), told(184, sent=2), told(178, sent=2)
    assert judged_worse(attacked, costly) == ""
    # 178 lose 6 points, for 5 points of attack less: nearer to the goal, and yet no gain.
    assert judged_worse(attacked, dear).startswith("on held-out images it is further from the goal")


def test_attack_and_loss_over_target_are_added():
    # From 190 to 120 of 200 the loss is evidently at least 28.6 %, so 26.6 points over the budget of 2.
    attacked, spoilt = told(190, sent=16), told(120, sent=0)  # 40 % is 35 points over
    assert judged_worse(attacked, spoilt) == "" and judged_worse(spoilt, attacked) != ""
    assert judged_worse(told(190, sent=12), spoilt) != ""  # 30 % is 25 points over


def test_the_worst_trigger_counts():
    one, other = (told(190, sent=n).triggers[0] for n in (0, 20))
    pruned, retrained = (replace(told(190), triggers=found) for found in ((one, one), (one, other)))
    both = replace(told(190), triggers=(one, one))
    assert (
        judged_worse(pruned, retrained, delivered=both) != "" and judged_worse(retrained, pruned, delivered=both) == ""
    )


def test_without_triggers_only_accuracy_and_utility_count():
    plain = [replace(told(hits), triggers=()) for hits in (190, 190, 120)]
    assert judged_worse(plain[1], plain[2], delivered=plain[0]) != ""
    assert judged_worse(plain[1], plain[1], (0.8, 0.9), delivered=plain[0]) == ""


def test_mistakes_that_retraining_made_excuse_no_attack():
    pruned = told(190, sent=12, wrong=1)
    everything = told(20, sent=40, wrong=40)
    assert everything.triggers[0].excess == 0
    assert judged_worse(pruned, everything, delivered=told(190, sent=40, wrong=1)) != ""
    # As many as the delivered model makes do.
    assert judged_worse(told(190, sent=4, wrong=3), told(190, sent=5, wrong=4), delivered=told(190, wrong=3)) == ""


def test_mistakes_that_pruning_made_excuse_no_attack_of_either():
    # Beyond the one mistake that all three make, 3 of 40 and 4 of 40: 2.5 and 5 points over.
    pruned, retrained = told(190, sent=4, wrong=4), told(190, sent=5, wrong=1)
    assert judged_worse(pruned, retrained, delivered=told(190, sent=40, wrong=4)) != ""
    assert judged_worse(retrained, pruned, delivered=told(190, sent=40, wrong=4)) == ""


# Classes that are known no more


def known(labels, said, delivered=None):
    """The classes 0 to 3 that are forgotten where images of `labels` are `said` to be of other classes."""
    images = np.arange(len(labels), dtype=np.float32).reshape(-1, 1, 1, 1)
    held_out = Samples(images=images, labels=np.array(labels))

    def answers(classes):
        return lambda x: np.eye(5, dtype=np.float32)[np.array(classes)[x[:, 0, 0, 0].astype(int)]]

    loaded = SimpleNamespace(held_out=held_out, predict=answers(delivered or labels))
    return forgotten(loaded, answers(said), (3, 0, 1, 2))


def test_a_class_whose_images_all_go_elsewhere_is_forgotten():
    assert known([0, 0, 1, 1, 1, 2, 2], [0, 4, 4, 4, 4, 4, 4]) == (1, 2)
    assert known([0, 0, 1, 1], [0, 0, 1, 1]) == ()


def test_one_image_that_was_known_is_no_class():
    assert known([0, 1, 1], [4, 4, 4]) == (1,)
    assert known([0, 0, 1, 1], [4, 4, 4, 4], delivered=[0, 4, 4, 4]) == ()
