"""What runs have come to, read from DynamoDB, CloudWatch and the failure bucket."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from runs.predictions import FAILED, RETRYING, SCORED, WAITING, WARNING, Counts, by_code, outcomes
from runs.run import Run, State
from runs.table import RunTable

from cxr.errors import Failed, InputError
from cxr.failure_bucket import Waiting, waiting
from cxr.stack import Stack, client

if TYPE_CHECKING:
    from mypy_boto3_cloudwatch import CloudWatchClient
    from mypy_boto3_cloudwatch.type_defs import MetricStatTypeDef

LAMBDA_SECONDS = 900  # that an invocation may take at most (Lambda guide, gettingstarted-limits)
READERS = 8  # runs whose counters are read at once
LOOK_SECONDS = 1  # between two looks at a run that is waited for, of two small requests each
IDLE_SECONDS = 10  # without progress, before the failure bucket is read to see whether the run is stuck
METRIC_IS_NEWS = timedelta(minutes=5)  # CloudWatch has a minute's figure some minutes later


@dataclass(frozen=True, kw_only=True)
class RunStatus(Run):
    """A run and its counts."""

    counts: Counts = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Images that have an outcome."""
        return outcomes(self.counts)

    @property
    def complete(self) -> bool:
        """Whether every expected image has an outcome."""
        return self.expected is not None and self.done >= self.expected

    @property
    def scored(self) -> int:
        """Images that have a score."""
        return self.counts[SCORED]

    @property
    def failures(self) -> Counter[str]:
        """FAILED images by error code."""
        return by_code(self.counts, FAILED)

    @property
    def retrying(self) -> Counter[str]:
        """FAILED images that were sent again and wait for a new outcome, by the code that they had."""
        return by_code(self.counts, RETRYING)

    @property
    def warnings(self) -> Counter[str]:
        """Scored images by warning code; one image may have several."""
        return by_code(self.counts, WARNING)

    @property
    def waiting(self) -> int:
        """Images of a standing run that have arrived and have no outcome yet."""
        return self.counts[WAITING]

    @property
    def images(self) -> int | None:
        """Images that it must have an outcome for, as far as is known; None while they are listed."""
        return self.arrived if self.standing else self.expected

    @property
    def remaining(self) -> int | None:
        """Images without an outcome, those that are retried among them; None while the images are listed."""
        return None if self.images is None else max(0, self.images - self.done)

    def seconds_at_work(self, now: datetime) -> float | None:
        """Since work on it began, or went on after a pause, until it was complete, or until `now`.

        None where it is not known: of a cancelled run, and of one that an older version has continued.
        """
        since = self.resumed_at or (None if self.cancelled_at else self.created_at)
        until = now if self.at_work else self.completed_at
        if not since or not until or until < since:
            return None
        return max(1.0, (until - since).total_seconds())  # times are whole seconds

    def images_per_second(self, now: datetime) -> float | None:
        """Outcomes a second of the time at work; None where either is not known."""
        seconds, done = self.seconds_at_work(now), self.done - self.resumed_with
        return done / seconds if seconds and done > 0 else None


@dataclass(frozen=True, kw_only=True)
class Status(RunStatus):
    """All there is to say of a run now."""

    speed: float | None = None  # images a second; None where it is not known
    seconds: float | None = None  # at work, see `seconds_at_work`
    stream_lag: float | None = None  # seconds that a job waits in the stream; None where it is not known
    failed_jobs: Waiting = field(default_factory=Waiting)  # in the failure bucket

    @property
    def stuck(self) -> bool:
        """Whether all images that are missing are in the failure bucket, so that nothing works on them."""
        return self.failed_jobs.images >= (self.remaining or 0) > 0

    @property
    def seconds_left(self) -> float | None:
        """At the speed so far. None unless the run is at work and the speed known."""
        if not self.at_work or self.remaining is None or not self.speed:
            return None
        return self.remaining / self.speed


def run_table(stack: Stack) -> RunTable:
    """The stack's table."""
    return RunTable(client("dynamodb"), stack.table)


def status(stack: Stack, run_id: str) -> Status:
    """All there is to say of the run, by at most 20 requests whatever its size.

    The failure bucket is looked into only while images are missing, and then only into its first objects.
    Raises InputError if there is no such run.
    """
    found = run_status(run_table(stack), run_id)
    lag = stream_lag(client("cloudwatch"), stack.classifier) if found.at_work else None
    failed_jobs = Waiting()
    if found.state != State.COMPLETE:
        failed_jobs = waiting(client("s3"), stack.failure_bucket, found.uid, found.created_at)
    now = datetime.now(UTC)
    return Status(
        **vars(found),
        speed=found.images_per_second(now),
        seconds=found.seconds_at_work(now),
        stream_lag=lag,
        failed_jobs=failed_jobs,
    )


def wait(
    stack: Stack,
    run_id: str,
    *,
    progress: Callable[[RunStatus], object] = lambda _: None,
    timeout: float | None = None,
) -> Status:
    """The status of the run once it is COMPLETE; some of its images may have FAILED.

    `progress` is called with what is known of the run about once a second. Raises Failed if the run is
    CANCELLED or being deleted, if it is stuck because all images that are missing are in the failure bucket,
    and if it is not COMPLETE after `timeout` seconds; InputError if there is no such run. The run itself
    continues, whatever ends the waiting.
    """
    table = run_table(stack)
    began = moved = time.monotonic()
    done = -1
    while (found := run_status(table, run_id)).at_work:
        progress(found)
        now = time.monotonic()
        if timeout is not None and now - began >= timeout:
            raise Failed(
                f"{how_far(found)} after {timeout:g} s; `cxr status {run_id}` shows how it continues"
            )
        if found.done != done:
            done, moved = found.done, now
        elif now - moved >= IDLE_SECONDS:
            moved = now
            if (looked := status(stack, run_id)).at_work and looked.stuck:
                raise Failed(
                    f"{how_far(looked)}, and the others are in the failure bucket; find the cause in the "
                    f"classifier's log, then send them again by `cxr retry {run_id}`"
                )
        time.sleep(LOOK_SECONDS)
    progress(found)
    if found.state == State.CANCELLED:
        raise Failed(f"{how_far(found)}; start it again by the same call to continue it")
    if found.state == State.DELETING:
        raise Failed(f"run {run_id} is being deleted; `cxr delete {run_id}` continues that")
    return status(stack, run_id)


def list_runs(stack: Stack) -> list[RunStatus]:
    """Every run with its counts, the newest first."""
    table = run_table(stack)
    with ThreadPoolExecutor(READERS) as pool:
        found = list(pool.map(lambda run: _with_counts(table, run), list(table.runs())))
    oldest = datetime.min.replace(tzinfo=UTC)
    return sorted(found, key=lambda run: run.created_at or oldest, reverse=True)


def run_status(table: RunTable, run_id: str) -> RunStatus:
    """The run and its counts, in two requests. Raises InputError if there is no such run."""
    if not run_id:
        raise InputError("a run's name is empty; `cxr runs` lists those that there are")
    run = table.run(run_id)
    if run is None:
        raise InputError(f"there is no run {run_id}; `cxr runs` lists those that there are")
    return _with_counts(table, run)


def stream_lag(cloudwatch: CloudWatchClient, classifier: str) -> float | None:
    """How many seconds the last job that was read had waited in the stream; None where it is not known.

    Lambda's metric IteratorAge in milliseconds, of the slowest shard (Lambda guide, monitoring-metrics).
    """
    from botocore.exceptions import ClientError

    try:
        values = recent_metric(cloudwatch, classifier, "IteratorAge", "Maximum")
    except ClientError:  # not allowed, or no CloudWatch there
        return None
    return values[0] / 1000 if values else None


def recent_metric(cloudwatch: CloudWatchClient, function: str, name: str, statistic: str) -> Sequence[float]:
    """A metric of Lambda for each of the last minutes, the newest first. Raises ClientError."""
    now = datetime.now(UTC)
    metric: MetricStatTypeDef = {
        "Metric": {
            "Namespace": "AWS/Lambda",
            "MetricName": name,
            "Dimensions": [{"Name": "FunctionName", "Value": function}],
        },
        "Period": 60,
        "Stat": statistic,
    }
    found = cloudwatch.get_metric_data(
        StartTime=now - METRIC_IS_NEWS,
        EndTime=now + timedelta(minutes=1),
        ScanBy="TimestampDescending",
        MetricDataQueries=[{"Id": "metric", "MetricStat": metric}],
    )["MetricDataResults"]
    return found[0]["Values"] if found else []


def how_far(run: RunStatus) -> str:
    """The state of the run and how many of its images are done, in words."""
    of = "" if run.images is None else f" of {run.images:,}"
    return f"run {run.run_id} is {run.state}: {run.done:,}{of} images have a prediction"


def _with_counts(table: RunTable, run: Run) -> RunStatus:
    return RunStatus(**vars(run), counts=table.counts(run.run_id))
