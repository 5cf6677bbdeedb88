"""`cxr local`: the whole stack on this machine, kept up, or for one demonstration."""

from __future__ import annotations

import fcntl
import json
import re
import shlex
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.table import Table
from runs.predictions import Prediction

from cxr import PROJECT, RESEARCH_ONLY
from cxr.commands.options import Bundle, Json, context_of
from cxr.commands.run_display import causes, follow, print_started, run_document, upload_files
from cxr.commands.terminal import answers_aside, console, errors_reported, on_terminal, shown, stage
from cxr.errors import Failed, InputError
from cxr.files import owner_only, whole_file
from cxr.operations import start_run
from cxr.result_rows import labels_of, row, write_csv
from cxr.runs import RunStatus, run_status, run_table
from cxr.runs import status as read_status
from cxr.stack import Stack
from cxr.upload import files_in
from cxr.words import counted

if TYPE_CHECKING:
    from cxr.local_aws.local_aws import LocalAws

ENVIRONMENT_FILE = PROJECT / ".cxr-local.env"
MAXIMUM_ROWS = 50  # in the table of results on a terminal; a pipe gets all
# How long to wait for progress: while records are with the classifier or being retried, and while not.
STALL_SECONDS, IDLE_STALL_SECONDS = 300, 10

local = typer.Typer(no_args_is_help=True, help="The stack on this machine, without AWS account or Docker.")

Images = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder of images to upload, with its sub-folders."),
]
Context = Annotated[
    list[str] | None,
    typer.Option("--context", "-c", metavar="NAME=VALUE", help="Setting of the stack, as for `cdk deploy`."),
]


@local.command()
def up(images: Images = None, context: Context = None, as_json: Json = False) -> None:
    """Start local AWS with the stack deployed, and keep it up until Ctrl-C.

    It keeps everything in memory: images, runs and predictions are gone when it
    stops.

    The JSON is one object, printed once it is up: environment_file (to
    `source`), outputs (of the stack), logs.
    """
    from cxr.local_aws.local_aws import LocalAws, LocalAwsError

    with errors_reported(), answers_aside(as_json):
        check_settings(context)
        remove_stale_file()
        files = files_in(images) if images else []
        with LocalAws() as aws:
            outputs = deploy(aws, context)
            if images:
                upload_files(Stack.of(outputs), images, files)
            with environment_file(aws, outputs):
                follow = "cxr watch" if "arrivals=on" in (context or []) else "cxr run first --watch"
                settings = "".join(f" -c {shlex.quote(setting)}" for setting in context or [])
                console.print(f"""
Local AWS is up. In another terminal, in this folder:

  source {ENVIRONMENT_FILE.name}
  .venv/bin/{follow}
  aws lambda invoke --function-name "$JOB_CREATOR" --cli-read-timeout 0 \\
    --payload fileb://events/create-jobs-100.json out.json
  npx cdk deploy --require-approval never{settings}

Logs: {aws.logs}
[bold]{RESEARCH_ONLY}[/] Press Ctrl-C to stop.""")
                if as_json:
                    paths = {"environment_file": str(ENVIRONMENT_FILE), "logs": str(aws.logs)}
                    typer.echo(json.dumps({**paths, "outputs": outputs}))
                while aws.running:
                    time.sleep(1)
        raise LocalAwsError(f"MiniStack ended by itself. Logs: {aws.logs}")


@local.command()
def demo(
    images: Images = None,
    csv: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the results.")] = Path(
        "demo-results.csv"
    ),
    bundle: Bundle = None,
    context: Context = None,
    as_json: Json = False,
) -> None:
    """Score a folder of images on local AWS: S3, job creator, Kinesis, classifier, DynamoDB.

    Without --images it scores a few drawings. With --bundle it deploys that
    model, as the setting `model` does. The results are a CSV with the
    columns of `cxr results`.

    The JSON is one object: that of `cxr runs`, of the one run, and results (the
    CSV file).

    Ends with 0 if every image has a prediction, SCORED or FAILED.
    """
    from job_creator.sources import images as images_among

    from cxr import bundles
    from cxr.local_aws.local_aws import LocalAws, LocalAwsError
    from cxr.phantoms import write_phantoms

    started_at = time.monotonic()
    with (
        errors_reported(),
        answers_aside(as_json),
        tempfile.TemporaryDirectory(prefix="cxr-demo-") as drawings,
    ):
        if not csv.absolute().parent.is_dir():
            raise InputError(f"{csv.parent} is not a folder; give --csv a file in one that exists")
        if not images:
            images = Path(drawings)
            write_phantoms(images)
            console.print("No --images given: these are [bold]drawings[/], and their scores mean nothing.")
        files = files_in(images)
        if not any(images_among(map(str, files))):
            raise InputError(f"{images}: expected PNG, JPEG or DICOM files in it, found none")
        check_settings(context)
        if bundle:
            bundles.load(bundle, trial=True)  # before anything is started: the CDK would refuse it as well
            context = [*(context or ()), f"model={bundle.absolute()}"]
        with LocalAws() as aws:
            with whole_file(csv) as part:  # opened here, to fail early if it cannot be written
                deployed = Stack.of(deploy(aws, context))
                upload_files(deployed, images, files)
                run = f"demo-{datetime.now():%Y%m%d-%H%M%S}"
                try:
                    started = start_run(deployed, run)
                except (InputError, Failed) as error:
                    raise LocalAwsError(f"{error}\nLogs: {aws.logs}") from None
                print_started(started.images or 0, started.jobs or 0)
                table = run_table(deployed)
                status = follow(
                    lambda: run_status(table, run),
                    lambda idle: idle > (STALL_SECONDS if aws.delivering else IDLE_STALL_SECONDS),
                    lambda status: causes(deployed, status),
                )
                found = sorted(table.predictions(run), key=lambda prediction: prediction.key)
                labels = labels_of(table, status)
                print_predictions(found, labels[0], deployed.prefix, status)
                if not status.complete:
                    given_up = read_status(deployed, run).failed_jobs.images
                    raise LocalAwsError(
                        f"The run has stopped: {status.done} of {status.expected} images have a prediction; "
                        f"jobs of {counted(given_up, 'image')} are in the failure bucket. {csv} "
                        f"{'is as it was' if csv.exists() else 'was not written'}. Logs: {aws.logs}"
                    )
                with part.open("w", newline="", encoding="utf-8") as file:
                    write_csv(file, (row(prediction, labels, status.model) for prediction in found))
            seconds = time.monotonic() - started_at
            console.print(f"\nWrote {shown(str(csv))} after {seconds:.0f} s. [bold]{RESEARCH_ONLY}[/]")
            if as_json:
                typer.echo(json.dumps({**run_document(status), "results": str(csv)}))


def check_settings(given: list[str] | None) -> None:
    """Raise InputError for settings that cannot be deployed, before anything is started."""
    from stacks.config import Config, ConfigError

    try:
        Config.from_context(context_of(given or ()))
    except ConfigError as error:
        raise InputError(f"-c {error}") from None


def deploy(aws: LocalAws, context: list[str] | None) -> dict[str, str]:
    """Bootstrap and deploy, and show the progress. Returns the stack's outputs. Raises LocalAwsError."""
    with stage("cdk bootstrap"):
        aws.bootstrap()
    with stage("cdk deploy"):
        return aws.deploy(*context or ())


def print_predictions(found: list[Prediction], primary: str, prefix: str, status: RunStatus) -> None:
    """Print a table of the first predictions, and how many images were scored or failed."""
    table = Table("image", "score", "label", "error, warnings", header_style="bold", box=None, pad_edge=False)
    table.columns[0].overflow = "fold"
    table.columns[1].justify = "right"
    rows = found[:MAXIMUM_ROWS] if on_terminal() else found
    for prediction in rows:
        image = shown(prediction.key.removeprefix(prefix))
        odd = f"[red]{prediction.error}[/]" if prediction.error else ", ".join(prediction.warnings)
        score = f"{prediction.scores[primary]:.6f}" if primary in prediction.scores else ""
        table.add_row(image, score, shown(prediction.label(primary) or ""), odd)
    console.print(table)
    if len(found) > len(rows):
        console.print(f"... and {len(found) - len(rows)} more")
    positive = sum(primary in prediction.positive for prediction in found)
    scored_by = f"{status.counts['SCORED']} scored by {shown(status.model)}"
    console.print(f"\n{scored_by}, {positive} of them {shown(primary)}")
    for code, count in sorted(status.failures.items()):
        console.print(f"[red]{count} failed: {code}[/]")


@contextmanager
def environment_file(aws: LocalAws, outputs: Mapping[str, str]) -> Iterator[None]:
    """While the block runs, keep a file of `export` lines that points a shell to this local AWS.

    The file is locked meanwhile: the lock ends with this process, however it ends. Raises InputError.
    """
    # JobCreatorName becomes JOB_CREATOR.
    names = {re.sub("(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Name")).upper(): name for name in outputs}
    variables = aws.environment | {name: outputs[output] for name, output in names.items()}
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()]
    text = "".join(["unset AWS_PROFILE AWS_DEFAULT_PROFILE AWS_SESSION_TOKEN\n", *lines])
    remove_stale_file()
    with open(ENVIRONMENT_FILE, "x", opener=owner_only) as file:
        lock(file)
        file.write(text)
        file.flush()
        try:
            yield
        finally:
            if ENVIRONMENT_FILE.exists() and ENVIRONMENT_FILE.read_text() == text:  # not of another local AWS
                ENVIRONMENT_FILE.unlink()


def remove_stale_file() -> None:
    """Remove the file of a local AWS that was killed. Raises InputError if another one is up."""
    with suppress(FileNotFoundError), ENVIRONMENT_FILE.open("r+") as file:
        lock(file)
        ENVIRONMENT_FILE.unlink()


def lock(file: TextIO) -> None:
    """Lock the environment file while it is open. Raises InputError if another process holds the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(
            f"another local AWS is up in this folder ({ENVIRONMENT_FILE}); stop it by Ctrl-C in its terminal"
        ) from None
