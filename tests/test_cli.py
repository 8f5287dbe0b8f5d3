"""The command line: what it prints where, what it writes, and above all its exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import types
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from rich.console import Console

import debride
import made_up
from debride.cli import main
from debride.cli.guard import guard
from debride.cli.progress import Bars, Lines, live_bars
from debride.conversion.source import facts_of
from debride.errors import ParityError, UsageError
from debride.specfile import METADATA_KEY, to_json
from debride.types import (
    WHOLE,
    ConvertOptions,
    Detection,
    Evaluation,
    FileFacts,
    Finding,
    Rate,
    Report,
    Samples,
    Trigger,
    TriggerEvaluation,
)
from tiny import tiny_classifier, tiny_samples, tiny_spec

SAMPLES = Path(__file__).parents[1] / "samples"
MODEL, IMAGES, TRIGGER = SAMPLES / "fashion-backdoored.onnx", SAMPLES / "images", SAMPLES / "true-trigger.npz"
TROUSER = IMAGES / "1-trouser" / "0002.png"
EVALUATE = ("evaluate", MODEL, "--images", IMAGES, "--threads", "1", "--range", "0,1")
COMMAND = [sys.executable, "-c", "from debride.cli import main; main()"]
WRITING = ("sanitize", "retrain")
"""The commands that search a model and write another one."""


def environment(**more):
    plain = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "COLUMNS")}
    return {**plain, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", **more}


def ended(*arguments, code="from debride.cli import main; main()", **more):
    """A real process: (exit code, stdout, stderr)."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, check=False, env=environment(**more), capture_output=True, text=True, timeout=1200)
    return done.returncode, done.stdout, done.stderr


def modules_after(*arguments):
    """The names of the modules that are loaded when a command ends."""
    code = "import sys\nfrom debride.cli import main\ntry: main()\nfinally: print(*sys.modules)"
    return ended(*arguments, code=code)[1].splitlines()[-1].split()


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


def report(verdict="sanitized", command="sanitize"):
    shape = (4, 4)
    trigger = Trigger(
        target=2,
        mask=np.zeros((1, *shape), np.float32),
        pattern=np.zeros((1, *shape), np.float32),
        l1=3.5,
        success=Rate(9, 10),
    )
    suspect = verdict not in ("clean", "inconclusive")
    rates = TriggerEvaluation(target=2, asr=Rate(9, 10), robust=Rate(1, 10))
    evaluation = Evaluation(kind="accuracy", clean=Rate(19, 20), triggers=(rates,))
    return Report(
        command=command,
        verdict=verdict,
        reason="",
        model=FileFacts(name="m.onnx", sha256="0" * 64, size=10),
        output=None,
        spec=tiny_spec(),
        detection=Detection(findings=(Finding(trigger=trigger, anomaly=4.0, suspect=suspect, reason=""),), threshold=2),
        players=5,
        seed=0,
        options={},
        environment={},
        parity=0.0,
        samples={},
        seconds={"total": 1.0},
        before=evaluation,
        after=evaluation,
        examples=Samples(images=np.zeros((2, 1, *shape), np.float32)),
    )


@pytest.fixture
def stages(monkeypatch):
    """`debride.sanitize` replaced: it keeps what it was called with and gives what `stages.verdict` says."""
    module = types.ModuleType("debride.sanitize")
    module.verdict, module.calls, module.failure = "sanitized", [], None

    def scan(model, images, *, settings, progress):
        module.calls.append((model, images, settings))
        progress("search", 5, 10, "halfway")
        progress("search", 10, 10, "8 triggers")
        if module.failure is not None:
            raise module.failure
        return report(module.verdict, "scan")

    def sanitize(model, images, output, *, settings, force, progress, command="sanitize"):
        module.calls.append((model, images, output, settings, force))
        if module.failure is not None:
            raise module.failure
        output.write_bytes(b"cleaned")
        if module.verdict == "interrupted":
            raise KeyboardInterrupt
        return report(module.verdict, command)

    def retrain(model, images, output, *, settings, triggers, force, progress):
        module.triggers = triggers
        return sanitize(model, images, output, settings=settings, force=force, progress=progress, command="retrain")

    module.scan, module.sanitize, module.retrain = scan, sanitize, retrain
    monkeypatch.setitem(sys.modules, "debride.sanitize", module)
    return module


# Help, version, usage


@pytest.mark.parametrize("command", ["scan", "sanitize", "retrain", "slim", "export", "evaluate", "predict"])
def test_help_fits_80_columns_and_tells_exit_codes_and_examples(command):
    code, out, _ = ended(command, "--help", COLUMNS="80")
    assert code == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    assert f"debride {command} " in out.split("Examples")[1]
    assert all(f"{code} " in out.split("Exit codes")[1] for code in (0, 2, 3, 130))
    assert "--layout" in out and "--input-name" in out and "--threads" in out


@pytest.mark.parametrize(("command", "own"), [("sanitize", "retrain group-budget slim align"), ("retrain", "trigger")])
def test_help_names_every_flag(command, own):
    out = ended(command, "--help", COLUMNS="80")[1]
    flags = "images per-class layout range mean std channels input-name output-name resize seed threads provider"
    flags += " utility-budget target-asr time-budget output report force quiet format debug"
    flags += f" retrain-method retrain-steps batch-norm {own}"
    assert [flag for flag in flags.split() if not re.search(rf"--{flag}\b", out)] == []


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_load_no_heavy_library(flag):
    assert {"torch", "onnx", "onnxruntime", "cv2"}.isdisjoint(modules_after(flag))


def test_version(run):
    assert run("--version") == (0, f"debride {debride.__version__}\n", "")


def test_without_a_command_help_is_shown_and_the_code_is_2(run):
    code, out, err = run()
    assert code == 2 and "sanitize" in out + err


@pytest.mark.parametrize(
    "flags",
    [("--bogus",), ("--layout", "CHWN"), ("--per-class", "few"), ("--threads", "-1"), ("--format", "xml")],
)
def test_wrong_flags_are_usage_errors(run, stages, flags):
    code, out, err = run("scan", MODEL, "--images", IMAGES, *flags)
    assert (code, out, stages.calls) == (2, "", [])
    assert flags[0] in re.sub(r"\x1b\[[0-9;]*m", "", err)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--range", value) for value in ("0", "0;1", "0,1,2", "1,0", "0,0", "a,b", "0,inf", "nan,1", "", "0,1e9")),
        *(("--mean", value) for value in ("1,2", "x", "__import__('os')", "nan")),
        *(("--std", value) for value in ("0", "1,1,-1", "1,2")),
    ],
)
def test_a_malformed_convention_names_the_flag_and_the_mend(run, stages, flag, value):
    code, out, err = run("sanitize", MODEL, "--images", IMAGES, "-o", "never.onnx", "--report", "never", flag, value)
    assert (code, out, stages.calls) == (2, "", [])
    assert err.startswith(f"debride: error: {flag} {value!r}") and f"as in {flag} " in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        *(("--target-asr", "1.5"), ("--utility-budget", "-1"), ("--per-class", "0"), ("--time-budget", "0")),
        *(("--retrain-steps", steps) for steps in ("0", "-1", "100001", "many")),
        *(("--retrain-method", "magic"), ("--batch-norm", "drop")),
    ],
)
@pytest.mark.parametrize("command", WRITING)
def test_options_out_of_range_are_usage_errors(run, stages, tmp_path, command, flag, value):
    code, out, err = run(
        command, MODEL, "--images", IMAGES, "-o", tmp_path / "c.onnx", "--report", tmp_path / "r", flag, value
    )
    assert (code, out, stages.calls) == (2, "", []) and flag in re.sub(r"\x1b\[[0-9;]*m", "", err)


DEVICES = {
    "scan": ("--images", IMAGES),
    "sanitize": ("--images", IMAGES, "-o", "clean.onnx", "--report", "report"),
    "retrain": ("--images", IMAGES, "-o", "clean.onnx", "--report", "report"),
    "evaluate": ("--images", IMAGES),
    "predict": (TROUSER,),
    "slim": ("-o", "slim.onnx"),
    "export": ("--images", IMAGES, "-o", "half.onnx", "--target", "fp16"),
}
"""The commands that take --device, with what else they need."""


@pytest.mark.parametrize("model", ["m.pth", "m.onnx"])
@pytest.mark.parametrize("command", DEVICES)
def test_a_device_that_is_not_there_ends_a_command_before_any_work(run, monkeypatch, tmp_path, command, model):
    import torch

    from debride import loading, sessions
    from debride.conversion import source

    def works(*_, **__):
        raise AssertionError("it went on")

    monkeypatch.chdir(tmp_path)
    Path(model).write_bytes(b"no model at all")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sessions.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for module, name in ((source, "convert_in"), (loading, "read_model"), (sessions, "_create")):
        monkeypatch.setattr(module, name, works)
    code, out, err = run(command, model, *DEVICES[command], "--device", "cuda")
    assert (code, out, err.count("\n"), sorted(tmp_path.iterdir())) == (3, "", 1, [tmp_path / model])
    assert err.startswith("debride: error: ") and "--device cpu" in err and "debride[gpu]" in err


@pytest.mark.parametrize("command", DEVICES)
def test_a_word_that_is_no_device_is_wrong_usage(run, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(command, MODEL, *DEVICES[command], "--device", "gpu")
    assert (code, out) == (2, "") and "auto, cpu, cuda or cuda:N" in err


def test_when_to_retrain_is_auto_never_or_always(run, stages, tmp_path):
    goals = ("-o", tmp_path / "c.onnx", "--report", tmp_path / "r")
    assert run("sanitize", MODEL, "--images", IMAGES, *goals, "--retrain", "sometimes")[0] == 2
    # What it learns from is no business of a scan, and `retrain` has no choice.
    assert run("scan", MODEL, "--images", IMAGES, "--retrain-steps", "5")[0] == 2
    assert run("retrain", MODEL, "--images", IMAGES, *goals, "--retrain", "never")[0] == 2
    assert stages.calls == []
    for choice in ("auto", "never", "always"):
        assert run("sanitize", MODEL, "--images", IMAGES, *goals, "--force", "--retrain", choice)[0] == 0
    assert [call[3].retrain for call in stages.calls] == ["auto", "never", "always"]


# scan and sanitize: wiring


def test_flags_reach_the_stages(run, stages, tmp_path):
    output, folder = tmp_path / "c.onnx", tmp_path / "r"
    flags = "--per-class 3 --layout nhwc --range -1,1 --mean 0.1,0.2,0.3 --std 0.5 --channels BGR --input-name x"
    flags += " --output-name y --resize --seed 7 --threads 2 --provider A --provider B --utility-budget 0.1"
    flags += " --group-budget 0.2 --target-asr 0.3 --time-budget 60"
    assert run("sanitize", MODEL, "--images", IMAGES, *flags.split(), "-o", output, "--report", folder)[0] == 0
    ((model, images, where, settings, force),) = stages.calls
    assert (model, images, where, force) == (MODEL, IMAGES, output, False)
    said = settings.flags
    assert (said.layout, said.channels, said.name, said.output) == ("NHWC", "BGR", "x", "y")
    assert (said.range, said.mean, said.std) == ((-1.0, 1.0), (0.1, 0.2, 0.3), (0.5,))
    assert (settings.per_class, settings.resize, settings.seed, settings.threads) == (3, True, 7, 2)
    assert settings.providers == ("A", "B")
    budgets = (settings.utility_budget, settings.group_budget, settings.target_asr, settings.time_budget)
    assert budgets == (0.1, 0.2, 0.3, 60.0)


@pytest.mark.parametrize("command", WRITING)
def test_how_to_retrain_reaches_the_stages(run, stages, tmp_path, command):
    flags = "--retrain-method ft-sam --retrain-steps 17 --batch-norm estimate --seed 3 --threads 1 --target-asr 0.2"
    goals = ("-o", tmp_path / "c.onnx", "--report", tmp_path / "r")
    assert run(command, MODEL, "--images", IMAGES, *flags.split(), *goals)[0] == 0
    settings = stages.calls[0][3]
    retraining = settings.retraining
    assert (retraining.method, retraining.steps, retraining.statistics) == ("ft-sam", 17, "estimate")
    assert (settings.seed, settings.threads, settings.target_asr) == (3, 1, 0.2)


def test_triggers_and_force_reach_retrain_and_the_report_is_its_own(run, stages, tmp_path):
    output = tmp_path / "c.onnx"
    output.write_text("old")
    triggers = ("--trigger", TRIGGER, "--trigger", tmp_path / "b.npz")
    call = ("retrain", MODEL, "--images", IMAGES, *triggers, "-o", output, "--force", "--format", "json")
    code, out, _ = run(*call)
    assert code == 0 and json.loads(out)["command"] == "retrain"
    assert stages.triggers == (TRIGGER, tmp_path / "b.npz")
    assert stages.calls[0][:3] == (MODEL, IMAGES, output) and stages.calls[0][4] is True
    # Without --report only the model is written.
    assert [path.name for path in tmp_path.iterdir()] == ["c.onnx"]


def test_retrain_never_writes_over_a_trigger(run, stages, tmp_path):
    (trigger := tmp_path / "t.npz").write_bytes(TRIGGER.read_bytes())
    code, _, err = run("retrain", MODEL, "--images", IMAGES, "--trigger", trigger, "-o", trigger, "--force")
    assert code == 2 and f"{trigger}: --output is the trigger itself; give another path" in err.replace("\n", " ")
    assert stages.calls == [] and trigger.read_bytes() == TRIGGER.read_bytes()


def test_without_flags_nothing_is_stated_and_budgets_are_those_of_settings(run, stages, tmp_path):
    from debride.settings import Settings

    run("scan", MODEL, "--images", IMAGES)
    assert stages.calls[0][2] == Settings()
    for command in WRITING:
        goals = ("-o", tmp_path / "c.onnx", "--report", tmp_path / "r", "--force")
        assert run(command, MODEL, "--images", IMAGES, *goals)[0] == 0
        assert stages.calls[-1][3] == (Settings(retrain="always") if command == "retrain" else Settings())
    assert stages.triggers == ()


@pytest.mark.parametrize(("verdict", "code"), [("clean", 0), ("backdoored", 1), ("inconclusive", 3), ("unheard of", 3)])
def test_scan_ends_with_the_verdicts_code(run, stages, verdict, code):
    stages.verdict = verdict
    if verdict == "unheard of":
        assert run("scan", MODEL, "--images", IMAGES, "--format", "json")[0] == code
    else:
        found, out, _ = run("scan", MODEL, "--images", IMAGES)
        assert found == code and out.startswith(verdict.upper())


@pytest.mark.parametrize(
    ("verdict", "code"), [("clean", 0), ("sanitized", 0), ("not sanitized", 1), ("inconclusive", 3)]
)
@pytest.mark.parametrize("command", WRITING)
def test_it_ends_with_the_verdicts_code_and_writes_the_report(run, stages, tmp_path, command, verdict, code):
    stages.verdict = verdict
    folder = tmp_path / "r"
    found, out, _ = run(command, MODEL, "--images", IMAGES, "-o", tmp_path / "c.onnx", "--report", folder)
    assert found == code and out.startswith(verdict.upper()) and "report.json" in out
    assert json.loads((folder / "report.json").read_text())["verdict"] == verdict


def test_scan_writes_no_file_unless_told_to(run, stages, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("scan", MODEL, "--images", IMAGES)
    assert list(tmp_path.iterdir()) == []


def test_scan_output_takes_the_json_in_place_of_stdout(run, stages, tmp_path):
    stages.verdict = "backdoored"
    code, out, err = run("scan", MODEL, "--images", IMAGES, "--output", tmp_path / "found.json", "--quiet")
    assert (code, out) == (1, "") and "backdoored" in err and "found.json" in err
    assert json.loads((tmp_path / "found.json").read_text())["suspects"] == [2]
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_json_on_stdout_parses(run, stages, tmp_path):
    _, out, _ = run("scan", MODEL, "--images", IMAGES, "--format", "json", "--report", tmp_path / "r")
    document = json.loads(out)
    assert document["command"] == "scan" and "report.json" in document["files"]


def test_the_model_and_the_report_may_share_a_folder(run, stages, tmp_path):
    assert run("sanitize", MODEL, "--images", IMAGES, "-o", tmp_path / "c.onnx", "--report", tmp_path)[0] == 0
    assert {"c.onnx", "report.json"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("command", ["scan", *WRITING])
def test_nothing_runs_where_output_or_report_exist_unless_forced(run, stages, tmp_path, command):
    taken, folder = tmp_path / "taken", tmp_path / "r"
    taken.write_text("mine")
    folder.mkdir()
    (folder / "theirs.txt").write_text("mine")
    call = (command, MODEL, "--images", IMAGES)
    for output, report_folder in ((taken, tmp_path / "new"), (tmp_path / "new.onnx", folder)):
        code, _, err = run(*call, "-o", output, "--report", report_folder)
        assert code == 2 and "--force" in err and stages.calls == []
    assert taken.read_text() == "mine"
    assert run(*call, "-o", taken, "--report", folder, "--force")[0] == 0
    assert taken.read_text() != "mine" and (folder / "theirs.txt").read_text() == "mine"


@pytest.mark.parametrize("command", WRITING)
def test_the_model_itself_is_never_the_output(run, stages, tmp_path, command):
    model = tmp_path / "m.onnx"
    model.write_bytes(b"precious")
    code, _, err = run(command, model, "--images", IMAGES, "-o", model, "--report", tmp_path / "r", "--force")
    assert code == 2 and "the model itself" in err and model.read_bytes() == b"precious"


@pytest.mark.parametrize("command", WRITING)
def test_the_model_and_the_report_are_two_things(run, stages, tmp_path, command):
    same = tmp_path / "c"
    code, _, err = run(command, MODEL, "--images", IMAGES, "-o", same, "--report", same)
    assert code == 2 and "--output and --report are the same" in err and stages.calls == []


@pytest.mark.parametrize("command", WRITING)
def test_without_an_output_nothing_runs(run, stages, tmp_path, command):
    code, _, err = run(command, MODEL, "--images", IMAGES, "--report", tmp_path / "r")
    assert code == 2 and "--output" in re.sub(r"\x1b\[[0-9;]*m", "", err) and stages.calls == []


@pytest.mark.parametrize("command", WRITING)
def test_an_output_in_a_folder_that_is_not_there_is_refused_before_the_run(run, stages, tmp_path, command):
    call = (command, MODEL, "--images", IMAGES, "--report", tmp_path / "r", "-o")
    for output in (tmp_path / "no" / "c.onnx", tmp_path):
        assert run(*call, output)[0] == 2
    assert stages.calls == []


# Failures and interruptions


@pytest.mark.parametrize(
    ("failure", "code"), [(ParityError("model: differs"), 3), (UsageError("a flag"), 2), (ValueError("odd"), 3)]
)
def test_failures_are_one_line_with_their_exit_code(run, stages, failure, code):
    stages.failure = failure
    found, out, err = run("scan", MODEL, "--images", IMAGES, "--quiet")
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert str(failure) in err and "Traceback" not in err
    assert ("--debug" in err) == isinstance(failure, ValueError)


def test_debug_shows_the_traceback(run, stages):
    stages.failure = ValueError("odd")
    code, _, err = run("scan", MODEL, "--images", IMAGES, "--debug")
    assert code == 3 and "Traceback" in err and "odd" in err


def test_what_a_terminal_would_obey_is_not_printed(run, stages):
    stages.failure = ParityError("node '\x1b]0;owned\x07\nnext'")
    err = run("scan", MODEL, "--images", IMAGES, "--quiet")[2]
    assert "\x1b" not in err and "\x07" not in err and err.count("\n") == 1


@pytest.mark.parametrize("command", WRITING)
def test_an_interruption_is_130_and_says_that_nothing_was_written(run, stages, tmp_path, command):
    stages.failure = KeyboardInterrupt()
    call = (command, MODEL, "--images", IMAGES, "-o", tmp_path / "c.onnx", "--report", tmp_path / "r")
    assert run(*call) == (130, "", "debride: interrupted; nothing was written\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", WRITING)
def test_an_interruption_after_the_model_was_written_says_so(run, stages, tmp_path, command):
    stages.verdict = "interrupted"
    call = (command, MODEL, "--images", IMAGES, "-o", tmp_path / "c.onnx", "--report", tmp_path / "r")
    assert run(*call) == (130, "", f"debride: interrupted; already written: {tmp_path / 'c.onnx'}\n")


def test_a_terminated_run_cleans_up_and_is_143(tmp_path):
    code = """
import sys, time, types
from pathlib import Path
def scan(*_, **__):
    partial = Path("partial")
    partial.touch()
    try:
        print("under way", file=sys.stderr, flush=True)
        time.sleep(60)
    finally:
        partial.unlink()
sys.modules["debride.sanitize"] = types.SimpleNamespace(scan=scan)
from debride.cli import main
main()"""
    command = [sys.executable, "-c", code, "scan", str(MODEL), "--images", str(IMAGES)]
    with subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, cwd=tmp_path) as child:
        assert child.stderr.readline() == "under way\n" and (tmp_path / "partial").exists()
        child.terminate()
        assert (child.wait(60), child.stderr.read()) == (143, "")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_does_not_change_the_exit_code():
    command = [*COMMAND, *map(str, EVALUATE), "--trigger", str(TRIGGER)]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        child.stdout.close()
        assert (child.wait(60), child.stderr.read()) == (1, "")


# Progress


def test_a_finished_stage_is_one_line_where_stderr_is_no_terminal(run, stages):
    _, out, err = run("scan", MODEL, "--images", IMAGES)
    assert re.fullmatch(r"search: \d+\.\d s, 8 triggers\n", err) and "search" not in out


def test_bars_are_for_terminals_whatever_the_environment_says(run, stages, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "━" not in run("scan", MODEL, "--images", IMAGES)[2]
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    run("scan", MODEL, "--images", IMAGES)
    assert "━" in terminal.getvalue() and "100%" in terminal.getvalue() and "8 triggers" in terminal.getvalue()


def test_quiet_prints_no_progress(run, stages):
    assert run("scan", MODEL, "--images", IMAGES, "--quiet")[2] == ""


def test_lines_are_printed_again_when_a_stage_runs_again():
    shown = StringIO()
    lines = Lines(Console(file=shown))
    for done in (1, 2, 2, 1, 2):
        lines("search", done, 2)
    assert shown.getvalue().count("search: ") == 2


def test_a_long_stage_tells_its_share_and_the_time_left_every_half_minute():
    shown, times = StringIO(), iter([0, 10, 29, 40, 50, 90, 100])
    lines = Lines(Console(file=shown), lambda: next(times))
    for done in (0, 2, 4, 5, 20, 100):
        lines("search", done, 100, "9 triggers")
    assert shown.getvalue().splitlines() == [
        "search: 4%, about 12 min left, 9 triggers",  # 30 s for 4 of 100, since it began
        "search: 20%, about 5 min left, 9 triggers",
        "search: 100.0 s, 9 triggers",
    ]


def test_what_a_stage_had_done_when_it_was_first_told_of_says_nothing_of_its_pace():
    shown, times = StringIO(), iter([0, 100, 140])
    lines = Lines(Console(file=shown), lambda: next(times))
    lines("survey", 50, 100)
    lines("survey", 75, 100)
    assert shown.getvalue().splitlines() == ["survey: 75%, about 40 s left"]


def test_a_line_tells_how_far_the_whole_run_is_where_that_is_known():
    shown, times = StringIO(), iter([0, 10, 10, 40, 40, 80, 80])
    lines = Lines(Console(file=shown), lambda: next(times))
    for done in (0, 10, 20):
        lines(WHOLE, done, 100)
        lines("search", done, 20)
    assert shown.getvalue().splitlines() == [
        "search: 50%, about 30 s left (in all: 10%, 4 min)",
        "search: 80.0 s",
    ]


def test_bars_show_share_time_left_and_note_and_go_back_when_a_stage_runs_again():
    shown = StringIO()
    with live_bars(Console(file=shown, force_terminal=True, width=80)) as live:
        bars = Bars(live)
        bars("search", 50, 100, "20 [red]arms")
        bars("value", 0, 0)
        (search, value) = live.tasks
        assert (search.completed, search.total, search.fields["note"]) == (50, 100, "20 [red]arms")
        assert value.total is None
        bars("search", 100, 100)
        assert search.finished
        bars("search", 1, 100)
        assert not search.finished and search.completed == 1 and len(live.tasks) == 2
    assert "search" in shown.getvalue() and "-:--:--" in shown.getvalue()


# evaluate


def test_evaluate_without_a_trigger_passes(run):
    code, out, err = run(*EVALUATE, "--json")
    found = json.loads(out)
    assert (code, err, found["kind"], found["triggers"]) == (0, "", "accuracy", [])
    assert found["clean"]["n"] == 400 and 0.88 < found["clean"]["rate"] < 0.97
    low, high = found["clean"]["interval"]
    assert low < found["clean"]["rate"] < high


def test_evaluate_with_the_true_trigger_is_a_finding(run):
    code, out, _ = run(*EVALUATE, "--trigger", TRIGGER, "--json")
    (tried,) = json.loads(out)["triggers"]
    assert code == 1 and tried["finding"] and tried["target"] == 7
    assert tried["asr"]["n"] == 360 and tried["asr"]["rate"] > 0.95 and tried["robust"]["rate"] < 0.05


def test_evaluate_tells_rates_with_intervals(run):
    code, out, _ = run(*EVALUATE, "--trigger", TRIGGER)
    assert code == 1 and "FINDING" in out and "true-trigger.npz -> class 7" in out
    assert re.search(r"accuracy +9\d\.\d % \(\d+\.\d to \d+\.\d\) +400\n", out)
    assert re.search(r"attack success +\d+\.\d % \(\d+\.\d to 100\.0\) +360\n", out)


def test_evaluate_measures_the_convention_where_nobody_says_it(run):
    _, out, _ = run("evaluate", MODEL, "--images", IMAGES, "--threads", "1", "--json")
    assert json.loads(out)["input_spec"]["source"] == "measured"


def test_target_asr_is_where_a_finding_begins(run):
    assert run(*EVALUATE, "--trigger", TRIGGER, "--target-asr", "1")[0] == 0


def test_an_attack_that_no_image_can_test_is_no_pass(run, tmp_path):
    sevens = tmp_path / "sevens"
    sevens.mkdir()
    for path in sorted((IMAGES / "7-sneaker").iterdir())[:3]:
        (sevens / path.name).write_bytes(path.read_bytes())
    call = ("evaluate", MODEL, "--images", sevens, "--range", "0,1", "--threads", "1", "--trigger", TRIGGER)
    code, out, err = run(*call, "--json")
    assert code == 3 and "inconclusive" in err
    assert json.loads(out)["triggers"][0]["asr"] == {"hits": 0, "n": 0, "rate": None, "interval": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model": "no.onnx"}, "no.onnx"),
        ({"model": __file__}, "test_cli.py"),
        ({"images": "no-such-folder"}, "no-such-folder"),
        ({"images": __file__}, "test_cli.py"),
        ({"trigger": "no.npz"}, "no.npz"),
        ({"trigger": __file__}, "test_cli.py"),
    ],
)
def test_evaluate_names_the_file_that_cannot_be_read(run, changes, names):
    given = {"model": MODEL, "images": IMAGES, "trigger": TRIGGER, **changes}
    code, out, err = run("evaluate", given["model"], "--images", given["images"], "--trigger", given["trigger"])
    assert (code, out, err.count("\n")) == (3, "", 1) and names in err


def test_labels_are_checked_where_the_graph_does_not_tell_the_number_of_classes(run, tmp_path):
    import onnx

    model = onnx.load_from_string(tiny_classifier(tiny_spec()))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "classes"
    onnx.save(model, tmp_path / "m.onnx")
    samples = tiny_samples(3)
    pixels = np.round(samples.images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    for top, code in ((3, 0), (4, 3)):
        labels = np.where(samples.labels == 3, top, samples.labels)
        np.savez(tmp_path / "x.npz", x=pixels, y=labels)
        found, _, err = run("evaluate", tmp_path / "m.onnx", "--images", tmp_path / "x.npz", "--range", "0,1")
        assert found == code and ("label 4" in err) == (code == 3)


# predict


def test_predict_tells_the_best_classes(run):
    code, out, _ = run("predict", MODEL, TROUSER, TROUSER, "--range", "0,1", "--top", "3", "--threads", "1")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 8 and lines[0] == str(TROUSER)
    assert re.fullmatch(r" +\d+\.\d %  1", lines[1])


def test_predict_json_parses(run):
    code, out, _ = run("predict", MODEL, TROUSER, "--range", "0,1", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["image"] == str(TROUSER)
    assert row["predictions"][0]["index"] == 1 and len(row["predictions"]) == 5
    assert 0.5 < row["predictions"][0]["probability"] <= 1


def test_predict_asks_for_the_convention_where_nobody_says_it(run):
    code, out, err = run("predict", MODEL, TROUSER)
    assert (code, out) == (3, "") and "--range" in err and str(MODEL) in err


def test_predict_reads_the_convention_and_the_names_from_the_model(run, tmp_path):
    import cv2

    spec = tiny_spec(class_names=("red", "green", "blue", "white"))
    (tmp_path / "m.onnx").write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}))
    blue = np.broadcast_to(np.array([0.7, 0.1, 0.2]) * 255, (9, 9, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "b.png"), blue)
    code, out, _ = run("predict", tmp_path / "m.onnx", tmp_path / "b.png", "--top", "1", "--json")
    assert code == 0 and json.loads(out)[0]["predictions"][0]["label"] == "blue"


@pytest.mark.parametrize("bad", [{"model": "no.onnx"}, {"image": "no.png"}, {"image": __file__}, {"model": __file__}])
def test_predict_names_the_file_that_cannot_be_read(run, bad):
    given = {"model": MODEL, "image": TROUSER, **bad}
    for flags in ((), ("--range", "0,1")) if "model" in bad else (("--range", "0,1"),):
        code, out, err = run("predict", given["model"], given["image"], *flags)
        assert (code, out) == (3, "") and Path(next(iter(bad.values()))).name in err


@pytest.mark.parametrize(
    "arguments", [("predict", MODEL, TROUSER, "--range", "0,1"), (*EVALUATE, "--trigger", TRIGGER)]
)
def test_predict_and_evaluate_load_neither_torch_nor_onnx(arguments):
    loaded = modules_after(*arguments)
    assert "onnxruntime" in loaded and {"torch", "onnx", "onnx_graphsurgeon"}.isdisjoint(loaded)


# The whole job, with the real stages


def sanitize_sample(folder):
    goals = ("-o", folder / "clean.onnx", "--report", folder / "report")
    flags = ("--slim", "--retrain", "always", "--retrain-steps", "10", "--per-class", "10", "--threads", "1", *goals)
    return ("sanitize", MODEL, "--images", IMAGES, *flags)


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory):
    """The shipped sample, sanitized once: (folder, exit code, stdout, stderr)."""
    folder = tmp_path_factory.mktemp("cleaned")
    return (folder, *ended(*sanitize_sample(folder)))


def test_the_sample_is_sanitized(cleaned):
    folder, code, out, err = cleaned
    document = json.loads((folder / "report" / "report.json").read_text())
    assert code == 0, out + err
    assert out.startswith("SANITIZED") and document["verdict"] == "sanitized" and document["suspects"] == [7]
    assert sorted(path.name for path in folder.iterdir()) == ["clean.onnx", "report"]
    assert (folder / "report" / "suspect-7.png").stat().st_size > 0
    slimming, size = document["slimming"], (folder / "clean.onnx").stat().st_size
    assert slimming["left"] == slimming["dead"] == len(document["pruned"]) and slimming["reason"] is None
    assert document["output"]["size"] == size < MODEL.stat().st_size and "\nSlimmed\n" in out
    assert err and all(re.match(r".+: \d+\.\d s", line) for line in err.splitlines())


def test_the_trigger_that_was_planted_no_longer_works(cleaned, run):
    call = ("evaluate", cleaned[0] / "clean.onnx", "--images", IMAGES, "--threads", "1", "--json")
    code, out, _ = run(*call, "--trigger", TRIGGER)
    found = json.loads(out)
    assert code == 0 and found["triggers"][0]["asr"]["rate"] <= 0.05 and found["clean"]["rate"] > 0.92


def test_the_cleaned_model_says_itself_how_it_wants_its_input(cleaned):
    code, out, _ = ended("predict", cleaned[0] / "clean.onnx", TROUSER, "--top", "1", "--json")
    assert code == 0 and json.loads(out)[0]["predictions"][0]["index"] == 1


@pytest.mark.parametrize("command", ["scan", *WRITING])
@pytest.mark.parametrize(
    ("what", "bad"), [("model", "no.onnx"), ("model", "junk.onnx"), ("images", "nowhere"), ("images", "junk.onnx")]
)
def test_a_bad_file_is_named_and_nothing_is_written(run, tmp_path, command, what, bad):
    (tmp_path / "junk.onnx").write_bytes(b"no protobuf at all")
    given = {"model": MODEL, "images": IMAGES, what: tmp_path / bad}
    goals = ("-o", tmp_path / "c.onnx", "--report", tmp_path / "r", "--quiet")
    code, out, err = run(command, given["model"], "--images", given["images"], *goals)
    assert (code, out, err.count("\n")) == (3, "", 1) and bad in err
    assert [path.name for path in tmp_path.iterdir()] == ["junk.onnx"]


@pytest.fixture(scope="module")
def relearnt(tmp_path_factory):
    """The shipped sample, retrained for a few steps with the trigger that was planted: as `cleaned`."""
    folder = tmp_path_factory.mktemp("retrained")
    goals = ("-o", folder / "out.onnx", "--report", folder / "report")
    flags = ("--retrain-steps", "30", "--trigger", TRIGGER, "--per-class", "6", "--threads", "1", "--range", "0,1")
    return (folder, *ended("retrain", MODEL, "--images", IMAGES, *flags, *goals))


def test_the_sample_is_retrained(relearnt):
    folder, code, out, err = relearnt
    document = json.loads((folder / "report" / "report.json").read_text())
    assert code in (0, 1) and out.startswith({0: "SANITIZED", 1: "NOT SANITIZED"}[code]), out + err
    told = document["retraining"]
    assert document["command"] == "retrain" and document["pruned"] == [] and document["suspects"] == [7]
    assert told["kept"] and told["changes"] and told["labels"] == "given" and 0 < told["best"] <= told["steps"]
    assert [taught["target"] for taught in told["relearning"]] == [7]
    stages = [line.partition(":")[0] for line in err.splitlines()]
    assert stages[0] == "loading" and stages[-3:] == ["inversion anew", "relearning of class 7", "verification"]
    assert "retraining" in stages
    assert sorted(path.name for path in folder.iterdir()) == ["out.onnx", "report"]


def test_the_retrained_sample_obeys_the_planted_trigger_less_and_is_as_good(relearnt, run):
    call = ("evaluate", relearnt[0] / "out.onnx", "--images", IMAGES, "--threads", "1", "--json")
    code, out, _ = run(*call, "--trigger", TRIGGER)
    found = json.loads(out)
    assert found["triggers"][0]["asr"]["rate"] <= 0.25 and found["clean"]["rate"] > 0.85
    assert code == int(found["triggers"][0]["finding"])


def test_a_trigger_that_does_not_fit_is_refused_at_once_by_its_file(run, tmp_path):
    for trigger, said in ((tmp_path / "no.npz", "no.npz"), (__file__, "test_cli.py")):
        goals = ("-o", tmp_path / "out.onnx", "--trigger", trigger, "--range", "0,1", "--threads", "1")
        code, out, err = run("retrain", MODEL, "--images", IMAGES, "--per-class", "3", *goals)
        assert (code, out) == (3, "") and said in err and "inversion" not in err
    assert list(tmp_path.iterdir()) == []


def test_retrain_interrupted_leaves_nothing(tmp_path):
    flags = ("--per-class", "3", "--threads", "1", "--range", "0,1", "-o", tmp_path / "o.onnx")
    command = [*COMMAND, "retrain", *map(str, (MODEL, "--images", IMAGES, *flags))]
    for sent, expected in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with subprocess.Popen(
            command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as child:
            first = child.stderr.readline()
            child.send_signal(sent)
            rest = child.stderr.read()
            assert (first != "", child.wait(60)) == (True, expected), rest
        assert "Traceback" not in rest and list(tmp_path.iterdir()) == []


def test_an_interrupted_run_leaves_nothing(tmp_path):
    command = [*COMMAND, *map(str, sanitize_sample(tmp_path))]
    with subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        first = child.stderr.readline()  # one stage is done: the run is under way
        child.send_signal(signal.SIGINT)
        rest = child.stderr.read()
        assert (first != "", child.wait(60)) == (True, 130), rest
    assert rest.endswith("debride: interrupted; nothing was written\n") and "Traceback" not in rest
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A model file of a made-up framework that the command line can read."""
    monkeypatch.setenv("PYTHONPATH", made_up.install(tmp_path / "site"))
    (tmp_path / "model.made").write_text("{}")
    return tmp_path / "model.made"


def test_convert_writes_onnx_and_says_how_equal_it_is(run, made, tmp_path):
    code, out, err = run("convert", made, "-o", tmp_path / "out.onnx")
    assert code == 0
    assert "Made-up (made-up 1.0), to ONNX opset 18" in out
    assert "the class is the same on 8 of 8" in out
    assert "conversion:" in err
    code, out, _ = run("convert", made, "-o", tmp_path / "json.onnx", "--json", "--quiet")
    found = json.loads(out)
    assert code == 0
    assert found["conversion"]["parity"][0]["same_class"] == 1
    assert found["output"]["sha256"] == facts_of(tmp_path / "json.onnx").sha256


def test_convert_lists_what_can_be_read_and_what_that_needs(run):
    code, out, err = run("convert", "--list")
    assert (code, err) == (0, "")
    for kind in (".pt2", ".pth", ".safetensors", ".keras", ".h5", ".tflite", ".onnx", "folder with saved_model.pb"):
        assert re.search(rf"^{re.escape(kind)} .* debride ", out, re.MULTILINE)
    offered = {offer["kind"]: offer for offer in json.loads(run("convert", "--list", "--json")[1])}
    assert offered[".pth"]["missing"] == []
    assert offered[".keras"]["extra"] == "keras"


def test_listing_the_adapters_imports_no_framework():
    loaded = modules_after("convert", "--list")
    assert not {"torch", "onnx", "onnxruntime", "keras", "tensorflow", "debride_adapters.torch"}.intersection(loaded)


def test_convert_without_a_model_or_an_output_is_wrong_usage(run, made, tmp_path):
    assert run("convert")[0] == 2
    code, _, err = run("convert", made)
    assert code == 2
    assert "name a MODEL and an --output" in err
    assert run("convert", made, "-o", made)[0] == 2
    assert run("convert", made, "-o", tmp_path / "o.onnx", "--input-shape", "3,x,4")[0] == 2


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"wrong": 0.1}, 3, "differs from Made-up"),
        ({"do": "crash"}, 3, "crashed while converting"),
        ({"do": "usage"}, 2, "say more"),
    ],
)
def test_convert_ends_with_one_line_and_writes_nothing_where_it_fails(run, made, tmp_path, fields, code, message):
    made.write_text(json.dumps(fields))
    found, out, err = run("convert", made, "-o", tmp_path / "out.onnx", "--quiet")
    assert (found, out) == (code, "")
    assert re.fullmatch(rf"debride: error: .*model\.made: .*{message}.*\n", err)
    assert not (tmp_path / "out.onnx").exists()


def test_an_unknown_suffix_is_an_error_with_exit_code_3(run, tmp_path):
    (tmp_path / "model.zip").write_bytes(b"PK")
    code, _, err = run("convert", tmp_path / "model.zip", "-o", tmp_path / "out.onnx", "--quiet")
    assert code == 3
    assert "no adapter reads .zip; can be read:" in err


def test_predict_and_evaluate_take_a_model_of_another_framework(run, made, tmp_path):
    samples = tiny_samples(2)
    x = np.rint(samples.images.transpose(0, 2, 3, 1) * 255).astype(np.uint8)
    np.savez(tmp_path / "images.npz", x=x, y=samples.labels)
    code, out, err = run("evaluate", made, "--images", tmp_path / "images.npz", "--json")
    assert code == 0
    assert json.loads(out)["model"] == "model.made"
    assert json.loads(out)["clean"]["rate"] == 1
    assert "debride: from: Made-up (made-up 1.0), to ONNX opset 18" in err
    cv2.imwrite(str(tmp_path / "image.png"), x[0, :, :, ::-1])
    code, out, _ = run("predict", made, tmp_path / "image.png", "--json")
    assert code == 0
    assert json.loads(out)[0]["predictions"][0]["index"] == samples.labels[0]


def test_scan_hands_on_how_weights_become_a_network(run, stages):
    run("scan", "m.pth", "--images", "i", "--architecture", "net.py:build", "--input-shape", "3,32,40")
    (_, _, settings) = stages.calls[0]
    assert settings.source == ConvertOptions(architecture="net.py:build", input_shape=(3, 32, 40))


@pytest.mark.parametrize(
    ("module", "extra"),
    [("torch", "cpu"), ("onnx.helper", "cpu"), ("starlette.routing", "serve"), ("uvicorn", "serve")],
)
def test_a_package_that_is_not_installed_is_an_error_that_names_its_extra(module, extra, capsys):
    with pytest.raises(typer.Exit) as stop, guard():
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    assert stop.value.exit_code == 3
    assert f"pip install 'debride[{extra}]'" in capsys.readouterr().err


def test_any_other_missing_module_is_a_failure(capsys):
    with pytest.raises(typer.Exit), guard():
        raise ModuleNotFoundError("No module named 'numpy'", name="numpy")
    assert "failed unexpectedly: ModuleNotFoundError" in capsys.readouterr().err
