"""What an operator does to a run: start it, cancel it, delete it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from classifier import predictions

from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.retry import Missing
from cxr.runs import DELETING, RunStatus, query, run_status
from cxr.stack import Stack, client

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

# Lambda guide, gettingstarted-limits.
LAMBDA_SECONDS = 900
MAX_EVENT_BYTES, MAX_ASYNC_EVENT_BYTES = 6 * 2**20, 2**20
DELETERS = 8  # partitions of predictions that are deleted at once
BATCH = 25  # what BatchWriteItem takes


@dataclass(frozen=True)
class Started:
    """What the job creator answers; unknown where it was not waited for."""

    run: str
    images: int | None = None
    jobs: int | None = None  # sent: of a run that goes on, all of it again


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
    """Start the run, or go on with it, and wait until all its jobs are on the stream.

    Its images are those under `prefix` (by default the stack's), those that the CSV with the key `index`
    names, or `keys`; at most `count` of them. Raises Failed if the job creator refuses the run, or did not
    send all of it.
    """
    sources = {"Prefix": prefix, "IndexKey": index, "Keys": keys, "JobCount": count}
    event = {"RunId": run} | {name: value for name, value in sources.items() if value is not None}
    payload = json.dumps(event, separators=(",", ":"), default=list).encode()
    most = MAX_EVENT_BYTES if wait else MAX_ASYNC_EVENT_BYTES
    if len(payload) > most:
        raise InputError(
            f"{len(payload):,} bytes of keys, and an invocation takes {most:,}: make a CSV of them under the "
            f"heading Key, put it into the bucket below {stack.prefix}, and give its key by --index"
        )
    # Asked again, the job creator would send the jobs again; keep-alive is for the gateways on the way.
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


def cancel_run(stack: Stack, run: str) -> RunStatus:
    """Cancel the run if it is not COMPLETE: what is scored stays, and started again it goes on.

    Raises InputError if it is not there, COMPLETE or being deleted.
    """
    dynamodb: DynamoDBClient = client("dynamodb")
    run_status(dynamodb, stack.table, run)
    with suppress(dynamodb.exceptions.ConditionalCheckFailedException):  # COMPLETE or CANCELLED already
        dynamodb.update_item(
            TableName=stack.table,
            Key=predictions.run_key(run),
            UpdateExpression="SET #state = :cancelled, cancelled_at = :now",
            ConditionExpression="#state IN (:listing, :scoring)",
            ExpressionAttributeNames={"#state": "state"},
            ExpressionAttributeValues=predictions.pack(
                {
                    ":cancelled": "CANCELLED",
                    ":listing": "LISTING",
                    ":scoring": "SCORING",
                    ":now": datetime.now(UTC).isoformat(timespec="seconds"),
                }
            ),
        )
    found = run_status(dynamodb, stack.table, run)
    if found.state == "COMPLETE":
        raise InputError(f"run {run} is COMPLETE: nothing is left to cancel")
    if found.state == DELETING:
        raise InputError(f"run {run} is being deleted; `cxr delete {run}` goes on with it")
    return found


def check_deletable(stack: Stack, run: str) -> RunStatus:
    """The run, if it can be deleted now.

    Raises InputError if it is not there, or at work.
    """
    found = run_status(client("dynamodb"), stack.table, run)
    if found.at_work:
        raise InputError(f"run {run} is {found.state}; `cxr cancel {run}` first, then delete it")
    return found


def delete_run(stack: Stack, run: str, tell: Callable[[int], object] = lambda _: None) -> int:
    """Delete the run's counts and predictions, its jobs that Lambda gave up, then its item.

    Returns how many predictions there were. An object of the failure bucket that also holds jobs of a run
    that is there stays; one whose runs are all gone goes, too.

    Interrupted, it can be called again. `tell` gets how many are gone, every now and then. Raises InputError
    as `check_deletable` does, and if the run was started again meanwhile.
    """
    found = check_deletable(stack, run)
    dynamodb: DynamoDBClient = client("dynamodb")
    only_it: dict[str, Any] = {
        "TableName": stack.table,
        "Key": predictions.run_key(run),
        "ConditionExpression": "uid = :uid AND #state = :found",
        "ExpressionAttributeNames": {"#state": "state"},
    }
    values = {":uid": found.uid, ":found": found.state}
    # From here on nobody takes what is left of it for a whole run, and no job of it is scored.
    try:
        dynamodb.update_item(
            **only_it,
            UpdateExpression="SET #state = :deleting",
            ExpressionAttributeValues=predictions.pack({**values, ":deleting": DELETING}),
        )
    except dynamodb.exceptions.ConditionalCheckFailedException:
        raise InputError(f"run {run} has just been changed by somebody else; look at it again") from None
    # First the counters: without them a classifier that is at work writes nothing more.
    _delete(dynamodb, stack.table, f"RUN#{run}")
    partitions = [f"RUN#{run}#{number:02x}" for number in range(predictions.PARTITIONS)]
    deleted = 0
    with ThreadPoolExecutor(DELETERS) as pool:
        for number in pool.map(lambda pk: _delete(dynamodb, stack.table, pk), partitions):
            deleted += number
            tell(deleted)
    _delete_given_up(stack, dynamodb, found)
    with suppress(dynamodb.exceptions.ConditionalCheckFailedException):  # somebody else has deleted it
        values |= {":found": DELETING}
        dynamodb.delete_item(**only_it, ExpressionAttributeValues=predictions.pack(values))
    return deleted


def _delete_given_up(stack: Stack, dynamodb: DynamoDBClient, run: RunStatus) -> None:
    """The failure objects that hold jobs of no run that is there, but of this one."""
    s3, missing = client("s3"), Missing(dynamodb, stack, run)
    for entry in list(objects(s3, stack.failure_bucket)):  # a whole list: objects go while it is walked
        jobs = jobs_in(s3, stack.failure_bucket, entry["Key"])
        if jobs and not any(missing.state(job) for job in jobs if not missing.belongs(job)):
            s3.delete_object(Bucket=stack.failure_bucket, Key=entry["Key"])


def _delete(dynamodb: DynamoDBClient, table: str, pk: str) -> int:
    """All items of a partition; how many there were."""
    deleted = 0
    items = query(dynamodb, table, pk, ("pk", "sk"))
    for batch in _batches(items):
        requests: Any = {table: [{"DeleteRequest": {"Key": key}} for key in batch]}
        while requests:  # the client's own retries slow it down where DynamoDB throttles
            requests = dynamodb.batch_write_item(RequestItems=requests)["UnprocessedItems"]
        deleted += len(batch)
    return deleted


def _batches(items: Iterator[predictions.Item]) -> Iterator[list[predictions.Item]]:
    while batch := list(islice(items, BATCH)):
        yield batch
