"""`cxr upload`, `run`, `runs`, `status`, `retry`, `cancel` and `delete`."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from runs.arrivals import day_of
from runs.codes import ErrorCode

from cxr.arrivals import delay, pause
from cxr.commands.options import Json, RunName, StackName
from cxr.commands.run_display import (
    COLOURS,
    causes,
    interrupt_message,
    moment_text,
    print_started,
    print_status,
    run_document,
    upload_files,
    watch_run,
)
from cxr.commands.scale_display import scaled
from cxr.commands.terminal import console, errors_reported, notes, progress, shown, stack_words
from cxr.errors import Failed, InputError
from cxr.operations import cancel_run, check_deletable, delete_run, start_run
from cxr.retry import retry_run
from cxr.runs import RunStatus, list_runs, run_status, run_table
from cxr.runs import status as read_status
from cxr.stack import Stack
from cxr.upload import files_in
from cxr.words import counted
from stacks.config import DEFAULT_NAME


def upload(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of images, with its sub-folders.")],
    prefix: Annotated[
        str | None,
        typer.Option(metavar="PREFIX", help="Folder in the bucket to put them in. Default: the stack's."),
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Upload a folder of images into the stack's bucket.

    Run it again to continue where it stopped: a file is skipped if the bucket
    has an object with its key, size and MD5. (S3 does not tell the MD5 in a
    bucket with a KMS key: every file is sent again.) Ctrl-C leaves no half
    object. Hidden files are skipped. A link to a file is followed, a link to a
    folder is not.

    The JSON is one object: uploaded, unchanged.

    Ends with 0, with 1 if a file could not be sent, with 2 for wrong input.
    """
    with errors_reported():
        files = files_in(folder)
        found = Stack.find(stack)
        uploaded = upload_files(found, folder, files, prefix, tell=not as_json)
        if as_json:
            typer.echo(json.dumps({"uploaded": uploaded, "unchanged": len(files) - uploaded}))
        elif found.reconciler:
            console.print("Arrivals are on: these images need no run. `cxr watch` follows them")


def run(
    run: RunName,
    prefix: Annotated[
        str | None, typer.Option(metavar="PREFIX", help="Images under this. Default: the stack's prefix.")
    ] = None,
    index: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Images named in a CSV in the bucket, in its column Key, or in the manifest.json of an S3 "
            "Inventory.",
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Images named in a file here, one key a line; - is standard input."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(metavar="N", help="At most N images.")] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the run to its end, as `cxr status --watch` does.")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            "--shards",
            metavar="N",
            help="Give the stream N shards, follow the run to its end, and set it back.",
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option(
            "--again", help="Where arrivals are on: score images once more that were scored as they arrived."
        ),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait", help="Do not wait for the job creator. Its errors are then in its log only."
        ),
    ] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Start or continue a run.

    The same command again continues the run, also after `cxr cancel`: scored
    images stay, failed ones are tried again. The command is refused if the name
    belongs to a run of other images or of another model. Without --watch it
    ends when all jobs are on the stream, about a second for 10,000 images.

    With --shards the stream has N shards for this run, as by `cxr scale`, and
    then as many as before, also after Ctrl-C or an error. If it cannot be set
    back, the command says so, and `cxr doctor` reminds you.

    The JSON is one object: run, images, jobs; with --watch or --shards that of
    `cxr status`.

    Where arrivals are on, a new run needs --again: its images were scored as they
    arrived, but for those that were there before.

    Ends with 0, also if all images were scored before; with 1 if the job creator
    did not send all jobs, or with --watch if the run did not complete; with 2
    for wrong input, for example a name that another run has.
    """
    with errors_reported():
        if sum(source is not None for source in (prefix, index, keys)) > 1:
            raise InputError("--prefix, --index and --keys: expected one of them")
        if (watch or shards is not None) and no_wait:
            raise InputError("--no-wait: expected without --watch and --shards")
        watch = watch or shards is not None
        listed = read_keys(keys) if keys else None
        found = Stack.find(stack)
        if not again:
            check_not_arriving(found, run)
        with scaled(found, shards) if shards is not None else nullcontext():
            with (
                interrupt_message(run, "may have been started; if so, it continues"),
                notes.status("Starting"),
            ):
                started = start_run(
                    found, run, prefix=prefix, index=index, keys=listed, count=count, wait=not no_wait
                )
            with interrupt_message(run) if watch else nullcontext():
                if not as_json and started.images is not None:
                    print_started(started.images, started.jobs or 0)
                if watch:
                    watch_run(found, run, as_json)
        if as_json and not watch:
            typer.echo(json.dumps(asdict(started)))
        elif no_wait:
            console.print(
                f"Invoked. Follow the run by `cxr status {run} --watch`", markup=False, soft_wrap=True
            )


def runs(stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """List the runs, the newest first.

    The JSON is a list of objects: run, state, model, expected, scored, failed,
    created_at, completed_at.

    Ends with 0, also if there are none, and with 1 if AWS does not answer.
    """
    with errors_reported():
        found = list_runs(Stack.find(stack))
        if as_json:
            typer.echo(json.dumps([run_document(each) for each in found], indent=2))
        elif not found:
            console.print("There are no runs yet. Start one by `cxr run NAME`")
        else:
            table = Table("run", "state", "images", "scored", "failed", "started", "model")
            table.box, table.pad_edge, table.header_style = None, False, "bold"
            table.columns[0].overflow = table.columns[6].overflow = "fold"
            for column in table.columns[2:5]:
                column.justify = "right"
            for each in found:
                unknown = "?" if each.at_work else "-"
                failed = each.failures.total()
                table.add_row(
                    shown(each.run_id),
                    f"[{COLOURS[each.state]}]{each.state}[/]",
                    unknown if each.images is None else f"{each.images:,}",
                    f"{each.scored:,}",
                    f"[red]{failed:,}[/]" if failed else "0",
                    moment_text(each.created_at),
                    shown(each.model),
                )
            console.print(table)


def status(
    run: RunName,
    watch: Annotated[
        bool, typer.Option("--watch", help="Follow the run until it is complete, cancelled or stuck.")
    ] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Show how far a run is, in at most 30 requests whatever its size.

    Of a standing run it reads every prediction, to tell how soon they came.

    Counts are exact. Speed is the average since the run was made or continued;
    with --watch, of the last seconds. Lag is how long the last job waited in the
    stream, if CloudWatch knows it. Images in the failure bucket are those of
    jobs that Lambda has discarded: `cxr retry` sends them again. For a run at
    work it also shows what `cxr doctor` finds wrong between stream and table.

    The JSON is one object: run, state, model, expected, scored, failed,
    created_at, completed_at, failures and warnings (code: images), remaining,
    retrying (images of these that were sent again after they failed),
    images_per_second, seconds_left, stream_lag_seconds, failure_bucket
    (images, more, until), problems (name, level, text, remedy),
    seconds_to_outcome (median, worst: of a standing run). Unknown values are
    null. Of a standing run that is open, expected is what has arrived.

    Ends with 0; with 1 if, with --watch, the run did not complete; with 2 if
    there is no such run or stack.
    """
    with errors_reported():
        found = Stack.find(stack)
        if watch:
            with interrupt_message(run):
                watch_run(found, run, as_json)
        else:
            now = read_status(found, run)
            soon = delay(run_table(found).predictions(run)) if now.standing else None
            print_status(now, as_json, causes(found, now) if now.at_work else [], soon)


def retry(
    run: RunName,
    failed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CODE", help="Also FAILED images with this code, like IMAGE_MISSING. Repeatable."
        ),
    ] = None,
    all_failed: Annotated[bool, typer.Option("--all-failed", help="Also all FAILED images.")] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Send failed images again, after their cause is removed.

    Sends the jobs in the failure bucket, without images that have a prediction
    by now. FAILED images are sent only with --failed or --all-failed, and
    without these options it says how many each would send. They keep their code
    until they have a new outcome; until then the run is SCORING, and `cxr
    status --watch` follows it.

    A failure object is deleted when every image in it has a prediction and no
    other run in it is at work, or when all its runs are deleted. So the objects
    of this retry are deleted by the next.

    The JSON is one object: given_up, failed and waiting (images sent; the last of
    a standing run), completing (jobs sent to complete a run whose images are all there), objects_deleted,
    objects_left.

    Ends with 0, also if there was nothing to send; with 1 if the stream refused
    the jobs; with 2 for wrong input, for example a cancelled run.
    """
    with errors_reported():
        if failed and all_failed:
            raise InputError("--failed and --all-failed: expected one of them")
        found = Stack.find(stack)
        with interrupt_message(run, "is sent again in part", ("retry",)), notes.status("Sending"):
            retried = retry_run(
                found, run, codes=tuple(ErrorCode) if all_failed else [code.upper() for code in failed or ()]
            )
        if as_json:
            typer.echo(json.dumps(asdict(retried)))
            return
        sent = retried.given_up + retried.failed + retried.waiting
        console.print(
            f"[green]✓[/] {counted(sent, 'image')} sent again: {retried.given_up:,} of the failure bucket, "
            f"{retried.failed:,} FAILED" + (f", {retried.waiting:,} that waited" if retried.waiting else "")
        )
        failures = run_status(run_table(found), run).failures
        if failures and not failed and not all_failed:
            print_retryable(found, run, failures)
        if retried.completing:
            console.print(
                f"{counted(retried.completing, 'job')} sent to complete the run: its images are all there"
            )
        if retried.objects_deleted:
            console.print(
                f"{counted(retried.objects_deleted, 'object')} of the failure bucket deleted, "
                "because no run needs them any more"
            )
        if sent or retried.completing:
            console.print(f"Follow the run by `cxr status {run} --watch`", markup=False, soft_wrap=True)


def print_retryable(stack: Stack, run: str, failures: Mapping[str, int]) -> None:
    """Print which commands send the FAILED images again, and how many each."""
    line = shlex.join(["cxr", "retry", run, *stack_words()])
    options = {f"--failed {code}": number for code, number in sorted(failures.items())}
    if len(options) > 1:
        options["--all-failed"] = sum(failures.values())
    console.print("FAILED images are sent only if you say so:")
    for option, number in options.items():
        console.print(f"  {line} {option}  # {counted(number, 'image')}", markup=False, soft_wrap=True)


def cancel(run: RunName, stack: StackName = DEFAULT_NAME, as_json: Json = False) -> None:
    """Cancel a run: waiting jobs are dropped, predictions stay.

    The same command that started the run continues it.

    The JSON is that of `cxr runs`, of the one run.

    Ends with 0, also if it was cancelled before, and with 2 if it is COMPLETE
    or not there.
    """
    with errors_reported():
        found = Stack.find(stack)
        cancelled = pause(found, run) if day_of(run) else cancel_run(found, run)
        if as_json:
            typer.echo(json.dumps(run_document(cancelled)))
            return
        left = "" if cancelled.remaining is None else f", {cancelled.remaining:,} left without an outcome"
        failed = cancelled.failures.total()
        console.print(
            f"[green]✓[/] {shown(run)} is cancelled: {cancelled.scored:,} scored, {failed:,} failed{left}"
        )
        again = f"cxr resume {run}" if cancelled.standing else start_line(found, cancelled)
        console.print(f"To continue: {shown(again)}", soft_wrap=True)


def delete(
    run: RunName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Delete a run for good: its predictions, and its jobs in the failure bucket.

    The images stay. A failure object that also holds jobs of another run stays
    until that run is done.

    Asks first, unless --yes is given. If it is interrupted, run it again. Cancel
    a run at work before you delete it.

    The JSON is one object: run, predictions (how many were deleted).

    Ends with 0; with 1 if you did not confirm; with 2 for wrong input, for
    example a run at work.
    """
    with errors_reported():
        found = Stack.find(stack)
        before = check_deletable(found, run)
        if not yes:
            if not sys.stdin.isatty():
                raise InputError("there is no terminal to ask on; give --yes to delete for good")
            what = f"Delete run {run} with {counted(before.done, 'prediction')}?"
            if not typer.confirm(what, err=True):
                raise Failed("nothing was deleted")
        unfinished = interrupt_message(run, "is deleted in part", ("delete",))
        with unfinished, progress("Deleting") as bar:
            task = bar.add_task("", total=before.done, note="")
            deleted = delete_run(found, run, lambda gone: bar.update(task, completed=gone))
        if as_json:
            typer.echo(json.dumps({"run": run, "predictions": deleted}))
        else:
            console.print(f"[green]✓[/] {shown(run)} is deleted, with {counted(deleted, 'prediction')}")


def check_not_arriving(stack: Stack, run: str) -> None:
    """Raise InputError for a new run of images that are scored as they arrive."""
    if stack.reconciler and not run_table(stack).run(run):
        raise InputError(
            "arrivals are on: images are scored as they arrive, and a run would score them once more; for "
            "images that were there before, give --again"
        )


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line. Raises InputError."""
    try:
        data = sys.stdin.buffer.read() if path == Path("-") else path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a file of keys, one a line") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected keys in UTF-8, one a line") from None
    keys = [line for line in text.split("\n") if line.strip()]
    if not keys:
        raise InputError(f"{path}: expected a key a line, found none")
    return [key.removesuffix("\r") for key in keys]


def start_line(stack: Stack, run: RunStatus) -> str:
    """The command that started the run, which also continues it."""
    kind, value = run.source.get("kind"), str(run.source.get("value"))
    words = ["cxr", "run", run.run_id]
    if kind == "Prefix" and value != stack.prefix:
        words += ["--prefix", value]
    elif kind == "IndexKey":
        words += ["--index", value]
    elif kind == "Keys":
        words += ["--keys", "FILE"]
    if "job_count" in run.source:
        words += ["--count", str(run.source["job_count"])]
    return shlex.join([*words, *stack_words()])
