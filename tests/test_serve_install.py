"""What an edge machine installs: the wheel with `[runtime]`, then `[serve]`, where nothing else of debride's extras is.

pip fetches what the wheel asks for, in the versions of constraints.txt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
import venv
from pathlib import Path

import pytest

from conftest import ROOT

MODEL = ROOT / "samples" / "fashion-backdoored.onnx"
BAG = ROOT / "samples" / "images" / "8-bag"
AUDIT = ("torch", "onnx", "onnx_graphsurgeon", "onnxscript", "safetensors")
SERVE = ("starlette", "uvicorn", "orjson", "prometheus_client", "python_multipart")
CLASSIFY = """
import sys
from pathlib import Path
from debride.serve import Classifier
from debride.types import InputSpec
spec = InputSpec(name="image", layout="NCHW", channels="L", size=(28, 28), output="scores")
print(Classifier(sys.argv[1], spec=spec).classify([sys.argv[2]])[0][0].index)
print([name for name in ("torch", "onnx", "typer", "starlette") if name in sys.modules])
"""


class Machine:
    """A virtual environment, outside of which nothing of Python's packages is seen."""

    def __init__(self, home: Path) -> None:
        venv.create(home, with_pip=True, symlinks=True)
        self.home = home

    def run(self, *command: object, code: int = 0) -> subprocess.CompletedProcess:
        done = subprocess.run(
            [str(part) for part in command], check=False, cwd=self.home, env=environment(), capture_output=True,
            text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def install(self, what: str) -> None:
        pip = [self.home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        self.run(*pip, "--constraint", ROOT / "constraints.txt", what)

    def python(self, code: str, *arguments: object) -> str:
        return self.run(self.home / "bin/python", "-I", "-c", code, *arguments).stdout.strip()

    def debride(self, *arguments: object, code: int = 0) -> subprocess.CompletedProcess:
        return self.run(self.home / "bin/debride", *arguments, code=code)

    def missing(self, names: tuple[str, ...]) -> list[str]:
        code = "import sys; from importlib.util import find_spec; print([n for n in sys.argv[1:] if not find_spec(n)])"
        return [name for name in names if f"'{name}'" in self.python(code, *names)]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def machine(tmp_path_factory, wheel):
    made = Machine(tmp_path_factory.mktemp("edge"))
    made.install(f"{wheel}[runtime]")
    return made


def bag():
    return sorted(BAG.glob("*.png"))[0]


def test_the_runtime_extra_brings_neither_the_audit_nor_the_server(machine):
    assert machine.missing((*AUDIT, *SERVE)) == [*AUDIT, *SERVE]
    assert machine.missing(("numpy", "onnxruntime", "cv2")) == []


def test_the_classifier_classifies_there(machine):
    assert machine.python(CLASSIFY, MODEL, bag()).splitlines() == ["8", "[]"]


def test_predict_and_help_work_there(machine):
    found = json.loads(machine.debride("predict", MODEL, bag(), "--range", "0,1", "--json").stdout)
    assert found[0]["predictions"][0]["index"] == 8
    assert "predict" in machine.debride("--help").stdout
    assert "--port" in machine.debride("serve", "--help").stdout


@pytest.mark.parametrize(
    "command",
    [
        ("sanitize", MODEL, "--images", BAG.parent, "--output", "clean.onnx", "--report", "report"),
        ("scan", MODEL, "--images", BAG.parent),
        ("slim", MODEL, "--images", BAG.parent, "--output", "slim.onnx"),
    ],
    ids=lambda command: command[0],
)
def test_an_audit_there_ends_in_one_line_that_names_the_extra(machine, command):
    done = machine.debride(*command, code=3)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "debride[audit" in line or "debride[cpu" in line
    assert "install" in line


def test_serve_there_ends_in_one_line_that_names_the_extra(machine):
    if machine.missing(SERVE) != [*SERVE]:
        pytest.fail("the server's packages are there already: this test must run before the next one")
    done = machine.debride("serve", MODEL, "--range", "0,1", code=3)
    (line,) = done.stderr.splitlines()
    assert "debride[serve]" in line


def test_with_the_serve_extra_the_server_answers(machine, wheel):
    machine.install(f"{wheel}[runtime,serve]")
    assert machine.missing((*AUDIT, *SERVE)) == [*AUDIT]
    log = machine.home / "serve.log"
    command = [machine.home / "bin/debride", "serve", MODEL, "--range", "0,1", "--port", "0"]
    with log.open("wb") as written:
        process = subprocess.Popen(command, cwd=machine.home, env=environment(), stdout=written, stderr=written)
    try:
        url = address(process, log)
        request = urllib.request.Request(
            f"{url}/v2/models/{MODEL.stem}/classify?top=1", bag().read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            assert json.load(reply)["predictions"][0]["index"] == 8
    finally:
        process.kill()
        process.wait()


def address(process: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.05)
    pytest.fail(f"no address was told ({process.poll()}):\n{log.read_text()}")
