"""The `debride` command and its entry point."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from debride import __version__
from debride.cli.convert import CONVERT_EPILOG, convert
from debride.cli.evaluate import EVALUATE_EPILOG, evaluate
from debride.cli.export import EXPORT_EPILOG, export
from debride.cli.guard import guard
from debride.cli.predict import PREDICT_EPILOG, predict
from debride.cli.retrain import RETRAIN_EPILOG, retrain
from debride.cli.runs import SANITIZE_EPILOG, SCAN_EPILOG, sanitize, scan
from debride.cli.serve import SERVE_EPILOG, serve
from debride.cli.slim import SLIM_EPILOG, slim

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""[bold]Example[/]

  debride sanitize vendor.onnx --images clean/ -o clean.onnx --report report

[bold]Exit codes[/]: 0 passed, or cleaned and verified; 1 a finding; 2 wrong
usage; 3 inconclusive, unsupported or failed; 130 interrupted.""",
)
app.command(epilog=SCAN_EPILOG)(scan)
app.command(epilog=SANITIZE_EPILOG)(sanitize)
app.command(epilog=RETRAIN_EPILOG)(retrain)
app.command(epilog=SLIM_EPILOG)(slim)
app.command(epilog=EXPORT_EPILOG)(export)
app.command(epilog=CONVERT_EPILOG)(convert)
app.command(epilog=EVALUATE_EPILOG)(evaluate)
app.command(epilog=PREDICT_EPILOG)(predict)
app.command(epilog=SERVE_EPILOG)(serve)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"debride {__version__}")
        raise typer.Exit


@app.callback()
def debride(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Find backdoors in neural image classifiers and cut them out of the ONNX graph."""


def main() -> None:
    """The console script: whatever goes wrong ends in one line on stderr and an exit code of 2, 3 or above."""
    # `timeout` and CI runners end a job with SIGTERM: as an exception, half-written files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # A closed terminal, unless `nohup` has it ignored.
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    # torch's threads would spin while they wait for each other: beside any other process on the same cores a pass then
    # took up to ten times longer. Read when torch is loaded, which a command does later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with guard():
            app(prog_name="debride")
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
