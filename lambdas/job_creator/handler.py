"""The Lambda function that starts a run: S3 keys in, jobs on the Kinesis stream out."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from decimal import Decimal
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from runs import metrics
from runs.backoff import CONFLICT, Patience
from runs.completion import NotAnnounced, complete
from runs.errors import reason
from runs.jobs import Job, StreamRefused, batches, put
from runs.predictions import SCORED, outcomes
from runs.run import Run, State
from runs.table import RunTable

from job_creator.events import EventError, Request
from job_creator.sources import Sources, s3_client

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_kinesis import KinesisClient

SENDERS = 4  # PutRecords calls at once, each of up to 500 jobs
DEADLINE_MARGIN_MS = 10_000
CHECK_SECONDS = 1  # between two looks at whether the run is cancelled, or the time is up


class RunIdTaken(Exception):
    """The RunId belongs to a run of other images or with another model."""


class RunImagesGone(Exception):
    """Images that have a prediction are no longer in the run's source."""


class RunStopped(Exception):
    """Not every job was sent. The message says why and how to continue."""


class AwsError(Exception):
    """What AWS answered, without its message: that may be a URL, with a key or a prefix in it."""


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Lambda's entry point; the event is that of `events/`. Raises as JobCreator does, and AwsError."""
    try:
        return setup()(event, context.get_remaining_time_in_millis)
    except (ClientError, BotoCoreError) as error:
        what, trace = reason(error), error.__traceback__
    raise AwsError(what).with_traceback(trace)


@functools.cache
def setup() -> JobCreator:
    """The job creator of this execution environment, from its environment variables."""
    config = Config(retries={"mode": "standard", "total_max_attempts": 8}, max_pool_connections=SENDERS)
    bucket, prefix = os.environ["BUCKET_NAME"], os.environ["KEY_PREFIX"]
    return JobCreator(
        sources=Sources(s3_client(config), bucket, prefix),
        kinesis=boto3.client("kinesis", config=config),
        table=RunTable(boto3.client("dynamodb", config=config), os.environ["TABLE_NAME"]),
        events=lambda: boto3.client("events", config=config),
        bucket=bucket,
        prefix=prefix,
        stream=os.environ["STREAM_NAME"],
        images_per_job=int(os.environ["IMAGES_PER_JOB"]),
        run_fields=json.loads(os.environ["RUN_FIELDS"], parse_float=Decimal),
    )


class JobCreator:
    """Starts and continues runs: made once, called for every invocation."""

    def __init__(
        self,
        *,
        sources: Sources,
        kinesis: KinesisClient,
        table: RunTable,
        events: Callable[[], EventBridgeClient],  # made only when a run completes here
        bucket: str,
        prefix: str,
        stream: str,
        images_per_job: int,
        run_fields: Mapping[str, Any],  # what every run records: model, model_sha256, labels, settings
    ) -> None:
        self._sources = sources
        self._kinesis = kinesis
        self._table = table
        self._events = events
        self._bucket = bucket
        self._prefix = prefix
        self._stream = stream
        self._images_per_job = images_per_job
        self._run_fields = run_fields

    def __call__(self, event: Any, remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Send a run's jobs and answer RunId, ImageCount (distinct keys) and JobCount (records sent).

        A run that has a score for each of its images sends nothing. Raises EventError, RunIdTaken and
        RunImagesGone with nothing sent, and RunStopped when something may have been.
        """
        request = Request.from_event(event, self._prefix)
        keys = self._sources.keys(request)
        first = next(keys, None)
        if first is None:
            raise EventError(f"{request.kind}: no image there; expected at least one key of an image")
        run_uid, before = self._open(request)
        if before:
            unchanged = self._check_images(request, before)
            counts = self._table.counts(request.run_id)
            if unchanged and before.state == State.COMPLETE and counts[SCORED] == before.expected:
                nothing = {"ImagesSent": 0, "JobsSent": 0, "JobsResent": 0}
                return _report(request.run_id, counts[SCORED], nothing, continued=True)
            self._table.resume(before, outcomes(counts))
        keys_sha256 = hashlib.sha256()
        images = iter(_hashed(chain([first], keys), keys_sha256))
        image_count = 0

        def jobs() -> Iterator[Job]:
            nonlocal image_count
            while group := tuple(islice(images, self._images_per_job)):
                image_count += len(group)
                yield Job(request.run_id, run_uid, self._bucket, group, continued=before is not None)

        job_count = resent = 0
        check_at = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            sending: set[Future[int]] = set()
            for records in batches(jobs()):
                if time.monotonic() >= check_at:
                    self._check(request.run_id, run_uid, job_count, remaining_ms)
                    check_at = time.monotonic() + CHECK_SECONDS
                if len(sending) == SENDERS:
                    done, sending = wait(sending, return_when=FIRST_COMPLETED)
                    resent += sum(map(_resent, done))
                sending.add(pool.submit(put, self._kinesis, self._stream, records))
                job_count += len(records)
            resent += sum(map(_resent, sending))
        self._close(request.run_id, run_uid, image_count, keys_sha256.hexdigest())
        sent = {"ImagesSent": image_count, "JobsSent": job_count, "JobsResent": resent}
        return _report(request.run_id, image_count, sent, continued=before is not None)

    def _check(self, run_id: str, run_uid: str, sent: int, remaining_ms: Callable[[], int]) -> None:
        """Raise RunStopped if the time is up, or the run was cancelled or deleted meanwhile."""
        if remaining_ms() < DEADLINE_MARGIN_MS:
            raise RunStopped(
                f"the function's time is up after {sent} jobs of run {run_id}; "
                "split the run by Prefix, or give it an index of what is left"
            )
        run = self._table.run(run_id)
        if run is None or run.uid != run_uid or run.state == State.DELETING:
            raise RunStopped(f"run {run_id} was deleted after {sent} jobs")
        if run.state == State.CANCELLED:
            raise RunStopped(f"run {run_id} was cancelled after {sent} jobs; invoke again to continue")

    def _open(self, request: Request) -> tuple[str, Run | None]:
        """Begin the run, or find it begun: its uid, and the run if it was there. Raises RunIdTaken."""
        fields = {"source": request.source, "bucket": self._bucket, **self._run_fields}
        patience = Patience()
        while True:
            if run_uid := self._table.begin(request.run_id, fields):
                return run_uid, None
            if run := self._table.run(request.run_id):
                break
            if not patience.wait(CONFLICT):
                raise RunStopped(f"run {request.run_id} is being begun or deleted by others; invoke again")
        if run.state == State.DELETING:
            raise RunIdTaken(f"RunId {request.run_id} is being deleted; finish that, or choose another")
        for name in ("source", "bucket", "model", "model_sha256"):
            there, asked = getattr(run, name), fields[name]
            if there != asked:
                raise RunIdTaken(
                    f"RunId {request.run_id} is taken: that run has {name} {_named(there, self._prefix)}, "
                    f"this event asks for {_named(asked, self._prefix)}; choose another RunId"
                )
        return run.uid, run

    def _check_images(self, request: Request, run: Run) -> bool:
        """Whether the run's source has the images that it had.

        New images may join the run. Raises RunImagesGone if one that has a prediction is there no longer: its
        prediction would be counted in place of an image that has none.
        """
        if request.kind == "Keys":
            return True  # the source holds the hash of the keys
        keys_sha256 = hashlib.sha256()
        for _ in _hashed(self._sources.keys(request), keys_sha256):
            pass
        if keys_sha256.hexdigest() == run.keys_sha256:
            return True
        there = set(map(hash, self._sources.keys(request)))  # as `distinct` remembers keys
        gone = sum(hash(key) not in there for key in self._table.predicted_keys(request.run_id))
        if gone:
            raise RunImagesGone(
                f"run {request.run_id} cannot continue: {gone:,} of the images that have a prediction are no "
                f"longer in its {request.kind}. Put them back, or choose another RunId"
            )
        return False

    def _close(self, run_id: str, run_uid: str, expected: int, keys_sha256: str) -> None:
        """Tell the run how many images to expect, and complete it if all have a prediction already."""
        self._table.expect(run_id, run_uid, expected, keys_sha256)
        try:
            complete(self._table, self._events, run_id)
        except (ClientError, BotoCoreError, NotAnnounced):
            raise RunStopped(
                f"run {run_id} has all its predictions, but its item could not be updated, or "
                "EventBridge did not take the event; invoke again"
            ) from None


def _resent(sending: Future[int]) -> int:
    """How many records of a PutRecords were sent again. Raises RunStopped."""
    try:
        return sending.result()
    except StreamRefused as error:
        raise RunStopped(f"{error}; invoke with the same event to continue") from None


def _report(run_id: str, images: int, sent: Mapping[str, int], *, continued: bool) -> dict[str, Any]:
    """Print the line of this invocation, and return its answer."""
    metrics.print_line(sent, run=run_id, continued=continued)
    return {"RunId": run_id, "ImageCount": images, "JobCount": sent["JobsSent"]}


def _hashed(keys: Iterator[str], digest: Any) -> Iterator[str]:
    """The keys; each goes into the digest as it passes."""
    for key in keys:
        digest.update(f"{key}\0".encode())
        yield key


def _named(value: Any, stack_prefix: str) -> str:
    """A run's source, bucket or model in a message. Of a key, or the start of one, only a hash is shown."""
    names_a_key = isinstance(value, dict) and value.get("kind") in ("Prefix", "IndexKey")
    if names_a_key and value["value"] != stack_prefix:
        value = value | {"value": hashlib.sha256(value["value"].encode()).hexdigest()[:12]}
    return json.dumps(value, default=int)  # DynamoDB's numbers are Decimals


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    metrics.silence_libraries()
