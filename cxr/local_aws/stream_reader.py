"""Reads a Kinesis stream as Lambda does for an event source mapping: all of it, once, parent shards first."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from cxr.local_aws.stream_mapping import Record

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_kinesis.type_defs import GetRecordsOutputTypeDef, RecordTypeDef


class StreamReader:
    """The reader of one stream, from its oldest record on (TRIM_HORIZON)."""

    def __init__(self, kinesis: KinesisClient, stream_arn: str, is_delivering: Callable[[str], bool]) -> None:
        """`is_delivering` tells whether records of a shard that were read are not yet delivered."""
        self._kinesis, self._stream_arn, self._is_delivering = kinesis, stream_arn, is_delivering
        self._last: dict[str, str] = {}  # shard -> sequence number of the last record that was read
        self._exhausted: set[str] = set()  # closed shards that have no more records

    def read(self) -> Iterator[list[Record]]:
        """The new records, a list for each shard. A list counts as read when the next one is taken.

        A shard is read when all records of its parents were delivered or discarded: otherwise records of one
        partition key would overtake each other (Kinesis developer guide,
        kinesis-using-sdk-java-after-resharding). Raises what boto3 raises.
        """
        pages = self._kinesis.get_paginator("list_shards").paginate(StreamARN=self._stream_arn)
        shards = [shard for page in pages for shard in page["Shards"]]
        listed = {shard["ShardId"] for shard in shards}
        for shard in shards:
            name = shard["ShardId"]
            parents = listed & {shard.get("ParentShardId"), shard.get("AdjacentParentShardId")}
            if name in self._exhausted or not all(map(self._is_done, parents)):
                continue
            answer = self._get_records(name)
            if found := answer["Records"]:
                yield [self._event_record(name, record) for record in found]
                self._last[name] = found[-1]["SequenceNumber"]
            if not answer.get("NextShardIterator"):
                self._exhausted.add(name)

    def _is_done(self, shard: str) -> bool:
        return shard in self._exhausted and not self._is_delivering(shard)

    def _get_records(self, shard: str) -> GetRecordsOutputTypeDef:
        # A new iterator each time: one expires after five minutes (API reference, GetShardIterator).
        start: Any = {"ShardIteratorType": "TRIM_HORIZON"}
        if shard in self._last:
            start = {
                "ShardIteratorType": "AFTER_SEQUENCE_NUMBER",
                "StartingSequenceNumber": self._last[shard],
            }
        iterator = self._kinesis.get_shard_iterator(StreamARN=self._stream_arn, ShardId=shard, **start)
        return self._kinesis.get_records(ShardIterator=iterator["ShardIterator"])

    def _event_record(self, shard: str, record: RecordTypeDef) -> Record:
        """A record as it is in Lambda's event, without the role (Lambda guide, with-kinesis)."""
        return {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": record["PartitionKey"],
                "sequenceNumber": record["SequenceNumber"],
                "data": base64.b64encode(record["Data"]).decode(),
                "approximateArrivalTimestamp": record["ApproximateArrivalTimestamp"].timestamp(),
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": f"{shard}:{record['SequenceNumber']}",
            "eventName": "aws:kinesis:record",
            "awsRegion": self._stream_arn.split(":")[3],
            "eventSourceARN": self._stream_arn,
        }
