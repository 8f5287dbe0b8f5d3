"""`debride serve`: models behind the Open Inference Protocol v2; neither torch nor onnx is loaded."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from typer import Argument, Option

from debride.cli.guard import INTERRUPTED, guard
from debride.cli.options import Convention, Debug, Resources, grouped
from debride.errors import UsageError

if TYPE_CHECKING:
    from debride.serve.http.models import Named, Served
    from debride.serve.http.reports import ReportSearch
    from debride.serve.http.settings import ServeSettings

_NETWORK = "Network"
_BATCHING = "Batching"
_LIMITS = "Limits"
_TRUST = "Trust"
_TOKEN = "DEBRIDE_TOKEN"
_LONGEST_TOKEN = 4096
_MEBIBYTE = 1 << 20

SERVE_EPILOG = """[bold]Examples[/]

  debride serve clean.onnx
  debride serve signs=clean.onnx signs:2=newer.onnx --port 9000
  debride serve clean.onnx --sha256 5f0c... --token-file token.txt

  curl --data-binary @photo.png localhost:8000/v2/models/clean/classify

A page at / takes images, /docs describes the interface, /metrics is for
Prometheus. A report beside the model (report/report.json and the like) is shown
if it is of that very file. Clients of the Open Inference Protocol v2 work, as
tritonclient[bold]\\[http][/].

[bold]Exit codes[/]: 0 stopped by a signal, everything taken was answered; 2 wrong
usage; 3 failed; 130 stopped at once by a second Ctrl-C."""


@grouped
def serve(
    *,
    models: Annotated[
        list[str],
        Argument(
            metavar="MODEL",
            help="PATH, NAME=PATH or NAME:VERSION=PATH of ONNX files.",
            show_default=False,
        ),
    ],
    host: Annotated[str, Option(metavar="ADDRESS", help="Listen here.", rich_help_panel=_NETWORK)] = "127.0.0.1",
    port: Annotated[
        int, Option(min=0, max=65535, metavar="P", help="And here; 0: any free port.", rich_help_panel=_NETWORK)
    ] = 8000,
    max_batch: Annotated[
        int,
        Option(
            min=1,
            max=4096,
            metavar="N",
            help="Rows that run together at most: 8 suits CPUs, GPUs want more.",
            rich_help_panel=_BATCHING,
        ),
    ] = 8,
    max_delay: Annotated[
        float,
        Option(min=0, max=1000, metavar="MS", help="Wait so long for more rows to come.", rich_help_panel=_BATCHING),
    ] = 0.0,
    workers: Annotated[
        int, Option(min=1, max=64, metavar="N", help="Batches of a model at once.", rich_help_panel=_BATCHING)
    ] = 2,
    queue: Annotated[
        int,
        Option(min=1, max=1_000_000, metavar="N", help="Rows that may wait; 429 past it.", rich_help_panel=_LIMITS),
    ] = 256,
    max_request: Annotated[
        int, Option(min=1, max=1024, metavar="MIB", help="Largest body.", rich_help_panel=_LIMITS)
    ] = 32,
    max_pixels: Annotated[
        int, Option(min=1, max=1 << 26, metavar="N", help="Largest image.", rich_help_panel=_LIMITS)
    ] = 1 << 25,
    timeout: Annotated[
        float, Option(min=0.1, max=3600, metavar="S", help="Longest request.", rich_help_panel=_LIMITS)
    ] = 30.0,
    sha256: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]HEX",
            help="Refuse a file that is not the one audited; repeat for several models.",
            rich_help_panel=_TRUST,
        ),
    ] = None,
    report: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]PATH",
            help="Report of the run that made the model (default: beside it).",
            rich_help_panel=_TRUST,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        Option(metavar="FILE", help=f"Bearer token that clients must send; or {_TOKEN}.", rich_help_panel=_TRUST),
    ] = None,
    log_format: Annotated[Literal["text", "json"], Option(help="Format of the log on stderr.")] = "text",
    quiet: Annotated[bool, Option("--quiet", "-q", help="Log no requests.")] = False,
    convention: Convention,
    resources: Resources,
    debug: Debug = False,
) -> None:
    """Serve models: an image goes in over HTTP, its class comes out."""
    with guard(debug):
        from debride.serve.http.leaving import leave
        from debride.serve.http.logs import configure, event
        from debride.serve.http.models import parse_all
        from debride.serve.http.run import bind, run
        from debride.serve.http.settings import ServeSettings

        token = _token(token_file)
        local = host in ("127.0.0.1", "::1", "localhost")
        settings = ServeSettings(
            max_batch=max_batch,
            max_delay=max_delay / 1000,
            workers=workers,
            queue=queue,
            max_request=max_request * _MEBIBYTE,
            max_pixels=max_pixels,
            timeout=timeout,
            token=token,
            hosts=frozenset(("localhost", "127.0.0.1", "[::1]")) if local and not token else frozenset(),
        )
        named = parse_all(models)
        configure(log_format)
        # Before the models are loaded, which may take long: an address in use is said at once.
        with bind(host, port) as listener:
            served = _load(named, sha256 or (), report or (), settings, convention, resources)
            if not local and not token:
                event(
                    "exposed",
                    logging.WARNING,
                    note=f"{host} can be reached from other machines, and no token is asked for",
                )
            graceful = run(served, settings, listener, quiet=quiet)
        code = 0 if graceful else INTERRUPTED
        leave(code)
        raise typer.Exit(code)


def _load(
    named: Sequence[Named],
    pins: Sequence[str],
    reports: Sequence[str],
    settings: ServeSettings,
    convention: Convention,
    resources: Resources,
) -> list[Served]:
    from dataclasses import replace

    from debride.serve.http.logs import event
    from debride.serve.http.models import assigned, check_pin, load
    from debride.sessions import usable_cores

    pinned = {key: check_pin("--sha256", pin) for key, pin in assigned("--sha256", pins, named).items()}
    given = assigned("--report", reports, named)
    # Cores that spin between two batches are missing where requests are read and answered; so are those that the
    # batches of two workers share out among themselves.
    threads = resources.threads or max(1, usable_cores() // settings.workers)
    flags, runtime, found = convention.flags(), replace(resources.runtime(), threads=threads, spin=False), []
    for model in named:
        key = (model.name, model.version)
        served = load(model, flags=flags, runtime=runtime, max_batch=settings.max_batch, pin=pinned.get(key))
        search = _search(served, Path(given[key]) if key in given else None)
        for note in search.passed_over:
            event("report passed over", model=model.name, version=model.version, note=note)
        found.append(replace(served, report=search.report))
        event(
            "loaded",
            model=model.name,
            version=model.version,
            sha256=served.sha256,
            provider=served.session.provider,
            batched=bool(served.plan.stackable),
            report=str(search.report.path) if search.report else None,
        )
    return found


def _search(served: Served, given: Path | None) -> ReportSearch:
    from debride.serve.http.reports import ReportSearch, find_report

    if served.whole:
        return find_report(served.path, served.sha256, given)
    note = f"{served.path}: has weights in files beside it, which no report's sha256 covers; keep it in one file"
    if given is not None:
        raise UsageError(f"--report {given}: {note}")
    return ReportSearch(report=None, passed_over=(note,))


def _token(file: Path | None) -> str:
    """The bearer token: the file's first line, or the environment's; never an argument, which `ps` shows to all."""
    if file is None:
        token, where = os.environ.get(_TOKEN, ""), _TOKEN
    else:
        where = f"--token-file {file}"
        try:
            # Not a device, which may never end.
            if not stat.S_ISREG(file.stat().st_mode) or file.stat().st_size > _LONGEST_TOKEN:
                raise UsageError(f"{where} is no regular file of up to {_LONGEST_TOKEN} bytes; give another")
            token = file.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{where} cannot be read ({error}); give a file that holds one line of ASCII") from error
    if (
        ((file is not None or _TOKEN in os.environ) and not token)
        or not (token.isascii() and token.isprintable())
        or " " in token
    ):
        raise UsageError(f"{where} holds no token; write one line of printable ASCII without blanks into it")
    return token
