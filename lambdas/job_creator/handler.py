"""The Lambda function that starts a run: S3 keys in, jobs on the Kinesis stream out."""

import functools
import hashlib
import io
import json
import logging
import os
import random
import re
import secrets
import time
import uuid
import warnings
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

from job_creator.jobs import EventError, Record, Request, batches, check_index, distinct, images, indexed

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client

SENDERS = 4  # PutRecords calls at once, each of up to 500 jobs
PUT_ATTEMPTS = 12  # of one call's records: about a minute in all under throttling
DEADLINE_MARGIN_MS = 10_000
EVENT_SOURCE, EVENT_TYPE = "chest-xray-inference", "Run Complete"  # as the classifier's
NAMESPACE = "chest-xray-inference"  # of the metrics, as the classifier's
PARTITIONS, COUNTERS = 64, 16  # of a run's predictions and counts, as the classifier's
BEGIN_ATTEMPTS = 8
CHECK_SECONDS = 1  # from one look at whether the run is cancelled, or the time is up, to the next


class RunIdTaken(Exception):
    """The RunId belongs to a run of other images or with another model."""


class RunStopped(Exception):
    """Not every job was sent. The message says why and how to go on."""


class AwsError(Exception):
    """What AWS answered, without its message: that may be a URL, with a key or a prefix in it."""


def handle(event: Any, context: Any) -> dict[str, Any]:
    """Lambda's entry point; the event is that of `events/`. Raises as JobCreator does, and AwsError."""
    try:
        return setup()(event, context.get_remaining_time_in_millis)
    except ClientError as error:
        reason, trace = f"{error.operation_name}: {error.response['Error']['Code']}", error.__traceback__
    except BotoCoreError as error:
        reason, trace = type(error).__name__, error.__traceback__
    raise AwsError(reason).with_traceback(trace)


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
        run_uid, continued = self._open(request)
        keys_sha256 = hashlib.sha256()
        image_count = job_count = resent = 0
        check_at = time.monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            sending: set[Future[int]] = set()
            for records, count in batches(
                _hashed(chain([first], keys), keys_sha256),
                run_id=request.run_id,
                run_uid=run_uid,
                bucket=self._bucket,
                images_per_job=self._images_per_job,
                continued=continued,
            ):
                if time.monotonic() >= check_at:
                    self._check(request.run_id, run_uid, image_count, remaining_ms)
                    check_at = time.monotonic() + CHECK_SECONDS
                if len(sending) == SENDERS:
                    done, sending = wait(sending, return_when=FIRST_COMPLETED)
                    resent += sum(future.result() for future in done)
                sending.add(pool.submit(self._put, records))
                image_count += count
                job_count += len(records)
            resent += sum(future.result() for future in sending)
        self._close(request.run_id, run_uid, image_count, keys_sha256.hexdigest())
        _log(
            {"ImagesSent": image_count, "JobsSent": job_count, "JobsResent": resent},
            run=request.run_id,
            continued=continued,
        )
        return {"RunId": request.run_id, "ImageCount": image_count, "JobCount": job_count}

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

    def _put(self, records: list[Record]) -> int:
        """Sends at most 500 records, and says how often it sent one again: what the stream refused."""
        resent = 0
        for attempt in range(1, PUT_ATTEMPTS + 1):
            answer = self._kinesis.put_records(StreamName=self._stream, Records=records)  # type: ignore[arg-type]
            if not answer["FailedRecordCount"]:
                return resent
            results = zip(records, answer["Records"], strict=True)
            records = [record for record, result in results if "ErrorCode" in result]
            if attempt < PUT_ATTEMPTS:
                resent += len(records)
                time.sleep(random.uniform(0, min(10, 0.1 * 2**attempt)))  # noqa: S311 - jitter, not a secret
        codes = {result["ErrorCode"] for result in answer["Records"] if "ErrorCode" in result}
        raise RunStopped(
            f"the stream refused {len(records)} jobs {PUT_ATTEMPTS} times ({', '.join(sorted(codes))}); "
            "invoke with the same event to go on"
        )

    def _check(self, run_id: str, run_uid: str, sent: int, remaining_ms: Callable[[], int]) -> None:
        if remaining_ms() < DEADLINE_MARGIN_MS:
            raise RunStopped(
                f"the function's time is up after {sent} images of run {run_id}; "
                "split the run by Prefix, or give it an index of what is left"
            )
        run = self._read(run_id)
        if run.get("uid") != run_uid or run["state"] == "DELETING":
            raise RunStopped(f"run {run_id} was deleted after {sent} images")
        if run["state"] == "CANCELLED":
            raise RunStopped(f"run {run_id} was cancelled after {sent} images; invoke again to go on")

    def _open(self, request: Request) -> tuple[str, bool]:
        """Begins the run, or finds it begun: its uid, and whether it continues. Raises RunIdTaken."""
        run = {"source": request.source, "bucket": self._bucket, **self._model}
        for attempt in range(1, BEGIN_ATTEMPTS + 1):
            if run_uid := self._begin(request.run_id, run):
                return run_uid, False
            if found := self._read(request.run_id):
                break
            time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 - jitter, not a secret
        else:
            raise RunStopped(f"run {request.run_id} is being begun or deleted by others; invoke again")
        if found.get("state") == "DELETING":
            raise RunIdTaken(f"RunId {request.run_id} is being deleted; finish that, or choose another")
        for name, asked in run.items():
            if found.get(name) != asked:
                there, here = (_named(value, self._prefix) for value in (found.get(name), asked))
                raise RunIdTaken(
                    f"RunId {request.run_id} is taken: that run has {name} {there}, "
                    f"this event asks for {here}; choose another RunId"
                )
        self._check_images(request, found)
        self._update(
            request.run_id,
            "SET #state = :listing REMOVE expected",
            "uid = :uid AND #state = :cancelled",
            {":uid": found["uid"], ":listing": "LISTING", ":cancelled": "CANCELLED"},
        )
        return found["uid"], True

    def _begin(self, run_id: str, run: dict[str, Any]) -> str:
        """Makes the run's item and its counters, all or nothing; its uid, or nothing if that did not go.

        What a run's counters do is in the classifier's predictions.py.
        """
        run_uid = secrets.token_hex(8)
        item = {**run, "uid": run_uid, "state": "LISTING", "created_at": _now()}
        counters = ({"pk": f"RUN#{run_id}", "sk": f"COUNT#{n:02d}", "uid": run_uid} for n in range(COUNTERS))
        puts: Any = [
            {"Put": {"TableName": self._table, "Item": _pack(each)}}
            for each in ({"pk": "RUN", "sk": run_id, **item}, *counters)
        ]
        puts[0]["Put"]["ConditionExpression"] = "attribute_not_exists(pk)"
        try:
            self._dynamodb.transact_write_items(TransactItems=puts)
        except self._dynamodb.exceptions.TransactionCanceledException:
            return ""
        return run_uid

    def _check_images(self, request: Request, run: dict[str, Any]) -> None:
        """Raises RunIdTaken if an image that has a prediction is not the run's any more.

        Its outcome would be counted for an image that has none. New images may join the run.
        """
        if request.kind == "Keys":
            return  # whose hash is the source
        keys_sha256 = hashlib.sha256()
        for _ in _hashed(self._keys(request), keys_sha256):
            pass
        if keys_sha256.hexdigest() == run.get("keys_sha256"):
            return
        there = set(map(hash, self._keys(request)))  # as `distinct` remembers keys
        gone = sum(hash(key) not in there for key in self._predicted(request.run_id))
        if gone:
            raise RunIdTaken(
                f"run {request.run_id} cannot go on, for images with a prediction are gone from its "
                f"{request.kind}: {gone:,}. Put them back, or choose another RunId"
            )

    def _predicted(self, run_id: str) -> Iterator[str]:
        """The keys of the run's predictions."""
        pages = self._dynamodb.get_paginator("query")
        for number in range(PARTITIONS):
            for page in pages.paginate(
                TableName=self._table,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues=_pack({":pk": f"RUN#{run_id}#{number:02x}"}),
                ProjectionExpression="sk",
                ConsistentRead=True,
            ):
                yield from (item["sk"]["S"] for item in page["Items"])

    def _close(self, run_id: str, run_uid: str, expected: int, keys_sha256: str) -> None:
        """Tells the run how many predictions to expect, and completes it if they are there already."""
        self._update(
            run_id,
            "SET #state = :scoring, expected = :expected, keys_sha256 = :keys_sha256, listed_at = :now",
            # Another invocation of the same event may have got here first, and the run have completed.
            "uid = :uid AND (#state IN (:listing, :scoring) OR #state = :complete AND expected <> :expected)",
            {
                ":uid": run_uid,
                ":listing": "LISTING",
                ":scoring": "SCORING",
                ":complete": "COMPLETE",
                ":expected": expected,
                ":keys_sha256": keys_sha256,
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
        if outcomes >= expected:
            self._complete(run_id, expected, counts["SCORED"], outcomes - counts["SCORED"])

    def _complete(self, run_id: str, expected: int, scored: int, failed: int) -> None:
        """Completes the run and says so. Raises RunStopped, and the run then waits to be completed again."""
        by = uuid.uuid4().hex  # where an answer is lost, the SDK's next try is known for the same call
        values = {":complete": "COMPLETE", ":scoring": "SCORING", ":by": by}
        detail = {"RunId": run_id, "Scored": scored, "Failed": failed}
        entry: Any = {"Source": EVENT_SOURCE, "DetailType": EVENT_TYPE, "Detail": json.dumps(detail)}
        try:
            completed = self._update(
                run_id,
                "SET #state = :complete, completed_at = :now, completed_by = :by",
                "expected = :expected AND (#state = :scoring OR #state = :complete AND completed_by = :by)",
                {**values, ":expected": expected, ":now": _now()},
            )
            said = not completed or not self._events().put_events(Entries=[entry])["FailedEntryCount"]
        except (ClientError, BotoCoreError):
            said = False
        if not said:
            self._update(
                run_id,
                "SET #state = :scoring REMOVE completed_at, completed_by",
                "#state = :complete AND completed_by = :by",
                values,
            )
            raise RunStopped(
                f"run {run_id} is complete, but its item could not be updated, or "
                "EventBridge did not take the event; invoke again"
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


def _hashed(keys: Iterator[str], digest: Any) -> Iterator[str]:
    """The keys; each goes into the digest as it passes."""
    for key in keys:
        digest.update(f"{key}\0".encode())
        yield key


def _key(run_id: str) -> dict[str, Any]:
    return _pack({"pk": "RUN", "sk": run_id})


def _pack(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: TypeSerializer().serialize(value) for name, value in fields.items()}


def _named(value: Any, stack_prefix: str) -> str:
    """A run's source, model or hash in a message: of a key, or of the start of one, only a hash."""
    names_a_key = isinstance(value, dict) and value.get("kind") in ("Prefix", "IndexKey")
    if names_a_key and value["value"] != stack_prefix:
        value = value | {"value": hashlib.sha256(value["value"].encode()).hexdigest()[:12]}
    return json.dumps(value, default=int)  # DynamoDB's numbers are Decimals


def _log(metrics: dict[str, int], **fields: Any) -> None:
    """Prints the invocation's one line: a record to search, and the metrics that CloudWatch takes from it.

    The form is the embedded metric format (CloudWatch user guide,
    CloudWatch_Embedded_Metric_Format_Specification).
    """
    now = datetime.now(UTC)
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [["FunctionName"]],
        "Metrics": [{"Name": name, "Unit": "Count"} for name in metrics],
    }
    record = {
        "timestamp": now.isoformat(timespec="milliseconds"),
        "level": "INFO",
        **fields,
        "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"),
        **metrics,
        "_aws": {"Timestamp": int(now.timestamp() * 1000), "CloudWatchMetrics": [directive]},
    }
    print(json.dumps(record))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # What libraries would say names keys: urllib3 a URL, botocore a request.
    logging.disable()
    warnings.simplefilter("ignore")
