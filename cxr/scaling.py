"""Change the number of shards of a deployed stream, in the steps that Kinesis takes.

UpdateShardCount at most doubles the shards or halves them, ten times in 24 hours (Kinesis Data Streams API
reference, UpdateShardCount). Kinesis does not tell how many changes there were, so each change is noted in a
tag of the stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cxr.errors import Failed, InputError
from cxr.stack import Stack, client
from cxr.words import counted

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

MOST_SHARDS = 1000  # as the setting
CHANGES, DAY = 10, timedelta(hours=24)
TAG = "cxr-shard-changes"  # when the last ten changes were made, in seconds since 1970
LOOK_SECONDS = 1.0  # between two looks at a stream that is being changed
SLOW_SECONDS = 60  # that Kinesis may take to show an accepted change


@dataclass(frozen=True)
class Shards:
    """The open shards of a stream, and how often they can still be changed."""

    number: int
    left: int | None  # at most so many changes now: somebody else may have made some; None if it is not known
    more_at: datetime | None = None  # when there is one more, if none is left


def steps(present: int, target: int) -> list[int]:
    """The numbers of shards on the way to the target, which is the last: 5 to 20 is 10, 20."""
    found = []
    while present != target:
        present = min(target, 2 * present) if target > present else max(target, (present + 1) // 2)
        found.append(present)
    return found


def scale(stack: Stack, target: int) -> Iterator[Shards]:
    """Change the stream step by step: yields its shards as they are, and after each step.

    Waits for changes that are under way. If it is stopped, the next call continues. Raises
    InputError for a number that cannot be, and Failed if Kinesis refuses a step.
    """
    if not 1 <= target <= MOST_SHARDS:
        raise InputError(f"{target} shards: expected 1 to {MOST_SHARDS:,}")
    kinesis = client("kinesis")
    number = _settled(kinesis, stack)
    yield shards(stack, number)
    while number != target:
        step = steps(number, target)[0]
        _change(kinesis, stack, number, step)
        number = _settled(kinesis, stack, step)
        yield shards(stack, number)


def shards(stack: Stack, number: int | None = None) -> Shards:
    """The stream's shards, which are looked up if the number is not known."""
    number = open_shards(stack) if number is None else number
    made = _changes(client("kinesis"), stack)
    if made is None:
        return Shards(number, None)
    left = CHANGES - len(made)
    return Shards(number, left, None if left else made[0] + DAY)


def open_shards(stack: Stack) -> int:
    """The number of shards that take jobs."""
    found = client("kinesis").describe_stream_summary(StreamName=stack.stream)
    return int(found["StreamDescriptionSummary"]["OpenShardCount"])


def _settled(kinesis: KinesisClient, stack: Stack, expected: int | None = None) -> int:
    """The number of shards when no change is under way, and the one to `expected` is made."""
    until = time.monotonic() + SLOW_SECONDS
    while True:
        found = kinesis.describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
        state, number = found["StreamStatus"], found["OpenShardCount"]
        if state == "DELETING":
            raise Failed(f"the stream {stack.stream} is being deleted; `cxr doctor` says what to do")
        if state != "ACTIVE":
            until = time.monotonic() + SLOW_SECONDS
        elif expected in (None, number):
            return number
        elif time.monotonic() > until:
            raise Failed(
                f"the stream has {counted(number, 'shard')}, though Kinesis took the change to {expected}; "
                "somebody else may have changed it: run the same command again"
            )
        time.sleep(LOOK_SECONDS)


def _change(kinesis: KinesisClient, stack: Stack, number: int, step: int) -> None:
    """Begin a change, and note it. Raises Failed."""
    before = _changes(kinesis, stack)
    try:
        kinesis.update_shard_count(
            StreamName=stack.stream, TargetShardCount=step, ScalingType="UNIFORM_SCALING"
        )
    except kinesis.exceptions.ResourceInUseException:
        return  # somebody else has just begun a change, which is waited for
    except kinesis.exceptions.LimitExceededException:
        when = "later"
        if before is not None and len(before) == CHANGES:
            when = f"after {before[0] + DAY:%Y-%m-%d %H:%M} UTC"
        raise Failed(
            f"Kinesis refuses to go from {number} to {counted(step, 'shard')} (LimitExceededException): a "
            f"stream can be changed {CHANGES} times in 24 hours, and the account has a quota of shards; run "
            f"the same command again {when}, or ask for more under Service Quotas, Kinesis"
        ) from None
    if before is not None:
        noted = [*before, datetime.now(UTC)][-CHANGES:]
        with suppress(kinesis.exceptions.ClientError):  # the change counts, whether it can be noted or not
            kinesis.add_tags_to_stream(
                StreamName=stack.stream, Tags={TAG: " ".join(f"{int(when.timestamp())}" for when in noted)}
            )


def _changes(kinesis: KinesisClient, stack: Stack) -> list[datetime] | None:
    """The changes of the last 24 hours that are noted, the oldest first; None if they cannot be read."""
    try:
        tags = kinesis.list_tags_for_stream(StreamName=stack.stream)["Tags"]
    except kinesis.exceptions.ClientError:
        return None
    text = next((tag["Value"] for tag in tags if tag["Key"] == TAG), "")
    made = sorted(datetime.fromtimestamp(int(part), UTC) for part in text.split() if part.isdecimal())
    return [when for when in made if when > datetime.now(UTC) - DAY][-CHANGES:]
