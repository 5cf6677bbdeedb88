"""Every rule of an event source mapping, with a function and a clock made of lists."""

import base64
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from cxr.local_aws.stream_mapping import FunctionError, MappingSettings, Record, StreamMapping, ThrottledError

START = 1_800_000_000.0
UUID = "0f1e2d3c-0000-4000-8000-000000000000"
RAISED = FunctionError({"errorType": "ValueError", "errorMessage": "no"})

Outcome = object  # an answer, or an exception to raise
Behaviour = Callable[[list[str]], Outcome]  # of a function, given the batch's sequence numbers


class Harness:
    """A mapping over a function that behaves as told; time passes only where the mapping sleeps."""

    def __init__(self, behaviour: Behaviour, **settings: Any) -> None:
        self.behaviour = behaviour
        self.clock = START
        self.batches: list[list[str]] = []  # the sequence numbers of each invocation
        self.slept: list[float] = []
        self.discarded: dict[str, dict[str, Any]] = {}  # key -> failure document
        defaults = {"failure_bucket": "failures", "report_batch_item_failures": True}
        self.mapping = StreamMapping(
            MappingSettings(UUID, "arn:function", "arn:stream", **{**defaults, **settings}),
            self._invoke,
            lambda key, document: self.discarded.update({key: json.loads(document)}),
            now=lambda: self.clock,
            sleep=self._sleep,
        )

    def deliver(self, *records: Record) -> "Harness":
        self.mapping.add(records)
        self.mapping.drain()
        return self

    def discarded_numbers(self) -> list[list[str]]:
        payloads = (json.loads(document["payload"]) for document in self.discarded.values())
        return [numbers(payload["Records"]) for payload in payloads]

    def _invoke(self, event: dict[str, Any], _request_id: str) -> object:
        batch = numbers(event["Records"])
        self.batches.append(batch)
        outcome = self.behaviour(batch)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.clock += seconds


def record(number: int, *, key: str = "one", shard: int = 0, age: float = 0, data: bytes = b"{}") -> Record:
    return {
        "eventID": f"shardId-{shard:012d}:{number}",
        "eventSource": "aws:kinesis",
        "kinesis": {
            "sequenceNumber": str(number),
            "partitionKey": key,
            "approximateArrivalTimestamp": START - age,
            "data": base64.b64encode(data).decode(),
        },
    }


def records(count: int, **options: Any) -> list[Record]:
    return [record(number, **options) for number in range(1, count + 1)]


def numbers(found: Sequence[Record]) -> list[str]:
    return [entry["kinesis"]["sequenceNumber"] for entry in found]


def failed(*sequence_numbers: str) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": number} for number in sequence_numbers]}


def in_turn(*outcomes: Outcome) -> Behaviour:
    """One outcome an invocation, and success from then on."""
    left = iter(outcomes)
    return lambda _batch: next(left, None)


def poisoned_by(number: str, outcome: Outcome = RAISED) -> Behaviour:
    """Fails whenever that record is in the batch."""
    return lambda batch: outcome if number in batch else None


def test_settings_are_read_from_the_api() -> None:
    answer = {
        "UUID": UUID,
        "FunctionArn": "arn:function",
        "EventSourceArn": "arn:stream",
        "BatchSize": 4,
        "MaximumBatchingWindowInSeconds": 1,
        "ParallelizationFactor": 10,
        "MaximumRetryAttempts": 0,
        "MaximumRecordAgeInSeconds": 60,
        "BisectBatchOnFunctionError": True,
        "FunctionResponseTypes": ["ReportBatchItemFailures"],
        "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:s3:::failures"}},
    }
    expected = MappingSettings(UUID, "arn:function", "arn:stream", 4, 1, 10, 0, 60, True, True, "failures")
    assert MappingSettings.from_api(answer) == expected
    bare = {name: answer[name] for name in ("UUID", "FunctionArn", "EventSourceArn")}
    assert MappingSettings.from_api(bare) == MappingSettings(UUID, "arn:function", "arn:stream")


def test_batches_hold_at_most_batch_size_records_of_one_shard_in_order() -> None:
    harness = Harness(in_turn(), batch_size=2)
    harness.deliver(record(1), record(11, shard=1), record(2), record(3), record(12, shard=1))
    assert sorted(harness.batches) == [["1", "2"], ["11", "12"], ["3"]]


def test_a_batch_holds_at_most_six_megabytes() -> None:
    large = records(8, data=bytes(1_000_000))  # 1.33 MB each in base64
    assert [len(batch) for batch in Harness(in_turn()).deliver(*large).batches] == [4, 4]


def test_a_batch_that_is_not_full_waits_for_its_window() -> None:
    harness = Harness(in_turn(), batch_size=2, maximum_batching_window_in_seconds=5)
    harness.deliver(*records(3))
    assert harness.slept == [5]


def test_records_of_one_partition_key_stay_in_order_and_lanes_are_at_most_the_factor() -> None:
    harness = Harness(in_turn(), batch_size=1, parallelization_factor=3)
    lanes = harness.mapping.add(record(number, key=f"key-{number % 20}") for number in range(100))
    assert len(lanes) == 3
    harness.mapping.drain()
    delivered = [int(batch[0]) for batch in harness.batches]
    assert sorted(delivered) == list(range(100))
    for key in range(20):
        of_key = [number for number in delivered if number % 20 == key]
        assert of_key == sorted(of_key)


def test_a_failing_lane_holds_up_no_other() -> None:
    harness = Harness(poisoned_by("1"), parallelization_factor=2)
    (stuck,) = harness.mapping.add([record(1, key="a")])
    (free,) = harness.mapping.add([record(2, key="e")])
    assert stuck is not free
    stuck.deliver_next()
    free.deliver_next()
    assert free.idle
    assert not stuck.idle
    assert list(harness.mapping.busy_lanes()) == [stuck]


@pytest.mark.parametrize("answer", [None, "", {}, [], {"batchItemFailures": []}, {"batchItemFailures": None}])
def test_an_empty_answer_is_full_success(answer: object) -> None:
    assert Harness(in_turn(answer)).deliver(*records(2)).batches == [["1", "2"]]


@pytest.mark.parametrize(
    "answer",
    [
        failed(""),
        failed("99"),
        failed("2", "99"),
        {"batchItemFailures": [{"itemIdentifier": None}]},
        {"batchItemFailures": [{"itemIdentifier": 2}]},
        {"batchItemFailures": [{"itemIdentifier": ["2"]}]},
        {"batchItemFailures": [{"itemId": "2"}]},
        {"batchItemFailures": ["2"]},
        {"batchItemFailures": 2},
        "2",
        ["2"],
    ],
)
def test_a_malformed_answer_fails_the_whole_batch(answer: object) -> None:
    assert Harness(in_turn(answer)).deliver(*records(2)).batches == [["1", "2"], ["1", "2"]]


def test_all_from_the_lowest_failed_record_on_is_delivered_again() -> None:
    harness = Harness(in_turn(failed("3", "2")))
    assert harness.deliver(*records(4)).batches == [["1", "2", "3", "4"], ["2", "3", "4"]]


def test_reported_failures_count_for_nothing_unless_the_mapping_asks_for_them() -> None:
    harness = Harness(in_turn(failed("1")), report_batch_item_failures=False)
    assert harness.deliver(*records(2)).batches == [["1", "2"]]


def test_a_function_error_fails_the_whole_batch() -> None:
    assert Harness(in_turn(RAISED)).deliver(*records(2)).batches == [["1", "2"], ["1", "2"]]


@pytest.mark.parametrize("kind", ["Sandbox.Timedout", "Runtime.ExitError", "Function.ResponseSizeTooLarge"])
def test_a_function_that_ended_after_its_writes_gets_the_whole_batch_again(kind: str) -> None:
    written: list[str] = []

    def write_and_end(batch: list[str]) -> Outcome:
        written.extend(batch)
        return FunctionError({"errorType": kind}) if len(written) == len(batch) else None

    harness = Harness(write_and_end, maximum_retry_attempts=1).deliver(*records(2))
    assert written == ["1", "2", "1", "2"]
    assert not harness.discarded


def test_records_that_come_again_after_success_are_delivered_again() -> None:
    harness = Harness(in_turn()).deliver(*records(2))
    assert harness.deliver(*records(2)).batches == [["1", "2"], ["1", "2"]]


def test_without_a_limit_a_batch_is_retried_until_it_succeeds() -> None:
    harness = Harness(in_turn(*[RAISED] * 30)).deliver(record(1))
    assert len(harness.batches) == 31
    assert harness.slept[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 2.0])
    assert max(harness.slept) == 2.0


@pytest.mark.parametrize("outcome", [RAISED, failed("1")], ids=["error", "reported"])
@pytest.mark.parametrize("retries", [0, 2])
def test_after_the_last_retry_records_are_discarded_and_the_lane_goes_on(
    outcome: Outcome, retries: int
) -> None:
    harness = Harness(poisoned_by("1", outcome), batch_size=1, maximum_retry_attempts=retries)
    harness.deliver(*records(2))
    assert harness.batches == [["1"]] * (retries + 1) + [["2"]]
    assert harness.discarded_numbers() == [["1"]]


def test_a_partial_success_without_bisecting_uses_up_a_retry() -> None:
    harness = Harness(in_turn(failed("2"), failed("3"), failed("3")), maximum_retry_attempts=1)
    assert harness.deliver(*records(3)).batches == [["1", "2", "3"], ["2", "3"]]
    assert harness.discarded_numbers() == [["3"]]


def test_bisecting_isolates_a_bad_record_without_using_up_retries() -> None:
    harness = Harness(poisoned_by("3"), bisect_batch_on_function_error=True, maximum_retry_attempts=1)
    harness.deliver(*records(4))
    assert harness.batches == [["1", "2", "3", "4"], ["1", "2"], ["3", "4"], ["3"], ["3"], ["4"]]
    assert harness.discarded_numbers() == [["3"]]


def test_bisecting_splits_at_the_reported_number_without_using_up_retries() -> None:
    harness = Harness(
        in_turn(failed("2"), failed("3"), failed("3"), failed("3")),
        bisect_batch_on_function_error=True,
        maximum_retry_attempts=1,
    )
    assert harness.deliver(*records(3)).batches == [["1", "2", "3"], ["2", "3"], ["3"], ["3"]]
    assert harness.discarded_numbers() == [["3"]]


def test_bisecting_halves_a_batch_whose_first_record_is_reported() -> None:
    harness = Harness(
        poisoned_by("1", failed("1")), bisect_batch_on_function_error=True, maximum_retry_attempts=0
    )
    assert harness.deliver(*records(3)).batches == [["1", "2", "3"], ["1", "2"], ["1"], ["2"], ["3"]]
    assert harness.discarded_numbers() == [["1"]]


def test_what_is_left_of_a_failed_batch_comes_before_newer_records() -> None:
    harness = Harness(in_turn(RAISED), bisect_batch_on_function_error=True)
    (lane,) = harness.mapping.add(records(2))
    lane.deliver_next()
    assert harness.deliver(record(3)).batches == [["1", "2"], ["1"], ["2"], ["3"]]


def test_expired_records_are_discarded_and_the_others_delivered() -> None:
    harness = Harness(in_turn(), maximum_record_age_in_seconds=60)
    harness.deliver(record(1, age=61), record(2, age=60.5), record(3, age=59))
    assert harness.batches == [["3"]]
    assert harness.discarded_numbers() == [["1", "2"]]
    (document,) = harness.discarded.values()
    assert document["requestContext"]["condition"] == "RecordAgeExceeded"
    assert document["requestContext"]["approximateInvokeCount"] == 0
    assert "responseContext" not in document


@pytest.mark.parametrize("outcome", [RAISED, ThrottledError()], ids=["error", "throttled"])
def test_a_batch_that_never_succeeds_ends_with_its_age(outcome: Outcome) -> None:
    harness = Harness(lambda _batch: outcome, maximum_record_age_in_seconds=60).deliver(*records(2))
    assert harness.discarded_numbers() == [["1", "2"]]
    assert START + 60 < harness.clock < START + 63


def test_throttling_uses_up_no_retry() -> None:
    harness = Harness(in_turn(*[ThrottledError()] * 5), maximum_retry_attempts=0).deliver(record(1))
    assert len(harness.batches) == 6
    assert not harness.discarded


def test_a_failure_object_is_as_lambda_writes_it() -> None:
    harness = Harness(in_turn(RAISED, RAISED), maximum_retry_attempts=1)
    batch = [record(1, age=2.5), record(2, age=1)]
    harness.deliver(*batch)
    ((key, document),) = harness.discarded.items()
    assert re.fullmatch(
        rf"aws/lambda/{UUID}/shardId-000000000000/2027/01/15/2027-01-15T08\.00\.00-[0-9a-f-]{{36}}", key
    )
    assert re.fullmatch("[0-9a-f-]{36}", document["requestContext"].pop("requestId"))
    assert json.loads(document.pop("payload")) == {"Records": batch}
    assert document == {
        "requestContext": {
            "functionArn": "arn:function",
            "condition": "RetryAttemptsExhausted",
            "approximateInvokeCount": 2,
        },
        "responseContext": {"statusCode": 200, "executedVersion": "$LATEST", "functionError": "Unhandled"},
        "version": "1.0",
        "timestamp": "2027-01-15T08:00:00.100Z",
        "KinesisBatchInfo": {
            "shardId": "shardId-000000000000",
            "startSequenceNumber": "1",
            "endSequenceNumber": "2",
            "approximateArrivalOfFirstRecord": "2027-01-15T07:59:57.500Z",
            "approximateArrivalOfLastRecord": "2027-01-15T07:59:59.000Z",
            "batchSize": 2,
            "streamArn": "arn:stream",
        },
    }


def test_failures_that_were_only_reported_are_no_function_error() -> None:
    (document,) = (
        Harness(in_turn(failed("1")), maximum_retry_attempts=0).deliver(record(1)).discarded.values()
    )
    assert document["responseContext"] == {"statusCode": 200, "executedVersion": "$LATEST"}


def test_without_a_failure_destination_discarded_records_are_gone() -> None:
    harness = Harness(in_turn(RAISED), maximum_retry_attempts=0, failure_bucket=None).deliver(*records(2))
    assert harness.batches == [["1", "2"]]
    assert not harness.discarded
