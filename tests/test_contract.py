"""The job, from the producer's encoder to the consumer's decoder: the two share no code."""

import base64
from typing import Any

import boto3
import pytest
from classifier import jobs as consumer
from classifier import predictions
from classifier.predictions import announcement
from job_creator import handler
from job_creator import jobs as producer
from support import BUCKET, PREFIX, TABLE, table_items
from test_job_creator import job_creator


def records(keys: list[str], **options: Any) -> list[dict[str, Any]]:
    """Records as the job creator puts them, as Lambda delivers them."""
    fields: Any = {
        "run_id": "r",
        "run_uid": "u",
        "bucket": "images",
        "images_per_job": 32,
        "continued": False,
    } | options
    return [
        {"kinesis": {"data": base64.b64encode(record["Data"]).decode()}}
        for batch, _ in producer.batches(keys, **fields)
        for record in batch
    ]


@pytest.mark.parametrize("continued", [False, True])
def test_what_is_sent_is_what_is_read(continued: bool) -> None:
    keys = [f"cxr-nih/{i}.png" for i in range(50)]
    first, second = map(consumer.from_record, records(keys, continued=continued))
    assert first == consumer.Job("r", "images", tuple(keys[:32]), "u", continued)
    assert second == consumer.Job("r", "images", tuple(keys[32:]), "u", continued)


def test_any_key_s3_takes() -> None:
    keys = ["é ü 漢字.png", 'quote".png', "new\nline.png", "back\\slash", "a" * 1024, "\U0001fa7b.png"]
    (record,) = records(keys)
    assert consumer.from_record(record).keys == tuple(keys)


def test_the_largest_job_the_stack_allows() -> None:
    (record,) = records([f"{i:03}{'x' * 1021}" for i in range(consumer.MAX_KEYS)], images_per_job=99)
    assert len(consumer.from_record(record).keys) == 99
    assert len(record["kinesis"]["data"]) < 2**20


@pytest.mark.parametrize("run_id", ["a", "A.b_c-9", "r" * 128])
def test_any_run_id_the_producer_takes(run_id: str) -> None:
    assert producer.Request.from_event({"RunId": run_id}, "p/").run_id == run_id
    assert consumer.from_record(records(["k"], run_id=run_id)[0]).run_id == run_id


def test_both_begin_a_run_alike(aws: None) -> None:
    """An item and the counters on which every write of predictions depends."""
    assert (handler.PARTITIONS, handler.COUNTERS) == (predictions.PARTITIONS, predictions._COUNTERS)
    boto3.client("s3").put_object(Bucket=BUCKET, Key=f"{PREFIX}a.png")
    job_creator()({"RunId": "r"}, lambda: 900_000)
    made = table_items()
    fields = made["RUN", "r"]
    puts = predictions.begin(TABLE, "r", fields)
    assert made.keys() == {(put["Put"]["Item"]["pk"]["S"], put["Put"]["Item"]["sk"]["S"]) for put in puts}
    assert all(item["uid"] == fields["uid"] for item in made.values())


def test_both_announce_a_run_alike() -> None:
    """The rest of the event is held by each one's own tests."""
    sent = announcement("r", {})
    assert (sent["Source"], sent["DetailType"]) == (handler.EVENT_SOURCE, handler.EVENT_TYPE)
