"""Conversion in a child process: limits, parity, traces, and what is left behind whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import external_data_helper, numpy_helper

import made_up
from debride.conversion import finish as finishing
from debride.conversion import run as running
from debride.conversion.finish import finish
from debride.conversion.request import (
    Limits,
    Request,
    graph_at,
    outcome_from_json,
    outcome_to_json,
    request_from_json,
    request_to_json,
)
from debride.conversion.source import facts_of, opened
from debride.conversion.write import convert, save
from debride.errors import DebrideError, ImagesError, ModelError, ParityError, UsageError
from debride.graph.read import read_model
from debride.loading import load
from debride.serve import Classifier
from debride.settings import Settings
from debride.specfile import METADATA_KEY, SpecFlags
from debride.types import Agreement, Conversion, Converted, ConvertOptions, Rate
from tiny import tiny_classifier, tiny_samples, tiny_spec


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Writes a model file of the made-up framework, which child processes can read."""
    monkeypatch.setenv("PYTHONPATH", made_up.install(tmp_path / "site"))

    def write(name="model.made", **fields):
        (tmp_path / name).write_text(json.dumps(fields))
        return tmp_path / name

    return write


@pytest.fixture
def images(tmp_path):
    """Clean images of the four colours, labelled."""
    samples = tiny_samples(4)
    x = np.rint(samples.images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=samples.labels)
    return tmp_path / "images.npz"


def left(folder):
    """What lies in `folder` besides the made-up framework, its model and the images."""
    return sorted(p.name for p in folder.iterdir() if p.name not in ("site", "model.made", "images.npz", "model.pid"))


def props(path):
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_a_model_of_another_framework_becomes_onnx_with_its_parity_and_what_it_states(made, images, tmp_path):
    output = tmp_path / "out.onnx"
    written = convert(Request(model=made(), images=images), output)
    assert written.model == facts_of(tmp_path / "model.made")
    assert written.output == facts_of(output)
    found = written.conversion
    assert (found.framework, found.packages, found.opset, found.tolerance) == ("Made-up", {"made-up": "1.0"}, 18, 1e-3)
    assert [p.kind for p in found.parity] == ["random", "images"]
    assert all(p.difference < 1e-5 and p.same_class.hits == p.same_class.n for p in found.parity)
    assert [p.same_class.n for p in found.parity] == [8, 16]
    assert found.notes == ("made up", "opset 13 was brought up to 18")
    assert json.loads(props(output)[METADATA_KEY]) == {"range": [0.0, 1.0]}
    assert left(tmp_path) == ["out.onnx"]


def test_nothing_of_the_exporting_machine_is_left_in_the_graph(made, tmp_path):
    output = tmp_path / "out.onnx"
    convert(Request(model=made()), output)
    data = output.read_bytes()
    for trace in (b"somebody", b"secret", b"stack_trace", str(tmp_path).encode(), str(Path.home()).encode() + b"/"):
        assert trace not in data
    assert set(props(output)) == {METADATA_KEY}


def test_what_the_user_states_goes_before_the_side_car_and_that_before_the_model(made, tmp_path):
    model = made(spec={"range": [0, 1], "layout": "NCHW", "channels": "RGB"})
    (tmp_path / "model.json").write_text('{"channels": "BGR", "class_names": ["a", "b", "c", "d"]}')
    convert(Request(model=model, flags=SpecFlags(range=(0.0, 255.0))), tmp_path / "out.onnx")
    assert json.loads(props(tmp_path / "out.onnx")[METADATA_KEY]) == {
        "layout": "NCHW",
        "channels": "BGR",
        "range": [0.0, 255.0],
        "class_names": ["a", "b", "c", "d"],
    }


def test_the_same_request_gives_the_same_bytes_and_figures(made, images, tmp_path):
    model = made()
    first, second = (convert(Request(model=model, images=images), tmp_path / f"{name}.onnx") for name in "ab")
    assert first.output.sha256 == second.output.sha256
    assert first.conversion == second.conversion


def test_a_graph_that_differs_from_its_framework_is_a_parity_error_and_nothing_is_written(made, tmp_path):
    with pytest.raises(ParityError, match=r"model\.made: on random inputs .* differs from Made-up by 0\.0\d"):
        convert(Request(model=made(wrong=0.02)), tmp_path / "out.onnx")
    assert left(tmp_path) == []


def test_a_wider_tolerance_is_the_users_or_the_adapters_to_give(made, tmp_path):
    written = convert(Request(model=made(wrong=0.02), tolerance=0.3), tmp_path / "a.onnx")
    assert written.conversion.tolerance == 0.3
    written = convert(Request(model=made(wrong=0.02, tolerance=0.2)), tmp_path / "b.onnx")
    assert written.conversion.tolerance == 0.2
    for tolerance in (1e-3, 0.0):
        with pytest.raises(ParityError, match=rf"\(limit {tolerance:g}\)"):
            convert(Request(model=made(wrong=0.02, tolerance=0.2), tolerance=tolerance), tmp_path / "c.onnx")


def test_what_all_scores_have_in_common_hides_no_difference(tmp_path):
    data = tiny_classifier(tiny_spec(), sharpness=0.01)
    far = onnx.load_from_string(data)
    bias = next(t for t in far.graph.initializer if t.name == "bias")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1000), "bias"))

    def turned(batch):
        return [out[:, ::-1] + np.float32(1000) for out in made_up.scores(batch, 0.01)]

    with pytest.raises(ParityError, match="of the scores' spread"):
        save(Converted(onnx=far.SerializeToString(), reference=turned), tmp_path / "out.onnx", framework="F")


def test_another_first_class_on_the_images_is_no_parity_whatever_the_tolerance(made, images, tmp_path):
    request = Request(model=made(turned=True), images=images, tolerance=100.0)
    with pytest.raises(ParityError, match=r"put the same class first on \d+ of 16 images"):
        convert(request, tmp_path / "out.onnx")


@pytest.mark.parametrize("name", ["newer.onnx", "delivered.onnx", "request.json", "outcome.json", "log.txt"])
def test_the_output_may_have_the_name_of_a_file_that_the_conversion_uses(made, tmp_path, name):
    convert(Request(model=made()), tmp_path / name)
    assert read_model(tmp_path / name).graph.opset == 18


def test_only_what_was_onnx_already_keeps_its_metadata(made, tmp_path):
    data = made_up.graph({})
    passed = Converted(onnx=data, folder=tmp_path, passed_on=True)
    save(passed, tmp_path / "passed.onnx", framework="ONNX")
    assert props(tmp_path / "passed.onnx") == {"exporter": "somebody's"}
    save(Converted(onnx=data, folder=tmp_path), tmp_path / "made.onnx", framework="F")
    assert props(tmp_path / "made.onnx") == {}


def test_an_object_is_measured_on_images_too(images, tmp_path):
    converted = Converted(onnx=tiny_classifier(tiny_spec()), reference=made_up.scores)
    conversion = save(converted, tmp_path / "out.onnx", framework="F", images=images)
    assert [(p.kind, p.same_class.n) for p in conversion.parity] == [("random", 8), ("images", 16)]


def gone(pid, seconds=10.0):
    """Whether process `pid` ends within `seconds`."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_framework_that_hangs_is_ended_with_all_it_started(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "site"))
    monkeypatch.setattr("tempfile.tempdir", None)
    model = made(do="hang")
    with pytest.raises(ModelError, match=r"model\.made: not converted after \d+ s; .*--time-limit"):
        convert(Request(model=model, limits=Limits(seconds=6)), tmp_path / "out.onnx")
    assert gone(int((tmp_path / "model.pid").read_text()))
    assert left(tmp_path) == []
    assert not list((tmp_path / "site").glob("debride-*"))


def test_what_a_framework_leaves_in_the_temporary_folder_goes_too(made, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "site"))
    monkeypatch.setattr("tempfile.tempdir", None)
    convert(Request(model=made(do="scratch")), tmp_path / "out.onnx")
    assert not list((tmp_path / "site").rglob("copy"))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("crash", r"crashed while converting it \(SIGSEGV\); if it needs more than 1 GiB"),
        ("leave", r"without a result \(exit code 7\); its last words: the very last words"),
        ("memory", r"needs more than 1 GiB"),
        ("error", r"cannot be converted \(KeyError: 'a bug in the framework'\)"),
    ],
)
def test_a_framework_that_fails_is_an_error_that_names_the_model(made, tmp_path, do, message):
    with pytest.raises(ModelError, match=rf"model\.made: .*{message}"):
        convert(Request(model=made(do=do), limits=Limits(memory=1 << 30)), tmp_path / "out.onnx")
    assert left(tmp_path) == []


def test_an_adapters_own_errors_keep_their_kind(made, tmp_path):
    with pytest.raises(UsageError, match=r"model\.made: say more$"):
        convert(Request(model=made(do="usage")), tmp_path / "out.onnx")


def test_the_shape_of_the_images_is_offered_to_a_network_that_does_not_say_it(made, images, tmp_path):
    model = made(do="shape")
    with pytest.raises(UsageError, match=r"shape \(3, 6, 5\)$"):
        convert(Request(model=model, images=images), tmp_path / "out.onnx")
    with pytest.raises(UsageError, match=r"shape \(1, 2, 3\)$"):
        options = ConvertOptions(input_shape=(1, 2, 3))
        convert(Request(model=model, images=images, options=options), tmp_path / "out.onnx")
    with pytest.raises(UsageError, match=r"shape None$"):
        convert(Request(model=model), tmp_path / "out.onnx")


def test_what_a_framework_prints_stays_in_the_child(made, tmp_path, capfd):
    convert(Request(model=made(do="noise")), tmp_path / "out.onnx")
    assert capfd.readouterr() == ("", "")


def test_a_module_in_the_users_folder_is_not_taken_for_a_library(made, tmp_path, monkeypatch):
    folder = tmp_path / "site" / "vendor"
    folder.mkdir()
    for name in ("onnx", "numpy", "json", "debride"):
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    monkeypatch.chdir(folder)
    convert(Request(model=made()), tmp_path / "out.onnx")
    assert not (folder / "ran").exists()


def test_an_output_that_exists_is_refused_before_any_work(made, tmp_path):
    (tmp_path / "out.onnx").write_text("mine")
    with pytest.raises(UsageError, match=r"out\.onnx: exists already"):
        convert(Request(model=made(do="crash")), tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_text() == "mine"
    convert(Request(model=made()), tmp_path / "out.onnx", force=True)
    assert read_model(tmp_path / "out.onnx").graph.opset == 18


def test_ctrl_c_ends_the_child_and_leaves_nothing(made, tmp_path):
    model = made(do="hang")
    command = [sys.executable, "-c", "from debride.cli import main; main()", "convert", str(model), "-o"]
    run = subprocess.Popen([*command, str(tmp_path / "out.onnx")], stderr=subprocess.PIPE, text=True)
    pid = tmp_path / "model.pid"
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted; nothing was written" in said
    assert gone(int(pid.read_text()))
    assert left(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_killed_parent_takes_the_child_with_it(made, tmp_path):
    command = [sys.executable, "-c", "from debride.cli import main; main()", "convert", str(made(do="hang")), "-o"]
    run = subprocess.Popen([*command, str(tmp_path / "out.onnx")], stderr=subprocess.DEVNULL)
    pid = tmp_path / "model.pid"
    until = time.monotonic() + 60
    while not (pid.exists() and pid.read_text()) and time.monotonic() < until:
        time.sleep(0.1)
    run.kill()
    run.wait()
    assert gone(int(pid.read_text()))


def test_a_stage_that_fails_on_the_temporary_file_names_the_model(made, tmp_path):
    model = made()
    with pytest.raises(ModelError, match=r"model\.made \(as ONNX\): no good"), opened(Request(model=model)) as source:
        assert source.path.name == "model.onnx"
        raise ModelError(f"{source.path}: no good")
    assert not source.path.exists()


def test_the_stages_read_a_converted_model_like_any_other(made, images):
    model = made()
    with opened(Request(model=model, images=images)) as source:
        loaded = load(source, images, Settings(threads=1))
    assert loaded.facts == source.facts == facts_of(model)
    assert loaded.conversion is not None
    assert loaded.conversion.framework == "Made-up"
    assert (loaded.n_classes, loaded.spec.source) == (4, "metadata")


def test_what_the_side_car_says_is_told_as_such(made, images, tmp_path):
    model = made(spec={})
    (tmp_path / "model.json").write_text('{"range": [0, 1]}')
    with opened(Request(model=model, images=images)) as source:
        assert load(source, images, Settings(threads=1)).spec.source == "side-car"


def test_a_folder_may_be_named_by_a_dot(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    assert facts_of(Path()).name == "model"
    with pytest.raises(ModelError, match=r"\.: no adapter reads this folder"):
        convert(Request(model=Path()), tmp_path / "out.onnx")


def test_a_model_behind_a_link_keeps_the_name_that_the_user_knows(made, tmp_path):
    (tmp_path / "known.made").symlink_to(made())
    with opened(Request(model=tmp_path / "known.made")) as source:
        assert (source.path.name, source.facts.name) == ("known.onnx", "known.made")


def test_a_child_whose_parent_is_gone_already_does_not_begin(made, tmp_path):
    (tmp_path / "request.json").write_text(request_to_json(Request(model=made())))
    command = [sys.executable, "-m", "debride.conversion.child", str(tmp_path), "1"]
    ended = subprocess.run(command, check=False, capture_output=True, timeout=60)
    assert ended.returncode == (1 if sys.platform == "linux" and os.getpid() != 1 else 0)


def test_an_onnx_file_is_opened_as_it_is(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_classifier(tiny_spec()))
    with opened(Request(model=path)) as source:
        assert (source.path, source.conversion) == (path, None)
    with pytest.raises(ModelError, match=r"n\.onnx: no such file"), opened(Request(model=tmp_path / "n.onnx")):
        pass


def test_an_old_onnx_file_is_brought_up_keeps_its_metadata_and_loses_its_traces(tmp_path):
    model = onnx.load_from_string(made_up.graph({}))
    model.metadata_props.add(key=METADATA_KEY, value='{"range": [0, 255], "class_names": ["a", "b", "c", "d"]}')
    onnx.save(model, tmp_path / "old.onnx")
    written = convert(Request(model=tmp_path / "old.onnx", flags=SpecFlags(range=(0.0, 1.0))), tmp_path / "new.onnx")
    assert (written.conversion.framework, written.conversion.opset) == ("ONNX", 18)
    found = props(tmp_path / "new.onnx")
    assert found["exporter"] == "somebody's"
    assert json.loads(found[METADATA_KEY]) == {"range": [0.0, 1.0], "class_names": ["a", "b", "c", "d"]}
    assert b"secret" not in (tmp_path / "new.onnx").read_bytes()


def test_an_upgrade_that_changes_the_outputs_is_not_taken(tmp_path, monkeypatch):
    def worse(proto, opset):
        changed = onnx.version_converter.convert_version(proto, opset)
        bias = next(t for t in changed.graph.initializer if t.name == "bias")
        bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) * np.float32(1.01), "bias"))
        return changed

    monkeypatch.setattr(finishing, "upgraded", worse)
    converted = Converted(onnx=tiny_classifier(tiny_spec()), folder=tmp_path)
    request = Request(model=tmp_path / "old.onnx")
    conversion = finish(converted, "ONNX", request, tmp_path)
    assert conversion.opset == read_model(graph_at(tmp_path, request)).graph.opset == 13
    assert "opset 13 was kept" in conversion.notes[0]


def test_weights_outside_the_onnx_file_come_in_and_never_from_outside_its_folder(tmp_path):
    model = onnx.load_from_string(tiny_classifier(tiny_spec()))
    external_data_helper.convert_model_to_external_data(model, location="weights.bin", size_threshold=0)
    (tmp_path / "in").mkdir()
    onnx.save(model, tmp_path / "in" / "m.onnx")
    convert(Request(model=tmp_path / "in" / "m.onnx"), tmp_path / "out.onnx")
    assert not any(t.external_data for t in onnx.load(tmp_path / "out.onnx").graph.initializer)
    (tmp_path / "in" / "weights.bin").rename(tmp_path / "weights.bin")
    (tmp_path / "in" / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="leads out of the model's folder"):
        convert(Request(model=tmp_path / "in" / "m.onnx"), tmp_path / "other.onnx")


def test_a_fixed_batch_is_measured_one_by_one(tmp_path):
    data = tiny_classifier(tiny_spec(), batch=1)
    converted = Converted(onnx=data, reference=made_up.scores)
    conversion = save(converted, tmp_path / "out.onnx", framework="Made-up")
    assert conversion.parity[0].same_class == Rate(8, 8)


def test_an_object_in_memory_is_saved_with_parity_or_not_at_all(tmp_path):
    good = Converted(onnx=tiny_classifier(tiny_spec()), reference=made_up.scores, spec={"range": [0, 1]})
    save(good, tmp_path / "good.onnx", framework="Made-up")
    assert Classifier(tmp_path / "good.onnx").classify([np.full((6, 5, 3), 0.5, np.float32)])
    with pytest.raises(ParityError):
        save(replace(good, reference=lambda b: [-out for out in made_up.scores(b)]), tmp_path / "b.onnx", framework="")
    with pytest.raises(ParityError, match="1 outputs and the framework gives 2"):
        save(replace(good, reference=lambda b: made_up.scores(b) * 2), tmp_path / "b.onnx", framework="")
    with pytest.raises(ParityError, match="not finite"):
        save(replace(good, reference=lambda b: [out * np.nan for out in made_up.scores(b)]), tmp_path / "b.onnx",
             framework="")  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["good.onnx"]


def test_a_request_and_its_outcome_survive_the_way_between_the_processes(tmp_path):
    request = Request(
        model=tmp_path / "m.pth",
        name="x.onnx",
        options=ConvertOptions(architecture="net:build", input_shape=(3, 4, 5), opset=20),
        flags=SpecFlags(layout="NHWC", mean=(0.1, 0.2, 0.3), range=(0.0, 1.0)),
        images=tmp_path / "images",
        resize=True,
        seed=3,
        threads=2,
        tolerance=0.5,
        limits=Limits(seconds=1.5, memory=77),
    )
    assert request_from_json(request_to_json(request)) == request
    assert request_from_json(request_to_json(Request(model=tmp_path))) == Request(model=tmp_path)
    conversion = Conversion(
        framework="F",
        packages={"a": "1"},
        opset=18,
        parity=(Agreement(kind="images", difference=0.25, same_class=Rate(3, 4)),),
        tolerance=0.1,
        notes=("n",),
    )
    assert outcome_from_json(outcome_to_json(conversion)) == conversion
    with pytest.raises(ImagesError, match=r"^gone$"):
        outcome_from_json(outcome_to_json(ImagesError("gone")))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"error": "Path", "message": "x"}', '{"error": "SystemExit", "message": 3}', "[" * 9999]
)
def test_an_outcome_that_no_child_of_ours_writes_is_a_plain_error(text):
    with pytest.raises(DebrideError):
        outcome_from_json(text)


def test_the_digest_of_a_folder_tells_names_and_contents_apart(tmp_path):
    def folder(name, **files):
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        return facts_of(tmp_path / name)

    one, same = folder("one", a="xy", b="z"), folder("two", a="xy", b="z")
    assert (one.sha256, one.size, one.name) == (same.sha256, 3, "one")
    others = [folder("three", a="x", b="yz"), folder("four", a="xyz"), folder("five", a="xy", c="z")]
    assert len({one.sha256, *(other.sha256 for other in others)}) == 4
    (tmp_path / "one" / "link").symlink_to(tmp_path / "two" / "a")
    with pytest.raises(ModelError, match="link"):
        facts_of(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        facts_of(tmp_path / "pipe")


CONVERSION = Conversion(framework="F", packages={}, opset=18, parity=(), tolerance=0.1)


def test_a_link_that_the_child_leaves_is_not_followed(tmp_path):
    request = Request(model=tmp_path / "m.made")
    (tmp_path / "outcome.json").write_text(outcome_to_json(CONVERSION))
    (tmp_path / "graph").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "graph" / "model.onnx").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match="wrote no graph"):
        running._result(tmp_path, request, 0)
    (tmp_path / "graph" / "model.onnx").unlink()
    (tmp_path / "graph" / "model.onnx").write_text("a file of its own")
    assert running._result(tmp_path, request, 0) == CONVERSION
    (tmp_path / "outcome.json").rename(tmp_path / "elsewhere.json")
    (tmp_path / "outcome.json").symlink_to(tmp_path / "elsewhere.json")
    (tmp_path / "log.txt").write_text("")
    with pytest.raises(ModelError, match="ended without a result"):
        running._result(tmp_path, request, 0)


def test_what_a_terminal_would_obey_does_not_leave_the_child():
    told = outcome_from_json(outcome_to_json(replace(CONVERSION, framework="F\x1b[31m", notes=("a\nb\x07",))))
    assert (told.framework, told.notes) == ("F?[31m", ("a b?",))
    with pytest.raises(ModelError, match=r"^bad\?\[2J line$"):
        outcome_from_json(outcome_to_json(ModelError("bad\x1b[2J\nline")))


def test_a_graph_that_is_none_is_not_written(made, tmp_path, monkeypatch):
    def forged(folder, request, progress):
        graph_at(folder, request).parent.mkdir()
        graph_at(folder, request).write_bytes(b"no graph")
        return CONVERSION

    monkeypatch.setattr("debride.conversion.write.convert_in", forged)
    with pytest.raises(ModelError):
        convert(Request(model=made()), tmp_path / "out.onnx")
    assert left(tmp_path) == []
