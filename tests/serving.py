"""`debride serve` as a process of its own: started on a free port, spoken to over sockets, watched and ended."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from debride.spec import to_json
from debride.specfile import METADATA_KEY
from tiny import PALETTE, tiny_classifier, tiny_spec

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "samples" / "fashion-backdoored.onnx"
IMAGES = ROOT / "samples" / "images"
BAG, BOOT = IMAGES / "8-bag", IMAGES / "9-ankle-boot"
NAMES = ("red", "green", "blue", "white")
SHARPNESS = {"1": 20.0, "2": 1.0}
"""Of the versions of the model `tiny`: the scores of the second are a twentieth of the first's."""
COMMAND = (sys.executable, "-c", "from debride.cli import main; main()")
_ADDRESS = re.compile(r"http://[^\s\"/]*:(\d+)")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of a refusal."""
        return self.json()["error"]


@dataclass(frozen=True, kw_only=True)
class Served:
    """A running server, and the file that its stdout and stderr go to."""

    process: subprocess.Popen
    port: int
    log_file: Path
    host: str = "127.0.0.1"

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace")

    def records(self) -> list[dict[str, Any]]:
        """The lines of the log that are JSON objects."""
        return [json.loads(line) for line in self.log().split("\n") if line.startswith("{")]

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(status=reply.status, headers=found, body=reply.read())
        finally:
            connection.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("GET", path, None, headers)

    def post(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        return self.ask("POST", path, body, headers)

    def socket(self, timeout: float = 30.0) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=timeout)

    def memory(self) -> int:
        """Resident bytes of the process."""
        return psutil.Process(self.process.pid).memory_info().rss

    def open_files(self) -> int:
        return psutil.Process(self.process.pid).num_fds()

    def end(self, by: int = signal.SIGTERM, within: float = 20.0) -> int:
        """The exit code after signal `by`, negative where the signal killed it."""
        self.process.send_signal(by)
        return self.process.wait(within)


def write_models(folder: Path) -> list[str]:
    """What to serve: the sample model as `fashion` (grey, 28x28), two versions of `tiny` (RGB, 6x5, four classes)."""
    shutil.copy(MODEL, folder / "fashion.onnx")
    (folder / "fashion.json").write_text(json.dumps({"range": [0, 1]}))
    spec, arguments = tiny_spec(class_names=NAMES), [f"fashion={folder / 'fashion.onnx'}"]
    for version, sharpness in SHARPNESS.items():
        path = folder / f"tiny{version}.onnx"
        path.write_bytes(tiny_classifier(spec, metadata={METADATA_KEY: to_json(spec)}, sharpness=sharpness))
        arguments.append(f"tiny:{version}={path}")
    return arguments


def tiny_scores(pixels: np.ndarray, version: str = "2") -> np.ndarray:
    """What `tiny` must answer to uniform images (N, 3, 6, 5) in 0..1: by arithmetic, without any model."""
    sharpness, colours = SHARPNESS[version], pixels.mean(axis=(2, 3))[:, None, :]
    return sharpness * ((2 * colours - PALETTE) * PALETTE).sum(axis=2)


def colour_png(colour: int, size: tuple[int, int] = (6, 5)) -> bytes:
    """A PNG of one colour of `tiny`'s palette."""
    pixels = np.broadcast_to((PALETTE[colour] * 255).astype(np.uint8)[::-1], (*size, 3))
    return cv2.imencode(".png", pixels)[1].tobytes()


def first(folder: Path, nth: int = 0) -> Path:
    """One of the sample images of a class."""
    return sorted(folder.glob("*.png"))[nth]


def speak(server: Served, data: bytes, *, within: float = 5.0, end: bool = False) -> bytes:
    """All that comes back to `data` until the server closes; `end` closes our half. Fails where it does not in time."""
    found, until = b"", time.monotonic() + within
    with server.socket(timeout=within) as connection:
        try:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
                assert time.monotonic() < until, f"still open after {within} s: {found[:200]!r}"
        except TimeoutError:
            raise AssertionError(f"neither an answer nor an end within {within} s") from None
        except (ConnectionResetError, BrokenPipeError):
            pass  # closed while we still wrote: what it said before may be lost on the way, which is TCP's way
    return found


def statuses(found: bytes) -> list[int]:
    """The statuses of the answers in what a socket gave."""
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3})", found)]


def post(path: str, body: bytes = b"", *headers: str, length: object = None) -> bytes:
    """A request after which the server closes, whatever it thinks of it; `length` "" leaves Content-Length out."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if length != "":
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


@contextmanager
def unharmed(server: Served, growth: int = 64 << 20) -> Iterator[None]:
    """Afterwards the server answers rightly, has logged no failure, and has grown by less than `growth` bytes."""
    before = server.memory()
    yield
    assert server.process.poll() is None, server.log()[-2000:]
    answer = server.post("/v2/models/fashion/classify?top=1", first(BAG).read_bytes())
    assert (answer.status, answer.json()["predictions"][0]["index"]) == (200, 8)
    records = server.records()
    assert [record for record in records if record.get("status", 0) == 500 or "traceback" in record] == []
    assert [record for record in records if record["level"] not in ("info", "warning")] == []
    assert server.memory() - before < growth


@contextmanager
def serving(
    folder: Path, *arguments: object, environment: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[Served]:
    """A server that is ready, killed at the end where it still runs. `arguments` follow `debride serve`.

    Its log lies in `folder`. Raises `RuntimeError` with the log where it ends or is not ready within a minute.
    """
    log_file = folder / f"serve-{time.monotonic_ns()}.log"
    command = [*COMMAND, "serve", "--port", str(port), "--log-format", "json", *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if name != "DEBRIDE_TOKEN"}
    with log_file.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=kept | dict(environment or {}), cwd=folder
        )
    try:
        yield _ready(process, log_file)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _ready(process: subprocess.Popen, log_file: Path) -> Served:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := _ADDRESS.search(log_file.read_text("utf-8", "replace")):
            served = Served(process=process, port=int(found[1]), log_file=log_file)
            try:
                if served.get("/v2/health/ready").status == 200:
                    return served
            except OSError:
                pass  # says its address before it listens: asked again
        time.sleep(0.05)
    raise RuntimeError(f"debride serve did not get ready ({process.poll()}):\n{log_file.read_text()}")
