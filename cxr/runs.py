"""What runs have come to, read from DynamoDB, CloudWatch and the failure bucket."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from botocore.exceptions import ClientError
from classifier import predictions
from classifier.predictions import SCORED

from cxr.errors import InputError
from cxr.failure_bucket import Waiting, waiting
from cxr.stack import Stack, client

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricStatTypeDef
    from mypy_boto3_dynamodb import DynamoDBClient

MODEL_JSON = Path(__file__).parents[1] / "containers" / "classifier" / "model" / "model.json"
READERS = 8  # runs whose counters are read at once
LAG_IS_NEWS = timedelta(minutes=5)  # CloudWatch has a minute's figure some minutes later

DELETING = "DELETING"  # half of it may be gone

Row = dict[str, Any]  # one image's result: see `results`


@dataclass(frozen=True)
class RunStatus:
    """A run's item and its counts."""

    state: str  # LISTING, SCORING, COMPLETE, CANCELLED or DELETING
    model: str
    expected: int | None  # distinct images; unknown while the job creator is still listing
    counts: Counter[str]  # SCORED, FAILED#<code> and WARNING#<code>
    run: str = ""
    uid: str = ""  # which no other run has, also not one of the same name
    model_sha256: str = ""
    source: dict[str, Any] = field(default_factory=dict)  # kind, value and job_count, as the event had them
    created_at: datetime | None = None
    listed_at: datetime | None = None
    completed_at: datetime | None = None
    cancelled_at: datetime | None = None  # the last time, also if it was run again since

    @property
    def done(self) -> int:
        """Images that have an outcome."""
        return predictions.outcomes(self.counts)

    @property
    def complete(self) -> bool:
        """Whether every expected image has an outcome."""
        return self.expected is not None and self.done >= self.expected

    @property
    def at_work(self) -> bool:
        """Whether images are being listed or scored, or wait to be."""
        return self.state in ("LISTING", "SCORING")

    @property
    def scored(self) -> int:
        """Images that have a score."""
        return self.counts[SCORED]

    @property
    def failures(self) -> Counter[str]:
        """FAILED images by error code."""
        return self._named("FAILED#")

    @property
    def warnings(self) -> Counter[str]:
        """Scored images by warning code; one image may have several."""
        return self._named("WARNING#")

    @property
    def remaining(self) -> int | None:
        """Images without an outcome; unknown while the job creator is still listing."""
        return None if self.expected is None else max(0, self.expected - self.done)

    def images_per_second(self, now: datetime) -> float | None:
        """Since the run was made, and until it was complete. Unknown of a run that was once cancelled."""
        until = now if self.at_work else self.completed_at
        if not (self.created_at and until and self.done) or self.cancelled_at:
            return None
        return self.done / max(1.0, (until - self.created_at).total_seconds())  # times are whole seconds

    def _named(self, kind: str) -> Counter[str]:
        found = {name.removeprefix(kind): n for name, n in self.counts.items() if name.startswith(kind)}
        return Counter(found)


@dataclass(frozen=True)
class Status(RunStatus):
    """All there is to say of a run now."""

    speed: float | None = None  # images a second; None where it is not known
    stream_lag: float | None = None  # seconds that a job waits in the stream; None where it is not known
    failed_jobs: Waiting = field(default_factory=Waiting)  # in the failure bucket

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far; None unless the run is at work and the speed known."""
        if not self.at_work or self.remaining is None or not self.speed:
            return None
        return self.remaining / self.speed


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


def status(stack: Stack, run: str) -> Status:
    """All there is to say of the run, by at most 20 requests whatever its size. InputError if there is none.

    The failure bucket is looked into only while images are missing, and then only into its first objects.
    """
    found = run_status(client("dynamodb"), stack.table, run)
    lag = stream_lag(client("cloudwatch"), stack.classifier) if found.at_work else None
    failed_jobs = Waiting()
    if found.state != "COMPLETE":
        failed_jobs = waiting(client("s3"), stack.failure_bucket, found.uid, found.created_at)
    speed = found.images_per_second(datetime.now(UTC))
    return Status(**vars(found), speed=speed, stream_lag=lag, failed_jobs=failed_jobs)


def list_runs(stack: Stack) -> list[RunStatus]:
    """Every run with its counts, the newest first."""
    dynamodb = client("dynamodb")
    items = list(query(dynamodb, stack.table, "RUN"))
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda item: _read_run(dynamodb, stack.table, item), items))
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(found, key=lambda run: run.created_at or oldest, reverse=True)


def run_status(dynamodb: DynamoDBClient, table: str, run: str) -> RunStatus:
    """Read the run's item and its sixteen counters, in two requests. InputError if there is no such run."""
    if not run:
        raise InputError("a run's name is empty; `cxr runs` lists those that there are")
    answer = dynamodb.get_item(TableName=table, Key=predictions.run_key(run), ConsistentRead=True)
    if "Item" not in answer:
        raise InputError(f"there is no run {run}; `cxr runs` lists those that there are")
    return _read_run(dynamodb, table, answer["Item"])


def stream_lag(cloudwatch: CloudWatchClient, classifier: str) -> float | None:
    """Seconds since the last job that was taken had reached the stream; None where it is not known.

    Lambda's metric IteratorAge in milliseconds, of the slowest shard (Lambda guide, monitoring-metrics).
    """
    now = datetime.now(UTC)
    age: MetricStatTypeDef = {
        "Metric": {
            "Namespace": "AWS/Lambda",
            "MetricName": "IteratorAge",
            "Dimensions": [{"Name": "FunctionName", "Value": classifier}],
        },
        "Period": 60,
        "Stat": "Maximum",
    }
    try:
        found = cloudwatch.get_metric_data(
            StartTime=now - LAG_IS_NEWS,
            EndTime=now + timedelta(minutes=1),
            ScanBy="TimestampDescending",
            MetricDataQueries=[{"Id": "age", "MetricStat": age}],
        )["MetricDataResults"]
    except ClientError:  # not allowed, or no CloudWatch there
        return None
    values = found[0]["Values"] if found else []
    return values[0] / 1000 if values else None


def outcomes(dynamodb: DynamoDBClient, table: str, run: str) -> Iterator[Outcome]:
    """Every prediction of the run, as they are read: in the order of their keys in each of 64 partitions."""
    names = ("sk", "scores", "positive", "error", "warnings")
    for number in range(predictions.PARTITIONS):
        for packed in query(dynamodb, table, f"RUN#{run}#{number:02x}", names):
            item = predictions.unpack(packed)
            yield Outcome(
                key=item["sk"],
                scores=item.get("scores", {}),
                positive=frozenset(item.get("positive", ())),
                error=item.get("error", ""),
                warnings=tuple(item.get("warnings", ())),
            )


def results(
    stack: Stack,
    run: str,
    *,
    status: Literal["SCORED", "FAILED"] | None = None,
    label: str | None = None,
    positive: bool | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
) -> Iterator[Row]:
    """The run's images as rows, read as they are asked for; in no order that means anything.

    A row has key, status, score (0..1), label, error and warnings, and score_<label> of each if there are
    several. `score`, `label` and all filters but `status` are about `label`, by default the primary one.
    Raises InputError at once if there is no such run or label.
    """
    dynamodb = client("dynamodb")
    labels = labels_of(dynamodb, stack.table, run_status(dynamodb, stack.table, run), label)
    about = labels[0] if labels else ""

    def wanted(outcome: Outcome) -> bool:
        score = outcome.scores.get(about)
        return (
            (status is None or outcome.status == status)
            and (positive is None or (score is not None and (about in outcome.positive) == positive))
            and (min_score is None or (score is not None and float(score) >= min_score))
            and (max_score is None or (score is not None and float(score) <= max_score))
        )

    return rows(filter(wanted, outcomes(dynamodb, stack.table, run)), labels)


def rows(found: Iterable[Outcome], labels: Sequence[str]) -> Iterator[Row]:
    """Outcomes as rows, whose score and label are of the first label."""
    about, more = (labels[0] if labels else ""), labels if len(labels) > 1 else ()
    for outcome in found:
        scores = {name: float(score) for name, score in outcome.scores.items()}
        yield {
            "key": outcome.key,
            "status": outcome.status,
            "score": scores.get(about),
            "label": outcome.label(about) or None if about else None,
            "error": outcome.error or None,
            "warnings": list(outcome.warnings),
            **{f"score_{name}": scores.get(name) for name in more},
        }


def labels_of(dynamodb: DynamoDBClient, table: str, run: RunStatus, about: str | None = None) -> list[str]:
    """The labels of the run's model: `about` or the primary one, then all others. Raises InputError.

    The bundle in this folder tells which is primary, if it is the run's; else an image that was scored tells
    only which there are. A run that is being deleted has none to tell of.
    """
    if run.state == DELETING:
        raise InputError(f"run {run.run} is being deleted; `cxr delete {run.run}` goes on with it")
    shipped = json.loads(MODEL_JSON.read_text(encoding="utf-8"))
    if shipped["sha256"] == run.model_sha256:
        labels = [label["name"] for label in shipped["labels"]]
    else:
        scored = next((found for found in outcomes(dynamodb, table, run.run) if found.scores), None)
        labels = sorted(scored.scores) if scored else []
        if len(labels) > 1 and not about:
            raise InputError(
                f"run {run.run} was scored by {run.model}, which is not the bundle here: give --label, "
                f"one of {', '.join(labels)}"
            )
    if about and labels and about not in labels:
        raise InputError(f"--label {about}: run {run.run} has no such label; expected {', '.join(labels)}")
    return sorted(labels, key=lambda name: name != about)  # which keeps the order of the others


def query(
    dynamodb: DynamoDBClient, table: str, pk: str, names: Sequence[str] = (), **options: Any
) -> Iterator[predictions.Item]:
    """A partition's items, page by page; with `names`, only these of their attributes."""
    if names:
        options["ProjectionExpression"] = ", ".join(f"#{name}" for name in names)
        options.setdefault("ExpressionAttributeNames", {}).update({f"#{name}": name for name in names})
    options.setdefault("ExpressionAttributeValues", {})[":pk"] = {"S": pk}
    pages = dynamodb.get_paginator("query").paginate(
        TableName=table, KeyConditionExpression="pk = :pk", ConsistentRead=True, **options
    )
    return (item for page in pages for item in page["Items"])


def _read_run(dynamodb: DynamoDBClient, table: str, packed: predictions.Item) -> RunStatus:
    item = predictions.unpack(packed)
    counts = predictions.total(query(dynamodb, table, f"RUN#{item['sk']}"))

    def moment(name: str) -> datetime | None:
        return datetime.fromisoformat(item[name]) if name in item else None

    return RunStatus(
        run=item["sk"],
        uid=item["uid"],
        state=item["state"],
        model=item["model"],
        expected=int(item["expected"]) if "expected" in item else None,
        counts=+counts,
        model_sha256=item.get("model_sha256", ""),
        source=item.get("source", {}),
        created_at=moment("created_at"),
        listed_at=moment("listed_at"),
        completed_at=moment("completed_at"),
        cancelled_at=moment("cancelled_at"),
    )
