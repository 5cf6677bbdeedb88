"""The AWS account that random schedules have: made in moto, emptied, and looked into past its API.

A look is no request, so it meets no fault and counts as none.
"""

from collections.abc import Collection, Iterable
from typing import Any

import boto3
from moto.dynamodb.models import dynamodb_backends
from moto.kinesis.models import kinesis_backends
from moto.s3.models import s3_backends
from runs import layout
from runs.attributes import unpack
from runs.predictions import Counts, Prediction, counts_of, total

from reliability.table import create_table

ACCOUNT, REGION = "123456789012", "us-east-1"
BUCKET, FAILURES, STREAM, TABLE = "images", "failures", "jobs", "predictions"


def create() -> None:
    """The buckets, the stream and the table, all empty."""
    for bucket in (BUCKET, FAILURES):
        boto3.client("s3").create_bucket(Bucket=bucket)
    boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)
    create_table(boto3.client("dynamodb"), TABLE)


def empty() -> None:
    """Nothing is left but the bucket of images as it is."""
    dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items.clear()
    for shard in shards():
        shard.records.clear()
    s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.clear()


def shards() -> Collection[Any]:
    """Each has `shard_id` and `records`, by sequence number."""
    found: Collection[Any] = kinesis_backends[ACCOUNT][REGION].streams[STREAM].shards.values()
    return found


def failure_objects() -> dict[str, bytes]:
    """key -> body."""
    return {name: entry.value for name, entry in s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.items()}


def run(run_id: str) -> dict[str, Any]:
    """The run's item; {} if it is not there."""
    return next((row for row in _rows(layout.RUNS) if row["sk"] == run_id), {})


def stored(run_id: str) -> list[dict[str, Any]]:
    """The items of the run's predictions, of all its partitions."""
    return _rows(*layout.partitions(run_id))


def missing(run_id: str, images: Iterable[str]) -> list[str]:
    """The S3 keys that have no prediction."""
    there = {row["sk"] for row in stored(run_id)}
    return [key for key in images if key not in there]


def counted(run_id: str) -> Counts:
    """The run's counts, by its counters."""
    return total(_rows(layout.counters_partition(run_id)))


def recounted(run_id: str) -> Counts:
    """The run's counts, by its predictions."""
    return counts_of(map(Prediction.from_fields, stored(run_id)))


def _rows(*partitions: str) -> list[dict[str, Any]]:
    """The items of some partitions, as plain values."""
    found: Any = dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items
    return [
        unpack(item.to_json()["Attributes"])
        for pk, items in found.items()
        if pk.value in partitions
        for item in items.values()
    ]
