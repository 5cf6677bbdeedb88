"""The failure bucket: objects with the jobs that Lambda has discarded after their last retry."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from runs.jobs import Job, JobError, decode

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

FOLDER = "aws/lambda/"  # Lambda guide, kinesis-on-failure-destination
LOOKED_INTO = 8  # objects that `waiting` reads; Lambda puts up to 6 MB of jobs into one


@dataclass(frozen=True)
class Waiting:
    """The images of a run in the failure bucket. Another delivery may have scored some of them since."""

    images: int = 0
    more: bool = False  # there are objects that were not read
    until: datetime | None = None  # when the first of the objects expires; None if that is not known


def waiting(s3: S3Client, bucket: str, run_uid: str, since: datetime | None) -> Waiting:
    """How many images of the run wait, in at most ten requests. `since` is when the run was made."""
    page = s3.list_objects_v2(Bucket=bucket, Prefix=FOLDER)
    # An object older than the run holds none of its jobs.
    entries = [entry for entry in page.get("Contents", []) if not since or entry["LastModified"] >= since]
    found: dict[str, datetime] = {}  # image -> when its object was put
    for entry in entries[:LOOKED_INTO]:
        for job in jobs_in(s3, bucket, entry["Key"]):
            if job.run_uid == run_uid:
                found |= dict.fromkeys(job.keys, entry["LastModified"])
    until = None
    days = _expires_after(s3, bucket) if found else None
    if days is not None:
        # S3 rounds up to the next midnight UTC (S3 user guide, intro-lifecycle-rules).
        expiry = min(found.values()).astimezone(UTC) + timedelta(days=days + 1)
        until = expiry.replace(hour=0, minute=0, second=0, microsecond=0)
    return Waiting(len(found), page["IsTruncated"] or len(entries) > LOOKED_INTO, until)


def objects(s3: S3Client, bucket: str) -> Iterator[ObjectTypeDef]:
    """All that Lambda has put into the bucket, as it is listed."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=FOLDER)
    return (entry for page in pages for entry in page.get("Contents", []))


def jobs_in(s3: S3Client, bucket: str, key: str) -> list[Job]:
    """The jobs in one object. Records that are no jobs were put on the stream by somebody else: skipped.

    The Lambda guide (kinesis-on-failure-destination) does not show the payload's form. Both a string that
    holds JSON and JSON itself are read.
    """
    body = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    try:
        payload = json.loads(body)["payload"]
        records = list((json.loads(payload) if isinstance(payload, str) else payload)["Records"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
    jobs = []
    for record in records:
        with suppress(JobError, KeyError, TypeError):
            jobs.append(decode(record))
    return jobs


def _expires_after(s3: S3Client, bucket: str) -> int | None:
    """Days that the bucket keeps an object, by its lifecycle; None if that is not known."""
    from botocore.exceptions import ClientError

    try:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
    except ClientError:  # none, or not allowed to see it
        return None
    days = [rule.get("Expiration", {}).get("Days") for rule in rules if rule["Status"] == "Enabled"]
    return min((number for number in days if number), default=None)
