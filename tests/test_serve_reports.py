"""The report beside a served model: found only where it is of that very file, and nothing unchecked is sent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from debride.errors import ReportError
from debride.report import to_json
from debride.serve.http import reports as reports_module
from debride.serve.http.reports import MAX_REPORT, find_report
from reports_retrained import BARE, retraining
from test_report import report

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
SERVED, DELIVERED, OTHER = ("a" * 64, "b" * 64, "c" * 64)
CHANGE = {"name": "w", "shape": [3, 4], "changed": 12, "largest": 0.5, "relative": None}
NAMES = ("report.json", "norms.png", "suspect-1.png")


def document(**changes):
    """The JSON of a sanitize run that made the file SERVED out of DELIVERED."""
    found = json.loads(to_json(report(), files=NAMES))
    found["model"]["sha256"], found["output"] = DELIVERED, {"name": "clean.onnx", "sha256": SERVED, "size": 9}
    return {**found, **changes}


def write(folder: Path, content: object, pictures=NAMES[1:]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "report.json").write_text(text, "utf-8")
    for name in pictures:
        (folder / name).write_bytes(PNG)
    return folder / "report.json"


def retrained(command="retrain", part=None, **changes):
    """The JSON of a run that retrained, with `part` of what it says of retraining replaced."""
    found = json.loads(to_json(report(retraining=retraining())))["retraining"]
    return document(command=command, retraining={**found, **(part or {})}, **changes)


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "clean.onnx"
    path.write_bytes(b"model")
    return path


@pytest.mark.parametrize(
    "place", ["clean.onnx.report", "clean.report", "clean.onnx-report", "clean-report", "report", "."]
)
def test_a_report_of_the_served_file_is_found_in_each_place(model, place):
    path = write(model.parent / place, document())
    search = find_report(model, SERVED)
    assert search.report.path.samefile(path)
    assert json.loads(search.report.body) == document()
    assert search.report.verdict == "sanitized"
    assert dict(search.report.pictures) == {"norms.png": PNG, "suspect-1.png": PNG}
    assert search.passed_over == ()


def test_the_most_telling_name_wins_and_what_does_not_fit_is_passed_over_with_the_reason(model):
    write(model.parent / "clean.onnx.report", document(output={"name": "x.onnx", "sha256": OTHER, "size": 1}))
    write(model.parent / "report", "{")
    right = write(model.parent, document())
    search = find_report(model, SERVED)
    assert search.report.path == right
    first, second = search.passed_over
    assert "of another file" in first
    assert OTHER in first
    assert "not JSON" in second


def test_no_report_is_no_error(model):
    search = find_report(model, SERVED)
    assert (search.report, search.passed_over) == (None, ())


def test_the_delivered_model_does_not_wear_the_report_of_the_cleaned_one(model):
    write(model.parent / "report", document())
    search = find_report(model, DELIVERED)
    assert search.report is None
    assert "the served file is the model as delivered" in search.passed_over[0]
    assert SERVED in search.passed_over[0]


@pytest.mark.parametrize("changes", [
    {"command": "scan", "verdict": "backdoored", "output": None},
    {"verdict": "clean", "output": None},
    {"verdict": "clean"},
])  # fmt: skip
def test_a_scan_and_a_clean_verdict_speak_of_the_model_itself(model, changes):
    write(model.parent / "report", document(**changes))
    assert find_report(model, DELIVERED.upper()).report is not None
    assert find_report(model, OTHER).report is None


@pytest.mark.parametrize("content", [
    retrained(),
    retrained("sanitize"),
    document(retraining=None),
    {key: value for key, value in document().items() if key != "retraining"},
    document(command="retrain", retraining=json.loads(to_json(report(retraining=retraining(**BARE))))["retraining"]),
], ids=["retrain", "sanitize", "none", "old", "bare"])  # fmt: skip
def test_a_report_tells_of_retraining_or_does_without(model, content):
    search = find_report(model, SERVED, write(model.parent / "report", content))
    assert json.loads(search.report.body) == content


def test_a_clean_model_that_was_retrained_does_not_wear_the_report_of_the_retrained_one(model):
    write(model.parent / "report", retrained(verdict="clean"))
    assert find_report(model, SERVED).report is not None
    search = find_report(model, DELIVERED)
    assert search.report is None
    assert "the served file is the model as delivered" in search.passed_over[0]
    write(model.parent / "report", retrained(verdict="clean", part={"kept": False}))
    assert find_report(model, DELIVERED).report is not None


@pytest.mark.parametrize("by_file", [True, False])
def test_a_given_report_is_read_from_its_file_or_folder(model, tmp_path, by_file):
    path = write(tmp_path / "elsewhere", document())
    assert find_report(model, SERVED, path if by_file else path.parent).report.path == path


@pytest.mark.parametrize(("content", "message"), [
    (document(output={"name": "x.onnx", "sha256": OTHER, "size": 1}), "of another file"),
    ("[]", "no JSON object"),
    ("[" * 200_000, "not JSON"),
    (json.dumps(document(seed=float("nan"))), "not plain JSON"),
    (document(pruned=[{"layer": "l", "channel": 1, "attack": "<b>", "utility": 0}]), r"pruned\[0\].attack"),
    (document(pruned=[{"layer": "l", "channel": 1.5, "attack": 0, "utility": 0}]), r"pruned\[0\].channel"),
    (document(pruned=[{"layer": 7, "channel": 1, "attack": 0, "utility": 0}]), r"pruned\[0\].layer"),
    (document(pruned={"0": 1}), "'pruned' is not a list"),
    (document(input_spec=None), "'input_spec' is not an object"),
    (document(files="report.json"), "'files' is not a list"),
    (document(triggers=[{"target": 1}]), r"triggers\[0\].success_interval"),
    (document(before={"clean": None, "triggers": []}), "before.clean"),
    (document(recheck=[]), "recheck"),
    (document(command="train"), "'command'"),
    (document(retraining=[]), "'retraining' is not an object"),
    (retrained(part={"kept": 1}), "'retraining.kept' is not true or false"),
    (retrained(part={"method": None}), "retraining.method"),
    (retrained(part={"steps": -1}), "retraining.steps"),
    (retrained(part={"before": None}), "'retraining.before' is not an object"),
    (retrained(part={"changes": [{**CHANGE, "name": 3}]}), r"retraining.changes\[0\].name"),
    (retrained(part={"changes": [{**CHANGE, "shape": [3, 1.5]}]}), r"retraining.changes\[0\].shape\[1\]"),
    (retrained(part={"changes": [CHANGE, {**CHANGE, "relative": "<b>"}]}), r"retraining.changes\[1\].relative"),
    (retrained(part={"changes": [{**CHANGE, "largest": float("inf")}]}), r"retraining.changes\[0\].largest"),
])  # fmt: skip
def test_a_given_report_that_does_not_fit_or_is_malformed_is_an_error_that_names_the_part(model, content, message):
    path = write(model.parent / "report", content)
    with pytest.raises(ReportError, match=message) as caught:
        find_report(model, SERVED, path)
    assert str(path) in str(caught.value)


def test_a_given_report_that_is_not_there_is_an_error(model, tmp_path):
    with pytest.raises(ReportError, match="cannot be read"):
        find_report(model, SERVED, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ReportError, match=r"report.json.*cannot be read"):
        find_report(model, SERVED, tmp_path / "empty")


def test_bytes_that_are_no_text_are_an_error(model):
    path = write(model.parent / "report", document())
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ReportError, match="not UTF-8"):
        find_report(model, SERVED, path)


def test_a_huge_report_is_refused_unread(model):
    path = write(model.parent / "report", document())
    os.truncate(path, MAX_REPORT + 1)
    with pytest.raises(ReportError, match=f"more than {MAX_REPORT} bytes"):
        find_report(model, SERVED, path)


def test_the_body_is_ascii_json_that_any_parser_takes(model):
    write(model.parent / "report", document(reason="über \ud800 <img src=x onerror=alert(1)>"))
    body = find_report(model, SERVED).report.body
    assert body.isascii()
    assert json.loads(body)["reason"].endswith("onerror=alert(1)>")


def test_only_pngs_that_the_report_lists_are_served(model):
    folder = write(model.parent / "report", document(files=["norms.png", "trigger-1.npz", "text.png"])).parent
    (folder / "trigger-1.npz").write_bytes(PNG)
    (folder / "text.png").write_text("no picture")
    search = find_report(model, SERVED)
    assert set(search.report.pictures) == {"norms.png"}  # suspect-1.png lies there, unlisted
    assert [note for note in search.passed_over if "text.png: no PNG" in note]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "sub/a.png", "..\\secret.png", "a\0.png", "a\n.png"]
)
def test_a_name_that_is_no_plain_file_name_is_left_out(model, name):
    folder = write(model.parent / "report", document(files=[name, "norms.png"])).parent
    (model.parent / "secret.png").write_bytes(PNG)
    (folder / "sub").mkdir()
    (folder / "sub" / "a.png").write_bytes(PNG)
    search = find_report(model, SERVED)
    assert set(search.report.pictures) == {"norms.png"}
    assert "no plain file name" in search.passed_over[0]


def test_links_out_of_the_folder_and_what_is_no_file_are_left_out(model):
    names = ["link.png", "loop.png", "folder.png", "pipe.png", "gone.png", "inside.png"]
    folder = write(model.parent / "report", document(files=names)).parent
    (model.parent / "secret.png").write_bytes(PNG)
    (folder / "link.png").symlink_to(model.parent / "secret.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "inside.png").symlink_to("norms.png")
    search = find_report(model, SERVED)
    assert set(search.report.pictures) == {"inside.png"}
    assert len(search.passed_over) == 5


def test_a_report_that_is_a_pipe_or_a_loop_does_not_hold_up_the_start(model):
    folder = model.parent / "report"
    folder.mkdir()
    os.mkfifo(folder / "report.json")
    (model.parent / "report.json").symlink_to(model.parent / "report.json")
    search = find_report(model, SERVED)
    assert search.report is None
    assert len(search.passed_over) == 2


def test_pictures_are_bounded_one_by_one_and_together(model, monkeypatch):
    monkeypatch.setattr(reports_module, "MAX_PICTURE", 100)
    monkeypatch.setattr(reports_module, "MAX_PICTURES", 150)
    names = ["large.png", "a.png", "b.png"]
    folder = write(model.parent / "report", document(files=names)).parent
    for name, size in zip(names, (101, 80, 80), strict=True):
        (folder / name).write_bytes(PNG.ljust(size, b"\0"))
    search = find_report(model, SERVED)
    assert set(search.report.pictures) == {"a.png"}
    assert "more than 100 bytes" in search.passed_over[0]
    assert "more than 70 bytes" in search.passed_over[1]


def test_what_changes_on_the_disk_later_is_not_served(model):
    path = write(model.parent / "report", document())
    found = find_report(model, SERVED).report
    path.write_text("{}")
    (path.parent / "norms.png").unlink()
    assert json.loads(found.body)["verdict"] == "sanitized"
    assert found.pictures["norms.png"] == PNG
