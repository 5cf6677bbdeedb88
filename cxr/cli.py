"""The operator's command line. Run `cxr --help`."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import NoReturn

import typer

from cxr import RESEARCH_ONLY
from cxr.evaluation_command import evaluate
from cxr.local_commands import local
from cxr.model_commands import explain, model, score
from cxr.plan_command import plan
from cxr.processes import STOP_SIGNALS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Score chest X-rays in bulk on AWS. {RESEARCH_ONLY}",
)
app.command()(score)
app.command()(explain)
app.command()(evaluate)
app.command()(plan)
app.add_typer(model, name="model")
app.add_typer(local, name="local")


@app.callback()
def main() -> None:
    """Stop cleanly on Ctrl-C, SIGTERM and a closed terminal."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)
