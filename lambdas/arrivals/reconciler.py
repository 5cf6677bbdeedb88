"""The Lambda function that compares standing runs with what S3 holds, and closes days that are over."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import chain
from typing import TYPE_CHECKING, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from job_creator.handler import DEADLINE_MARGIN_MS, AwsError, RunStopped
from job_creator.sources import images
from runs import jobs, metrics
from runs.arrivals import Arrival, day_of, run_id
from runs.completion import NotAnnounced, complete
from runs.errors import reason
from runs.jobs import JobError, groups
from runs.run import Run, State

from arrivals.standing_runs import CONFIG, MAX_ARRIVALS, StandingRuns, from_environment

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_s3 import S3Client


def handle(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lambda's entry point: {} closes all days that are over, {"RunId": ...} reconciles one.

    Raises as Reconciler does, and AwsError.
    """
    try:
        return setup()(event, context.get_remaining_time_in_millis)
    except (ClientError, BotoCoreError) as error:
        what, trace = reason(error), error.__traceback__
    raise AwsError(what).with_traceback(trace)


@functools.cache
def setup() -> Reconciler:
    """The reconciler of this execution environment, from its environment variables."""
    return Reconciler(
        s3=boto3.client("s3", config=CONFIG),
        events=lambda: boto3.client("events", config=CONFIG),
        **from_environment(),
    )


class Reconciler(StandingRuns):
    """Reconciles standing runs: made once, called for every invocation."""

    def __init__(
        self,
        *,
        s3: S3Client,
        events: Callable[[], EventBridgeClient],  # made only when a run completes here
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self._s3 = s3
        self._events = events

    def __call__(self, event: Mapping[str, Any], remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Compare standing runs with what S3 holds, send what is missing, and close days that are over.

        Without RunId, all days that are over and not COMPLETE; yesterday also if no event of it came, unless
        the last standing run is CANCELLED: then arrivals are paused, and wait in their queue. Answers
        {"Runs": {RunId: {"Missed": images that no event announced, "SentAgain": others without an outcome}}}.
        Raises JobError, RunStopped, and what boto3 raises.
        """
        today = _today()
        if "RunId" in event:
            names = [jobs.run_id(event)]
            day = day_of(names[0])
            if day is None or day > today:
                raise JobError("RunId: expected the standing run of a day, arrivals-YYYY-MM-DD, until today")
        else:
            standing = sorted((run for run in self._table.runs() if run.standing), key=lambda run: run.run_id)
            days = {run.run_id for run in standing if run.at_work}
            if not standing or standing[-1].state != State.CANCELLED:
                days.add(run_id(today - timedelta(days=1)))
            names = sorted(days - {run_id(today)})
        answers = {name: self._reconcile(name, remaining_ms) for name in names}
        metrics.print_line(
            {
                "ArrivalsMissed": sum(answer["Missed"] for answer in answers.values()),
                "ArrivalsSentAgain": sum(answer["SentAgain"] for answer in answers.values()),
            },
            runs=names,
        )
        return {"Runs": answers}

    def _reconcile(self, name: str, remaining_ms: Callable[[], int]) -> dict[str, int]:
        day = day_of(name)
        assert day  # noqa: S101 - both callers have looked
        listed = self._listed(name, day, remaining_ms)
        run = self._table.run(name)
        if run is None:
            first = next(listed, None)
            if first is None:
                return {"Missed": 0, "SentAgain": 0}
            listed = chain([first], listed)
            run = self._open(name)
        if run.state in (State.CANCELLED, State.DELETING):
            return {"Missed": 0, "SentAgain": 0}
        missed = again = 0
        if run.expected is None:
            over = day < _today()
            if over:
                self._table.close(run)
            for arrived in groups(listed, MAX_ARRIVALS):
                _check_time(name, remaining_ms)
                unknown = self._unknown(run, day, arrived)
                missed += len(unknown)
                self._take(run, unknown, reconciling=True)
        for waiting in groups(self._table.waiting(name), MAX_ARRIVALS):
            _check_time(name, remaining_ms)
            again += self._send(run, [prediction.key for prediction in waiting])
        if run.expected is None and over:
            self._table.expect_arrived(run)
        try:
            complete(self._table, self._events, name)
        except NotAnnounced as error:
            raise RunStopped(f"run {name} has all its predictions, but {error}; invoke again") from None
        return {"Missed": missed, "SentAgain": max(0, again - missed)}

    def _unknown(self, run: Run, day: date, arrived: Collection[Arrival]) -> list[Arrival]:
        """Those of the arrivals that neither this run nor that of the next day has an outcome of, or awaits.

        The time of an event and that of the object can differ: near midnight they are of two days.
        """
        for name in (run.run_id, run_id(day + timedelta(days=1))):
            stored = self._table.stored(name, [each.key for each in arrived])
            arrived = [
                each for each in arrived if each.key not in stored or stored[each.key].etag != each.etag
            ]
        return list(arrived)

    def _listed(self, name: str, day: date, remaining_ms: Callable[[], int]) -> Iterator[Arrival]:
        """The images in the bucket that S3 has received on a day. Raises RunStopped."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
        for page in pages:
            _check_time(name, remaining_ms)
            for entry in page.get("Contents", []):
                time = entry["LastModified"].astimezone(UTC)
                if time.date() == day and any(images([entry["Key"]])):
                    yield Arrival(entry["Key"], entry["ETag"].strip('"'), time)


def _today() -> date:
    return datetime.now(UTC).date()


def _check_time(name: str, remaining_ms: Callable[[], int]) -> None:
    if remaining_ms() < DEADLINE_MARGIN_MS:
        raise RunStopped(f"the function's time is up in the reconciliation of run {name}; invoke again")
