"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxr.errors import InputError
from cxr.runs import list_runs
from cxr.stack import NAME, Stack


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """The names of runs, for the shell's completion; none if AWS does not answer."""
    from cxr.aws_errors import AWS_ERRORS

    try:
        runs = list_runs(Stack.find(context.params.get("stack") or NAME))
    except (InputError, *AWS_ERRORS):
        return []
    return [run.run_id for run in runs if run.run_id.startswith(incomplete)]


StackName = Annotated[
    str, typer.Option("--stack", metavar="NAME", help="The deployed stack, in AWS_REGION and AWS_PROFILE.")
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", autocompletion=complete_run)]
Bundle = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of model.onnx and model.json. Default: the bundle that ships."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
