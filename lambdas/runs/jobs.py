"""The job: some images of one run, as one Kinesis record."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from runs.backoff import OVERLOAD, Patience

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
# A transaction holds 100 actions (DynamoDB quotas), and one of them adds to a counter.
MAX_KEYS = 99
# Kinesis takes 500 records and 5 MiB a PutRecords, partition keys included (Kinesis API, PutRecords).
MAX_RECORDS, MAX_BYTES = 500, 4 * 2**20
PUT_ATTEMPTS = 12  # of one PutRecords: about a minute in all under throttling


Item = TypeVar("Item")


class JobError(ValueError):
    """A record or an event that is no job. The message names the field."""


class StreamRefused(Exception):
    """The stream refused some records in every attempt."""


class Record(TypedDict):
    """An entry of PutRecords."""

    Data: bytes
    PartitionKey: str


@dataclass(frozen=True)
class Job:
    """Images of one run to score and to write together."""

    run_id: str
    run_uid: str
    bucket: str
    keys: tuple[str, ...]  # 1 to 99, each once
    continued: bool = False  # the run may have predictions for some of them: SCORED ones are skipped


def encode(job: Job) -> Record:
    """The job as an entry of PutRecords."""
    body: dict[str, Any] = {
        "RunId": job.run_id,
        "RunUid": job.run_uid,
        "Bucket": job.bucket,
        "Keys": job.keys,
    }
    if job.continued:
        body["Continued"] = True
    # A hash spreads the jobs over the shards, and keeps object keys out of what Kinesis shows.
    partition_key = hashlib.sha256(job.keys[0].encode()).hexdigest()
    return {"Data": json.dumps(body, separators=(",", ":")).encode(), "PartitionKey": partition_key}


def decode(record: Mapping[str, Any]) -> Job:
    """The job in one of the Records of a Kinesis event. Raises JobError."""
    try:
        body = json.loads(base64.b64decode(record["kinesis"]["data"], validate=True))
    except (binascii.Error, ValueError, RecursionError) as error:  # RecursionError: lists within lists
        raise JobError("the record's data is not JSON") from error
    if not isinstance(body, dict):
        raise JobError("the record's data is not a JSON object")
    keys = body.get("Keys")
    if not isinstance(keys, list) or not all(map(_is_text, keys)):
        raise JobError("Keys: expected a list of S3 keys")
    if not 1 <= len(set(keys)) <= MAX_KEYS:
        raise JobError(f"Keys: expected 1 to {MAX_KEYS} keys, found {len(set(keys))}")
    return Job(
        run_id=run_id(body),
        run_uid=text(body, "RunUid"),
        bucket=text(body, "Bucket"),
        keys=tuple(dict.fromkeys(keys)),
        continued=bool(body.get("Continued")),
    )


def run_id(fields: Mapping[str, Any]) -> str:
    """The RunId of a job or an event. Raises JobError."""
    value = text(fields, "RunId")
    if not RUN_ID.fullmatch(value):
        raise JobError(f"RunId: expected {RUN_ID.pattern}")
    return value


def text(fields: Mapping[str, Any], name: str) -> str:
    """A field that is a non-empty string. Raises JobError."""
    value = fields.get(name)
    if not _is_text(value):
        raise JobError(f"{name}: expected a non-empty string in UTF-8")
    return str(value)


def batches(jobs: Iterable[Job]) -> Iterator[list[Record]]:
    """The jobs as records, in lists that one PutRecords takes."""
    records: list[Record] = []
    size = 0
    for record in map(encode, jobs):
        length = len(record["Data"]) + len(record["PartitionKey"])
        if records and (len(records) == MAX_RECORDS or size + length > MAX_BYTES):
            yield records
            records, size = [], 0
        records.append(record)
        size += length
    if records:
        yield records


def put(kinesis: KinesisClient, stream: str, records: list[Record]) -> int:
    """Put at most 500 records on the stream. Send again, and count, those that the stream refuses.

    Raises StreamRefused, and what boto3 raises.
    """
    resent = 0
    patience = Patience(attempts=PUT_ATTEMPTS)
    while True:
        answer = kinesis.put_records(StreamName=stream, Records=records)  # type: ignore[arg-type]
        if not answer["FailedRecordCount"]:
            return resent
        results = zip(records, answer["Records"], strict=True)
        records = [record for record, result in results if "ErrorCode" in result]
        if not patience.wait(OVERLOAD):
            break
        resent += len(records)
    codes = sorted({result["ErrorCode"] for result in answer["Records"] if "ErrorCode" in result})
    raise StreamRefused(f"the stream refused {len(records)} jobs {PUT_ATTEMPTS} times ({', '.join(codes)})")


def groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """The items in lists of `size`; the last may be shorter."""
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, size)), [])


def _is_text(value: Any) -> bool:
    """Whether S3 may have it as a name. JSON can hold half a surrogate pair, which UTF-8 cannot."""
    return isinstance(value, str) and value != "" and value.encode(errors="replace").decode() == value
