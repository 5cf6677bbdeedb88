"""The Lambda function that starts a run: S3 keys in, jobs on the Kinesis stream out."""

import functools
import hashlib
import io
import json
import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import boto3
from boto3.dynamodb.types import TypeDeserializer, TypeSerializer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from jobs import EventError, Record, Request, batches, check_index, distinct, images, indexed

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client

SENDERS = 4  # PutRecords calls at once, each of up to 500 jobs
PUT_ATTEMPTS = 12  # of one call's records: about a minute in all under throttling
DEADLINE_MARGIN_MS = 10_000
EVENT_SOURCE, EVENT_TYPE = "chest-xray-inference", "Run Complete"  # as the classifier's
CHECK_SECONDS = 1  # from one look at whether the run is cancelled, or the time is up, to the next


class RunIdTaken(Exception):
    """The RunId belongs to a run from another source or with another model."""


class RunStopped(Exception):
    """Not every job was sent. The message says why and how to go on."""


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Lambda's entry point; the event is that of `events/`."""
    return setup()(event, context.get_remaining_time_in_millis)


@functools.cache
def setup() -> "JobCreator":
    """The job creator of this execution environment, from its environment variables."""
    config = Config(retries={"mode": "standard", "total_max_attempts": 8}, max_pool_connections=SENDERS)
    return JobCreator(
        s3=boto3.client("s3", config=config),
        kinesis=boto3.client("kinesis", config=config),
        dynamodb=boto3.client("dynamodb", config=config),
        events=lambda: boto3.client("events", config=config),
        bucket=os.environ["BUCKET_NAME"],
        prefix=os.environ["KEY_PREFIX"],
        stream=os.environ["STREAM_NAME"],
        table=os.environ["TABLE_NAME"],
        images_per_job=int(os.environ["IMAGES_PER_JOB"]),
        model={"model": os.environ["MODEL"], "model_sha256": os.environ["MODEL_SHA256"]},
    )


class JobCreator:
    """Starts and continues runs: made once, called for every invocation."""

    def __init__(
        self,
        *,
        s3: "S3Client",
        kinesis: "KinesisClient",
        dynamodb: "DynamoDBClient",
        events: Callable[[], "EventBridgeClient"],  # made only when a run completes here
        bucket: str,
        prefix: str,
        stream: str,
        table: str,
        images_per_job: int,
        model: dict[str, str],
    ) -> None:
        # Under the wildcard it comes before botocore's own handlers, which parse the page, too.
        s3.meta.events.register_first("before-parse.*.ListObjectsV2", _take_keys)
        self._s3 = s3
        self._kinesis = kinesis
        self._dynamodb = dynamodb
        self._events = events
        self._bucket = bucket
        self._prefix = prefix
        self._stream = stream
        self._table = table
        self._images_per_job = images_per_job
        self._model = model

    def __call__(self, event: Any, remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Sends a run's jobs and answers RunId, ImageCount (distinct keys) and JobCount (records sent).

        Raises EventError and RunIdTaken with nothing sent, and RunStopped when something may have been.
        """
        request = Request.from_event(event, self._prefix)
        keys = self._keys(request)
        first = next(keys, None)
        if first is None:
            raise EventError(f"{request.kind}: no image there; expected at least one key of an image")
        continued = self._open(request)
        image_count = job_count = 0
        check_at = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            sending: set[Future[None]] = set()
            for records, count in batches(
                chain([first], keys),
                run_id=request.run_id,
                bucket=self._bucket,
                images_per_job=self._images_per_job,
                continued=continued,
            ):
                if time.monotonic() >= check_at:
                    self._check(request.run_id, image_count, remaining_ms)
                    check_at = time.monotonic() + CHECK_SECONDS
                if len(sending) == SENDERS:
                    done, sending = wait(sending, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                sending.add(pool.submit(self._put, records))
                image_count += count
                job_count += len(records)
            for future in sending:
                future.result()
        self._close(request.run_id, image_count)
        answer = {"RunId": request.run_id, "ImageCount": image_count, "JobCount": job_count}
        print(json.dumps({**answer, "continued": continued}))
        return answer

    def _keys(self, request: Request) -> Iterator[str]:
        """The run's keys, each once, read as they are asked for. Raises EventError."""
        if request.kind == "Prefix":
            keys = images(self._listed(request.value))
        elif request.kind == "IndexKey":
            keys = images(self._indexed(request.value))
        else:
            keys = distinct(images(request.keys))
        return islice(keys, request.job_count)

    def _listed(self, prefix: str) -> Iterator[str]:
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
        try:
            for page in pages:
                for entry in page.get("Contents", []):
                    yield entry["Key"]
        except self._s3.exceptions.NoSuchBucket:
            raise EventError(f"Prefix: expected a bucket to list, but there is no {self._bucket}") from None

    def _indexed(self, index_key: str) -> Iterator[str]:
        """An index's keys, each once. It is read twice: a wrong row stops the run before a job is sent."""
        text, version = self._text(index_key)
        in_order = check_index(text, self._prefix)
        text, _ = self._text(index_key, IfMatch=version)
        return indexed(text) if in_order else distinct(indexed(text))

    def _text(self, index_key: str, **condition: Any) -> tuple[io.TextIOWrapper, str]:
        """An index, and its ETag. Raises EventError."""
        try:
            answer: Any = self._s3.get_object(Bucket=self._bucket, Key=index_key, **condition)
        except ClientError as error:  # whose message may name the key
            code = error.response["Error"]["Code"]
            raise EventError(
                f"IndexKey: expected a CSV in the bucket {self._bucket}, but S3 answers {code}"
            ) from None
        return io.TextIOWrapper(answer["Body"], encoding="utf-8-sig", newline=""), answer["ETag"]

    def _put(self, records: list[Record]) -> None:
        """Sends at most 500 records; what the stream refuses is sent again, and nothing else."""
        for attempt in range(1, PUT_ATTEMPTS + 1):
            answer = self._kinesis.put_records(StreamName=self._stream, Records=records)  # type: ignore[arg-type]
            if not answer["FailedRecordCount"]:
                return
            results = zip(records, answer["Records"], strict=True)
            records = [record for record, result in results if "ErrorCode" in result]
            if attempt < PUT_ATTEMPTS:
                time.sleep(random.uniform(0, min(10, 0.1 * 2**attempt)))  # noqa: S311 - jitter, not a secret
        codes = {result["ErrorCode"] for result in answer["Records"] if "ErrorCode" in result}
        raise RunStopped(
            f"the stream refused {len(records)} jobs {PUT_ATTEMPTS} times ({', '.join(sorted(codes))}); "
            "invoke with the same event to go on"
        )

    def _check(self, run_id: str, sent: int, remaining_ms: Callable[[], int]) -> None:
        if remaining_ms() < DEADLINE_MARGIN_MS:
            raise RunStopped(
                f"the function's time is up after {sent} images of run {run_id}; "
                "split the run by Prefix, or give it an index of what is left"
            )
        if self._read(run_id).get("state") == "CANCELLED":
            raise RunStopped(f"run {run_id} was cancelled after {sent} images; invoke again to go on")

    def _open(self, request: Request) -> bool:
        """Makes the run's item, or finds it made: whether the run continues. Raises RunIdTaken."""
        run = {"source": request.source, **self._model}
        item = {**_key(request.run_id), **_pack({**run, "state": "LISTING", "created_at": _now()})}
        try:
            self._dynamodb.put_item(
                TableName=self._table, Item=item, ConditionExpression="attribute_not_exists(pk)"
            )
            return False
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            found = self._read(request.run_id)
        if found.get("state") == "DELETING":
            raise RunIdTaken(f"RunId {request.run_id} is being deleted; finish that, or choose another")
        for name, asked in run.items():
            if found.get(name) != asked:
                raise RunIdTaken(
                    f"RunId {request.run_id} is taken: that run has {name} {_named(found.get(name))}, "
                    f"this event asks for {_named(asked)}; choose another RunId"
                )
        self._update(
            request.run_id,
            "SET #state = :listing REMOVE expected",
            "#state = :cancelled",
            {":listing": "LISTING", ":cancelled": "CANCELLED"},
        )
        return True

    def _close(self, run_id: str, expected: int) -> None:
        """Tells the run how many predictions to expect, and completes it if they are there already."""
        self._update(
            run_id,
            "SET #state = :scoring, expected = :expected, listed_at = :now",
            # Another invocation of the same event may have got here first, and the run have completed.
            "#state <> :cancelled AND NOT (#state = :complete AND expected = :expected)",
            {
                ":scoring": "SCORING",
                ":complete": "COMPLETE",
                ":cancelled": "CANCELLED",
                ":expected": expected,
                ":now": _now(),
            },
        )
        counters = self._dynamodb.query(
            TableName=self._table,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues=_pack({":pk": f"RUN#{run_id}"}),
            ConsistentRead=True,
        )
        # An image is counted once as SCORED or FAILED#<code>; a WARNING#<code> comes on top.
        counts: Counter[str] = Counter()
        for item in counters["Items"]:
            counts.update({name: int(n["N"]) for name, n in item.items() if "N" in n})
        outcomes = sum(n for name, n in counts.items() if not name.startswith("WARNING#"))
        if outcomes >= expected and self._update(
            run_id,
            "SET #state = :complete, completed_at = :now",
            "#state = :scoring AND expected = :expected",
            {":complete": "COMPLETE", ":scoring": "SCORING", ":expected": expected, ":now": _now()},
        ):
            self._announce(run_id, counts["SCORED"], outcomes - counts["SCORED"])

    def _announce(self, run_id: str, scored: int, failed: int) -> None:
        """Says that the run is complete. Raises RunStopped, and the run then waits to be completed again."""
        detail = {"RunId": run_id, "Scored": scored, "Failed": failed}
        entry: Any = {"Source": EVENT_SOURCE, "DetailType": EVENT_TYPE, "Detail": json.dumps(detail)}
        try:
            refused = self._events().put_events(Entries=[entry])["FailedEntryCount"]
        except (ClientError, BotoCoreError):
            refused = 1
        if refused:
            self._update(
                run_id,
                "SET #state = :scoring REMOVE completed_at",
                "#state = :complete",
                {":complete": "COMPLETE", ":scoring": "SCORING"},
            )
            raise RunStopped(
                f"run {run_id} is complete, but EventBridge did not take the event; invoke again"
            )

    def _read(self, run_id: str) -> dict[str, Any]:
        found = self._dynamodb.get_item(TableName=self._table, Key=_key(run_id), ConsistentRead=True)
        return {name: TypeDeserializer().deserialize(value) for name, value in found.get("Item", {}).items()}

    def _update(self, run_id: str, update: str, condition: str, values: dict[str, Any]) -> bool:
        """Updates the run's item where the condition holds, and says whether it did."""
        try:
            self._dynamodb.update_item(
                TableName=self._table,
                Key=_key(run_id),
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames={"#state": "state"},
                ExpressionAttributeValues=_pack(values),
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True


def _take_keys(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """Takes the objects out of a page of a listing, and gives botocore their keys for its answer.

    botocore would parse a date for each object, and so take 20 times as long. It gets every page whose keys
    do not stand there plainly, and undoes their URL encoding as ever.
    """
    page: bytes = response_dict["body"]
    keys = re.findall(rb"<Contents><Key>([^<&]+)</Key>", page)
    if keys and len(keys) == page.count(b"<Contents>") == page.count(b"</Contents><Contents>") + 1:
        head, rest = page.split(b"<Contents>", maxsplit=1)
        response_dict["body"] = head + rest.rpartition(b"</Contents>")[2]
        customized_response_dict["Contents"] = [{"Key": key.decode()} for key in keys]


def _key(run_id: str) -> dict[str, Any]:
    return _pack({"pk": "RUN", "sk": run_id})


def _pack(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in fields.items()}


def _named(value: Any) -> str:
    """A run's source, model or hash in a message: of an index, whose key may say something, only a hash."""
    if isinstance(value, dict) and value.get("kind") == "IndexKey":
        value = value | {"value": hashlib.sha256(value["value"].encode()).hexdigest()[:12]}
    return json.dumps(value, default=int)  # DynamoDB's numbers are Decimals


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
