"""`debride slim` and what `sanitize --slim` does with the cleaned graph: written and equal, or nothing changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

import debride.ending
import debride.sanitize
import debride.slimming
import made_up
from debride.cli import main
from debride.conversion.source import Source
from debride.ending import slimmed, write
from debride.ending import zeroed as cut_of
from debride.errors import ModelError
from debride.graph.channels import find_groups
from debride.graph.read import read_model
from debride.graph.surgery import write_model, zero
from debride.loading import load
from debride.rounds import State
from debride.sanitize import sanitize
from debride.settings import Settings
from debride.specfile import METADATA_KEY, SpecFlags, to_json
from debride.stages import Search
from debride.types import Cost, Detection, Finding, Rate, Refused, Slimming, Trigger, no_progress
from graph_models import Builder
from graph_models import run as outputs_of
from tiny import tiny_classifier, tiny_spec

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL, IMAGES = SAMPLES / "fashion-backdoored.onnx", SAMPLES / "images"
CONVENTION = ("--range", "0,1", "--threads", "1")


@pytest.fixture
def run(monkeypatch, capsys):
    """The command line in this process: (exit code, stdout, stderr)."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["debride", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    yield call
    signal.signal(signal.SIGTERM, before)


def cut(model, path, *, channels, layers=None, **options):
    """`model` with these `channels` of its `layers` (None: of all) zeroed, at `path`; how many groups that were."""
    groups, _ = find_groups(model.graph, model.graph.outputs[0].name)
    order = list(dict.fromkeys(g.layer for g in groups))
    chosen = [g for g in groups if g.channel in channels and (layers is None or order.index(g.layer) in layers)]
    write_model(zero(model, chosen), path, **options)
    return len(chosen)


@pytest.fixture(scope="module")
def zeroed(tmp_path_factory):
    """The shipped sample, first two channels of every layer zeroed: (path, how many channels that are)."""
    path = tmp_path_factory.mktemp("zeroed") / "zeroed.onnx"
    return path, cut(read_model(MODEL), path, channels=(0, 1), metadata={"note": "kept"})


def residual(folder, size=6, **more):
    """A graph in which one side of an addition is zeroed, so that no zeroed channel can leave, at a path."""
    b = Builder()
    x = b.conv("x", 3, size)
    added = b.op("Relu", b.op("Add", x, b.conv(x, size, size)))
    flat = b.op("Flatten", b.op("GlobalAveragePool", added))
    b.op("Gemm", flat, b.weight(size, 3), b.weight(3))
    (folder / "plain.onnx").write_bytes(b.model(["n", 3, 8, 8], "scores", ["n", 3]).SerializeToString())
    cut(read_model(folder / "plain.onnx"), folder / "stuck.onnx", channels=(1, 2, 4), layers=(1,), **more)
    return folder / "stuck.onnx"


def random_images(path, size=(28, 28), n=3):
    """`n` grey pictures in a folder."""
    path.mkdir()
    for i in range(n):
        cv2.imwrite(str(path / f"{i}.png"), np.random.default_rng(i).integers(0, 255, size, np.uint8))
    return path


def test_dead_channels_leave_and_the_outputs_are_the_same(run, zeroed, tmp_path):
    path, dead = zeroed
    code, out, err = run("slim", path, "-o", tmp_path / "slim.onnx", "--images", IMAGES, *CONVENTION)
    assert code == 0, err
    assert f"{dead} zeroed channels: " in out and "on random inputs and 400 images the largest difference is" in out
    assert "slimming: " in err
    before, after = onnx.load(path), onnx.load(tmp_path / "slim.onnx")
    onnx.checker.check_model(after, full_check=True)
    value = before.graph.input[0]
    x = np.random.default_rng(3).random((5, *[d.dim_value for d in value.type.tensor_type.shape.dim[1:]]), np.float32)
    for old, new in zip(outputs_of(before, {value.name: x}), outputs_of(after, {value.name: x}), strict=True):
        np.testing.assert_allclose(new, old, rtol=0, atol=1e-5 * np.ptp(old))
    assert (tmp_path / "slim.onnx").stat().st_size < 0.95 * path.stat().st_size
    assert {entry.key: entry.value for entry in after.metadata_props} == {"note": "kept"}
    assert [path.name for path in tmp_path.iterdir()] == ["slim.onnx"]


def test_json_tells_both_files_and_every_channel_that_stays(run, tmp_path):
    stuck = residual(tmp_path)
    code, out, _ = run("slim", stuck, "-o", tmp_path / "slim.onnx", "--json", "--quiet")
    found = json.loads(out)
    assert (code, found["changed"], found["conversion"]) == (0, False, None)
    assert found["model"]["sha256"] == found["output"]["sha256"] and found["output"]["name"] == "slim.onnx"
    assert found["slimming"]["dead"] == 3 and found["slimming"]["left"] == 0
    assert [entry["channels"] for entry in found["slimming"]["stayed"]] == [[[1, 2], [4, 4]]]


def test_channels_that_cannot_leave_are_told_with_the_reason(run, tmp_path):
    stuck = residual(tmp_path)
    code, out, err = run("slim", stuck, "-o", tmp_path / "slim.onnx", "--quiet")
    assert (code, err) == (0, "")
    assert "3 zeroed channels: 0 taken out, 3 stay; the output is an unchanged copy" in " ".join(out.split())
    assert ": channels 1-2, 4: " in out.split("Zeroed channels that stay\n")[1]
    assert (tmp_path / "slim.onnx").read_bytes() == stuck.read_bytes()


def test_without_a_dead_channel_the_output_is_the_same_file(run, tmp_path):
    code, out, _ = run("slim", MODEL, "-o", tmp_path / "slim.onnx", *CONVENTION)
    assert code == 0 and "there is nothing to take out" in out and "unchanged copy" in out
    assert "before" not in out and "Zeroed channels that stay" not in out
    assert (tmp_path / "slim.onnx").read_bytes() == MODEL.read_bytes()


def test_no_line_is_wider_than_the_terminal(run, tmp_path, monkeypatch):
    stuck = residual(tmp_path)
    monkeypatch.setattr("debride.cli.slim.get_terminal_size", lambda _: os.terminal_size((50, 24)))
    monkeypatch.setattr("debride.cli.slim._is_terminal", lambda: True)
    _, out, _ = run("slim", stuck, "-o", tmp_path / "slim.onnx", "--quiet")
    # A checksum is one word that is never cut.
    assert max(len(line) for line in out.splitlines() if "sha256" not in line) <= 50


def facts(**changes):
    """What `slim` says of a run."""
    cost = Cost(size=10, parameters=1, macs=1)
    values = {"before": cost, "after": cost, "dead": 2, "left": 0, "channels": 0, "stayed": ()}
    return Slimming(**(values | {"difference": 0.0, "images": 0} | changes))


def test_half_precision_is_held_to_no_limit_that_it_did_not_keep(run, zeroed, tmp_path, monkeypatch):
    def rounding(model, **_):
        found = facts(left=2, channels=2, after=Cost(size=9, parameters=1, macs=1), difference=2e-3)
        return debride.slimming.Slimmed(proto=model.proto, facts=found)

    monkeypatch.setattr(debride.slimming, "slim", rounding)
    code, out, _ = run("slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--quiet")
    assert (
        code == 0
        and "0.002 of the scores' spread, as half precision rounds" in " ".join(out.split())
        and "limit" not in out
    )


def test_slimming_loads_no_torch(zeroed, tmp_path):
    code = "import sys\nfrom debride.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    command = [sys.executable, "-c", code, "slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--quiet"]
    found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout.split()
    assert "onnxruntime" in found and "torch" not in found


def test_graphs_that_would_not_be_equal_are_not_written(run, zeroed, tmp_path, monkeypatch):
    def unequal(model, **_):
        return debride.slimming.Slimmed(proto=model.proto, facts=facts(reason="the outputs would differ by 0.1"))

    monkeypatch.setattr(debride.slimming, "slim", unequal)
    code, out, err = run("slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--quiet")
    assert (code, out, err.count("\n")) == (3, "", 1)
    assert "zeroed.onnx" in err and "the outputs would differ by 0.1" in err and "go on with the model as it is" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        ("no.onnx", 3, "no such file"),
        ("junk.onnx", 3, "no ONNX model"),
        ("half.onnx", 3, "half.onnx: "),
        ("notes.txt", 3, "notes.txt"),
    ],
)
def test_a_model_that_cannot_be_read_is_named_and_nothing_is_written(run, zeroed, tmp_path, bad, code, said):
    (tmp_path / "junk.onnx").write_bytes(b"no protobuf at all")
    data = zeroed[0].read_bytes()
    (tmp_path / "half.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "notes.txt").write_text("no model")
    before = sorted(tmp_path.iterdir())
    found, out, err = run("slim", tmp_path / bad, "-o", tmp_path / "slim.onnx", "--quiet")
    assert (found, out, err.count("\n")) == (code, "", 1), err
    assert said in err and bad in err
    assert sorted(tmp_path.iterdir()) == before


def test_an_output_that_exists_is_kept_unless_forced(run, zeroed, tmp_path):
    goal = tmp_path / "slim.onnx"
    goal.write_bytes(b"mine")
    code, _, err = run("slim", zeroed[0], "-o", goal, "--quiet")
    assert code == 2 and "slim.onnx" in err and "--force" in err and goal.read_bytes() == b"mine"
    code, _, _ = run("slim", zeroed[0], "-o", goal, "--quiet", "--force")
    assert code == 0 and len(goal.read_bytes()) > 1000


@pytest.mark.parametrize("goal", ["missing/slim.onnx", "."])
def test_an_output_that_is_no_place_for_a_file_is_wrong_usage(run, zeroed, tmp_path, goal):
    code, out, err = run("slim", zeroed[0], "-o", tmp_path / goal, "--quiet")
    assert (code, out, err.count("\n")) == (2, "", 1) and str(tmp_path / goal) in err
    assert list(tmp_path.iterdir()) == []


def test_the_model_itself_is_never_the_output(run, zeroed):
    before = zeroed[0].read_bytes()
    code, _, err = run("slim", zeroed[0], "-o", zeroed[0], "--force", "--quiet")
    assert code == 2 and "the model itself" in err and zeroed[0].read_bytes() == before


def test_images_of_another_size_are_refused_and_resized_on_demand(run, zeroed, tmp_path):
    pictures = random_images(tmp_path / "pictures", (20, 31))
    call = ("slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--images", pictures, "--json", "--quiet", *CONVENTION)
    code, out, err = run(*call)
    assert (code, out, err.count("\n")) == (3, "", 1) and "0.png" in err and "--resize" in err
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]
    code, out, _ = run(*call, "--resize")
    assert code == 0 and json.loads(out)["slimming"]["images"] == 3


def test_a_malformed_convention_is_wrong_usage(run, zeroed, tmp_path):
    code, _, err = run("slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--range", "0,0")
    assert code == 2 and "--range" in err and list(tmp_path.iterdir()) == []


def test_an_open_size_is_asked_for_and_taken_from_side_car_metadata_or_images(run, tmp_path):
    spec = tiny_spec()
    bare = tmp_path / "open.onnx"
    bare.write_bytes(tiny_classifier(spec, dynamic=True))
    code, _, err = run("slim", bare, "-o", tmp_path / "a.onnx", "--quiet")
    assert code == 3 and "image" in err and "side-car" in err
    bare.with_suffix(".json").write_text(to_json(spec))
    assert run("slim", bare, "-o", tmp_path / "b.onnx", "--quiet")[0] == 0
    told = tmp_path / "told.onnx"
    told.write_bytes(tiny_classifier(spec, dynamic=True, metadata={METADATA_KEY: to_json(spec)}))
    assert run("slim", told, "-o", tmp_path / "c.onnx", "--quiet")[0] == 0


@pytest.mark.parametrize("when", ["slimming", "writing"])
def test_an_interruption_leaves_nothing(run, zeroed, tmp_path, monkeypatch, when):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    if when == "slimming":
        monkeypatch.setattr(debride.slimming, "slim", interrupted)
    else:
        monkeypatch.setattr("debride.graph.write.os.fsync", interrupted)
    code, out, err = run("slim", zeroed[0], "-o", tmp_path / "slim.onnx", "--quiet")
    assert (code, out, err) == (130, "", "debride: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


def test_external_data_come_along_unchanged_or_into_the_slim_file(run, tmp_path):
    home, goal = tmp_path / "home", tmp_path / "goal"
    home.mkdir()
    goal.mkdir()
    stuck = residual(home, size=64, limit=1000)
    assert (home / "stuck.onnx.data").exists()
    assert run("slim", stuck, "-o", goal / "same.onnx", "--quiet")[0] == 0
    assert {path.name for path in goal.iterdir()} == {"same.onnx", "stuck.onnx.data"}
    cut(read_model(stuck), home / "dead.onnx", channels=(1, 2), layers=(0,), limit=1000)
    code, out, _ = run("slim", home / "dead.onnx", "-o", goal / "slim.onnx", "--quiet", "--json")
    assert code == 0 and json.loads(out)["slimming"]["left"] == 4
    onnx.checker.check_model(onnx.load(goal / "slim.onnx", load_external_data=False), full_check=True)
    assert not (goal / "slim.onnx.data").exists()


def test_a_model_of_another_framework_is_converted_first(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", made_up.install(tmp_path / "site"))
    (tmp_path / "model.made").write_text("{}")
    code, out, err = run("slim", tmp_path / "model.made", "-o", tmp_path / "slim.onnx", "--json", "--quiet")
    found = json.loads(out)
    assert code == 0, err
    assert found["conversion"]["framework"] == "Made-up" and found["model"]["name"] == "model.made"
    onnx.checker.check_model(onnx.load(tmp_path / "slim.onnx"))


# What sanitize does with the graph that it has cleaned


@pytest.fixture(scope="module")
def loaded():
    return load(Source(origin=MODEL, path=MODEL), IMAGES, settings())


def settings(**more):
    return Settings(flags=SpecFlags(range=(0.0, 1.0)), per_class=6, threads=1, **more)


def ended(loaded, *gone):
    """The graph after `gone` groups were cut and, where they can be, taken out."""
    return slimmed(loaded, cut_of(loaded, gone), settings(slim=True), no_progress)


def test_sanitize_slims_what_it_cut_and_judges_that_graph(loaded, tmp_path):
    before_it, slim = cut_of(loaded, (0, 9)), ended(loaded, 0, 9)
    assert before_it.slimming is None
    assert slim.slimming.left == slim.slimming.dead == 2
    assert slim.slimming.images == len(loaded.held_out) and slim.slimming.difference <= 1e-5
    assert slim.proto.ByteSize() < before_it.proto.ByteSize()
    images = loaded.held_out.images
    before, after = before_it.predict(images), slim.predict(images)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.ptp(before))
    assert np.array_equal(before.argmax(axis=1), after.argmax(axis=1))
    written = write(loaded, slim, tmp_path / "slim.onnx", force=False)
    assert written.size == (tmp_path / "slim.onnx").stat().st_size
    assert METADATA_KEY in {entry.key for entry in onnx.load(tmp_path / "slim.onnx").metadata_props}


def found(loaded, monkeypatch, *suspects):
    """The search is over at once: `suspects` stand out."""
    blank = np.zeros((1, 28, 28), np.float32)
    triggers = [Trigger(target=k, mask=blank, pattern=blank, l1=9.0, success=Rate(9, 10)) for k in range(10)]
    findings = tuple(Finding(trigger=t, anomaly=0.0, suspect=t.target in suspects, reason="") for t in triggers)
    detection = Detection(findings=findings, threshold=2.0)
    monkeypatch.setattr(debride.sanitize, "prepared", lambda *_: loaded)
    monkeypatch.setattr(debride.sanitize, "searched", lambda *_: Search(loaded=loaded, detection=detection))
    monkeypatch.setattr(debride.sanitize, "more_triggers", lambda *_: {k: (triggers[k],) for k in suspects})
    return detection


@pytest.mark.parametrize("slim", [True, False])
@pytest.mark.parametrize("gone", [(), (0, 9)])
def test_what_was_cut_is_slimmed_where_that_was_asked_for(loaded, tmp_path, monkeypatch, gone, slim):
    detection = found(loaded, monkeypatch, 7)

    def cut(*arguments, **_):
        state = next(value for value in arguments if isinstance(value, State))
        state.gone += gone
        return detection

    monkeypatch.setattr(debride.sanitize, "clean_all", cut)
    report = sanitize(MODEL, IMAGES, tmp_path / "c.onnx", settings=settings(slim=slim, retrain="never"))
    assert (report.slimming is not None) == ("slimming" in report.seconds) == (slim and bool(gone))
    assert report.warnings == () and report.output.size == (tmp_path / "c.onnx").stat().st_size


@pytest.mark.parametrize(
    ("error", "said"), [(ModelError("x.onnx: no way"), "graph: x.onnx: no way"), (KeyError("k"), "KeyError: 'k'")]
)
def test_a_failure_of_slimming_costs_nothing_but_a_warning(loaded, monkeypatch, error, said):
    def failing(*_, **__):
        raise error

    monkeypatch.setattr(debride.ending, "slim", failing)
    end = ended(loaded, 0)
    assert end.slimming is None and len(end.warnings) == 1 and end.warnings[0].endswith(said)
    assert end.proto == cut_of(loaded, [0]).proto


def test_unequal_graphs_leave_the_zeroed_one_and_the_reason(loaded, monkeypatch):
    stayed = (Refused(layer="a", channel=1, reason="b"),)

    def unequal(model, **_):
        return debride.slimming.Slimmed(proto=onnx.ModelProto(), facts=facts(reason="differ", stayed=stayed))

    monkeypatch.setattr(debride.ending, "slim", unequal)
    end = ended(loaded, 0)
    assert end.slimming.reason == "differ" and end.proto == cut_of(loaded, [0]).proto


def test_a_clean_model_stays_a_copy_though_slimming_was_asked_for(loaded, tmp_path, monkeypatch):
    found(loaded, monkeypatch)
    report = sanitize(MODEL, IMAGES, tmp_path / "same.onnx", settings=settings(slim=True))
    assert report.verdict == "clean" and report.slimming is None and report.options["slim"] is True
    assert (tmp_path / "same.onnx").read_bytes() == MODEL.read_bytes()
