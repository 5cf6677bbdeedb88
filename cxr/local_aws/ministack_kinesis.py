"""Streams of MiniStack that can be resharded as on AWS.

MiniStack forgets a shard that is split or merged, with its records. If CloudFormation changes the number of
shards, MiniStack makes the stream anew. On AWS such a shard is closed: it takes no more records, those it has
can be read for the retention period, and its children name it as their parent (Kinesis Data Streams API
reference, SplitShard, MergeShards, UpdateShardCount, GetRecords, Shard).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from ministack.services import kinesis, lambda_svc  # type: ignore[import-untyped]
from ministack.services.cloudformation import provisioners  # type: ignore[import-untyped]

Data = dict[str, Any]  # the parameters of a request
Answer = tuple[int, dict[str, str], bytes]  # status, headers, body
Handler = Callable[[Data], Answer]

CLOSED = "ending_sequence_number"  # of a shard's dict; an open shard has none

_route = kinesis._route_to_shard
_shard_out: Callable[[str, Data], Data] = kinesis._shard_out
_summary: Handler = kinesis._describe_stream_summary
_get_records: Handler = kinesis._get_records
_refuse_shard_count: Handler = kinesis._update_shard_count


def install() -> None:
    """Change MiniStack. Its own delivery to Lambda is off: `stream_reader.py` reads the streams."""
    lambda_svc._poll_kinesis = lambda: False
    kinesis._route_to_shard = lambda hash_key, stream: _route(hash_key, {"shards": _open_shards(stream)})
    kinesis._shard_out = _describe_shard
    kinesis._describe_stream_summary = _describe_stream_summary
    kinesis._get_records = _get_records_of_shard
    kinesis._split_shard = _closing_parents(kinesis._split_shard)
    kinesis._merge_shards = _closing_parents(kinesis._merge_shards)
    kinesis._update_shard_count = _update_shard_count
    provisioners._RESOURCE_HANDLERS["AWS::Kinesis::Stream"]["update"] = _update_stream


def _open_shards(stream: Data) -> dict[str, Data]:
    return {name: shard for name, shard in stream["shards"].items() if CLOSED not in shard}


def _closing_parents(reshard: Handler) -> Handler:
    """SplitShard or MergeShards that closes the parents, where MiniStack's handler `reshard` deletes them."""

    def handle(data: Data) -> Answer:
        _, stream = kinesis._resolve_stream(data)
        if not stream:
            return reshard(data)
        before, were_open = stream["shards"], _open_shards(stream)
        last = kinesis._next_sequence_number()
        stream["shards"] = dict(were_open)  # AWS reshards open shards only
        answer = reshard(data)
        for name in were_open.keys() - stream["shards"].keys():
            were_open[name][CLOSED] = last
        stream["shards"] = before | stream["shards"]
        return answer

    return handle


def _update_shard_count(data: Data) -> Answer:
    """Split and merge until all open shards have equal ranges of hash keys, as AWS does.

    AWS refuses more than twice the number of shards and less than half of it. Local AWS takes any number.
    """
    _, stream = kinesis._resolve_stream(data)
    target = data.get("TargetShardCount")
    if not stream or not isinstance(target, int) or target < 1:
        return _refuse_shard_count(data)
    arn, before = {"StreamARN": stream["StreamARN"]}, len(_open_shards(stream))
    starts = [start for start, _ in kinesis._compute_hash_ranges(target)]
    for start in starts:
        shard = kinesis._route_to_shard(int(start), stream)
        if stream["shards"][shard]["starting_hash_key"] != start:
            kinesis._split_shard({**arn, "ShardToSplit": shard, "NewStartingHashKey": start})
    left = ""
    for shard, found in sorted(
        _open_shards(stream).items(), key=lambda each: int(each[1]["starting_hash_key"])
    ):
        if found["starting_hash_key"] in starts:
            left = shard
        else:
            kinesis._merge_shards({**arn, "ShardToMerge": left, "AdjacentShardToMerge": shard})
            left = max(stream["shards"])  # the child; names count up
    counts = {"CurrentShardCount": before, "TargetShardCount": target}
    answer: Answer = kinesis.json_response({**arn, "StreamName": stream["StreamName"], **counts})
    return answer


def _describe_shard(name: str, shard: Data) -> Data:
    found = _shard_out(name, shard)
    if CLOSED in shard:
        found["SequenceNumberRange"]["EndingSequenceNumber"] = shard[CLOSED]
    return found


def _describe_stream_summary(data: Data) -> Answer:
    status, headers, body = _summary(data)
    _, stream = kinesis._resolve_stream(data)
    if not stream:
        return status, headers, body
    answer = json.loads(body)
    answer["StreamDescriptionSummary"]["OpenShardCount"] = len(_open_shards(stream))
    return status, headers, json.dumps(answer).encode()


def _get_records_of_shard(data: Data) -> Answer:
    """GetRecords that returns no NextShardIterator at the end of a closed shard."""
    position = kinesis._shard_iterators.get(data.get("ShardIterator"), {})
    shards = kinesis._streams.get(position.get("stream"), {}).get("shards", {})
    shard = shards.get(position.get("shard_id"), {})
    status, headers, body = _get_records(data)
    if CLOSED not in shard:
        return status, headers, body
    answer = json.loads(body)
    after = kinesis._shard_iterators.get(answer.get("NextShardIterator"))
    if after and after["position"] == len(shard["records"]):
        del kinesis._shard_iterators[answer.pop("NextShardIterator")]
    return status, headers, json.dumps(answer).encode()


def _update_stream(name: str, _old: Data, new: Data, _stack: str) -> tuple[str, dict[str, str]]:
    """CloudFormation changes the shards and the retention of a stream in place (AWS::Kinesis::Stream)."""
    stream = kinesis._streams.get(name)
    if not stream:
        raise ValueError(f"Stream {name} not found")
    stream["RetentionPeriodHours"] = int(new.get("RetentionPeriodHours", 24))
    kinesis._update_shard_count({"StreamName": name, "TargetShardCount": int(new.get("ShardCount", 1))})
    return name, {"Arn": stream["StreamARN"]}
