"""`debride serve` beside a plain FastAPI + onnxruntime app: the same models, bodies and client, in alternate rounds.

Both run as one process with their own defaults. The rival (plain_fastapi.py) comes in four variants, `async def` or
`def` endpoints and onnxruntime's default threads or one; whichever is fastest with a model and body is the one that
debride is compared with. The client is wrk, on the same machine: it takes a part of a core from both. debride takes an
image as the body or as a form, the rival as a form; debride's log of requests goes to a file, the rival keeps none.

    python benchmarks/bench_serving.py --seconds 2 --rounds 3
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from serving_requests import Case, cases, write_script

HERE = Path(__file__).resolve().parent
Variant = tuple[str, int]
"""Of the rival: its endpoints, and onnxruntime's threads."""
Round = tuple[float, dict[Variant, float]]
"""Answers a second: debride's, and those of the rival's variants."""
RIVALS: list[Variant] = [(style, threads) for style in ("async", "def") for threads in (0, 1)]
CONCURRENCY = (1, 8, 32, 64)
CHOSEN_AT = 32
"""Connections at which the rival's fastest variant is chosen."""
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")


@contextmanager
def running(command: Sequence[object], log: Path) -> Iterator[int]:
    """The port of a server that `command` starts and that tells its address in `log`."""
    with log.open("wb") as written:
        process = subprocess.Popen([str(part) for part in command], stdout=written, stderr=written)
    try:
        deadline = time.monotonic() + 60
        while not (found := _ADDRESS.search(log.read_text("utf-8", "replace"))):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} tells no address:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        time.sleep(0.5)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def ours(case: Case, flags: Sequence[str]) -> list[object]:
    """debride's command for the model of a case."""
    code = "from debride.cli import main; main()"
    return [sys.executable, "-c", code, "serve", f"m={case.model}", "--port", 0, "--range", "0,1", *flags]


def rival(case: Case, style: str, threads: int) -> list[object]:
    """The rival's command for the model of a case."""
    return [sys.executable, HERE / "plain_fastapi.py", case.model, "--style", style, "--threads", threads]


def rate(script: Path, port: int, path: str, connections: int, seconds: int) -> float:
    """Good answers a second. Raises `RuntimeError` where any answer is another."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", "-s", script]
    done = subprocess.run(
        [*map(str, command), f"http://127.0.0.1:{port}{path}"], check=True, capture_output=True, text=True
    ).stdout
    if "Non-2xx" in done or "Socket errors" in done:
        raise RuntimeError(f"{path} at {connections} connections:\n{done}")
    found = re.search(r"Requests/sec:\s*([\d.]+)", done)
    assert found is not None, done
    return float(found[1])


def compare(case: Case, folder: Path, options: argparse.Namespace) -> list[str]:
    """Rows of the table for one case, one per concurrency. All servers wait while one is measured."""
    mine, theirs = write_script(case.ours, folder / "ours.lua"), write_script(case.rival, folder / "rival.lua")
    with ExitStack() as stack:
        port = stack.enter_context(running(ours(case, options.flags.split()), folder / "ours.log"))
        others = {
            variant: stack.enter_context(running(rival(case, *variant), folder / f"rival-{at}.log"))
            for at, variant in enumerate(RIVALS)
        }

        seconds = options.seconds * case.patience

        def rounds(connections: int, variants: Sequence[Variant]) -> list[Round]:
            """Alternately debride and each of the variants."""
            return [
                (
                    rate(mine, port, case.ours.path, connections, seconds),
                    {v: rate(theirs, others[v], case.rival.path, connections, seconds) for v in variants},
                )
                for _ in range(options.rounds)
            ]

        rate(mine, port, case.ours.path, 8, 1)  # what is done once is done
        for other in others.values():
            rate(theirs, other, case.rival.path, 8, 1)
        rounds_of = {CHOSEN_AT: rounds(CHOSEN_AT, RIVALS)}
        medians = {v: median(found[v] for _, found in rounds_of[CHOSEN_AT]) for v in RIVALS}
        best = max(RIVALS, key=medians.__getitem__)
        told = ", ".join(f"{words(v)} {per_second:.0f}/s" for v, per_second in medians.items())
        print(f"<!-- {case.name}, rivals at {CHOSEN_AT} connections: {told} -->", flush=True)
        for connections in options.connections:
            if connections != CHOSEN_AT:
                rounds_of[connections] = rounds(connections, [best])
    return [_row(case, connections, rounds_of[connections], best) for connections in options.connections]


def words(variant: Variant) -> str:
    """A variant of the rival, as the table has it."""
    return f"{variant[0]}, {variant[1] or 'default'}"


def _row(case: Case, connections: int, measured: Sequence[Round], best: Variant) -> str:
    ratios = [own / found[best] for own, found in measured]
    own, their = median(own for own, _ in measured), median(found[best] for _, found in measured)
    numbers = f"{connections} | {own:.0f} | {their:.0f} | {words(best)} | {median(ratios):.2f}"
    return f"| {case.name} | {numbers} | {min(ratios):.2f} to {max(ratios):.2f} |"


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=HERE.parents[1] / "shared", help="holds vendor/ and data/")
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=list(CONCURRENCY))
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--flags", default="", help="more flags for debride serve")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("this benchmark needs wrk (Debian: apt install wrk)")
    print(
        "| model and body | connections | debride, a second | rival, a second | best rival: endpoints, threads ", end=""
    )
    print("| ratio | its spread |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for case in cases(options.shared, folder):
            if options.only in case.name:
                print("\n".join(compare(case, folder, options)), flush=True)


if __name__ == "__main__":
    main()
