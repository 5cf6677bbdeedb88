"""The operator's command line. Run `cxr --help`."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cxr.local import PROJECT, LocalAws, LocalAwsError
from cxr.phantoms import write_phantoms
from cxr.processes import STOP_SIGNALS
from cxr.runs import Outcome, RunStatus, images_in_failure_bucket, outcomes, run_status, write_csv
from cxr.upload import FolderError, files_in, upload

RESEARCH_ONLY = "Research use only, not for patient care."
MODEL_JSON = PROJECT / "containers" / "classifier" / "model" / "model.json"
ENVIRONMENT_FILE = PROJECT / ".cxr-local.env"
MAXIMUM_ROWS = 50  # in the table of results
# How long to wait for progress: while records are with the classifier or being retried, and while not.
STALL_SECONDS, IDLE_STALL_SECONDS = 300, 10

console = Console(highlight=False)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=f"Score chest X-rays in bulk on AWS. {RESEARCH_ONLY}",
)
local = typer.Typer(no_args_is_help=True, help="An AWS on this machine: no account and no Docker.")
app.add_typer(local, name="local")

Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of images to upload, with its sub-folders."),
]
Context = Annotated[
    list[str] | None,
    typer.Option("--context", "-c", metavar="NAME=VALUE", help="Setting of the stack, as for `cdk deploy`."),
]


@app.callback()
def main() -> None:
    """Stop cleanly on Ctrl-C, SIGTERM and a closed terminal."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    for number in STOP_SIGNALS:
        signal.signal(number, stop)


@local.command()
def up(images: Images = None, context: Context = None) -> None:
    """Start local AWS with the stack deployed, and keep it up until Ctrl-C."""
    with errors_reported():
        files = files_in(images) if images else []
        with LocalAws() as aws:
            stack = deploy(aws, context)
            if images:
                upload_images(aws, stack, images, files)
            with environment_file(aws, stack):
                console.print(f"""
Local AWS is up. In another terminal, in this folder:

  source {ENVIRONMENT_FILE.name}
  aws lambda invoke --function-name "$JOB_CREATOR" --cli-read-timeout 0 \\
    --payload fileb://events/create-jobs-100.json out.json
  npx cdk deploy --require-approval never --method=direct

Logs: {aws.logs}
[bold]{RESEARCH_ONLY}[/] Press Ctrl-C to stop.""")
                while aws.running:
                    time.sleep(1)
        raise LocalAwsError(f"MiniStack ended by itself. Logs: {aws.logs}")


@local.command()
def demo(
    images: Images = None,
    csv: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the results.")] = Path(
        "demo-results.csv"
    ),
    context: Context = None,
) -> None:
    """Score a folder of images on a local AWS: S3, job creator, Kinesis, classifier, DynamoDB.

    Without --images it scores a few drawings. The results are a CSV with the columns
    key,status,score,label,error. The label is `abnormal` from the model's threshold on, else `normal` (for a
    model of another label X: X, else `no X`). Ends with 0 if every image has an outcome, SCORED or FAILED.
    """
    started = time.monotonic()
    with errors_reported(), tempfile.TemporaryDirectory(prefix="cxr-demo-") as drawings:
        if not csv.absolute().parent.is_dir():
            raise FolderError(f"{csv.parent} is not a folder; give --csv a file in one that exists")
        if not images:
            images = Path(drawings)
            write_phantoms(images)
            console.print("No --images given: these are [bold]drawings[/], and their scores mean nothing.")
        files = files_in(images)
        with LocalAws() as aws:
            stack = deploy(aws, context)
            upload_images(aws, stack, images, files)
            run_id = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
            start_run(aws, stack, run_id)
            status = follow_run(aws, stack, run_id)
            found = outcomes(aws.client("dynamodb"), stack["TableName"], run_id)
        labels = [label["name"] for label in json.loads(MODEL_JSON.read_text())["labels"]]
        write_csv(csv, found, labels)
        print_outcomes(found, labels[0], stack["KeyPrefix"], status)
        console.print(
            f"\nWrote {escape(str(csv))} after {time.monotonic() - started:.0f} s. [bold]{RESEARCH_ONLY}[/]"
        )


def deploy(aws: LocalAws, context: list[str] | None) -> dict[str, str]:
    """Bootstrap and deploy, telling how it goes; the stack's outputs. Raises LocalAwsError."""
    with stage("cdk bootstrap"):
        aws.bootstrap()
    with stage("cdk deploy"):
        return aws.deploy(*context or ())


def upload_images(aws: LocalAws, stack: dict[str, str], folder: Path, files: list[Path]) -> None:
    """Upload the folder with a progress bar."""
    with progress("Uploading") as bar:
        task = bar.add_task("", total=len(files), note="")
        for _ in upload(aws.client("s3"), stack["ImagesBucketName"], stack["KeyPrefix"], folder, files):
            bar.advance(task)
    console.print(f"[green]✓[/] {len(files)} files uploaded")


def start_run(aws: LocalAws, stack: dict[str, str], run_id: str) -> None:
    """Invoke the job creator. Raises LocalAwsError with what it answered if it failed."""
    answer = aws.client("lambda").invoke(
        FunctionName=stack["JobCreatorName"], Payload=json.dumps({"RunId": run_id}).encode()
    )
    payload = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        raise LocalAwsError(f"The job creator failed: {payload.get('errorMessage')}\nLogs: {aws.logs}")
    console.print(f"[green]✓[/] {payload['ImageCount']} images in {payload['JobCount']} jobs on the stream")


def follow_run(aws: LocalAws, stack: dict[str, str], run_id: str) -> RunStatus:
    """Show the run's progress until every image has an outcome. Raises LocalAwsError if it stalls."""
    dynamodb = aws.client("dynamodb")
    with progress("Scoring") as bar:
        task = bar.add_task("", total=None, note="")
        done, since = -1, time.monotonic()
        while not (status := run_status(dynamodb, stack["TableName"], run_id)).complete:
            failed = status.failures.total()
            note = f"{failed} failed" if failed else ""
            bar.update(task, total=status.expected, completed=status.done, note=note)
            if status.done != done:
                done, since = status.done, time.monotonic()
            if time.monotonic() - since > (STALL_SECONDS if aws.delivering else IDLE_STALL_SECONDS):
                given_up = images_in_failure_bucket(aws.client("s3"), stack["FailureBucketName"], run_id)
                raise LocalAwsError(
                    f"The run does not go on: {status.done} of {status.expected} images have an outcome; "
                    f"jobs with {given_up} images are in the failure bucket. Logs: {aws.logs}"
                )
            time.sleep(0.2)
        bar.update(task, total=status.expected, completed=status.done)
    return status


def print_outcomes(found: list[Outcome], primary: str, prefix: str, status: RunStatus) -> None:
    """Print a table of the first outcomes, and how many came out how."""
    table = Table("image", "score", "label", "error", header_style="bold", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    for outcome in found[:MAXIMUM_ROWS]:
        image = escape(outcome.key.removeprefix(prefix))
        table.add_row(image, outcome.score(primary), outcome.label(primary), f"[red]{outcome.error}[/]")
    console.print(table)
    if len(found) > MAXIMUM_ROWS:
        console.print(f"... and {len(found) - MAXIMUM_ROWS} more")
    positive = sum(primary in outcome.positive for outcome in found)
    console.print(f"\n{status.counts['SCORED']} scored by {status.model}, {positive} of them {primary}")
    for code, count in sorted(status.failures.items()):
        console.print(f"[red]{count} failed: {code}[/]")


@contextmanager
def stage(label: str) -> Iterator[None]:
    """Show that something is going on, and at its end how long it took."""
    started = time.monotonic()
    with console.status(label):
        yield
    console.print(f"[green]✓[/] {label} [dim]{time.monotonic() - started:.1f} s[/]")


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar that goes away when it is done, and is not there at all without a terminal."""
    columns = (
        TextColumn(label),
        BarColumn(bar_width=max(10, min(40, console.width - 45))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[red]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


@contextmanager
def environment_file(aws: LocalAws, stack: dict[str, str]) -> Iterator[None]:
    """Have a file of `export` lines that leads a shell to this local AWS, while the block runs."""
    # JobCreatorName becomes JOB_CREATOR.
    names = {re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Name")).upper(): name for name in stack}
    variables = aws.environment | {name: stack[output] for name, output in names.items()}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    text = "".join(["unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN\n", *lines])
    ENVIRONMENT_FILE.write_text(text)
    try:
        yield
    finally:
        if ENVIRONMENT_FILE.exists() and ENVIRONMENT_FILE.read_text() == text:  # not of another local AWS
            ENVIRONMENT_FILE.unlink()


@contextmanager
def errors_reported() -> Iterator[None]:
    """Turn errors that a person can mend into a message and an exit code: 2 for a wrong argument, else 1."""
    try:
        yield
    except (FolderError, LocalAwsError, ClientError, BotoCoreError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"Error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, FolderError) else 1) from None
