"""The Lambda function that counts images as they arrive: events of S3 in, jobs on the Kinesis stream out."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from runs import metrics
from runs.arrivals import Arrival
from runs.errors import reason
from runs.jobs import StreamRefused
from runs.table import RunClosed, RunGone, RunPaused

from arrivals.events import NotAnArrival, arrival, newest
from arrivals.standing_runs import NotBegun, StandingRuns, from_environment


def handle(event: Mapping[str, Any], context: Any) -> dict[str, Any]:
    """Lambda's entry point, for a batch of messages of the queue."""
    return setup()(event["Records"])


@functools.cache
def setup() -> Announcer:
    """The announcer of this execution environment, from its environment variables."""
    return Announcer(**from_environment())


class Announcer(StandingRuns):
    """Takes events of S3: made once, called for every invocation."""

    def __call__(self, messages: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Count the images that the messages of the queue announce, and send those that wait as jobs."""
        failures: dict[str, str] = {}  # id of a message -> why SQS has to deliver it again
        found: dict[str, Arrival] = {}  # id of a message -> what it announces
        dropped = 0
        for message in messages:
            try:
                one = arrival(message, self._bucket, self._prefix)
            except NotAnArrival as error:
                failures[message["messageId"]] = str(error)
                continue
            if one:
                found[message["messageId"]] = one
            else:
                dropped += 1
        sent = 0
        for name, arrived in newest(found.values()).items():
            try:
                sent += self._take(self._open(name), arrived)
            except RunClosed:
                # The day is over and was reconciled: what S3 held of it then is in the run.
                dropped += len(arrived)
            except (ClientError, BotoCoreError, NotBegun, RunGone, RunPaused, StreamRefused) as error:
                problem = reason(error) if isinstance(error, ClientError | BotoCoreError) else str(error)
                failures |= {number: problem for number, one in found.items() if one.run_id == name}
        metrics.print_line(
            {
                "EventsTaken": len(found.keys() - failures),
                "EventsDropped": dropped,
                "EventsReturned": len(failures),
                "ImagesSent": sent,
            },
            failures=failures,
        )
        return {"batchItemFailures": [{"itemIdentifier": number} for number in failures]}
