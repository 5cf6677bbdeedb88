"""Hundreds of thousands of keys through the job creator: each is sent once, in memory that does not grow."""

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from benchmarks.fan_out import index_key, invoke, put_index, start_local_aws, temporary_stream
from benchmarks.listing_server import object_key

pytestmark = pytest.mark.xdist_group("fan_out")  # they share an endpoint and an index

FEW = 10_000
MEMORY_MB = 20


@pytest.fixture(scope="module")
def listing_endpoint() -> Iterator[str]:
    with start_local_aws() as endpoint:
        yield endpoint


def sent(name: str) -> Counter[str]:
    """How often each key is on the stream."""
    kinesis = boto3.client("kinesis")
    found: Counter[str] = Counter()
    (shard,) = kinesis.list_shards(StreamName=name)["Shards"]
    iterator = kinesis.get_shard_iterator(
        StreamName=name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
    )["ShardIterator"]
    while (page := kinesis.get_records(ShardIterator=iterator))["Records"]:
        for record in page["Records"]:
            found.update(json.loads(record["Data"])["Keys"])
        iterator = page["NextShardIterator"]
    return found


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("index", marks=pytest.mark.examples(many=113_178)),
        pytest.param("listing", marks=pytest.mark.examples(many=300_000)),
    ],
)
def test_each_key_once_in_bounded_memory(listing_endpoint: str, source: str, examples: int) -> None:
    """The listing is of an S3 that only lists: to put so many objects would take local AWS minutes."""
    peaks = {}
    for count in (FEW, examples):
        event: dict[str, Any] = {"RunId": f"{source}-{count}", "JobCount": count}
        if source == "index":
            put_index(examples)
            event["IndexKey"] = index_key(examples)
        with temporary_stream(event["RunId"]):
            result = invoke(event, listing_endpoint)
            assert result["answer"] == {
                "RunId": event["RunId"],
                "ImageCount": count,
                "JobCount": -(-count // 32),
            }
            assert sent(event["RunId"]) == Counter(map(object_key, range(count)))
        peaks[count] = result["peak_mb"]
    print(f"{source}: peak {peaks[FEW]:.1f} MB for {FEW} keys, {peaks[examples]:.1f} MB for {examples}")
    assert peaks[examples] - peaks[FEW] < MEMORY_MB
