"""`debride serve` where it does not come to serving: one line names the flag or file and the mend; the exit codes."""

import socket
import sys

import pytest

from debride.cli import main
from serving import MODEL
from tiny import tiny_classifier, tiny_spec


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.delenv("DEBRIDE_TOKEN", raising=False)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["debride", "serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        assert captured.out == ""
        return stop.value.code, captured.err.strip().splitlines()[-1]

    return call


def refused(run, code, *words, arguments):
    found, line = run(*arguments)
    assert found == code, line
    assert line.startswith("debride: error: ")
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["gone.onnx"], 3, ["gone.onnx", "cannot be read", "ONNX model"]),
        ([".", "--range", "0,1"], 2, ["NAME=PATH"]),
        (["m=.", "--range", "0,1"], 3, ["no regular file"]),
        ([MODEL], 3, ["nothing says how pixels", "--range"]),
        ([f"a/b={MODEL}"], 2, ["NAME:VERSION=PATH"]),
        ([f"m={MODEL}", f"m={MODEL}"], 2, ["both 'm' version 1"]),
        ([MODEL, "--sha256", "12"], 2, ["--sha256", "64 hex digits"]),
        ([MODEL, "--sha256", "x=" + "0" * 64], 2, ["--sha256", "fits 0 models"]),
        ([MODEL, "--range", "0,1", "--sha256", "0" * 64], 3, ["not the file that was audited"]),
        ([MODEL, "--range", "0,1", "--report", "gone"], 3, ["gone", "cannot be read"]),
        ([MODEL, "--range", "1,0"], 2, ["--range", "lower end first"]),
        ([MODEL, "--token-file", "gone"], 2, ["--token-file gone cannot be read"]),
        ([MODEL, "--token-file", "/dev/zero"], 2, ["no regular file"]),
        ([MODEL, "--host", "no such host"], 2, ["--host no such host"]),
    ],
)
def test_what_cannot_be_served_is_one_line(run, tmp_path, monkeypatch, arguments, code, words):
    monkeypatch.chdir(tmp_path)
    refused(run, code, *words, arguments=[*arguments, "--port", 0])


@pytest.mark.parametrize("content", ["", "two words", "tab\there", "n\u00e9e", "a" * 5000])
def test_a_file_that_holds_no_token_is_refused(run, tmp_path, content):
    (tmp_path / "token").write_text(content, "utf-8")
    refused(run, 2, "--token-file", arguments=[MODEL, "--token-file", tmp_path / "token", "--port", 0])


def test_an_empty_token_in_the_environment_is_refused(run, monkeypatch):
    """As of $(cat missing): nobody who sets it wants to be open."""
    monkeypatch.setenv("DEBRIDE_TOKEN", "")
    refused(run, 2, "DEBRIDE_TOKEN holds no token", arguments=[MODEL, "--port", 0])


def test_an_address_in_use_is_said_before_models_are_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused(run, 2, f"--port {port}", "in use", arguments=["gone.onnx", "--port", port])


def test_a_report_cannot_be_named_for_a_model_whose_weights_lie_beside_it(run, tmp_path):
    import onnx

    model = onnx.load_from_string(tiny_classifier(tiny_spec()))
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=0)
    arguments = [path, "--range", "0,1", "--report", tmp_path, "--port", 0]
    refused(run, 2, "--report", "weights in files beside it", arguments=arguments)


def test_the_command_needs_a_model(run):
    code, _ = run()
    assert code == 2
