"""`cxr verify`: check a deployed stack against what the README promises, and measure it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Json, StackName
from cxr.commands.terminal import (
    answers_aside,
    console,
    errors_reported,
    expect_folder,
    notes,
    plain,
    shown,
)
from cxr.errors import Failed, InputError
from cxr.stack import Stack
from cxr.words import duration, money
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from cxr.verification.check import Result
    from cxr.verification.measurement import Measurement

FEWEST, MOST = 16, 10_000  # images
SIGNS = {"PASSED": "[green]✓[/]", "FAILED": "[red]✗[/]", "NOT CHECKED": "[yellow]-[/]"}


def verify(
    images: Annotated[int, typer.Option(metavar="N", help="How many X-rays to draw and to upload.")] = 200,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the results to.")] = Path(
        "cxr-verification"
    ),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Check that a deployed stack does what the README promises, and measure it.

    Says first what it does and what it costs, then asks. It uploads drawn X-rays
    and bad files into a folder of its own, scores them in runs of its own, sends
    everything twice, cancels, lets jobs fail, and asks IAM what the functions
    may do. It changes nothing that was there, and removes what it made, also
    after Ctrl-C. It refuses while a run is at work, and where arrivals are on.

    Writes verification.md, verification.json and service_times.json, which `cxr
    plan` takes. More images measure more exactly.

    The JSON is one object: stack, passed, checks (name, promise, outcome:
    PASSED, FAILED or NOT CHECKED, seen, remedy, seconds), measured (date,
    machine, model, vcpus, images, invocations, images_per_second, milliseconds,
    cold_starts, cold_start_seconds, most_at_once, seconds_to_most, throttles,
    gigabyte_seconds, dollars), files. Unknown values are null.

    Ends with 0 if no check failed; with 1 if one did, if no image could be
    scored, or if you did not confirm; with 2 for wrong input, for example while
    a run is at work.
    """
    with errors_reported(), answers_aside(as_json):
        from cxr.verification.check import passed
        from cxr.verification.measurement import estimate
        from cxr.verification.verification import Verification, refuse_arrivals

        if not FEWEST <= images <= MOST:
            raise InputError(f"--images {images}: expected a whole number from {FEWEST} to {MOST:,}")
        expect_folder(out)
        if not out.absolute().parent.is_dir():
            raise InputError(f"--out {out}: expected a folder in one that exists")
        found = Stack.find(stack)
        refuse_arrivals(found)
        print_intention(found, images, estimate(found, images))
        if not yes:
            confirm(stack)
        with Verification(found, images) as verification:
            with notes.status("Verifying"):
                for result in verification.checks():
                    print_result(result)
                measured, why = None, ""
                try:
                    measured = verification.measure()
                except Failed as error:
                    why = str(error)
            results = verification.results
        finish(found, out, results, measured, why, as_json)
        if not passed(results):
            raise typer.Exit(1)


def print_intention(stack: Stack, images: int, dollars: float) -> None:
    """Print what a verification does, what it makes, and what it costs."""
    console.print(
        f"""[bold]Verify {shown(stack.name)}[/]. It makes, each with a name that begins with cxr-verify-:
  a folder below {shown(stack.prefix)} of {shown(stack.images_bucket)}, with {images:,} drawn X-rays and
  9 bad files, some {images * 0.6:.0f} MB
  4 runs of them, and failure objects of jobs that shall fail: the alarm JobsGivenUp goes off
  an EventBridge rule and an SQS queue, to hear when runs are complete
It asks IAM what the roles may do. It changes nothing else, and removes all of this at the end, also after
Ctrl-C. It takes some minutes and costs about {money(dollars)}. Start no run meanwhile.
""",
        soft_wrap=True,
    )


def confirm(stack: str) -> None:
    """Ask. Raises InputError without a terminal, and Failed for a no."""
    if not sys.stdin.isatty():
        raise InputError("there is no terminal to ask on; give --yes to verify")
    if not typer.confirm(f"Verify {plain(stack)}?", err=True):
        raise Failed("nothing was done")


def print_result(result: Result) -> None:
    """Print the line of a check."""
    time = f" [dim]{duration(result.seconds)}[/]"
    said = f"not checked here: {result.seen}" if result.outcome == "NOT CHECKED" else result.seen
    console.print(f"{SIGNS[result.outcome]} [bold]{result.name}[/] {shown(said)}{time}", soft_wrap=True)
    if result.remedy:
        console.print(f"  {shown(result.remedy)}", soft_wrap=True)


def finish(
    stack: Stack,
    out: Path,
    results: list[Result],
    measured: Measurement | None,
    why: str,
    as_json: bool,
) -> None:
    """Write the files, and print what was measured and where it is."""
    from cxr.verification import page

    files = page.write(out, stack.name, results, measured)
    if measured:
        table = Table(box=None, pad_edge=False, show_header=False, title=" ")
        for name, value in page.measurements(measured):
            table.add_row(name, shown(value))
        console.print(table)
    else:
        console.print(f"\n{shown(why)}", soft_wrap=True)
    numbers = [sum(result.outcome == outcome for result in results) for outcome in SIGNS]
    console.print("\n{} passed, {} failed, {} not checked here".format(*numbers))
    console.print(f"Wrote {', '.join(shown(str(file)) for file in files)}. {RESEARCH_ONLY}", soft_wrap=True)
    if files[-1].name == page.SERVICE_TIMES:
        console.print(
            f"`cxr plan --images 100000 --service-times {shown(str(files[-1]))}` plans with them",
            soft_wrap=True,
        )
    if as_json:
        whole = page.document(stack.name, results, measured)
        typer.echo(json.dumps({**whole, "files": [str(file) for file in files]}, indent=2))
