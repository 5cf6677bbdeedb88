"""The AWS account of the random schedules: moto's, emptied and read without its API.

A read here is no AWS request, so it meets no fault.
"""

from collections.abc import Collection, Iterable
from datetime import date, datetime
from typing import Any

import boto3
from moto.dynamodb.models import dynamodb_backends
from moto.kinesis.models import kinesis_backends
from moto.s3.models import s3_backends
from runs import layout
from runs.arrivals import day_of
from runs.attributes import unpack
from runs.predictions import WAITING, Counts, Prediction, counts_of, total

from reliability.table import create_table

ACCOUNT, REGION = "123456789012", "us-east-1"
BUCKET, FAILURES, STREAM, TABLE = "images", "failures", "jobs", "predictions"


def create() -> None:
    """Create the buckets, the stream and the table."""
    for bucket in (BUCKET, FAILURES):
        boto3.client("s3").create_bucket(Bucket=bucket)
    boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)
    create_table(boto3.client("dynamodb"), TABLE)


def empty() -> None:
    """Delete everything but the images."""
    dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items.clear()
    for shard in shards():
        shard.records.clear()
    s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.clear()


def shards() -> Collection[Any]:
    """The shards of the stream. Each has `shard_id` and `records`, a dict by sequence number."""
    found: Collection[Any] = kinesis_backends[ACCOUNT][REGION].streams[STREAM].shards.values()
    return found


def remove_images(prefix: str) -> None:
    """Remove the images under a prefix."""
    keys = s3_backends[ACCOUNT]["aws"].buckets[BUCKET].keys
    for name in [name for name in keys if name.startswith(prefix)]:
        del keys[name]


def set_last_modified(key: str, time: datetime) -> None:
    """Let an image have been written at this time."""
    s3_backends[ACCOUNT]["aws"].buckets[BUCKET].keys[key].last_modified = time.replace(tzinfo=None)


def images_of(prefix: str) -> dict[str, tuple[str, date]]:
    """The images under a prefix: key -> its ETag, and the day on which it was written."""
    keys = s3_backends[ACCOUNT]["aws"].buckets[BUCKET].keys
    return {
        name: (found.etag.strip('"'), found.last_modified.date())
        for name, found in keys.items()
        if name.startswith(prefix)
    }


def standing_runs() -> list[str]:
    """The names of all standing runs."""
    return [item["sk"] for item in _items(layout.RUNS) if day_of(item["sk"])]


def failure_objects() -> dict[str, bytes]:
    """The objects in the failure bucket: key -> body."""
    return {name: entry.value for name, entry in s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.items()}


def run_item(run_id: str) -> dict[str, Any]:
    """The item of a run; {} if there is none."""
    return next((item for item in _items(layout.RUNS) if item["sk"] == run_id), {})


def prediction_items(run_id: str) -> list[dict[str, Any]]:
    """The items of all predictions of a run."""
    return _items(*layout.partitions(run_id))


def missing_keys(run_id: str, keys: Iterable[str]) -> list[str]:
    """Those of the S3 keys that have no prediction in this run."""
    predicted = {item["sk"] for item in prediction_items(run_id)}
    return [key for key in keys if key not in predicted]


def retrying_keys(run_id: str) -> list[str]:
    """The S3 keys of the images that were sent again and have no new outcome yet."""
    return [item["sk"] for item in prediction_items(run_id) if item.get("retrying")]


def waiting_keys(run_id: str) -> list[str]:
    """The S3 keys of the images that arrived and have no outcome yet."""
    return [item["sk"] for item in prediction_items(run_id) if item["status"] == WAITING]


def stored_counts(run_id: str) -> Counts:
    """The counts of a run, as its counters say."""
    return total(_items(layout.counters_partition(run_id)))


def recount(run_id: str) -> Counts:
    """The counts of a run, computed from its predictions."""
    return counts_of(map(Prediction.from_fields, prediction_items(run_id)))


def _items(*partitions: str) -> list[dict[str, Any]]:
    """The items in these partitions of the table, as plain values."""
    found: Any = dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items
    return [
        unpack(item.to_json()["Attributes"])
        for pk, items in found.items()
        if pk.value in partitions
        for item in items.values()
    ]
