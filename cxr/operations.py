"""Start, cancel and delete runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from job_creator.events import EventError, Request
from runs.arrivals import day_of
from runs.jobs import RUN_ID
from runs.run import Run, State
from runs.table import RunTable

from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.retry import Missing
from cxr.runs import LAMBDA_SECONDS, RunStatus, run_status, run_table
from cxr.stack import Stack, client

# Lambda guide, gettingstarted-limits.
GONE_NAMED = 10  # images that a refusal names
# The fields of an event, as a person says them.
_FIELDS = {
    "RunId": "the name of the run",
    "Prefix": "the prefix",
    "IndexKey": "the index",
    "Keys": "the keys",
    "JobCount": "the number of images",
}
MAX_EVENT_BYTES, MAX_ASYNC_EVENT_BYTES = 6 * 2**20, 2**20


@dataclass(frozen=True)
class Started:
    """The job creator's answer; None where nobody waited for it."""

    run: str
    images: int | None = None
    jobs: int | None = None  # sent; a run that continues sends all of them again, a scored one none


def start_run(
    stack: Stack,
    run: str,
    *,
    prefix: str | None = None,
    index: str | None = None,
    keys: Sequence[str] | None = None,
    count: int | None = None,
    wait: bool = True,
) -> Started:
    """Start or continue the run, and wait until all its jobs are on the stream.

    Its images are those under `prefix` (by default the stack's), those named in the CSV or S3 Inventory with
    the key `index`, or `keys`; at most `count` of them. Raises InputError for what cannot be a run, for too
    long a list of keys and if the job creator refuses the run, and Failed if it did not send all its jobs.
    """
    if not RUN_ID.fullmatch(run):
        raise InputError(
            f"run {run!r}: expected a name of letters, digits, _ . and -, at most 128, that begins with a "
            "letter or a digit"
        )
    sources = {"Prefix": prefix, "IndexKey": index, "Keys": keys and list(keys), "JobCount": count}
    event = {"RunId": run} | {name: value for name, value in sources.items() if value is not None}
    try:
        request = Request.from_event(event, stack.prefix)
    except EventError as error:
        raise InputError(_in_words(str(error))) from None
    payload = json.dumps(event, separators=(",", ":")).encode()
    most = MAX_EVENT_BYTES if wait else MAX_ASYNC_EVENT_BYTES
    if len(payload) > most:
        raise InputError(
            f"{len(payload):,} bytes of keys, but an invocation takes {most:,}: put a CSV of the keys, with "
            f"the heading Key, into the bucket below {stack.prefix}, and start the run from that index"
        )
    if not wait:
        _check_without_answer(stack, request)
    # A second attempt would send the jobs again. Keep-alive keeps gateways from closing an idle connection.
    functions = client(
        "lambda",
        read_timeout=LAMBDA_SECONDS + 60,
        retries={"total_max_attempts": 1},
        tcp_keepalive=True,
    )
    kind = "RequestResponse" if wait else "Event"
    answer = functions.invoke(FunctionName=stack.job_creator, InvocationType=kind, Payload=payload)
    if not wait:
        return Started(run)
    found = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        raise _refusal(stack, request, found)
    return Started(found["RunId"], found["ImageCount"], found["JobCount"])


def _check_without_answer(stack: Stack, request: Request) -> None:
    """Raise InputError for what the job creator would refuse, where nobody waits to hear it.

    The images of an index and of a long listing are not looked at.
    """
    run = run_table(stack).run(request.run_id)
    if run and (run.state == State.DELETING or dict(run.source) != request.source):
        raise InputError(_why_taken(run, request))
    if request.kind != "Keys":
        listed = client("s3").list_objects_v2(Bucket=stack.images_bucket, Prefix=request.value, MaxKeys=1)
        found = [entry["Key"] for entry in listed.get("Contents", [])]
        if not found or (request.kind == "IndexKey" and found != [request.value]):
            raise InputError(f"there is nothing at {request.value} in the bucket {stack.images_bucket}")


def _refusal(stack: Stack, request: Request, answer: Mapping[str, Any]) -> InputError | Failed:
    """Why the job creator did not start the run or not send all its jobs, in words for an operator."""
    kind, message = answer.get("errorType"), str(answer.get("errorMessage"))
    run = run_table(stack).run(request.run_id)
    if kind == "EventError":
        return InputError(_in_words(message))
    if kind == "RunIdTaken" and run:
        return InputError(_why_taken(run, request))
    if kind == "RunImagesGone" and run:
        return InputError(_what_is_gone(stack, request))
    what = message.partition("; ")[0]
    if kind == "RunStopped" and "time is up" in what:
        return Failed(
            f"{what}; give each folder a run of its own, or start runs from indexes of a part of the images"
        )
    if kind == "RunStopped":
        return Failed(f"{what}; run the same command again to continue")
    return Failed(f"the job creator failed: {message}; `cxr doctor` looks for the cause")


def _why_taken(run: Run, request: Request) -> str:
    """Why a request cannot have the name of this run."""
    if run.state == State.DELETING:
        return f"run {run.run_id} is being deleted; `cxr delete {run.run_id}` continues that"
    if dict(run.source) != request.source:
        asked = source_in_words(request.source)
        there = source_in_words(run.source)
        other = "another list of keys" if asked == there else asked
        return f"run {run.run_id} has {there}, and not {other}; choose another name"
    return (
        f"run {run.run_id} reads the bucket {run.bucket} and is scored by {run.model}, and the stack has "
        "another bucket or model now; choose another name"
    )


def _what_is_gone(stack: Stack, request: Request) -> str:
    """Which images of the run have a prediction and are no longer in its source."""
    from job_creator.sources import Sources  # here: it loads boto3

    there = set(Sources(client("s3"), stack.images_bucket, stack.prefix).keys(request))
    gone = sorted(key for key in run_table(stack).predicted_keys(request.run_id) if key not in there)
    more = f" and {len(gone) - GONE_NAMED:,} more" if len(gone) > GONE_NAMED else ""
    return (
        f"run {request.run_id} cannot continue: {len(gone):,} of its images have a prediction and are no "
        f"longer among {source_in_words(request.source)}: {', '.join(gone[:GONE_NAMED])}{more}; put them "
        "back, or choose another name"
    )


def source_in_words(source: Mapping[str, Any]) -> str:
    """What a run is made from, as a run records it."""
    kind, value = source.get("kind"), source.get("value")
    words = {"Prefix": f"the images below {value}", "IndexKey": f"the images of the index {value}"}
    most = f"at most {source['job_count']:,} of " if "job_count" in source else ""
    return most + words.get(str(kind), "the images of a list of keys")


def _in_words(message: str) -> str:
    """An error of an event, without the names of the event's fields."""
    message = re.sub(r"^Keys\[(\d+)\]", lambda found: f"key {int(found[1]) + 1}", message)
    return re.sub(f"^({'|'.join(_FIELDS)})\\b", lambda found: _FIELDS[found[1]], message)


def cancel_run(stack: Stack, run_id: str) -> RunStatus:
    """Cancel the run. What is scored stays, and started again the run continues.

    Raises InputError if it is not there, COMPLETE or being deleted.
    """
    table = run_table(stack)
    run_status(table, run_id)
    table.cancel(run_id)
    found = run_status(table, run_id)
    if found.state == State.COMPLETE:
        raise InputError(f"run {run_id} is COMPLETE: nothing is left to cancel")
    if found.state == State.DELETING:
        raise InputError(f"run {run_id} is being deleted; `cxr delete {run_id}` continues that")
    return found


def check_deletable(stack: Stack, run_id: str) -> RunStatus:
    """The run, if it can be deleted now.

    Raises InputError if it is not there, or at work, or a standing run whose day may still be reconciled:
    its images would come back.
    """
    found = run_status(run_table(stack), run_id)
    day = day_of(run_id)
    if stack.reconciler and day and day >= datetime.now(UTC).date() - timedelta(days=1):
        raise InputError(
            f"run {run_id} would come back when its day is reconciled; delete it from "
            f"{day + timedelta(days=2)} on (UTC)"
        )
    if found.at_work:
        raise InputError(f"run {run_id} is {found.state}; `cxr cancel {run_id}` first, then delete it")
    return found


def delete_run(stack: Stack, run_id: str, tell: Callable[[int], object] = lambda _: None) -> int:
    """Delete the run's counts and predictions, its jobs in the failure bucket, and then its item.

    Returns how many predictions there were. A failure object that also holds jobs of another run stays, as
    long as that run is there.

    Interrupted, it can be called again. `tell` is called with the number deleted so far. Raises InputError
    as `check_deletable` does, and if the run was changed meanwhile.
    """
    run = check_deletable(stack, run_id)
    table = run_table(stack)
    # From here on no command takes what is left for a whole run, and no job of it is scored.
    if not table.mark_deleting(run):
        raise InputError(f"run {run_id} has just been changed by somebody else; look at it again")
    deleted = 0
    for number in table.delete(run):
        deleted += number
        tell(deleted)
    _delete_failure_objects(stack, table, run)
    table.forget(run)
    return deleted


def _delete_failure_objects(stack: Stack, table: RunTable, run: RunStatus) -> None:
    """Delete the failure objects whose jobs are all of this run, or of runs that are gone."""
    s3, missing = client("s3"), Missing(table, run)
    for entry in list(objects(s3, stack.failure_bucket)):  # a whole list: objects go while it is walked
        jobs = jobs_in(s3, stack.failure_bucket, entry["Key"])
        if jobs and not any(missing.state(job) for job in jobs if not missing.belongs(job)):
            s3.delete_object(Bucket=stack.failure_bucket, Key=entry["Key"])
