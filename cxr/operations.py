"""Start, cancel and delete runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runs.run import State
from runs.table import RunTable

from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.retry import Missing
from cxr.runs import RunStatus, run_status, run_table
from cxr.stack import Stack, client

# Lambda guide, gettingstarted-limits.
LAMBDA_SECONDS = 900
MAX_EVENT_BYTES, MAX_ASYNC_EVENT_BYTES = 6 * 2**20, 2**20


@dataclass(frozen=True)
class Started:
    """The job creator's answer; None where nobody waited for it."""

    run: str
    images: int | None = None
    jobs: int | None = None  # sent; a run that continues sends all of them again


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
    the key `index`, or `keys`; at most `count` of them. Raises InputError for too long a list of keys, and
    Failed if the job creator refuses the run or did not send all its jobs.
    """
    sources = {"Prefix": prefix, "IndexKey": index, "Keys": keys, "JobCount": count}
    event = {"RunId": run} | {name: value for name, value in sources.items() if value is not None}
    payload = json.dumps(event, separators=(",", ":"), default=list).encode()
    most = MAX_EVENT_BYTES if wait else MAX_ASYNC_EVENT_BYTES
    if len(payload) > most:
        raise InputError(
            f"{len(payload):,} bytes of keys, but an invocation takes {most:,}: put a CSV of the keys, with "
            f"the heading Key, into the bucket below {stack.prefix}, and start the run from that index"
        )
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
        raise Failed(f"the job creator: {found.get('errorMessage')}")
    return Started(found["RunId"], found["ImageCount"], found["JobCount"])


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
    """The run, if it can be deleted now. Raises InputError if it is not there, or at work."""
    found = run_status(run_table(stack), run_id)
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
