"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cxr.commands.terminal import use_stack
from cxr.errors import InputError
from cxr.runs import list_runs
from cxr.stack import Stack
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from classifier.model import Model

    from cxr.evaluation.results import Results


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """The names of runs, for the shell's completion; none if AWS does not answer."""
    from cxr.aws_errors import AWS_ERRORS

    try:
        runs = list_runs(Stack.find(context.params.get("stack") or DEFAULT_NAME))
    except (InputError, *AWS_ERRORS):
        return []
    return [run.run_id for run in runs if run.run_id.startswith(incomplete)]


StackName = Annotated[
    str,
    typer.Option(
        "--stack",
        metavar="NAME",
        callback=use_stack,
        help="The deployed stack, in AWS_REGION and AWS_PROFILE.",
    ),
]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", autocompletion=complete_run)]
Bundle = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of model.onnx and model.json. Default: the bundle that ships."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def context_of(given: Iterable[str]) -> dict[str, str]:
    """The settings that `-c name=value` gave. Raises InputError for one without a value."""
    context = {}
    for setting in given:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"-c {setting}: expected name=value, for example shards=20")
        context[name] = value
    return context


def scored_by_bundle(
    results: Results, model: Model, bundle: Path | None, option: str = "--bundle"
) -> Model | None:
    """`model` if it made the results, as far as is known; else None.

    `bundle` is the folder that `option` gave for it, None for the default. Raises InputError if the model of
    a given folder cannot have made the results.
    """
    known = results.may_come_from(model)
    if bundle and not results.model_sha256:  # a file records the name of the model, if anything
        known = results.label in model.thresholds and results.model in ("", model.name)
    if bundle and not known:
        named = f", {results.model}" if results.model else ""
        recorded = f", with {results.model_sha256[:12]}" if results.model_sha256 else named
        raise InputError(
            f"{option} {bundle}: {model.name} with SHA-256 {model.sha256[:12]} for "
            f"{', '.join(model.thresholds)}; expected the bundle that made these scores of "
            f"{results.label}{recorded}"
        )
    return model if known else None
