"""`cxr scale`: change how many classifiers can run at once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cxr.commands.options import Json, StackName
from cxr.commands.scale_display import changes_left, scale_stream
from cxr.commands.terminal import console, errors_reported
from cxr.stack import Stack
from cxr.words import counted
from stacks.config import DEFAULT_NAME


def scale(
    shards: Annotated[int, typer.Argument(metavar="N", help="How many shards the stream shall have.")],
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Change the shards of the stream now, step by step.

    With each shard ten classifiers more can run at once. It costs about 11
    dollars a month. Kinesis at most doubles or halves the shards, ten times in 24
    hours; each step is shown. Jobs are delivered meanwhile, and those that wait
    already stay in their shard: scale before a run. After Ctrl-C, the same
    command continues.

    A deployment leaves the stream as it is, unless the setting `shards` has
    changed since the last one. `cxr doctor` says if the two differ.

    The JSON is one object: before, shards (numbers), changes_left (in 24 hours,
    at most; null if that is not known).

    Ends with 0, also if there was nothing to change; with 1 if Kinesis refused a
    step; with 2 for wrong input.
    """
    with errors_reported():
        before, now = scale_stream(Stack.find(stack), shards, "the same command continues")
        if as_json:
            document = {"before": before.number, "shards": now.number, "changes_left": now.left}
            typer.echo(json.dumps(document))
            return
        console.print(f"The stream has {counted(now.number, 'shard')}. {changes_left(now)}", soft_wrap=True)
