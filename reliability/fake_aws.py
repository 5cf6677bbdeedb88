"""The AWS account that random schedules have: made in moto, emptied, and looked into past its API.

A look is no request, so it meets no fault and counts as none.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from typing import Any

import boto3
from classifier import predictions
from classifier.predictions import SCORED
from moto.dynamodb.models import dynamodb_backends
from moto.kinesis.models import kinesis_backends
from moto.s3.models import s3_backends

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
    return next((row for row in _rows(lambda pk: pk == "RUN") if row["sk"] == run_id), {})


def stored(run_id: str) -> list[dict[str, Any]]:
    """The run's predictions, of all its partitions."""
    return _rows(lambda pk: pk.rpartition("#")[0] == f"RUN#{run_id}")


def missing(run_id: str, keys: Iterable[str]) -> list[str]:
    """Those without a prediction."""
    there = {row["sk"] for row in stored(run_id)}
    return [key for key in keys if key not in there]


def counted(run_id: str) -> dict[str, int]:
    """The run's counts, as its counters have them."""
    total: Counter[str] = Counter()
    for row in _rows(lambda pk: pk == f"RUN#{run_id}"):
        total.update({name: int(number) for name, number in row.items() if name not in ("pk", "sk", "uid")})
    return {name: number for name, number in total.items() if number}


def recounted(run_id: str) -> dict[str, int]:
    """The run's counts, as its predictions come to."""
    total: Counter[str] = Counter()
    for row in stored(run_id):
        total[SCORED if row["status"] == SCORED else f"FAILED#{row['error']}"] += 1
        total.update(f"WARNING#{warning}" for warning in row.get("warnings", ()))
    return dict(total)


def _rows(belongs: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The attributes of all items whose partition key does."""
    partitions: Any = dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items
    return [
        predictions.unpack(item.to_json()["Attributes"])
        for pk, items in partitions.items()
        if belongs(pk.value)
        for item in items.values()
    ]
