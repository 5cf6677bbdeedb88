"""`cxr watch`, `reconcile` and `resume`: standing runs."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from dataclasses import asdict

import typer

from cxr.arrivals import Reconciled, check_on, today
from cxr.arrivals import reconcile as reconcile_run
from cxr.arrivals import resume as resume_run
from cxr.commands.options import Json, RunName, StackName
from cxr.commands.run_display import run_document
from cxr.commands.terminal import console, errors_reported, notes, shown
from cxr.runs import RunStatus, run_status, run_table
from cxr.stack import Stack
from cxr.words import counted
from stacks.config import DEFAULT_NAME

LOOK_SECONDS = 2  # between two looks at the run of today, of two small requests each


def watch(
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Follow what arrives today, until Ctrl-C.

    Shows how many images of today (UTC) have arrived, were scored, failed, and
    wait. Where there is no terminal, it prints a line for each change.

    The JSON is a line for each change: the object of `cxr runs`, and waiting.

    Ends with 130 after Ctrl-C, and with 2 if arrivals are off.
    """
    with errors_reported():
        found = Stack.find(stack)
        check_on(found)
        table, last = run_table(found), ""
        live = console.is_terminal and not as_json
        with notes.status("None arrived today so far") if live else nullcontext() as shown_line:
            while True:
                if table.run(today()):
                    run = run_status(table, today())
                    line = _line(run)
                    if shown_line:
                        shown_line.update(f"{run.run_id}: {line}")
                    elif line != last and as_json:
                        typer.echo(json.dumps({**run_document(run), "waiting": run.waiting}))
                    elif line != last:
                        console.print(f"{run.run_id}: {line}", markup=False)
                    last = line
                time.sleep(LOOK_SECONDS)


def reconcile(run: RunName, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Compare the standing run of a day with what S3 holds of that day.

    Images that no event announced are sent, and so are those that have no
    outcome yet. If the day is over (UTC), no other image joins the run, and it
    completes when all its images have an outcome. The stack does this by itself
    some hours after each day.

    A run that was closed before is not compared again; what waits is sent.

    The JSON is one object: run, missed, sent_again, compared (with S3), exists
    (false if no image arrived on that day).

    Ends with 0; with 1 if the reconciler failed; with 2 for wrong input, for
    example a day that is to come, or a run that is CANCELLED.
    """
    with errors_reported():
        found = Stack.find(stack)
        with notes.status("Listing the bucket"):
            reconciled = reconcile_run(found, run)
        _print_reconciled(found, reconciled, as_json)


def resume(run: RunName, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Continue the standing run of a day that was cancelled.

    What arrived meanwhile waited in a queue, for at most 14 days.

    The JSON is that of `cxr retry`.

    Ends with 0; with 1 if the stream refused the jobs; with 2 for wrong input,
    for example a run that is not cancelled.
    """
    with errors_reported():
        sent = resume_run(Stack.find(stack), run)
        if as_json:
            typer.echo(json.dumps(asdict(sent)))
            return
        console.print(
            f"[green]✓[/] {shown(run)} goes on: what arrived meanwhile is taken from the queue, and "
            f"{counted(sent.waiting + sent.given_up, 'image')} of before are sent again",
            soft_wrap=True,
        )
        console.print("Follow what arrives by `cxr watch`", markup=False)


def _line(run: RunStatus) -> str:
    """What has come of the images of today."""
    state = "" if run.at_work else f"{run.state}: "
    return (
        f"{state}{run.arrived:,} arrived, {run.scored:,} scored, {run.failures.total():,} failed, "
        f"{run.waiting:,} waiting"
    )


def _print_reconciled(stack: Stack, found: Reconciled, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(found)))
        return
    if not found.exists:
        console.print(f"No image arrived on that day: there is no run {shown(found.run)}")
        return
    missed = counted(found.missed, "image")
    what = (
        f"has all that S3 holds of its day: {missed} that no event had announced, "
        if found.compared
        else "was closed before, and takes no more images: "
    )
    console.print(
        f"[green]✓[/] {shown(found.run)} {what}{found.sent_again:,} sent again",
        soft_wrap=True,
    )
    follow = "cxr watch" if found.run == today() else f"cxr status {found.run} --watch"
    console.print(f"Follow the run by `{follow}`", markup=False, soft_wrap=True)
