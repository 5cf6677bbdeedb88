"""Images that failed, back onto the stream."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, get_args

from classifier import predictions
from classifier.images import ErrorCode
from classifier.jobs import Job
from classifier.table import Table

from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.runs import DELETING, RunStatus, query, run_status
from cxr.stack import Stack, client

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client

ERROR_CODES: tuple[str, ...] = get_args(ErrorCode)
IMAGES_PER_JOB = 32  # of FAILED images; jobs of the failure bucket keep their size
READ_AT_ONCE = 100  # keys that BatchGetItem takes
MAX_RECORDS, MAX_BYTES = 500, 4 * 2**20  # Kinesis takes 500 records and 5 MiB a PutRecords
PUT_ATTEMPTS = 12  # of one call's records: about a minute in all under throttling


@dataclass(frozen=True)
class Retried:
    """What became of a run's failures."""

    given_up: int = 0  # images sent that were in the failure bucket without a prediction
    failed: int = 0  # FAILED images sent
    completing: int = 0  # jobs sent although all their images have a prediction: to complete the run
    objects_deleted: int = 0  # of the failure bucket: no run needs them any more
    objects_left: int = 0  # with images of the run that have none yet


def retry_run(stack: Stack, run: str, *, codes: Collection[str] = ()) -> Retried:
    """Send again what the failure bucket holds of the run, and its FAILED images with one of these codes.

    An object is deleted once every image in it has a prediction and every other run in it is complete,
    cancelled or gone: so those of this retry go with the next. One whose runs are all gone is deleted, too.
    Sent twice, an image is scored once. A run whose images are all there, but which nobody could complete,
    gets a job again: that completes it.

    Raises InputError if the run is not there or CANCELLED, or a code is none; Failed if the stream does not
    take a job.
    """
    for code in codes:
        if code not in ERROR_CODES:
            raise InputError(f"--failed {code}: expected one of {', '.join(ERROR_CODES)}")
    dynamodb, s3 = client("dynamodb"), client("s3")
    kinesis = client("kinesis")
    found = run_status(dynamodb, stack.table, run)
    if found.state == "CANCELLED":
        raise InputError(
            f"run {run} is CANCELLED, and its jobs would be dropped; start it again by `cxr run`"
        )
    if found.state == DELETING:
        raise InputError(f"run {run} is being deleted; `cxr delete {run}` goes on with it")
    missing = Missing(dynamodb, stack, found)
    given_up = completing = deleted = left = 0
    for entry in list(objects(s3, stack.failure_bucket)):  # a whole list: objects go while it is walked
        outcome = _retry_object(s3, kinesis, stack, entry["Key"], missing)
        given_up += outcome.given_up
        completing += outcome.completing
        deleted += outcome.objects_deleted
        left += outcome.objects_left
    failed = 0
    if codes:
        keys = _failed_keys(dynamodb, stack.table, run, codes)
        while group := tuple(islice(keys, IMAGES_PER_JOB * MAX_RECORDS)):
            jobs = (group[i : i + IMAGES_PER_JOB] for i in range(0, len(group), IMAGES_PER_JOB))
            _send(kinesis, stack.stream, (Job(run, stack.images_bucket, keys, found.uid) for keys in jobs))
            failed += len(group)
    return Retried(given_up, failed, completing, deleted, left)


class Missing:
    """Which images of which runs still have no prediction."""

    def __init__(self, dynamodb: DynamoDBClient, stack: Stack, run: RunStatus) -> None:
        self._uid = run.uid
        self.only_completion = run.state == "SCORING" and run.complete
        self._table = Table(stack.table, dynamodb, "", "")  # read only: no model is stamped on anything
        self._runs: dict[str, dict[str, Any]] = {}

    def belongs(self, job: Job) -> bool:
        """Whether the job is of the run that is retried."""
        return job.run_uid == self._uid

    def of(self, job: Job) -> tuple[str, ...]:
        """Those of the job's keys. A run that was deleted misses none."""
        if not self.state(job):
            return ()
        stored = self._table.stored(job.run_id, job.keys)
        return tuple(key for key in job.keys if key not in stored)

    def keep(self, job: Job) -> bool:
        """Whether another run needs the job: for its images, or for one that completes it."""
        return self.state(job) in ("LISTING", "SCORING") or bool(self.of(job))

    def state(self, job: Job) -> str:
        """Of the job's run. Empty if that is gone, and at most another has its name."""
        if job.run_id not in self._runs:
            self._runs[job.run_id] = self._table.run(job.run_id)
        run = self._runs[job.run_id]
        return str(run["state"]) if run and run["uid"] == job.run_uid else ""


def _retry_object(s3: S3Client, kinesis: KinesisClient, stack: Stack, key: str, missing: Missing) -> Retried:
    """Send what is missing of the run; delete the object if no run needs it any more."""
    jobs = jobs_in(s3, stack.failure_bucket, key)
    ours = [job for job in jobs if missing.belongs(job)]
    others = [job for job in jobs if not missing.belongs(job)]
    if not ours and (not others or any(map(missing.state, others))):
        return Retried()
    again = [replace(job, keys=keys) for job in ours if (keys := missing.of(job))]
    if again:
        _send(kinesis, stack.stream, again)
        return Retried(given_up=sum(len(job.keys) for job in again), objects_left=1)
    completing = ours[:1] if missing.only_completion else []
    # The classifier looks after every job whether its run is complete, also after one with nothing to do.
    _send(kinesis, stack.stream, completing)
    if any(map(missing.keep, others)):
        return Retried(completing=len(completing))
    s3.delete_object(Bucket=stack.failure_bucket, Key=key)
    return Retried(completing=len(completing), objects_deleted=1)


def _failed_keys(dynamodb: DynamoDBClient, table: str, run: str, codes: Collection[str]) -> Iterator[str]:
    named = {f":code{number}": code for number, code in enumerate(sorted(codes))}
    for number in range(predictions.PARTITIONS):
        items = query(
            dynamodb,
            table,
            f"RUN#{run}#{number:02x}",
            ("sk", "error"),
            FilterExpression=f"#error IN ({', '.join(named)})",
            ExpressionAttributeValues=predictions.pack(named),
        )
        yield from (item["sk"]["S"] for item in items)


def _send(kinesis: KinesisClient, stream: str, jobs: Iterable[Job]) -> None:
    """Put jobs onto the stream, as of a run that goes on: what is SCORED by then is skipped."""
    records: list[dict[str, Any]] = []
    size = 0
    for job in jobs:
        record = _record(job)
        if records and (len(records) == MAX_RECORDS or size + len(record["Data"]) > MAX_BYTES):
            _put(kinesis, stream, records)
            records, size = [], 0
        records.append(record)
        size += len(record["Data"])
    if records:
        _put(kinesis, stream, records)


def _record(job: Job) -> dict[str, Any]:
    """The job as the job creator writes it; the tests read it by the classifier's decoder."""
    body: Mapping[str, Any] = {
        "RunId": job.run_id,
        "RunUid": job.run_uid,
        "Bucket": job.bucket,
        "Keys": job.keys,
        "Continued": True,
    }
    return {
        "Data": json.dumps(body, separators=(",", ":")).encode(),
        "PartitionKey": hashlib.sha256(job.keys[0].encode()).hexdigest(),
    }


def _put(kinesis: KinesisClient, stream: str, records: list[Any]) -> None:
    """At most 500 records; what the stream refuses is sent again, and nothing else."""
    for attempt in range(PUT_ATTEMPTS):
        answer = kinesis.put_records(StreamName=stream, Records=records)
        if not answer["FailedRecordCount"]:
            return
        results = zip(records, answer["Records"], strict=True)
        records = [record for record, result in results if "ErrorCode" in result]
        time.sleep(random.uniform(0, min(10, 0.2 * 2**attempt)))  # noqa: S311 - jitter, not a secret
    codes = sorted({result["ErrorCode"] for result in answer["Records"] if "ErrorCode" in result})
    raise Failed(
        f"the stream refused {len(records)} jobs {PUT_ATTEMPTS} times ({', '.join(codes)}); "
        "run the same command again in a while"
    )
