"""What a report says of retraining: JSON that keeps to the schema, and a section that a reader understands."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from debride.errors import ReportError
from debride.report import from_json, to_json, to_text
from debride.report.retraining import MOST_TARGETS, relative_change, retraining_section
from debride.report.words import MOST_ROWS, WIDTH
from debride.types import Evaluation, InputSpec, Rate, Refused, Relearning, WeightChange
from reports_retrained import BARE, CHANGES, RELEARNING, large, retrained, retraining
from test_report import complaints, detection, evaluation, report

SCHEMA = json.loads(Path(__file__).parents[1].joinpath("docs", "report.schema.json").read_text("utf-8"))
HOSTILE = "/conv\r\x1b]0;\u202e" + "x" * 10_000
NOTHING_FOUND = detection((40.0, 44.0, 50.0, 60.0), ())


def section(pruned=True, **changes) -> str:
    return "\n".join(retraining_section(retraining(**changes), ("cat", "dog", "newt", "eel"), pruned=pruned))


def words(text: str) -> str:
    """`text` without line breaks."""
    return " ".join(text.split())


REPORTS = {
    "cut and trained": report(retraining=retraining()),
    "trained": retrained(),
    "not kept": retrained(verdict="not sanitized", retraining=retraining(kept=False, reason="it is worse")),
    "bare": retrained(verdict="clean", detection=NOTHING_FOUND, retraining=retraining(**BARE)),
    "none": retrained(verdict="clean", detection=NOTHING_FOUND, retraining=None),
    "43 classes": large(),
}


@pytest.mark.parametrize("name", REPORTS)
def test_json_keeps_to_the_schema_and_is_read_back(name):
    text = to_json(REPORTS[name])
    document = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in the JSON"))
    assert complaints(document, SCHEMA, SCHEMA) == []
    assert from_json(text, "r.json").command == REPORTS[name].command
    assert (document["retraining"] is None) == (REPORTS[name].retraining is None)


@pytest.mark.parametrize("name", REPORTS)
def test_text_keeps_within_100_columns_and_its_lines_end_in_no_blank(name):
    lines = to_text(REPORTS[name]).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert [line for line in lines if line != line.rstrip()] == []


def test_json_holds_all_that_is_known():
    found = json.loads(to_json(retrained()))["retraining"]
    assert {k: found[k] for k in ("method", "kept", "labels", "images", "steps", "budget", "best", "statistics")} == {
        "method": "unlearning",
        "kept": True,
        "labels": "given",
        "images": 100,
        "steps": 160,
        "budget": 200,
        "best": 120,
        "statistics": "estimated",
    }
    assert found["reason"] == retraining().reason
    assert found["changes"] == [
        {"name": "conv1.weight", "shape": [16, 3, 3, 3], "changed": 405, "largest": 0.02134, "relative": 0.0345},
        {"name": "bn1.bias", "shape": [16], "changed": 15, "largest": 0.5, "relative": None},
        {"name": "fc.weight", "shape": [10, 16], "changed": 160, "largest": 3e-07, "relative": 1.25e-06},
        {"name": "scale", "shape": [], "changed": 1, "largest": None, "relative": None},
    ]
    assert [(f["layer"], f["channels"]) for f in found["fixed"]][-2:] == [("/block4/conv", None), ("/head", None)]
    before = json.loads(to_json(report(before=retraining().before)))["before"]
    assert found["before"] == before
    assert before["worst_asr"] == pytest.approx(24 / 90, rel=1e-5)
    first, second = found["relearning"]
    assert (first["target"], first["images"], [r["step"] for r in first["rates"]]) == (1, 20, [0, 5, 20])
    assert first["rates"][1]["planted"] == pytest.approx(1 / 3, rel=1e-5)
    assert first["rates"][1]["planted_interval"] == pytest.approx(Rate(30, 90).interval(), abs=1e-6)
    assert second["rates"] == [
        {
            **{"step": 0, "planted": None, "planted_interval": [0.0, 1.0], "planted_n": 0},
            **{"fresh": 0.75, "fresh_interval": second["rates"][0]["fresh_interval"], "fresh_n": 4},
        }
    ]


def test_a_row_of_a_table_is_one_line_of_json():
    lines = [line.strip() for line in to_json(retrained()).splitlines()]
    assert sum(line.startswith('{"name": ') for line in lines) == len(CHANGES)
    assert sum(line.startswith('{"step": ') for line in lines) == sum(len(r.steps) for r in RELEARNING)


def test_the_schema_finds_breaches_in_retraining():
    document = json.loads(to_json(retrained()))
    found = document["retraining"]
    found["kept"], found["labels"], found["changes"][0]["shape"], found["extra"] = "yes", "guessed", ["3"], 1
    del found["after"], found["relearning"][0]["rates"][0]["fresh"]
    assert len(complaints(found, SCHEMA["$defs"]["retraining"], SCHEMA)) == 6
    assert complaints(document, SCHEMA, SCHEMA) != []


def test_a_command_that_never_was_is_refused():
    text = to_json(retrained()).replace('"command": "retrain"', '"command": "train"')
    assert any("$.command" in c for c in complaints(json.loads(text), SCHEMA, SCHEMA))
    with pytest.raises(ReportError, match="'command' is missing or malformed"):
        from_json(text, "r.json")


def test_text_says_what_was_done_and_what_it_brought():
    said = words(section())
    assert said.startswith(
        "Retrained The retrained network is delivered. Why: pruning left an attack success of 26.7 %"
    )
    assert "stayed as it was, and channels that were cut stayed zero." in said
    assert "Method unlearning Labels given Images 100 clean images, 32 a step" in said
    assert (
        "Steps 160 taken, of at most 200; the best weights are those of step 120 Batch norm running mean and " in said
    )
    assert "variance estimated anew" in said
    assert "Retraining, on held-out images (n = 100; 95 % Wilson intervals) before after" in said
    assert "accuracy 74.0 % (64.6 to 81.6) 73.0 % (63.6 to 80.7)" in said
    assert "attack success, 1 -> 1 (dog) 26.7 % (18.6 to 36.6) 1.1 % (0.2 to 6.0)" in said


def test_text_lists_changes_by_relative_size_and_what_is_not_finite_in_words():
    rows = section().partition("elements changed")[2].splitlines()[1 : 1 + len(CHANGES)]
    assert [row.split() for row in rows] == [
        ["bn1.bias", "16", "15", "(93.8", "%)", "0.5", "from", "zero"],
        ["conv1.weight", "16x3x3x3", "405", "(93.8", "%)", "0.021", "0.035"],
        ["fc.weight", "10x16", "160", "(100.0", "%)", "3e-07", "1.3e-06"],
        ["scale", "scalar", "1", "(100.0", "%)", "n/a", "n/a"],
    ]
    assert relative_change(float("-inf")) == "n/a"


def test_the_shape_of_an_initializer_without_elements_divides_nothing():
    assert "empty" in section(changes=(WeightChange(name="empty", shape=(0, 3), changed=0, largest=0, relative=0),))


@pytest.mark.parametrize("n", [MOST_ROWS, MOST_ROWS + 1, 60])
def test_of_many_changes_the_largest_are_shown_and_the_rest_counted(n):
    changes = [
        WeightChange(name=f"w{i}", shape=(4,), changed=4, largest=0.5, relative=float((i * 7) % n)) for i in range(n)
    ]
    shown = re.findall(r"^    (w\d+) ", section(changes=tuple(changes)), re.M)
    ranked = sorted(changes, key=lambda c: -c.relative)
    assert shown == [c.name for c in ranked[:MOST_ROWS]]
    assert (f"and {n - MOST_ROWS} more; report.json" in section(changes=tuple(changes))) == (n > MOST_ROWS)


def test_text_tells_what_was_not_trained_by_reason():
    said = words(section())
    assert (
        "not trained, 5: its weight is computed in the graph (/block0/conv, /block1/conv, /block2/conv and 2 more)"
        in said
    )
    assert "not trained, 1: its weight lies inside a function (/head)" in said
    many = tuple(Refused(layer="/l", channel=None, reason=f"reason {i}") for i in range(MOST_ROWS + 3))
    assert section(fixed=many).count("not trained, 1: reason") == MOST_ROWS
    assert "and 3 reasons more" in section(fixed=many)


def test_channels_of_one_layer_count_as_one():
    fixed = tuple(Refused(layer="/l", channel=c, reason="tied") for c in range(9))
    assert "not trained, 1: tied (/l)" in section(fixed=fixed)


def test_text_shows_how_fast_the_attack_relearns_and_how_to_read_it():
    said = section()
    assert "a planted one that is clearly faster still was silenced rather than forgotten" in words(said)
    assert [row.split() for row in said.partition("class 1 (dog)")[2].splitlines()[2:5]] == [
        ["0", "1.1", "%", "(0.2", "to", "6.0)", "0.0", "%", "(0.0", "to", "4.1)"],
        ["5", "33.3", "%", "(24.5", "to", "43.6)", "2.2", "%", "(0.6", "to", "7.7)"],
        ["20", "100.0", "%", "(95.9", "to", "100.0)", "88.9", "%", "(80.7", "to", "93.9)"],
    ]
    assert "1 poisoned image, labelled as class 3 (eel)" in said
    assert "elearning" not in section(relearning=())


def test_relearning_of_many_targets_and_steps_is_bounded():
    steps = tuple(range(MOST_ROWS + 2))
    rates = (Rate(1, 2),) * len(steps)
    tests = tuple(
        Relearning(target=t, images=20, steps=steps, planted=rates, fresh=rates) for t in range(MOST_TARGETS + 2)
    )
    said = section(relearning=tests)
    assert said.count("poisoned images") == MOST_TARGETS
    assert said.count("    and 2 more; report.json") == MOST_TARGETS
    assert said.endswith("and 2 classes more; report.json lists all")


def test_rows_of_a_relearning_test_must_fit_each_other():
    short = replace(RELEARNING[0], fresh=())
    with pytest.raises(ValueError, match="shorter"):
        section(relearning=(short,))
    with pytest.raises(ValueError, match="shorter"):
        to_json(retrained(retraining=retraining(relearning=(short,))))


@pytest.mark.parametrize(
    ("pruned", "said"),
    [
        (True, "The pruned network is delivered, not the retrained one: it lost 3 points"),
        (False, "The network is delivered as it was, not the retrained one: it lost 3 points"),
    ],
)
def test_a_network_that_is_not_kept_says_which_is_delivered_and_why(pruned, said):
    found = section(pruned, kept=False, reason="it lost 3 points")
    assert found.startswith("Retrained, and not delivered\n")
    assert said in words(found)
    assert ("stayed zero" in found) == pruned


def test_what_nothing_was_measured_on_says_so():
    said = words(section(**BARE))
    assert "Labels the delivered model's own answers Images 1 clean image" in said
    assert "the best weights are those of step 0 (before training)" in said
    assert "no running statistics in the graph" in said
    assert "agreement with the model n/a (no images) n/a (no images)" in said
    assert "No initializer differs in the retrained network" in said
    assert "not trained" not in said


def test_the_statistics_that_were_kept_are_told():
    assert "running mean and variance kept as they were" in words(section(statistics="kept"))


HEADS = {
    "cut and trained": (
        report(retraining=retraining()),
        "The backdoor towards class 1 (dog) was cut out and trained away, and the result was verified: attack success "
        "98.9 % -> 1.1 %, accuracy 75.0 % -> 74.0 %. 3 channel groups of 560 went, 4 initializers changed.",
    ),
    "trained": (
        retrained(),
        "The backdoor towards class 1 (dog) was trained away and the result was verified: attack success 98.9 % -> "
        "1.1 %, accuracy 75.0 % -> 74.0 %. 4 initializers changed.",
    ),
    "cut, not kept": (
        report(retraining=retraining(kept=False)),
        "The backdoor towards class 1 (dog) was cut out and the result was verified: attack success 98.9 % -> 1.1 %, "
        "accuracy 75.0 % -> 74.0 %. 3 channel groups of 560 went.",
    ),
    "not sanitized": (
        retrained(verdict="not sanitized"),
        "The backdoor towards class 1 (dog) is weakened at most, not gone: attack success 98.9 % -> 1.1 %, accuracy "
        "75.0 % -> 74.0 %. Do not deploy it.",
    ),
    "clean, kept": (
        retrained(verdict="clean", detection=NOTHING_FOUND),
        "No backdoor was found: no class can be reached with an abnormally small trigger. The output is the network "
        "retrained on the clean images: on held-out images accuracy 74.0 % -> 73.0 %.",
    ),
    "clean, not kept": (
        retrained(verdict="clean", detection=NOTHING_FOUND, retraining=retraining(kept=False)),
        "No backdoor was found: no class can be reached with an abnormally small trigger. The output is an unchanged "
        "copy.",
    ),
    "clean, not retrained": (
        retrained(verdict="clean", detection=NOTHING_FOUND, retraining=None),
        "No backdoor was found: no class can be reached with an abnormally small trigger. The output is an unchanged "
        "copy.",
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_says_the_verdict_rightly(name):
    written, said = HEADS[name]
    head = to_text(written).split("\n\n")[0].splitlines()
    assert " ".join(head[1:]) == f"{said} Reason: target met"


@pytest.mark.parametrize(
    ("written", "title"),
    [
        (report(), "Checked again after the cut (smallest"),
        (report(retraining=retraining(kept=False)), "Checked again after the cut (smallest"),
        (report(retraining=retraining()), "Checked again after the cut and retraining (smallest"),
        (retrained(), "Checked again after retraining (smallest"),
    ],
)
def test_the_second_search_says_what_it_came_after(written, title):
    assert f"\n{title}" in to_text(written)


def test_retrain_speaks_of_no_cut():
    for verdict in ("sanitized", "not sanitized"):
        assert "channel group" not in to_text(retrained(verdict=verdict))
    assert "\nCut: 0 channel groups of 560" in to_text(report(verdict="not sanitized", pruned=()))


def test_the_section_stands_between_the_cut_and_the_second_search():
    text = to_text(report(retraining=retraining()))
    places = [text.index(f"\n{title}") for title in ("Cut: ", "Retrained", "Checked again", "Warnings")]
    assert places == sorted(places)


def test_43_classes_and_60_initializers_stay_readable():
    text = to_text(large())
    assert len(text.splitlines()) < 140
    assert "and 40 more; report.json lists all" in text
    assert "20 poisoned images, labelled as class 40 (sign number 40: no overtaking by h.." in text


def test_long_and_hostile_names_do_not_break_the_text():
    spec = InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), class_names=("a", HOSTILE, "c", HOSTILE))
    hostile = retraining(
        method=HOSTILE,
        reason=HOSTILE,
        changes=(WeightChange(name=HOSTILE, shape=(7,) * 500, changed=10**30, largest=1e300, relative=1e-300),),
        fixed=tuple(Refused(layer=f"{i}{HOSTILE}", channel=None, reason=HOSTILE) for i in range(9)),
        before=evaluation(1, [24]),
        after=Evaluation(kind="agreement", clean=Rate(0, 0), triggers=()),
    )
    text = to_text(retrained(spec=spec, retraining=hostile))
    assert all(c.isprintable() or c == "\n" for c in text)
    assert len(text.splitlines()) < 110
    cut = to_text(retrained(spec=spec, retraining=replace(hostile, changes=CHANGES)))
    assert max(map(len, cut.splitlines())) <= WIDTH
    assert complaints(json.loads(to_json(retrained(spec=spec, retraining=hostile))), SCHEMA, SCHEMA) == []
