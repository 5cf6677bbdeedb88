"""The operator's command line. Run `cxr --help`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from cxr import RESEARCH_ONLY
from cxr.commands import runs as run_commands
from cxr.commands.arrivals import reconcile, resume, watch
from cxr.commands.compare import compare
from cxr.commands.doctor import doctor
from cxr.commands.evaluate import evaluate
from cxr.commands.local import local
from cxr.commands.model import explain, model, score
from cxr.commands.plan import plan
from cxr.commands.report import report
from cxr.commands.results import results
from cxr.commands.scale import scale
from cxr.commands.terminal import errors_reported, show_tracebacks
from cxr.commands.usage import Group
from cxr.commands.verify import verify
from cxr.local_aws.processes import STOP_SIGNALS

BEFORE, RUNS, RESULTS, HERE = "Before a run", "Runs", "Results", "Here, without AWS"
ARRIVALS = "What arrives all day"

app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},  # sub-commands inherit it
    help=f"""Score chest X-rays in bulk on AWS. {RESEARCH_ONLY}

    Like the AWS CLI, it uses AWS_PROFILE, AWS_REGION and, for local AWS,
    AWS_ENDPOINT_URL. Every command ends with 0 if it did what was asked, 1 if
    it failed or did only a part, 2 for wrong input and 130 after Ctrl-C.""",
)
for panel, commands in {
    BEFORE: (doctor, verify, plan, scale, run_commands.upload),
    RUNS: (
        run_commands.run,
        run_commands.runs,
        run_commands.status,
        run_commands.retry,
        run_commands.cancel,
        run_commands.delete,
    ),
    ARRIVALS: (watch, reconcile, resume),
    RESULTS: (results, evaluate, compare, report),
    HERE: (score, explain),
}.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
app.add_typer(model, name="model", rich_help_panel=HERE)
app.add_typer(local, name="local", rich_help_panel=HERE)


def print_version(on: bool) -> None:
    """Print the version of this program and the default model."""
    if on:
        with errors_reported():
            from importlib import metadata

            from cxr.bundles import load

            typer.echo(f"cxr {metadata.version('chest-xray-inference')}, default model {load().name}")
        raise typer.Exit


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version of cxr, and name and version of the default model.",
            callback=print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Stop cleanly on Ctrl-C, SIGTERM and a closed terminal."""
    show_tracebacks(debug)

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        for again in STOP_SIGNALS:  # a second Ctrl-C must not interrupt the clean-up
            signal.signal(again, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
