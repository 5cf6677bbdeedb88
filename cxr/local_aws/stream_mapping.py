"""How AWS Lambda delivers a Kinesis stream to a function: the rules of an event source mapping.

MiniStack does not have these rules: it takes any answer for full success, and repeats an error for ever. So
`cxr local` and the tests deliver by this module. It makes no call of its own: `invoke` runs the function,
`put_failure` writes to the failure bucket, and time comes from `now` and `sleep`. DG is the AWS Lambda
developer guide, https://docs.aws.amazon.com/lambda/latest/dg/<page>.html. Where the guide is silent, a
comment says so.

DG invocation-eventsourcemapping: each record is delivered at least once. It may be delivered again after a
success, for example when a poller dies before it notes the answer. These rules deliver a record once if
nothing fails; for duplicates, pass an `invoke` that runs the function twice.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

Record = dict[str, Any]  # one of the `Records` of a Kinesis event
Invoke = Callable[[dict[str, Any], str], object]  # (event, request id) -> the function's answer
PutFailure = Callable[[str, str], object]  # (key, JSON document)

# DG invocation-eventsourcemapping: a batch closes at BatchSize, at the end of its window, or at 6 MB.
MAXIMUM_PAYLOAD_BYTES = 6_000_000
# The guide names no back-off between retries. A short one gives transient faults time to pass.
FIRST_BACKOFF_SECONDS, LAST_BACKOFF_SECONDS = 0.1, 2.0


class FunctionError(Exception):
    """The function was invoked and failed: it raised, timed out, was killed, or answered over 6 MB.

    DG invocation-retries: its code may have run completely, partly or not at all. The whole batch is retried,
    and what the function wrote stays written.
    """

    def __init__(self, payload: Mapping[str, Any]) -> None:
        """`payload` is Lambda's error document: `errorType`, `errorMessage`."""
        super().__init__(f"{payload.get('errorType')}: {payload.get('errorMessage')}")
        self.payload = payload


class ThrottledError(Exception):
    """Lambda could not invoke the function: it has not seen the batch."""


@dataclass(frozen=True)
class MappingSettings:
    """An event source mapping: names, defaults and units of the API (DG services-kinesis-parameters)."""

    uuid: str
    function_arn: str
    stream_arn: str
    batch_size: int = 100
    maximum_batching_window_in_seconds: int = 0
    parallelization_factor: int = 1
    maximum_retry_attempts: int = -1
    maximum_record_age_in_seconds: int = -1
    bisect_batch_on_function_error: bool = False
    report_batch_item_failures: bool = False
    failure_bucket: str | None = None

    @classmethod
    def from_api(cls, mapping: Mapping[str, Any]) -> MappingSettings:
        """Read one of the answers of `ListEventSourceMappings`."""
        destination = mapping.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination", "")
        return cls(
            uuid=mapping["UUID"],
            function_arn=mapping["FunctionArn"],
            stream_arn=mapping["EventSourceArn"],
            batch_size=mapping.get("BatchSize", 100),
            maximum_batching_window_in_seconds=mapping.get("MaximumBatchingWindowInSeconds", 0),
            parallelization_factor=mapping.get("ParallelizationFactor", 1),
            maximum_retry_attempts=mapping.get("MaximumRetryAttempts", -1),
            maximum_record_age_in_seconds=mapping.get("MaximumRecordAgeInSeconds", -1),
            bisect_batch_on_function_error=mapping.get("BisectBatchOnFunctionError", False),
            report_batch_item_failures="ReportBatchItemFailures" in mapping.get("FunctionResponseTypes", ()),
            failure_bucket=destination.removeprefix("arn:aws:s3:::") or None,
        )


@dataclass(frozen=True)
class Batch:
    """Records of one lane that are delivered together, and their state so far."""

    records: tuple[Record, ...]
    retries: int = 0  # used up, out of MaximumRetryAttempts
    invocations: int = 0
    request_id: str = ""  # of the last invocation
    function_error: bool = False  # whether the last invocation ended in an error, not in reported failures

    def after(self, count: int) -> Batch:
        """Return this batch without its first `count` records."""
        return replace(self, records=self.records[count:])


def first_failure(answer: object, records: Sequence[Record]) -> int | None:
    """The index of the record at which the retry of a batch begins; None if all succeeded.

    DG services-kinesis-batchfailurereporting: an empty or null answer or list is full success; of several
    identifiers the lowest sequence number counts; one that is empty, null or wrongly named fails the whole
    batch. So does one that is not in the batch, of which the guide says nothing.
    """
    if not answer:
        return None
    if not isinstance(answer, dict):
        return 0
    failures = answer.get("batchItemFailures") or []
    position = {record["kinesis"]["sequenceNumber"]: index for index, record in enumerate(records)}
    try:
        return min((position[failure["itemIdentifier"]] for failure in failures), default=None)
    except (KeyError, TypeError):
        return 0


def arrival(record: Record) -> float:
    """When the record reached the stream, in seconds since 1970."""
    return float(record["kinesis"]["approximateArrivalTimestamp"])


def failure_record(batch: Batch, settings: MappingSettings, condition: str, now: float) -> dict[str, Any]:
    """What Lambda writes to S3 for discarded records (DG kinesis-on-failure-destination).

    `payload` is the whole event as a JSON string. The guide shows neither case, but records that the function
    never saw have no `responseContext`, and failures that it only reported are no `functionError`.
    """
    first, last = batch.records[0], batch.records[-1]
    response = {"statusCode": 200, "executedVersion": "$LATEST"}
    if batch.function_error:
        response["functionError"] = "Unhandled"
    return {
        "requestContext": {
            "requestId": batch.request_id or str(uuid.uuid4()),
            "functionArn": settings.function_arn,
            "condition": condition,
            "approximateInvokeCount": batch.invocations,
        },
        **({"responseContext": response} if batch.invocations else {}),
        "version": "1.0",
        "timestamp": _iso_8601(now),
        "KinesisBatchInfo": {
            "shardId": shard_id(first),
            "startSequenceNumber": first["kinesis"]["sequenceNumber"],
            "endSequenceNumber": last["kinesis"]["sequenceNumber"],
            "approximateArrivalOfFirstRecord": _iso_8601(arrival(first)),
            "approximateArrivalOfLastRecord": _iso_8601(arrival(last)),
            "batchSize": len(batch.records),
            "streamArn": settings.stream_arn,
        },
        "payload": json.dumps({"Records": batch.records}),
    }


def failure_key(settings: MappingSettings, shard: str, now: float) -> str:
    """The failure object's key: aws/lambda/<mapping>/<shard>/YYYY/MM/DD/YYYY-MM-DDTHH.MM.SS-<random UUID>."""
    moment = datetime.fromtimestamp(now, UTC)
    return f"aws/lambda/{settings.uuid}/{shard}/{moment:%Y/%m/%d/%Y-%m-%dT%H.%M.%S}-{uuid.uuid4()}"


def shard_id(record: Record) -> str:
    """The shard a record came from; its event id is `<shard id>:<sequence number>`."""
    return str(record["eventID"]).partition(":")[0]


def _iso_8601(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(eq=False)
class Lane:
    """One of the batches that a shard delivers at a time: the records whose partition key falls here.

    DG with-kinesis: Lambda processes up to ParallelizationFactor batches of a shard at once and keeps the
    order of each partition key. So a failed batch holds up its own lane only.
    """

    mapping: StreamMapping
    waiting: deque[Record] = field(default_factory=deque)
    unfinished: deque[Batch] = field(default_factory=deque)  # to be retried; older than all in waiting

    @property
    def idle(self) -> bool:
        """Whether every record of this lane has been delivered or discarded."""
        return not (self.waiting or self.unfinished)

    def deliver_next(self) -> None:
        """Invoke the function once with the next batch of this lane (not idle), and act on the outcome."""
        batch = self.take()
        if batch is None:
            return
        request_id = str(uuid.uuid4())
        invoked = replace(batch, invocations=batch.invocations + 1, request_id=request_id)
        try:
            answer = self.mapping.invoke({"Records": list(batch.records)}, request_id)
        except ThrottledError:
            # DG kinesis-on-failure-destination: before invocation only the age of a record ends the retries.
            self.unfinished.appendleft(batch)
            self.mapping.sleep(FIRST_BACKOFF_SECONDS)
        except FunctionError:
            self._retry(replace(invoked, function_error=True), 0)
        else:
            self.settle(invoked, answer)

    def take(self) -> Batch | None:
        """The next batch of this lane (not idle). None if all its records are too old."""
        batch = self._discard_expired(self.unfinished.popleft() if self.unfinished else self._new_batch())
        return batch if batch.records else None

    def settle(self, batch: Batch, answer: object) -> None:
        """Act on the function's answer to a batch."""
        # DG services-kinesis-batchfailurereporting: without the setting the answer is not looked at.
        reporting = self.mapping.settings.report_batch_item_failures
        failed = first_failure(answer, batch.records) if reporting else None
        if failed is not None:
            self._retry(replace(batch, function_error=False), failed)

    def _new_batch(self) -> Batch:
        """Take up to BatchSize records or 6 MB, waiting once for the batching window to fill them."""
        settings = self.mapping.settings
        if len(self.waiting) < settings.batch_size and settings.maximum_batching_window_in_seconds:
            self.mapping.sleep(settings.maximum_batching_window_in_seconds)
        records, size = [self.waiting.popleft()], 0
        while self.waiting and len(records) < settings.batch_size:
            size += len(records[-1]["kinesis"]["data"])
            if size + len(self.waiting[0]["kinesis"]["data"]) > MAXIMUM_PAYLOAD_BYTES:
                break
            records.append(self.waiting.popleft())
        return Batch(tuple(records))

    def _discard_expired(self, batch: Batch) -> Batch:
        """DG kinesis-on-failure-destination: records over MaximumRecordAgeInSeconds are not tried again."""
        limit = self.mapping.settings.maximum_record_age_in_seconds
        oldest = self.mapping.now() - limit
        expired = sum(arrival(record) < oldest for record in batch.records) if limit >= 0 else 0
        if expired:  # a lane is in order of arrival, so they are the first
            self.mapping.discard(replace(batch, records=batch.records[:expired]), "RecordAgeExceeded")
        return batch.after(expired)

    def _retry(self, batch: Batch, failed: int) -> None:
        """Deliver again all from the record `failed` on, in halves if so set, until no retry is left.

        DG services-kinesis-batchfailurereporting: with bisecting, a partial success splits the batch at the
        returned sequence number and only the rest is retried; a failure splits it in two (so does the first
        record's number, at which nothing can be split and of which the guide says nothing). DG
        kinesis-on-failure-destination: splitting does not use up retries. Of a partial success without
        bisecting the guide says nothing: here it uses up one.
        """
        settings, rest = self.mapping.settings, batch.after(failed)
        size = len(rest.records)
        if settings.bisect_batch_on_function_error and failed:
            again = [rest]
        elif settings.bisect_batch_on_function_error and size > 1:
            middle = (size + 1) // 2
            again = [replace(rest, records=rest.records[:middle]), rest.after(middle)]
        elif 0 <= settings.maximum_retry_attempts <= batch.retries:
            self.mapping.discard(rest, "RetryAttemptsExhausted")
            return
        else:
            again = [replace(rest, retries=batch.retries + 1)]
            self.mapping.sleep(min(FIRST_BACKOFF_SECONDS * 2 ** min(batch.retries, 10), LAST_BACKOFF_SECONDS))
        self.unfinished.extendleft(reversed(again))


class StreamMapping:
    """One event source mapping. Every record that `add` takes is delivered or discarded in the end."""

    def __init__(
        self,
        settings: MappingSettings,
        invoke: Invoke,
        put_failure: PutFailure,
        *,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.settings = settings
        self.invoke, self.now, self.sleep = invoke, now, sleep
        self._put_failure = put_failure
        self._lanes: dict[tuple[str, int], Lane] = {}

    def add(self, records: Iterable[Record]) -> set[Lane]:
        """Queue records in the order of their shard, and return the lanes that have work."""
        touched = set()
        for record in records:
            key_hash = hashlib.md5(record["kinesis"]["partitionKey"].encode(), usedforsecurity=False).digest()
            lane_number = int.from_bytes(key_hash) % self.settings.parallelization_factor
            lane = self._lanes.setdefault((shard_id(record), lane_number), Lane(self))
            lane.waiting.append(record)
            touched.add(lane)
        return touched

    def lanes(self, shard: str) -> set[Lane]:
        """The lanes of a shard that had records so far."""
        return {lane for (name, _), lane in list(self._lanes.items()) if name == shard}

    def busy_lanes(self) -> Iterator[Lane]:
        """The lanes that have records to deliver."""
        return (lane for lane in list(self._lanes.values()) if not lane.idle)

    def drain(self) -> None:
        """Deliver all that was added, one lane after the other, in this thread."""
        while lanes := list(self.busy_lanes()):
            for lane in lanes:
                lane.deliver_next()

    def discard(self, batch: Batch, condition: str) -> None:
        """Discard records: into the failure bucket if the mapping has one, else they are lost."""
        if self.settings.failure_bucket:
            now = self.now()
            key = failure_key(self.settings, shard_id(batch.records[0]), now)
            self._put_failure(key, json.dumps(failure_record(batch, self.settings, condition, now)))
