"""Load on a serving debride: many connections, several images at once, every answer checked against its own image.

    debride serve samples/fashion-backdoored.onnx --range 0,1 --port 8000
    python benchmarks/load.py samples/fashion-backdoored.onnx samples/images --port 8000 --connections 64 --seconds 60

The client and the server share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from debride.serve import Classifier, Prediction
from debride.spec import resolve_spec
from debride.specfile import SpecFlags

TOLERANCE = 1e-4
"""Between probabilities: batches of another size round differently."""


@dataclass(frozen=True, kw_only=True)
class Shot:
    """One request as it goes over the wire, and the one right answer to it."""

    wire: bytes
    expected: Prediction

    def fault(self, body: bytes) -> str | None:
        """What is wrong with the body of a 200, or None."""
        best = json.loads(body)["predictions"][0]
        want = self.expected
        if best["index"] != want.index or abs(best["probability"] - want.probability) > TOLERANCE:
            return f"{best} instead of {want}"
        return None


@dataclass(kw_only=True)
class Tally:
    """What a load run saw: answers per status, and requests that got none."""

    answers: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    refused: int = 0
    """Connections that nobody took."""
    unanswered: int = 0
    """Requests sent on a connection that then closed without a byte."""
    torn: int = 0
    """Answers that broke off."""
    late: int = 0
    """Requests that had no answer after 30 s."""
    seconds: list[float] = field(default_factory=list)
    """How long each 200 took."""

    def percentile(self, share: float) -> float:
        """The time, in ms, within which that share of the good answers came."""
        ordered = sorted(self.seconds)
        return 1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else float("nan")


def shots(model: Path, images: Sequence[Path], *, name: str, address: str, token: str | None = None) -> list[Shot]:
    """One classify request per image, with the answer that a Classifier in this process gives (range 0..1)."""
    classifier = Classifier(model, spec=_spec(model))
    head = f"POST /v2/models/{name}/classify?top=1 HTTP/1.1\r\nHost: {address}\r\nContent-Type: image/png\r\n"
    head += f"Authorization: Bearer {token}\r\n" if token else ""
    found = []
    for path in images:
        data = path.read_bytes()
        wire = f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        found.append(Shot(wire=wire, expected=classifier.classify([data], top=1)[0][0]))
    return found


def fire(port: int, wanted: Sequence[Shot], *, connections: int, seconds: float, host: str = "127.0.0.1") -> Tally:
    """Keeps `connections` busy for `seconds`, each with another image first; connects anew where one is closed."""
    tally = Tally()

    async def all_of_them() -> None:
        end = time.monotonic() + seconds
        await asyncio.gather(*(_gun(host, port, wanted, at, end, tally) for at in range(connections)))

    asyncio.run(all_of_them())
    return tally


async def _gun(host: str, port: int, wanted: Sequence[Shot], at: int, end: float, tally: Tally) -> None:
    while time.monotonic() < end:
        try:
            reader, writer = await asyncio.open_connection(host, port)
        except OSError:
            tally.refused += 1
            await asyncio.sleep(0.02)
            continue
        try:
            while time.monotonic() < end:
                at += 1
                if not await _shoot(reader, writer, wanted[at % len(wanted)], tally):
                    break
        finally:
            writer.close()


async def _shoot(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, shot: Shot, tally: Tally) -> bool:
    """One request and its answer; False where the connection is of no more use."""
    start, head = time.perf_counter(), b""
    try:
        async with asyncio.timeout(30):
            writer.write(shot.wire)
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if line)
            body = await reader.readexactly(int(fields[b"content-length"]))
    except TimeoutError:
        tally.late += 1
        return False
    except (asyncio.IncompleteReadError, OSError) as error:
        begun = bool(head) or (isinstance(error, asyncio.IncompleteReadError) and bool(error.partial))
        tally.torn += begun
        tally.unanswered += not begun
        return False
    status = int(head.split(b" ", 2)[1])
    tally.answers[status] += 1
    if status == 200:
        tally.seconds.append(time.perf_counter() - start)
        if fault := shot.fault(body):
            tally.wrong.append(fault)
    elif status == 429:
        await asyncio.sleep(0.05)
    return fields.get(b"connection") != b"close"


def _spec(model: Path):  # noqa: ANN202
    from debride.sessions import Session

    return resolve_spec(Session(model), flags=SpecFlags(range=(0.0, 1.0))).spec


def main() -> None:
    """Fires, and says what came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the file that is served, range 0..1")
    parser.add_argument("images", type=Path, help="a folder of PNG files")
    parser.add_argument("--name", help="default: the file's stem")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    name = options.name or options.model.stem
    images = sorted(options.images.rglob("*.png"))[:64]
    wanted = shots(options.model, images, name=name, address=f"127.0.0.1:{options.port}")
    tally = fire(options.port, wanted, connections=options.connections, seconds=options.seconds)
    print(f"answers {dict(tally.answers)}, wrong {len(tally.wrong)}, torn {tally.torn}, late {tally.late}")
    print(f"refused {tally.refused}, unanswered {tally.unanswered}")
    print(f"{tally.answers[200] / options.seconds:.0f} a second, ", end="")
    print(", ".join(f"p{share * 100:g} {tally.percentile(share):.1f} ms" for share in (0.5, 0.9, 0.99)))
    for fault in tally.wrong[:5]:
        print(fault)


if __name__ == "__main__":
    main()
