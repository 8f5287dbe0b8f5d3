"""The report: JSON that keeps to its schema, text that says the verdict and the figures, pictures, and the folder."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from debride.errors import ReportError, UsageError
from debride.report import SCHEMA, check_folder, from_json, norms_chart, to_json, to_text, trigger_picture, write_report
from debride.report import write as write_module
from debride.report.canvas import BLUE, RED
from debride.report.channels import runs
from debride.report.chart import BAR, HEAD, LABELS, MARGIN, MOST_BARS, ROW
from debride.report.pictures import example_rows
from debride.report.slimming import stayed_lines
from debride.report.words import amount, size
from debride.triggers import load_trigger
from debride.types import (
    ChannelGroup,
    Compute,
    Cost,
    Detection,
    Evaluation,
    FileFacts,
    Finding,
    InputSpec,
    Meter,
    Pruned,
    Rate,
    Refused,
    Report,
    Round,
    Samples,
    Slimming,
    Timing,
    Trigger,
    TriggerEvaluation,
)

NAMES = ("cat", "dog", "newt", "eel")
KEYS = (
    *(
        "schema",
        "command",
        "verdict",
        "reason",
        "model",
        "output",
        "conversion",
        "input_spec",
        "suspects",
        "triggers",
        "threshold",
    ),
    *(
        "inconclusive",
        "compared",
        "repeated",
        "pruned",
        "refused",
        "players",
        "before",
        "after",
        "rounds",
        "returned",
        "recheck",
        "slimming",
        "retraining",
        "seconds",
        "cost",
        "compute",
        "seed",
    ),
    *("options", "environment", "parity", "samples", "warnings", "files"),
)
NINETEEN = Rate(19, 20)


def trigger(target=0, l1=4.0, shape=(3, 8, 8), success=NINETEEN):
    mask = np.zeros((1, *shape[1:]), np.float32)
    mask[0, -2:, -2:] = 1.0
    pattern = np.zeros(shape, np.float32)
    pattern[0] = 1.0
    return Trigger(target=target, mask=mask, pattern=pattern, l1=l1, success=success, restarts=3, steps=40, seed=7)


def detection(norms=(40.0, 4.0, 50.0, 60.0), suspects=(1,), threshold=2.0):
    places = np.array(norms)
    centre = np.median(places[np.isfinite(places)])
    unit = 1.4826 * np.median(np.abs(places[np.isfinite(places)] - centre))
    return Detection(
        findings=tuple(
            Finding(
                trigger=trigger(i, norm),
                anomaly=float((centre - norm) / unit),
                suspect=i in suspects,
                reason=f"why {i}",
            )
            for i, norm in enumerate(norms)
        ),
        threshold=threshold,
    )


def samples(n=8, shape=(3, 8, 8), labels=True):
    images = np.full((n, *shape), 0.5, np.float32)
    return Samples(images=images, labels=np.arange(n) % 4 if labels else None)


def evaluation(hits, asr, kind="accuracy"):
    found = tuple(TriggerEvaluation(target=1, asr=Rate(a, 90), robust=Rate(max(80 - a, 0), 90)) for a in asr)
    return Evaluation(kind=kind, clean=Rate(hits, 100), triggers=found)


def group(channel, layer="/conv/Conv"):
    return ChannelGroup(layer=layer, channel=channel, edge="e", axis=1, slices=())


COMPUTE = Compute(
    precision="bfloat16",
    reason="measured",
    timings=(
        Timing(precision="bfloat16", channels_last=True, seconds=1e-3, difference=0.01),
        Timing(precision="float32", channels_last=True, seconds=1.8e-3),
        Timing(precision="bfloat16", channels_last=False, seconds=2e-3),
    ),
)


def report(**changes):
    values = {
        "command": "sanitize",
        "verdict": "sanitized",
        "reason": "target met",
        "model": FileFacts(name="m.onnx", sha256="ab" * 32, size=1234567),
        "output": FileFacts(name="c.onnx", sha256="cd" * 32, size=1234567),
        "spec": InputSpec(name="x", layout="NCHW", channels="RGB", size=(8, 8), class_names=NAMES, mean=(0.5,)),
        "detection": detection(),
        "players": 560,
        "seed": 3,
        "options": {"images": Path("in/x"), "budget": float("nan"), "mean": np.float32(0.1), "only": (np.int64(2),)},
        "environment": {"onnxruntime": "1.2"},
        "parity": 1.23456789e-6,
        "samples": {"fit": 20, "held-out": 20},
        "seconds": {"inversion": 12.3456789, "game": 2.0},
        "cost": {"loading": Meter(), "inversion": Meter(passes=3600, forwards=64)},
        "compute": COMPUTE,
        "before": evaluation(75, [89]),
        "after": evaluation(74, [1, 0]),
        "pruned": (
            Pruned(group=group(4), attack=0.5, utility=0.01),
            Pruned(group=group(5), attack=0.25, utility=float("nan")),
            Pruned(group=group(9, "/stem/Conv"), attack=0.1, utility=0.0),
        ),
        "refused": (
            *(Refused(layer="/fc", channel=c, reason="class scores") for c in (0, 1, 2, 7)),
            Refused(layer="/odd", channel=None, reason="tied"),
        ),
        "rounds": (
            Round(
                target=1,
                trigger=0,
                removed=3,
                attack_before=0.989,
                attack_random=0.955,
                attack_after=0.011,
                utility=0.74,
                weight=0.5,
                evaluations=1240,
                passes=20,
            ),
        ),
        "recheck": detection((40.0, 44.0, 50.0, 60.0), ()),
        "warnings": ("few images",),
        "examples": samples(),
    }
    return Report(**(values | changes))


def complaints(value, schema, root, where="$"):
    """What of `schema` (the keywords that docs/report.schema.json uses) `value` breaks."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    if "anyOf" in schema:
        tried = [complaints(value, s, root, where) for s in schema["anyOf"]]
        return min(tried, key=len)
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    fits = any(
        value is None if k == "null" else isinstance(value, kinds[k]) and (k == "boolean" or value is not True)
        for k in wanted
    )
    if wanted and not fits:
        return [f"{where}: {value!r} is no {wanted}"]
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return [f"{where}: {value!r}"]
    found = []
    if isinstance(value, dict):
        properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        found += [f"{where}: no {k}" for k in schema.get("required", []) if k not in value]
        for key, item in value.items():
            if key not in properties and others is False:
                found.append(f"{where}: {key} is unknown")
            rule = properties.get(key, others if isinstance(others, dict) else {})
            found += complaints(item, rule, root, f"{where}.{key}")
    if isinstance(value, list):
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for i, item in enumerate(value):
            found += complaints(item, schema.get("items", {}), root, f"{where}[{i}]")
    return found


@pytest.fixture(scope="module")
def schema():
    return json.loads(Path(__file__).parents[1].joinpath("docs", "report.schema.json").read_text("utf-8"))


BARE = {"before": None, "after": None, "output": None, "recheck": None, "rounds": (), "pruned": (), "examples": None}


def slimming(**changes):
    values = {
        "before": Cost(size=590_366, parameters=146_634, macs=9_345_920, latency=0.0002),
        "after": Cost(size=579_652, parameters=143_956, macs=9_107_584, latency=0.0001),
        "dead": 6,
        "left": 2,
        "channels": 3,
        "stayed": tuple(
            Refused(layer=layer, channel=c, reason=f"not constant where {why} reads it")
            for layer, c, why in (("/a", 1, "'add'"), ("/a", 2, "'add'"), ("/a", 7, "'add'"), ("/b", 0, "'top'"))
        ),
        "difference": 2.1e-7,
        "images": 40,
    }
    return Slimming(**(values | changes))


NOT_SLIMMED = {"after": slimming().before, "left": 0, "channels": 0, "images": 0, "reason": "the outputs would differ"}
SLIM = [{"slimming": slimming()}, {"slimming": slimming(**NOT_SLIMMED)}]


@pytest.mark.parametrize(
    "changes", [{}, BARE, *SLIM, {"parity": float("inf"), "after": evaluation(1, [], "agreement")}]
)
def test_json_keeps_to_the_published_schema(schema, changes):
    document = json.loads(to_json(report(**changes)))
    assert complaints(document, schema, schema) == []
    assert list(document) == list(KEYS)
    # Reports from before models of other frameworks could be read, slimmed or retrained stay valid.
    newer = ("conversion", "slimming", "retraining", "cost", "compute", "compared", "repeated")
    assert schema["required"] == [key for key in KEYS if key not in newer]
    assert complaints({k: v for k, v in document.items() if k not in newer}, schema, schema) == []


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (COMPUTE, "bfloat16 on cpu, 1.8 times as fast as float32"),
        (replace(COMPUTE, precision="float32"), "float32 on cpu; bfloat16 would take 0.6 times as long"),
        (
            replace(COMPUTE, precision="float32", timings=COMPUTE.timings[1:2]),
            "float32 on cpu, by far the fastest here",
        ),
        (
            replace(COMPUTE, precision="float32", reason="inexact"),
            "float32 on cpu; what is faster here is too far from onnxruntime's scores",
        ),
        (Compute(device="cuda:1", precision="float16", reason="asked"), "float16 on cuda:1, as asked for"),
        (Compute(), "float32 on cpu"),
    ],
)
def test_how_the_proxy_computed_is_told(compute, words):
    lines = " ".join(to_text(report(compute=compute)).split())
    assert f"Compute {words} Seed" in lines


def test_image_passes_are_told_per_stage_and_class():
    document = json.loads(to_json(report()))
    assert document["cost"] == {"inversion": {"passes": 3600, "forwards": 64}}
    assert document["compute"]["timings"][0] == {
        "precision": "bfloat16",
        "channels_last": True,
        "seconds": 0.001,
        "difference": 0.01,
    }
    assert "Passes inversion 3,600 (inversion 900 per class); of one image" in " ".join(to_text(report()).split())


def test_the_schema_check_of_these_tests_finds_breaches(schema):
    document = json.loads(to_json(report()))
    document["seed"], document["extra"], document["triggers"][0]["l1"] = "3", 1, "big"
    del document["model"]["sha256"], document["parity"]
    assert len(complaints(document, schema, schema)) == 5


def test_json_says_what_the_report_holds():
    document = json.loads(to_json(report(), files=["report.json", "trigger-1.npz", "suspect-1.png"]))
    assert document["schema"] == SCHEMA and document["verdict"] == "sanitized" and document["suspects"] == [1]
    first, second = document["triggers"][:2]
    assert (second["target"], second["l1"], second["success"], second["success_n"]) == (1, 4.0, 0.95, 20)
    assert second["success_interval"] == pytest.approx(Rate(19, 20).interval(), abs=1e-6)
    assert (second["file"], second["picture"], first["file"]) == ("trigger-1.npz", "suspect-1.png", None)
    assert document["pruned"][0] == {"layer": "/conv/Conv", "channel": 4, "attack": 0.5, "utility": 0.01}
    assert document["refused"] == [
        {"layer": "/fc", "reason": "class scores", "channels": [[0, 2], [7, 7]]},
        {"layer": "/odd", "reason": "tied", "channels": None},
    ]
    assert document["before"]["accuracy"] == 0.75 and document["after"]["worst_asr"] == pytest.approx(1 / 90, rel=1e-5)
    assert [t["robust"] for t in document["after"]["triggers"]] == pytest.approx([79 / 90, 80 / 90], rel=1e-5)
    assert document["seconds"] == {"inversion": 12.3457, "game": 2.0, "total": 14.3457}
    assert document["options"] == {"images": "in/x", "budget": None, "mean": 0.1, "only": [2]}
    assert document["parity"] == 1.23457e-6


def test_what_is_not_finite_becomes_null_everywhere():
    nowhere = Detection(
        findings=(
            Finding(
                trigger=trigger(0, float("inf"), success=Rate(0, 0)), anomaly=float("-inf"), suspect=False, reason=""
            ),
        ),
        threshold=float("nan"),
    )
    text = to_json(report(detection=nowhere, parity=float("nan"), seconds={"a": float("inf")}))
    found = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} in the JSON"))
    entry = found["triggers"][0]
    assert entry["l1"] is entry["anomaly"] is entry["success"] is found["threshold"] is found["parity"] is None
    assert found["pruned"][1]["utility"] is None and found["seconds"]["total"] is None


def test_json_is_the_same_for_the_same_report_and_rows_of_a_table_are_lines():
    assert to_json(report()) == to_json(report())
    rows = [line for line in to_json(report(recheck=None)).splitlines() if line.startswith('    {"target": ')]
    assert len(rows) == 4 + 1  # four classes and one round


def test_runs_merge_neighbours():
    assert runs([5, 1, 2, 3, 7, 3]) == [[1, 3], [5, 5], [7, 7]] and runs([]) == []


def test_from_json_gives_back_the_head():
    summary = from_json(to_json(report()), "r.json")
    assert (summary.command, summary.verdict, summary.suspects) == ("sanitize", "sanitized", (1,))
    assert summary.model == report().model and summary.output == report().output
    assert summary.document["players"] == 560
    assert from_json(to_json(report(output=None)), "r.json").output is None
    with pytest.raises(TypeError):
        summary.document["players"] = 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (to_json(report()).replace(SCHEMA, "debride.report/2"), "debride.report/2"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no JSON object"),
        ("{}", "schema is None"),
        (to_json(report()).replace('"sanitized"', '"fine"'), "'verdict'"),
        (to_json(report()).replace('"suspects": [1]', '"suspects": [true]'), "'suspects'"),
        (to_json(report()).replace('"sha256"', '"md5"'), "'model'"),
    ],
)
def test_from_json_refuses_what_it_did_not_write_and_names_the_file(text, said):
    with pytest.raises(ReportError, match=r"some/r\.json") as error:
        from_json(text, "some/r.json")
    assert said in str(error.value)


VERDICTS = {
    "clean": "No backdoor was found",
    "backdoored": "treat the model as backdoored",
    "sanitized": "was cut out",
    "not sanitized": "Do not deploy",
    "inconclusive": "not a pass",
}


@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("bare", [False, True])
def test_text_leads_with_the_verdict_and_keeps_within_100_columns(verdict, bare):
    text = to_text(report(verdict=verdict, reason="because " * 40, **(BARE if bare else {})))
    assert text.splitlines()[0] == f"{verdict.upper()}: m.onnx"
    assert VERDICTS[verdict] in " ".join(text.split()) and "because" in text
    assert max(map(len, text.splitlines())) <= 100 and text.isascii() and text.endswith("\n")


def test_text_has_the_figures():
    text = to_text(report(), files=[Path("out/report.json")])
    assert "attack success 98.9 % -> 1.1 %, accuracy 75.0 % -> 74.0 %" in " ".join(text.split())
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert "* 1 (dog) 4.00 2.77 95.0 % (76.4 to 99.1) SUSPECT" in lines
    assert "1 1 (dog) 3 98.9 % 95.5 % 1.1 % 74.0 % 1240" in lines
    assert "accuracy 75.0 % (65.7 to 82.5) 74.0 % (64.6 to 81.6)" in lines
    assert "attack success, 1 -> 1 (dog) 98.9 % (94.0 to 99.8) 1.1 % (0.2 to 6.0)" in lines
    assert "attack success, 2 -> 1 (dog) - 0.0 % (0.0 to 4.1)" in lines
    assert {"/conv/Conv: 4-5", "/stem/Conv: 9", "left alone, 4: class scores", "out/report.json"} <= lines
    assert "Seconds inversion 12.3, game 2.00, total 14.3" in lines
    assert "Input 'x' NCHW RGB 8x8, range 0 to 1, mean 0.5 (measured on the clean images)" in lines


def test_json_tells_what_slimming_took_and_left():
    found = json.loads(to_json(report(slimming=slimming())))["slimming"]
    assert (found["dead"], found["left"], found["channels"], found["images"], found["reason"]) == (6, 2, 3, 40, None)
    assert found["before"] == {"size": 590_366, "parameters": 146_634, "macs": 9_345_920, "latency": 0.0002}
    assert [(s["layer"], s["channels"]) for s in found["stayed"]] == [("/a", [[1, 2], [7, 7]]), ("/b", [[0, 0]])]
    assert json.loads(to_json(report(slimming=slimming(**NOT_SLIMMED))))["slimming"]["reason"].endswith("differ")
    assert json.loads(to_json(report()))["slimming"] is None


def test_text_tells_costs_before_and_after_slimming_and_why_channels_stay():
    text = to_text(report(slimming=slimming()))
    assert "6 zeroed channels: 2 taken out, 4 stay; 1 more went, constant or unread" in text
    assert "on random inputs and 40 images the largest difference is 2.1e-07 of the scores' spread" in text
    rows = dict(re.findall(r"^  (size|parameters|MACs per image|latency per image) +(\S.*)$", text, re.M))
    assert {name: re.split(r"  +", row) for name, row in rows.items()} == {
        "size": ["590 kB", "580 kB", "0.982"],
        "parameters": ["147 k", "144 k", "0.982"],
        "MACs per image": ["9.35 M", "9.11 M", "0.974"],
        "latency per image": ["0.20 ms", "0.10 ms", "0.500"],
    }
    assert "/a: channels 1-2, 7: not constant where 'add' reads it" in text
    assert "/b: channel 0: not constant where 'top' reads it" in text
    assert "slower" not in text and max(map(len, text.splitlines())) <= 100


def test_text_says_when_less_work_takes_longer():
    slow = Cost(size=1, parameters=1, macs=1, latency=0.00022)
    assert "yet slower on this machine" in to_text(report(slimming=slimming(after=slow)))


def test_text_says_why_nothing_was_taken_out():
    text = to_text(report(slimming=slimming(**NOT_SLIMMED)))
    assert "Not slimmed\n  6 zeroed channels; none was taken out: the outputs would differ" in text
    assert "before        after" not in text


def test_many_reasons_are_cut_short_and_the_rest_is_counted():
    stayed = tuple(Refused(layer=f"/layer{i}", channel=i, reason="r" * 150) for i in range(40))
    lines = stayed_lines(slimming(stayed=stayed), 60, "--json lists all")
    assert len(lines) <= 20 and max(map(len, lines)) <= 60
    told = sum(line.startswith("  /layer") for line in lines)
    assert told > 0 and lines[-1] == f"  and {40 - told} more; --json lists all"
    assert len(stayed_lines(slimming(stayed=stayed[:3]))) < 20


def test_amounts_and_sizes_never_round_up_to_a_thousand():
    assert [size(n) for n in (999, 1000, 999_499, 999_999, 2_340_000)] == [
        "999 bytes",
        "1 kB",
        "999 kB",
        "1 MB",
        "2.34 MB",
    ]
    assert [amount(n) for n in (0, 999, 21_840, 999_950, 1.24e9)] == ["0", "999", "21.8 k", "1 M", "1.24 G"]


def test_text_shows_the_suspects_and_the_lowest_few_of_many_classes():
    text = to_text(report(detection=detection([*np.linspace(50, 90, 999), 2.0], (999,)), recheck=None))
    assert "and 994 classes more" in text and "* 999" in text and len(text.splitlines()) < 60


def test_text_obeys_no_control_characters_of_untrusted_names():
    spec = InputSpec(
        name="x\x1b[2J", layout="NCHW", channels="RGB", size=(8, 8), class_names=("a", "\x1b[31m\u202ered\n", "c", "d")
    )
    pruned = (Pruned(group=group(1, "/conv\r\x1b]0;"), attack=0.0, utility=0.0),)
    text = to_text(report(spec=spec, pruned=pruned, warnings=("a\x07b",)))
    assert all(c.isprintable() or c == "\n" for c in text) and "1 (?[31m?red?)" in text


def bar_row(picture, row):
    """The pixels of bar number `row`, from the axis on."""
    return picture[HEAD + row * ROW + ROW // 2 - BAR // 2 + 1, MARGIN + LABELS :]


def test_chart_draws_suspects_red_and_the_rest_blue_smallest_first():
    picture = norms_chart(detection(), NAMES)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert (bar_row(picture, 0)[3] == RED).all() and not (bar_row(picture, 0) == BLUE).all(axis=1).any()
    for row in (1, 2, 3):
        assert (bar_row(picture, row)[3] == BLUE).all() and not (bar_row(picture, row) == RED).all(axis=1).any()
    assert (picture[[0, -1]] == 255).all() and (picture[:, [0, -1]] == 255).all()


def test_bars_on_a_linear_axis_are_as_long_as_the_norms():
    picture = norms_chart(detection((30.0, 10.0, 40.0, 60.0), (1,)))
    lengths = [
        np.flatnonzero((bar_row(picture, r) == c).all(axis=1))[-1] + 1 for r, c in enumerate((RED, BLUE, BLUE, BLUE))
    ]
    assert np.array(lengths) / lengths[0] == pytest.approx([1, 3, 4, 6], abs=0.03)


@pytest.mark.parametrize("classes", [2, 10, 43, 60, 61, 1200])
def test_chart_grows_with_the_classes_up_to_its_most(classes):
    picture = norms_chart(detection([4.0, *np.linspace(50, 120, classes - 1)], (0,)))
    taller = norms_chart(detection()).shape[0] + ROW * (min(classes, MOST_BARS) - 4)
    assert picture.shape == (taller, 960, 3)


@pytest.mark.parametrize("norms", [(0.0, 0.0), (float("inf"), float("nan")), (0.0, 1e-6, 5.0, 1e5), (7.0,), ()])
def test_chart_survives_degenerate_norms(norms):
    findings = tuple(
        Finding(trigger=trigger(i, n), anomaly=float("nan"), suspect=False, reason="") for i, n in enumerate(norms)
    )
    picture = norms_chart(Detection(findings=findings, threshold=2.0))
    assert picture.size and (picture != 255).any()


def test_trigger_picture_shows_pattern_under_the_mask_on_every_stamped_example():
    picture = trigger_picture(trigger(1), samples(), class_names=NAMES, anomaly=3.0)
    red = (picture == (0, 0, 255)).all(axis=2)
    # Tiles are 128 pixels: the pattern is all red, its product with the mask and six examples by a quarter of a side.
    assert red.sum() == 128 * 128 + (1 + 6) * 32 * 32
    assert (picture == 128).all(axis=2).sum() >= 6 * 128 * 128 + 6 * (128 * 128 - 32 * 32)
    assert (picture[[0, -1]] == 255).all() and (picture[:, [0, -1]] == 255).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 55, 47), (3, 224, 224), (3, 4, 90)])
def test_trigger_picture_fits_every_shape(shape):
    picture = trigger_picture(trigger(0, shape=shape), samples(shape=shape, labels=False))
    assert picture.dtype == np.uint8 and 560 <= picture.shape[1] <= 1400 and 200 <= picture.shape[0] <= 900
    assert (picture[[0, -1]] == 255).all() and (picture[:, [0, -1]] == 255).all()


def test_trigger_picture_without_samples_is_the_top_row_alone():
    alone, full = trigger_picture(trigger(), None), trigger_picture(trigger(), samples())
    assert alone.shape[0] < full.shape[0] / 2 and (alone[:150] == full[:150, : alone.shape[1]]).mean() > 0.99
    with pytest.raises(ValueError, match="do not fit"):
        trigger_picture(trigger(), samples(shape=(3, 9, 9)))


def test_examples_come_from_as_many_other_classes_as_there_are():
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 3, 3, 3])
    some = Samples(images=np.zeros((10, 1, 2, 2), np.float32), labels=labels)
    assert labels[example_rows(some, 0, 3)].tolist() == [1, 2, 3]
    assert sorted(labels[example_rows(some, 0, 6)].tolist()) == [1, 1, 2, 3, 3, 3]
    assert len(example_rows(some, 0, 20)) == 6 and len(example_rows(some.take(labels == 0), 0, 6)) == 0


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


WRITTEN = ["report.json", "report.txt", "norms.png", "trigger-1.npz", "suspect-1.png"]


def test_write_report_makes_the_folder_and_every_file_can_be_read_back(tmp_path):
    folder = tmp_path / "a" / "b"
    paths = write_report(report(), folder, force=False)
    assert paths == tuple(folder / name for name in WRITTEN) and sorted(contents(tmp_path / "a")) == sorted(
        f"b/{name}" for name in WRITTEN
    )
    assert from_json(paths[0].read_text("utf-8"), paths[0]).document["files"] == WRITTEN
    assert paths[1].read_text("utf-8").startswith("SANITIZED: m.onnx")
    assert np.array_equal(cv2.imread(str(paths[2])), norms_chart(detection(), NAMES))
    assert load_trigger(paths[3]).target == 1 and cv2.imread(str(paths[4])).shape[2] == 3


def test_a_folder_that_holds_something_needs_force(tmp_path):
    write_report(report(), tmp_path, force=False)  # empty: taken as it is
    before = contents(tmp_path)
    for call in (lambda: check_folder(tmp_path, force=False), lambda: write_report(report(), tmp_path, force=False)):
        with pytest.raises(UsageError, match="--force"):
            call()
    assert contents(tmp_path) == before


def test_force_replaces_its_own_files_drops_stale_ones_and_leaves_foreign_ones(tmp_path):
    write_report(report(), tmp_path, force=False)
    foreign = {"notes.txt": b"mine", "suspect-9.png": b"mine too", "deep/norms.png": b"also"}
    (tmp_path / "deep").mkdir()
    for name, data in foreign.items():
        (tmp_path / name).write_bytes(data)
    listed = json.loads((tmp_path / "report.json").read_text())
    listed["files"] += ["notes.txt", "../x", 3]  # a forged list does not widen what may go
    (tmp_path / "report.json").write_text(json.dumps(listed))
    write_report(report(detection=detection((40.0, 50.0, 4.0, 60.0), (2,))), tmp_path, force=True)
    after = contents(tmp_path)
    assert {k: after[k] for k in foreign} == foreign
    assert sorted(set(after) - set(foreign)) == sorted([*WRITTEN[:3], "trigger-2.npz", "suspect-2.png"])


@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError("disk full"), RuntimeError])
@pytest.mark.parametrize("where", ["trigger_picture", "save_trigger", "_save"])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, where, fault, existing):
    folder = tmp_path / "out"
    if existing:
        write_report(report(seed=1), folder, force=False)
    before = contents(tmp_path)

    def fail(*_, **__):
        raise fault

    monkeypatch.setattr(write_module, where, fail)
    with pytest.raises((KeyboardInterrupt, UsageError, RuntimeError)):
        write_report(report(), folder, force=True)
    assert contents(tmp_path) == before and folder.exists() == existing
    assert [p for p in tmp_path.rglob("*") if p.name.startswith(".")] == []


@pytest.mark.parametrize("at", range(13))
@pytest.mark.parametrize("after", [False, True])
def test_an_interruption_while_moving_in_place_is_undone(tmp_path, monkeypatch, at, after):
    write_report(report(seed=1), tmp_path, force=False)
    (tmp_path / "mine").write_bytes(b"x")
    before, replace, calls = contents(tmp_path), Path.replace, []

    def interrupted(self, goal):
        if Path(goal).parent.name == "new":  # a file's own atomic write, aside
            return replace(self, goal)
        calls.append(self)
        if len(calls) == at + 1 and not after:
            raise KeyboardInterrupt
        result = replace(self, goal)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(Path, "replace", interrupted)
    if at < 2 * len(WRITTEN):  # five files go out of the way, five come
        with pytest.raises(KeyboardInterrupt):
            write_report(report(), tmp_path, force=True)
        assert contents(tmp_path) == before
    else:
        write_report(report(), tmp_path, force=True)
        assert sorted(contents(tmp_path)) == sorted([*WRITTEN, "mine"])


def test_a_file_in_place_of_the_folder_or_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        write_report(report(), tmp_path / "file", force=True)
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(report(), tmp_path / "file" / "under", force=True)
    (tmp_path / "out" / "norms.png").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"norms\.png is a folder"):
        write_report(report(), tmp_path / "out", force=True)
    assert (tmp_path / "file").read_text() == "x" and (tmp_path / "out" / "norms.png").is_dir()
