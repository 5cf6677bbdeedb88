"""What failed, back onto the stream: jobs of the failure bucket, and FAILED images."""

import base64
import json
from typing import Any

import boto3
import pytest
from moto.kinesis.models import KinesisBackend
from runs.jobs import Job, decode
from runs.predictions import Prediction
from runs.table import RunTable
from support import BUCKET, FAILURES, STREAM, client, uid
from test_runs import STACK, put_predictions, put_run

from cxr.errors import Failed, InputError
from cxr.failure_bucket import LOOKED_INTO, Waiting, waiting
from cxr.local_aws.stream_mapping import FunctionError, MappingSettings, StreamMapping
from cxr.operations import delete_run
from cxr.retry import Retried, retry_run
from cxr.runs import run_status, run_table

SETTINGS = MappingSettings(
    "mapping", "arn:function", "arn:stream", maximum_retry_attempts=0, failure_bucket=FAILURES
)
pytestmark = pytest.mark.usefixtures("bucket")


@pytest.fixture
def bucket(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runs.backoff.time.sleep", lambda seconds: None)


def give_up(*jobs: tuple[str, str]) -> None:
    """Has Lambda's rules give up on one batch of jobs, each a run and the letters that are its keys."""
    s3 = client("s3")

    def fail(_event: object, _request_id: str) -> None:
        raise FunctionError({})

    mapping = StreamMapping(
        SETTINGS, fail, lambda key, document: s3.put_object(Bucket=FAILURES, Key=key, Body=document.encode())
    )
    mapping.add(_record(number, *job) for number, job in enumerate(jobs))
    mapping.drain()


def _record(number: int, run: str, keys: str) -> dict[str, Any]:
    body = json.dumps({"RunId": run, "RunUid": uid(run), "Bucket": "theirs", "Keys": list(keys)}).encode()
    return {
        "eventID": f"shardId-0:{number}",
        "kinesis": {
            "data": base64.b64encode(body).decode(),
            "partitionKey": "same",
            "sequenceNumber": str(number),
            "approximateArrivalTimestamp": 1.0,
        },
    }


def left() -> int:
    return int(client("s3").list_objects_v2(Bucket=FAILURES)["KeyCount"])


def on_the_stream() -> list[Job]:
    """Every job that was sent, as the classifier reads it."""
    kinesis = client("kinesis")
    sent = []
    for shard in kinesis.list_shards(StreamName=STREAM)["Shards"]:
        start: Any = kinesis.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        for record in kinesis.get_records(ShardIterator=start)["Records"]:
            sent.append(decode({"kinesis": {"data": base64.b64encode(record["Data"]).decode()}}))
    return sent


def scored(*keys: str) -> list[Prediction]:
    return [Prediction(key, {}) for key in keys]


def test_images_without_a_prediction_are_sent_as_of_a_run_that_goes_on() -> None:
    put_run("first", state="SCORING", expected=4)
    put_predictions("first", *scored("a"), Prediction("b", error="IMAGE_CORRUPT"))
    give_up(("first", "abc"), ("first", "d"))
    assert retry_run(STACK, "first") == Retried(given_up=2, objects_left=1)
    assert sorted(on_the_stream(), key=lambda job: job.keys) == [
        Job("first", uid("first"), "theirs", ("c",), continued=True),
        Job("first", uid("first"), "theirs", ("d",), continued=True),
    ]
    assert left() == 1


def test_an_image_in_two_objects_is_sent_once() -> None:
    put_run("first", state="SCORING", expected=3)
    give_up(("first", "ab"))
    give_up(("first", "bc"))
    assert retry_run(STACK, "first") == Retried(given_up=3, objects_left=2)
    assert sorted(key for job in on_the_stream() for key in job.keys) == ["a", "b", "c"]
    assert left() == 2


def test_an_object_goes_once_every_image_of_every_run_in_it_has_a_prediction() -> None:
    put_run("first", state="COMPLETE", expected=1)
    put_run("second", state="SCORING", expected=1)
    give_up(("first", "a"), ("second", "b"))
    put_predictions("first", *scored("a"))
    assert retry_run(STACK, "first") == Retried()  # the second's image keeps the object
    assert (left(), on_the_stream()) == (1, [])
    put_predictions("second", Prediction("b", error="IMAGE_EMPTY"))
    assert retry_run(STACK, "first") == Retried()  # nor is the second completed yet
    assert (left(), on_the_stream()) == (1, [])
    assert retry_run(STACK, "second") == Retried(completing=1, objects_deleted=1)
    assert left() == 0
    assert [job.run_id for job in on_the_stream()] == ["second"]  # whose delivery completes it


def test_an_object_of_complete_runs_goes_by_the_retry_of_either() -> None:
    for run, key in (("first", "a"), ("second", "b")):
        put_run(run, state="COMPLETE", expected=1)
        put_predictions(run, *scored(key))
    give_up(("first", "a"), ("second", "b"))
    assert retry_run(STACK, "first") == Retried(objects_deleted=1)
    assert (left(), on_the_stream()) == (0, [])


def test_only_jobs_of_the_run_are_sent() -> None:
    for run in ("first", "second"):
        put_run(run, state="SCORING", expected=1)
    give_up(("first", "a"), ("second", "b"))
    give_up(("second", "c"))
    assert retry_run(STACK, "first") == Retried(given_up=1, objects_left=1)
    assert [job.keys for job in on_the_stream()] == [("a",)]
    assert left() == 2


def test_a_deleted_runs_images_keep_no_object() -> None:
    put_run("first", state="SCORING", expected=1)
    put_predictions("first", *scored("a"))
    give_up(("first", "a"), ("deleted", "b"))
    assert retry_run(STACK, "first") == Retried(completing=1, objects_deleted=1)


def test_jobs_of_an_earlier_run_of_the_same_name_are_not_sent() -> None:
    put_run("first", state="SCORING", expected=1, uid="another")
    give_up(("first", "a"))
    give_up(("gone", "b"))
    assert waiting(boto3.client("s3"), FAILURES, "another", None).images == 0
    assert retry_run(STACK, "first") == Retried(objects_deleted=2)  # nobody else's, so nobody would
    assert (left(), on_the_stream()) == (0, [])


def test_a_payload_is_read_as_a_string_and_as_json() -> None:
    put_run("first", state="SCORING", expected=1)
    give_up(("first", "a"))
    (entry,) = client("s3").list_objects_v2(Bucket=FAILURES)["Contents"]
    document = json.load(client("s3").get_object(Bucket=FAILURES, Key=entry["Key"])["Body"])
    document["payload"] = json.loads(document["payload"])
    client("s3").put_object(Bucket=FAILURES, Key=entry["Key"], Body=json.dumps(document).encode())
    assert retry_run(STACK, "first") == Retried(given_up=1, objects_left=1)


def test_what_is_no_failure_record_is_left_alone() -> None:
    put_run("first", state="SCORING", expected=1)
    for name, body in {
        "text": b"hello",
        "json": b"{}",
        "payload": b'{"payload": "{\\"Records\\": [{}]}"}',
    }.items():
        client("s3").put_object(Bucket=FAILURES, Key=f"aws/lambda/{name}", Body=body)
    assert retry_run(STACK, "first") == Retried()
    assert left() == 3


def test_a_record_that_is_no_job_hides_no_other() -> None:
    put_run("first", state="SCORING", expected=1)
    give_up(("first", "a"))
    (entry,) = client("s3").list_objects_v2(Bucket=FAILURES)["Contents"]
    document = json.load(client("s3").get_object(Bucket=FAILURES, Key=entry["Key"])["Body"])
    records = json.loads(document["payload"])["Records"]
    junk = [
        {**records[0], "kinesis": {"data": base64.b64encode(data).decode()}} for data in (b"[" * 10**5, b"x")
    ]
    document["payload"] = json.dumps({"Records": [*junk, *records]})
    client("s3").put_object(Bucket=FAILURES, Key=entry["Key"], Body=json.dumps(document).encode())
    assert retry_run(STACK, "first") == Retried(given_up=1, objects_left=1)
    put_predictions("first", *scored("a"))
    assert retry_run(STACK, "first") == Retried(completing=1, objects_deleted=1)


def test_a_deleted_run_takes_its_jobs_with_it_and_no_others() -> None:
    for run in ("first", "second"):
        put_run(run, expected=1)
    give_up(("first", "a"), ("gone", "b"))
    give_up(("first", "a"), ("second", "b"))
    give_up(("second", "b"))
    delete_run(STACK, "first")
    assert left() == 2


def test_failed_images_are_sent_by_code_or_all() -> None:
    put_run("first", expected=40)
    missing = [Prediction(f"{number:02}", error="IMAGE_MISSING") for number in range(35)]
    put_predictions("first", *missing, Prediction("empty", error="IMAGE_EMPTY"), *scored("fine"))
    assert retry_run(STACK, "first") == Retried()
    assert retry_run(STACK, "first", codes=["IMAGE_MISSING"]) == Retried(failed=35)
    jobs = on_the_stream()
    assert sorted(len(job.keys) for job in jobs) == [3, 32]
    assert {key for job in jobs for key in job.keys} == {prediction.key for prediction in missing}
    assert {(job.bucket, job.continued) for job in jobs} == {(BUCKET, True)}
    assert retry_run(STACK, "first", codes=["IMAGE_MISSING", "IMAGE_EMPTY"]).failed == 36


def test_a_complete_run_waits_for_the_new_outcome_of_what_is_retried() -> None:
    put_run("first", expected=2)
    put_predictions("first", Prediction("empty", error="IMAGE_EMPTY"), *scored("fine"))
    assert retry_run(STACK, "first", codes=["IMAGE_EMPTY"]) == Retried(failed=1)
    table = run_table(STACK)
    run = run_status(table, "first")
    assert (run.state, run.remaining, run.failures, run.retrying) == (
        "SCORING",
        1,
        {},
        {"IMAGE_EMPTY": 1},
    )
    assert table.complete("first", "somebody") is None
    put_predictions("first", Prediction("empty", error="IMAGE_EMPTY"))  # it failed again
    run = run_status(table, "first")
    assert (run.remaining, run.failures, run.retrying) == (0, {"IMAGE_EMPTY": 1}, {})
    assert table.complete("first", "somebody") == {"SCORED": 1, "FAILED#IMAGE_EMPTY": 1}


def test_what_a_lost_retry_has_sent_is_sent_by_the_next() -> None:
    put_run("first", expected=1)
    failed = Prediction("empty", error="IMAGE_EMPTY")
    put_predictions("first", failed)
    table = run_table(STACK)
    table.mark_retrying(run_status(table, "first"), [failed])
    assert retry_run(STACK, "first") == Retried(failed=1)
    assert [job.keys for job in on_the_stream()] == [("empty",)]


def test_an_image_that_is_scored_by_now_is_not_retried() -> None:
    put_run("first", expected=2)
    failed = [Prediction(key, error="IMAGE_EMPTY") for key in "ab"]
    put_predictions("first", *failed)
    put_predictions("first", *scored("a"))
    table = run_table(STACK)
    table.mark_retrying(run_status(table, "first"), failed)
    assert run_status(table, "first").counts == {"SCORED": 1, "RETRYING#IMAGE_EMPTY": 1}


def test_no_run_is_completed_by_counts_from_before_a_retry(monkeypatch: pytest.MonkeyPatch) -> None:
    put_run("first", state="SCORING", expected=1)
    failed = Prediction("empty", error="IMAGE_EMPTY")
    put_predictions("first", failed)
    table, counts = run_table(STACK), RunTable.counts

    def retried_after(self: RunTable, run_id: str) -> Any:
        found = counts(self, run_id)
        monkeypatch.undo()
        table.mark_retrying(run_status(table, "first"), [failed])
        return found

    monkeypatch.setattr(RunTable, "counts", retried_after)
    assert table.complete("first", "somebody") is None
    assert run_status(table, "first").state == "SCORING"


def test_a_run_without_failure_objects_is_completed() -> None:
    put_run("first", state="SCORING", expected=1)
    put_predictions("first", *scored("a"))
    assert retry_run(STACK, "first") == Retried(completing=1)
    assert [job.keys for job in on_the_stream()] == [("a",)]


@pytest.mark.parametrize(
    ("state", "codes", "message"),
    [
        ("CANCELLED", [], "run first is CANCELLED, .*start it again"),
        ("COMPLETE", ["NO_SUCH_CODE"], "NO_SUCH_CODE is no error code; expected one of IMAGE_MISSING, "),
    ],
)
def test_what_cannot_be_retried(state: str, codes: list[str], message: str) -> None:
    put_run("first", state=state, expected=1)
    give_up(("first", "a"))
    with pytest.raises(InputError, match=message):
        retry_run(STACK, "first", codes=codes)
    assert on_the_stream() == []


def test_a_refused_job_is_sent_again_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    put_run("first", state="SCORING", expected=6)
    give_up(*(("first", key) for key in "abcdef"))
    put_records, calls = KinesisBackend.put_records, []

    def throttled(
        self: KinesisBackend, stream_arn: str, stream_name: str, records: list[Any]
    ) -> dict[str, Any]:
        calls.append(len(records))
        taken = records[: len(records) // 2] if len(records) > 1 else records
        answers = put_records(self, stream_arn, stream_name, taken)["Records"]
        refused = [{"ErrorCode": "ProvisionedThroughputExceededException"}] * (len(records) - len(taken))
        return {"FailedRecordCount": len(refused), "Records": [*answers, *refused]}

    monkeypatch.setattr(KinesisBackend, "put_records", throttled)
    assert retry_run(STACK, "first").given_up == 6
    assert calls == [6, 3, 2, 1]
    assert sorted("".join(job.keys) for job in on_the_stream()) == list("abcdef")


def test_a_stream_that_takes_nothing_is_said_and_named_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    put_run("first", state="SCORING", expected=1)
    give_up(("first", "secret"))

    def full(_self: object, _arn: str, _name: str, records: list[Any]) -> dict[str, Any]:
        return {"FailedRecordCount": len(records), "Records": [{"ErrorCode": "Full"} for _ in records]}

    monkeypatch.setattr(KinesisBackend, "put_records", full)
    with pytest.raises(Failed, match=r"the stream refused 1 jobs 12 times \(Full\)"):
        retry_run(STACK, "first")
    assert left() == 1


def test_what_waits_is_counted_once_and_by_few_requests() -> None:
    s3 = boto3.client("s3")
    assert waiting(s3, FAILURES, uid("first"), None) == Waiting()
    give_up(("first", "ab"), ("second", "c"))
    give_up(("first", "b"))
    found = waiting(s3, FAILURES, uid("first"), None)
    assert (found.images, found.more, found.until) == (2, False, None)
    s3.put_bucket_lifecycle_configuration(
        Bucket=FAILURES,
        LifecycleConfiguration={
            "Rules": [{"ID": "a", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 90}}]
        },
    )
    first_put = min(entry["LastModified"] for entry in s3.list_objects_v2(Bucket=FAILURES)["Contents"])
    until = waiting(s3, FAILURES, uid("first"), None).until
    assert until
    assert 90 <= (until - first_put).total_seconds() / 86_400 <= 91
    assert (until.hour, until.minute) == (0, 0)
    for _ in range(LOOKED_INTO):
        give_up(("second", "d"))
    assert waiting(s3, FAILURES, uid("second"), None).more
