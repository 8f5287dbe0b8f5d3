"""The stage that retrains, on the shipped sample: what it changes in the file, what it tells, and when it is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import debride.retrain.network
import debride.retraining
import debride.sanitize
from debride import mending
from debride.conversion.source import Source
from debride.detect import detect
from debride.ending import End, zeroed
from debride.errors import ImagesError, ModelError, ReportError
from debride.inversion.options import InversionOptions
from debride.loading import load
from debride.mending import Cleaned, given, joined, mended, retrained_or_not, working
from debride.retrain.options import RetrainOptions
from debride.retrain.train import Course
from debride.retraining import doubts, retrained
from debride.rounds import State
from debride.sanitize import retrain
from debride.settings import Settings
from debride.specfile import SpecFlags
from debride.stages import Search
from debride.triggers import load_trigger, save_trigger, stamp
from debride.types import Rate, Refused, Relearning, Trigger, no_progress

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
MODEL, IMAGES, TRIGGER = SAMPLES / "fashion-backdoored.onnx", SAMPLES / "images", SAMPLES / "true-trigger.npz"
QUICK = InversionOptions(restarts=1, steps=10, trial=None)
TARGET, GONE = 7, (3, 200)
LEARNT = Relearning(target=TARGET, images=2, steps=(0,), planted=(Rate(0, 2),), fresh=(Rate(0, 2),))


def settings(steps=6, **more):
    retraining = RetrainOptions(steps=steps, images=32, **more.pop("options", {}))
    flags = SpecFlags(range=(0.0, 1.0))
    return Settings(flags=flags, per_class=8, threads=1, inversion=QUICK, retraining=retraining, **more)


@pytest.fixture(scope="module")
def loaded():
    return load(Source(origin=MODEL, path=MODEL), IMAGES, settings())


@pytest.fixture(scope="module")
def planted():
    return load_trigger(TRIGGER)


def detected(planted, small=(TARGET,)):
    """The planted trigger for the classes `small`, large ones for the others."""
    plane = np.full((1, 28, 28), 0.1, np.float32)
    return detect([
        replace(planted, target=k, success=Rate(10, 10)) if k in small
        else Trigger(target=k, mask=plane, pattern=plane, l1=78.0 + k, success=Rate(9, 10))
        for k in range(10)
    ])  # fmt: skip


@pytest.fixture(scope="module")
def pruned(loaded, planted):
    """Two channels zeroed, and the planted trigger known."""
    return Cleaned(end=zeroed(loaded, GONE), checked=detected(planted), triggers={TARGET: (planted,)})


def run(loaded, pruned, steps=6, **more):
    chosen = settings(steps, **more)
    return retrained(
        loaded, chosen, pruned.end.proto, pruned.checked, pruned.triggers, deadline=None, progress=no_progress
    )


@pytest.fixture(scope="module")
def made(loaded, pruned):
    """With the real inversion and relearning; the other tests do without these, which take most of the time."""
    return run(loaded, pruned)


@pytest.fixture
def quick(monkeypatch, planted):
    """A retraining whose new trigger is at once the planted one, larger, that nothing stands out in; no relearning."""
    monkeypatch.setattr(debride.retraining, "relearn", lambda *_, **__: LEARNT)

    def inverted(loaded, settings, detection, targets, proxy, predict, *, seed, progress):
        progress("inversion anew", 1, 1)
        return detected(planted, ()), {target: replace(planted, target=target, l1=60.0) for target in targets}

    monkeypatch.setattr(debride.retraining, "inverted_anew", inverted)


def arrays(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def bare(proto):
    """Everything of a model but the numbers in its initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        numbers = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numbers), tensor.name))
    return copy.SerializeToString(deterministic=True)


# What changes in the file


def test_nothing_but_numbers_in_initializers_changed(pruned, made):
    assert bare(made.proto) == bare(pruned.end.proto)
    onnx.checker.check_model(made.proto, full_check=True)


def test_the_report_lists_what_differs_and_by_how_much(pruned, made):
    before, after = arrays(pruned.end.proto), arrays(made.proto)
    differ = {name for name in before if not np.array_equal(before[name], after[name])}
    assert differ == {change.name for change in made.changes} and len(made.changes) == len(differ) > 10
    for change in made.changes:
        old, new = (side[change.name].astype(np.float64) for side in (before, after))
        assert change.shape == old.shape and change.changed == np.count_nonzero(old != new)
        assert change.largest == pytest.approx(np.abs(new - old).max(), rel=1e-6)
        assert change.relative == pytest.approx(np.linalg.norm(new - old) / np.linalg.norm(old), rel=1e-6)


def test_pruned_channels_stay_zero(loaded, pruned, made):
    nodes, after = {node.name: node for node in loaded.model.graph.nodes}, arrays(made.proto)
    for group in (loaded.groups[i] for i in GONE):
        for piece in group.slices:
            values = np.take(after[nodes[piece.node].inputs[piece.position]], piece.indices, axis=piece.axis)
            assert values.size and not values.any()
    zeros = [int((value == 0).sum()) for value in (arrays(pruned.end.proto)[c.name] for c in made.changes)]
    assert sum(zeros) > 0 and all(after[c.name].size - c.changed >= z for c, z in zip(made.changes, zeros, strict=True))


def test_what_it_says_is_what_onnxruntime_says_of_the_file(loaded, made):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(made.proto.SerializeToString(), options, ["CPUExecutionProvider"])
    images = loaded.held_out.images
    (scores,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(made.predict(images), scores, rtol=0, atol=1e-5 * np.ptp(scores))
    assert not np.allclose(scores, loaded.predict(images), rtol=0, atol=1e-3)


def test_the_course_and_what_was_unlearnt_are_told(loaded, made):
    assert made.images == len(loaded.fit) and made.statistics == "none" and made.fixed == ()
    assert 0 < made.course.best <= made.course.steps
    assert made.triggers[TARGET][0].l1 == 9.0
    assert [taught.target for taught in made.relearning] == [TARGET]
    # The class was inverted anew on the retrained network: that trigger is none that was known.
    assert made.checked.findings[TARGET].trigger.l1 != 9.0


@pytest.mark.parametrize(("bound", "free"), [("", True), ("with it free the model gives other scores", False)])
def test_a_batch_that_could_not_be_freed_is_left_bound(loaded, pruned, monkeypatch, bound, free):
    asked = []

    def read(data, path, *, free):
        asked.append(free)
        raise ModelError("enough")

    monkeypatch.setattr(debride.retraining, "model_of", read)
    with pytest.raises(ModelError, match="enough"):
        run(replace(loaded, model=replace(loaded.model, bound=bound)), pruned)
    assert asked == [free]


def test_every_stage_of_it_tells_how_far_it_is(loaded, pruned, quick):
    told = []
    retrained(
        loaded,
        settings(2),
        pruned.end.proto,
        pruned.checked,
        pruned.triggers,
        deadline=None,
        progress=lambda stage, done, total, note="": told.append((stage, done, total)),
    )
    assert told[0] == ("retraining", 1, 2)
    assert [t for t in told if t[0] == "inversion anew"] == [("inversion anew", 1, 1)]


def test_the_delivered_model_is_not_changed(loaded, made):
    assert loaded.model.proto.SerializeToString() == onnx.load(MODEL).SerializeToString()


def test_the_same_seed_writes_the_same_bytes(loaded, pruned, made):
    again = run(loaded, pruned)
    assert again.proto.SerializeToString() == made.proto.SerializeToString()
    assert again.course == made.course and again.relearning == made.relearning


def test_enough_steps_weaken_the_planted_trigger(loaded, planted, quick):
    whole = Cleaned(
        end=End(proto=loaded.model.proto, predict=loaded.predict),
        checked=detected(planted),
        triggers={TARGET: (planted,)},
    )
    found = run(loaded, whole, steps=40)
    others = loaded.held_out.labels != TARGET
    stamped = stamp(loaded.held_out.images, planted)[others]
    before, after = ((p(stamped).argmax(axis=1) == TARGET).mean() for p in (loaded.predict, found.predict))
    assert before > 0.95 and after < 0.3


def test_no_step_after_the_deadline_and_nothing_is_changed(loaded, pruned, quick):
    found = retrained(
        loaded, settings(), pruned.end.proto, pruned.checked, pruned.triggers, deadline=0.0, progress=no_progress
    )
    assert (found.course.steps, found.changes) == (0, ())
    assert found.proto.SerializeToString() == pruned.end.proto.SerializeToString()


def test_what_stands_out_again_is_unlearnt_too(loaded, pruned, planted, monkeypatch, quick):
    seen, anew = [], replace(planted, l1=5.0)

    def inverted(loaded, settings, detection, targets, proxy, predict, *, seed, progress):
        seen.append(seed)
        return detected(planted, (TARGET,) if len(seen) < 2 else ()), dict.fromkeys(targets, anew)

    monkeypatch.setattr(debride.retraining, "inverted_anew", inverted)
    found = run(loaded, pruned, steps=2)
    assert len(set(seen)) == 2 and found.course.steps == 4
    assert found.triggers == {TARGET: (planted, anew)} and found.checked.suspects == ()


def test_rounds_end_though_a_trigger_stands_out_for_ever(loaded, pruned, planted, monkeypatch, quick):
    monkeypatch.setattr(
        debride.retraining, "inverted_anew", lambda *_, **__: (detected(planted), {TARGET: replace(planted, l1=5.0)})
    )
    found = run(loaded, pruned, steps=2)
    assert found.course.steps == found.budget == 2 * debride.retraining._ROUNDS and found.checked.suspects == (TARGET,)


@pytest.fixture
def anew(monkeypatch, planted, quick):
    """What is inverted anew: the classes of each time. Class 2 alone stands out the first time."""
    seen = []

    def inverted(loaded, settings, detection, targets, proxy, predict, *, seed, progress):
        seen.append(list(targets))
        found = detected(planted, (2,) if len(seen) < 2 else ())
        return found, {target: replace(planted, target=target, l1=5.0) for target in targets}

    monkeypatch.setattr(debride.retraining, "inverted_anew", inverted)
    return seen


def test_classes_are_inverted_together_and_those_that_stand_out_get_a_trigger_more(loaded, pruned, planted, anew):
    known = {TARGET: (planted,), 2: (replace(planted, target=2),)}
    found = run(loaded, replace(pruned, triggers=known), steps=2)
    assert anew == [[2, TARGET]] * 2
    assert [[t.l1 for t in found.triggers[target]] for target in (TARGET, 2)] == [[9.0], [9.0, 5.0]]


def test_without_triggers_all_classes_are_inverted_once(loaded, pruned, anew):
    found = run(loaded, replace(pruned, triggers={}), steps=2)
    assert anew == [list(range(10))] and found.checked.suspects == (2,)
    assert (found.triggers, found.relearning, found.budget) == ({}, (), 2)


# Whether it is kept


def kept_or_not(loaded, pruned, made, monkeypatch, **more):
    monkeypatch.setattr(mending, "retrained", lambda *_, **__: made)
    return mended(loaded, settings(**more), pruned, {}, "it had to be", deadline=None, progress=no_progress)


def test_a_better_network_is_kept_with_its_facts(loaded, pruned, made, monkeypatch):
    monkeypatch.setattr(mending, "worse", lambda *_: "")
    found = kept_or_not(loaded, pruned, replace(made, checked=pruned.checked), monkeypatch)
    facts = found.retraining
    assert facts.kept and facts.reason == "it had to be" and found.end.proto is made.proto
    assert (facts.steps, facts.best, facts.budget) == (made.course.steps, made.course.best, 18)
    assert (facts.labels, facts.images, facts.method) == ("given", len(loaded.fit), "unlearn")
    assert facts.changes == made.changes and facts.relearning == made.relearning
    assert found.triggers == made.triggers
    assert len(facts.before.triggers) == len(facts.after.triggers) == 2 * len(made.triggers[TARGET])
    assert facts.after != facts.before


def constant(images):
    return np.tile(np.eye(10, dtype=np.float32)[TARGET], (len(images), 1))


def test_a_worse_one_is_not_and_the_pruned_network_is_what_remains(loaded, pruned, made, monkeypatch):
    found = kept_or_not(loaded, pruned, replace(made, predict=constant, checked=pruned.checked), monkeypatch)
    assert not found.retraining.kept and "further from the goal" in found.retraining.reason
    assert found.end is pruned.end and found.checked is pruned.checked
    # What was found in the retrained network is tried on the pruned one.
    assert found.triggers is made.triggers
    assert found.retraining.after.clean.value < 0.2 < found.retraining.before.clean.value


def test_one_that_nothing_changed_is_not(loaded, pruned, made, monkeypatch):
    found = kept_or_not(loaded, pruned, replace(made, changes=()), monkeypatch)
    assert not found.retraining.kept and found.retraining.reason.startswith("no step made it better")


def test_where_no_step_was_taken_the_time_is_to_blame(loaded, pruned, made, monkeypatch):
    late = replace(made, changes=(), course=Course(steps=0, images=4, best=0, loss=1.0))
    found = kept_or_not(loaded, pruned, late, monkeypatch)
    assert not found.retraining.kept and found.retraining.reason.startswith("the time budget was spent")


def test_one_in_which_another_class_stands_out_is_not(loaded, pruned, planted, made, monkeypatch):
    other = replace(made, checked=detected(planted, (2, TARGET)))
    found = kept_or_not(loaded, pruned, other, monkeypatch)
    assert not found.retraining.kept and found.retraining.reason.endswith("stands out in it (class 2)")


def test_one_that_knows_a_class_no_more_is_not(loaded, pruned, made, monkeypatch):
    def never(images):
        scores = made.predict(images).copy()
        scores[:, TARGET] = -1000
        return scores

    monkeypatch.setattr(mending, "worse", lambda *_: "")
    found = kept_or_not(loaded, pruned, replace(made, predict=never, checked=pruned.checked), monkeypatch)
    assert not found.retraining.kept
    assert found.retraining.reason == f"it knows no held-out image of class {TARGET} any more"


def test_weights_that_changed_before_any_good_step_are_not(loaded, pruned, made, monkeypatch):
    monkeypatch.setattr(mending, "worse", lambda *_: "")
    first = Course(steps=6, images=4, best=0, loss=1.0)
    rounded = replace(made, course=first, checked=pruned.checked)
    assert kept_or_not(loaded, pruned, rounded, monkeypatch).retraining.reason.startswith("no step made it better")
    # Statistics that were estimated anew are a gain of their own.
    assert kept_or_not(loaded, pruned, replace(rounded, statistics="estimated"), monkeypatch).retraining.kept


@pytest.mark.parametrize(
    ("attacked", "options", "images"),
    [
        (True, {}, 32),
        (False, {}, 16),
        # These know of no trigger, so that it says nothing of what they have to learn.
        (False, {"method": "fine-tune"}, 32),
    ],
)
def test_where_no_trigger_works_any_more_a_step_sees_half_of_the_images(
    loaded, pruned, made, monkeypatch, attacked, options, images
):
    def never(shown):
        return np.tile(np.eye(10, dtype=np.float32)[0], (len(shown), 1))

    asked = []
    monkeypatch.setattr(mending, "retrained", lambda _, settings, *__, **___: asked.append(settings) or made)
    start = pruned if attacked else replace(pruned, end=replace(pruned.end, predict=never))
    mended(loaded, settings(options=options), start, {}, "it had to be", deadline=None, progress=no_progress)
    assert [(s.retraining.steps, s.retraining.images) for s in asked] == [(6, images)]


# Whether it is called for


@pytest.fixture
def called(monkeypatch):
    """The reasons for which a retraining was begun, none of which is carried out."""
    reasons = []

    def begun(loaded, settings, before, acquitted, reason, **_):
        reasons.append(reason)
        return before

    monkeypatch.setattr(mending, "mended", begun)
    return reasons


def asked(loaded, cleaned, state=None, **more):
    return retrained_or_not(
        loaded, settings(**more), cleaned, {}, state or State(), deadline=None, progress=no_progress
    )


def test_it_is_called_for_where_the_attack_is_left(loaded, pruned, called):
    asked(loaded, pruned)
    assert len(called) == 1 and "a trigger still sends" in called[0] and "stands out (class 7)" in called[0]


def test_it_is_not_where_pruning_left_and_cost_nothing(loaded, planted, called):
    clean = Cleaned(end=zeroed(loaded, ()), checked=detected(planted, ()), triggers={})
    assert asked(loaded, clean) is clean and called == []
    asked(loaded, clean, retrain="always")
    assert called == ["it was asked for"]


def test_it_is_where_pruning_cost_utility_alone(loaded, planted, called):
    clean = Cleaned(end=zeroed(loaded, ()), checked=detected(planted, ()), triggers={})
    from debride.types import Round

    rounds = [
        Round(target=7, trigger=1, removed=1, attack_before=1, attack_random=1, attack_after=0, utility=0.5,
              weight=1, evaluations=1, passes=1)
    ]  # fmt: skip
    asked(loaded, clean, State(rounds=rounds))
    assert len(called) == 1 and called[0].startswith("pruning lowered the utility from ")


def test_after_the_time_budget_nothing_is_trained_and_a_warning_says_so(loaded, pruned, called):
    found = retrained_or_not(
        loaded, settings(retrain="always"), pruned, {}, State(), deadline=0.0, progress=no_progress
    )
    assert called == [] and found.end.proto is pruned.end.proto and found.retraining is None
    assert found.end.warnings == ("the pruned network was not retrained: the time budget was spent",)


def test_where_it_cannot_be_done_the_pruned_network_stays_with_a_warning(loaded, pruned, monkeypatch):
    def fails(*_, **__):
        raise ModelError("m.onnx: no weight can be trained")

    monkeypatch.setattr(mending, "mended", fails)
    found = asked(loaded, pruned, retrain="always")
    assert found.end.warnings == ("the pruned network was not retrained: m.onnx: no weight can be trained",)
    assert found.end.proto is pruned.end.proto and found.retraining is None


# Images and labels that do not fit


def labelled(loaded, change):
    """`loaded` with its labels changed by a function of all of them."""
    fit, held_out = (replace(part, labels=change(part.labels)) for part in (loaded.fit, loaded.held_out))
    return replace(loaded, fit=fit, held_out=held_out)


def test_good_labels_raise_no_doubts(loaded):
    assert doubts(loaded, settings()) == ()


def test_labels_that_contradict_the_model_everywhere_are_refused(loaded):
    with pytest.raises(ImagesError, match=r"otherwise of \d+ of 80 images than their labels: .*order of classes"):
        doubts(labelled(loaded, lambda y: (y + 1) % 10), settings())


def test_labels_that_contradict_it_often_are_a_warning(loaded):
    (warning,) = doubts(labelled(loaded, lambda y: np.where(np.arange(len(y)) % 5 < 3, (y + 1) % 10, y)), settings())
    assert "than their labels; where these are right, it is a poor model" in warning


def test_a_model_of_which_nothing_can_be_trained_is_refused(loaded, monkeypatch):
    refused = Refused(layer="a", channel=None, reason="its weight is computed in the graph")
    monkeypatch.setattr(debride.retrain.network, "trainable", lambda *_: ((), (refused,)))
    with pytest.raises(ModelError, match="no weight can be trained: its weight is computed in the graph"):
        doubts(loaded, settings())


@pytest.mark.parametrize("options", [{"method": "distill"}, {"statistics": "estimate"}])
def test_what_needs_a_free_batch_is_refused_where_it_is_bound(loaded, options):
    bound = replace(loaded, model=replace(loaded.model, bound="with it free the model gives other scores"))
    with pytest.raises(ModelError, match=r"its batch is fixed, .* take --retrain-method unlearn and --batch-norm keep"):
        doubts(bound, settings(options=options))
    assert doubts(bound, settings()) == doubts(loaded, settings(options=options)) == ()


def test_the_models_own_answers_cannot_contradict_it(loaded):
    assert doubts(replace(labelled(loaded, lambda y: (y + 1) % 10), labelled=False), settings()) == ()


def test_classes_without_an_image_are_a_warning(loaded):
    few = replace(loaded, fit=loaded.fit.take(np.flatnonzero(loaded.fit.labels < 4)),
                  held_out=loaded.held_out.take(np.flatnonzero(loaded.held_out.labels < 4)))  # fmt: skip
    (warning,) = doubts(few, settings())
    assert warning.startswith(f"of 10 classes 6 have no image among the {len(few.fit)} that are learnt from")


def test_triggers_of_files_are_read_by_class_and_joined_with_those_found(loaded, planted, tmp_path):
    save_trigger(tmp_path / "two.npz", replace(planted, target=2))
    known = given(loaded, [TRIGGER, tmp_path / "two.npz", TRIGGER])
    assert {target: len(found) for target, found in known.items()} == {7: 2, 2: 1}
    both = joined(known, {7: (replace(planted, l1=1.0),), 5: (planted,)})
    assert [t.l1 for t in both[7]] == [9.0, 9.0, 1.0] and list(both) == [7, 2, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": 10}, "for class 10, and the model has 10 classes"),
        ({"pattern": np.ones((3, 28, 28), np.float32)}, r"\(3, 28, 28\), and the model takes images of \(1, 28, 28\)"),
    ],
)
def test_a_trigger_of_another_model_is_refused_by_its_file(loaded, planted, tmp_path, change, said):
    save_trigger(tmp_path / "other.npz", replace(planted, **change))
    with pytest.raises(ReportError, match=rf"other\.npz: a trigger .*{said}; give one that was made for this model"):
        given(loaded, [tmp_path / "other.npz"])


def test_a_mask_that_covers_the_image_is_no_trigger(loaded, planted, tmp_path):
    plane = np.full((1, 28, 28), 0.5, np.float32)
    save_trigger(tmp_path / "all.npz", replace(planted, mask=plane, pattern=plane, l1=392.0))
    with pytest.raises(ReportError, match=r"all\.npz: a mask over 50% of the image .* give one of at most 20%"):
        given(loaded, [tmp_path / "all.npz"])


# The whole command, its search made up


@pytest.fixture
def searches(loaded, planted, quick, monkeypatch):
    """`retrain` with the search over at once; how often there was one."""
    count = []

    def searched(*_):
        count.append(1)
        return Search(loaded=loaded, detection=detected(planted, ()))

    monkeypatch.setattr(debride.sanitize, "prepared", lambda *_: loaded)
    monkeypatch.setattr(debride.sanitize, "searched", searched)
    return count


def test_what_is_refused_is_refused_before_the_search(loaded, searches, monkeypatch, tmp_path):
    with pytest.raises(ReportError, match=r"nowhere\.npz"):
        retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings(), triggers=[tmp_path / "nowhere.npz"])
    monkeypatch.setattr(debride.sanitize, "prepared", lambda *_: labelled(loaded, lambda y: (y + 1) % 10))
    with pytest.raises(ImagesError, match="order of classes"):
        retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings())
    assert searches == [] and list(tmp_path.iterdir()) == []


def test_a_given_trigger_is_unlearnt_and_the_file_written(loaded, searches, tmp_path, monkeypatch):
    monkeypatch.setattr(mending, "worse", lambda *_: "")
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings(), triggers=[TRIGGER])
    assert report.command == "retrain" and report.retraining.kept and searches == [1]
    assert report.detection.suspects == (TARGET,) and report.detection.findings[TARGET].reason.endswith("was given")
    written, delivered = onnx.load(tmp_path / "o.onnx"), onnx.load(MODEL)
    before, after = arrays(delivered), arrays(written)
    differ = {name for name in before if not np.array_equal(before[name], after[name])}
    assert differ == {change.name for change in report.retraining.changes}
    del written.metadata_props[:]
    assert bare(written) == bare(delivered)
    assert {"retraining", "verification", "writing"} <= report.seconds.keys()


def test_a_retraining_that_is_not_kept_leaves_a_copy_and_no_trigger_that_nobody_inverted(
    searches, tmp_path, monkeypatch
):
    monkeypatch.setattr(mending, "worse", lambda *_: "it is worse")
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings(), triggers=[TRIGGER])
    assert not report.retraining.kept and report.verdict == "not sanitized"
    assert (tmp_path / "o.onnx").read_bytes() == MODEL.read_bytes()
    # The given trigger works still; that a newly inverted one stands out is not so.
    assert "still sends 100.0%" in report.reason and "newly inverted" not in report.reason


def test_with_nothing_found_and_no_trigger_it_learns_from_clean_images_alone(searches, tmp_path):
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings())
    assert report.verdict == "clean" and report.recheck is None and report.retraining.relearning == ()
    assert report.retraining.budget == 6


def patch(target=TARGET):
    """Four pixels of noise in a corner that is dark in every image: a trigger that nobody planted."""
    mask = np.zeros((1, 28, 28), np.float32)
    mask[0, :2, :2] = 1
    pattern = np.random.default_rng(0).random((1, 28, 28), np.float32)
    return Trigger(target=target, mask=mask, pattern=pattern, l1=4.0, success=Rate(0, 0))


def test_a_given_trigger_that_works_on_nothing_makes_no_suspect(loaded, planted, searches, tmp_path):
    save_trigger(tmp_path / "patch.npz", patch())
    assert working(loaded, settings(), {TARGET: (patch(),)}) == ()
    assert working(loaded, settings(), {2: (patch(2),), TARGET: (patch(), planted)}) == (TARGET,)
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings(), triggers=[tmp_path / "patch.npz"])
    assert (report.verdict, report.detection.suspects) == ("clean", ())
    assert report.reason == "no class has an abnormally small trigger"


def test_an_inconclusive_search_with_a_trigger_that_works_on_nothing_writes_nothing(
    loaded, planted, searches, tmp_path, monkeypatch
):
    doubtful = replace(detected(planted, ()), inconclusive="it does not tell")
    monkeypatch.setattr(debride.sanitize, "searched", lambda *_: Search(loaded=loaded, detection=doubtful))
    save_trigger(tmp_path / "patch.npz", patch())
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings(), triggers=[tmp_path / "patch.npz"])
    assert (report.verdict, report.retraining, (tmp_path / "o.onnx").exists()) == ("inconclusive", None, False)


def test_an_inconclusive_search_without_triggers_writes_nothing(loaded, planted, searches, tmp_path, monkeypatch):
    doubtful = replace(detected(planted, ()), inconclusive="it does not tell")
    monkeypatch.setattr(debride.sanitize, "searched", lambda *_: Search(loaded=loaded, detection=doubtful))
    report = retrain(MODEL, IMAGES, tmp_path / "o.onnx", settings=settings())
    assert (report.verdict, report.command, report.retraining) == ("inconclusive", "retrain", None)
    assert list(tmp_path.iterdir()) == []
