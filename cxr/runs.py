"""What a run has come to, read from DynamoDB and the failure bucket."""

from __future__ import annotations

import base64
import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classifier import predictions
from classifier.predictions import SCORED

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_s3 import S3Client


@dataclass(frozen=True)
class RunStatus:
    """A run's item and its counts."""

    state: str
    model: str
    expected: int | None  # distinct images; unknown while the job creator is still listing
    counts: Counter[str]  # SCORED, FAILED#<code> and WARNING#<code>

    @property
    def done(self) -> int:
        """Images that have an outcome."""
        return predictions.outcomes(self.counts)

    @property
    def complete(self) -> bool:
        """Whether every expected image has an outcome."""
        return self.expected is not None and self.done >= self.expected

    @property
    def failures(self) -> Counter[str]:
        """FAILED images by error code."""
        return Counter(
            {name.removeprefix("FAILED#"): n for name, n in self.counts.items() if name.startswith("FAILED#")}
        )


@dataclass(frozen=True)
class Outcome:
    """One image's prediction."""

    key: str
    scores: dict[str, Decimal]  # label -> 0..1; empty if FAILED
    positive: frozenset[str]  # labels at or above their threshold
    error: str  # code; empty if SCORED
    warnings: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        return "FAILED" if self.error else SCORED

    def score(self, label: str) -> str:
        """The label's score with six decimals; empty if there is none."""
        return f"{self.scores[label]:.6f}" if label in self.scores else ""

    def label(self, primary: str) -> str:
        """The primary label if positive; if not, `normal` for `abnormal` and `no <label>` for any other."""
        if self.error:
            return ""
        negative = "normal" if primary == "abnormal" else f"no {primary}"
        return primary if primary in self.positive else negative


def run_status(dynamodb: DynamoDBClient, table: str, run_id: str) -> RunStatus:
    """Read the run's item and its sixteen counters. LookupError if there is no such run."""
    answer = dynamodb.get_item(TableName=table, Key=predictions.run_key(run_id), ConsistentRead=True)
    if "Item" not in answer:
        raise LookupError(f"there is no run {run_id}")
    run = predictions.unpack(answer["Item"])
    counts = predictions.total(_query(dynamodb, table, f"RUN#{run_id}"))
    expected = int(run["expected"]) if "expected" in run else None
    return RunStatus(run["state"], run["model"], expected, +counts)


def outcomes(dynamodb: DynamoDBClient, table: str, run_id: str) -> list[Outcome]:
    """Read every prediction of the run, in the order of their keys."""
    partitions = (f"RUN#{run_id}#{number:02x}" for number in range(predictions.PARTITIONS))
    items = (predictions.unpack(item) for pk in partitions for item in _query(dynamodb, table, pk))
    found = (
        Outcome(
            key=item["sk"],
            scores=item.get("scores", {}),
            positive=frozenset(item.get("positive", ())),
            error=item.get("error", ""),
            warnings=tuple(item.get("warnings", ())),
        )
        for item in items
    )
    return sorted(found, key=lambda outcome: outcome.key)


def images_in_failure_bucket(s3: S3Client, bucket: str, run_id: str) -> int:
    """How many images of the run are in jobs that Lambda has given up on. One request an object."""
    images = 0
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for entry in page.get("Contents", []):
            document = json.loads(s3.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
            for record in json.loads(document["payload"])["Records"]:
                job = json.loads(base64.b64decode(record["kinesis"]["data"]))
                images += len(job["Keys"]) if job["RunId"] == run_id else 0
    return images


def write_csv(path: Path, found: Iterable[Outcome], labels: list[str]) -> None:
    """Write key,status,score,label,error of the primary (first) label, and score_<label> if there are more.

    Raises OSError.
    """
    primary, more = labels[0], labels if len(labels) > 1 else []
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["key", "status", "score", "label", "error", *(f"score_{label}" for label in more)])
        for outcome in found:
            result = [
                outcome.key,
                outcome.status,
                outcome.score(primary),
                outcome.label(primary),
                outcome.error,
            ]
            rows.writerow([*result, *map(outcome.score, more)])


def _query(dynamodb: DynamoDBClient, table: str, pk: str) -> Iterator[dict[str, Any]]:
    pages = dynamodb.get_paginator("query").paginate(
        TableName=table,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": pk}},
        ConsistentRead=True,
    )
    return (item for page in pages for item in page["Items"])
