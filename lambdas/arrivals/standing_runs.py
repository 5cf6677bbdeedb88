"""What both functions do to standing runs: begin them, count images in them, and send these as jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from runs import jobs
from runs.arrivals import Arrival
from runs.jobs import Job, groups
from runs.run import STANDING, Run
from runs.table import RunTable

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient

# A transaction holds 100 actions: these, the counter's, and the one that adds them to the run.
MAX_ARRIVALS = 98
OPEN_ATTEMPTS = 5
CONFIG = Config(retries={"mode": "standard", "total_max_attempts": 8})


class NotBegun(Exception):
    """A standing run is not there, and could not be begun."""


class StandingRuns:
    """The standing runs of a stack."""

    def __init__(
        self,
        *,
        kinesis: KinesisClient,
        table: RunTable,
        bucket: str,
        prefix: str,
        stream: str,
        images_per_job: int,
        run_fields: Mapping[str, Any],  # what every run records: model, model_sha256, labels, settings
    ) -> None:
        self._kinesis = kinesis
        self._table = table
        self._bucket = bucket
        self._prefix = prefix
        self._stream = stream
        self._images_per_job = images_per_job
        source = {"kind": STANDING, "value": prefix}
        self._fields = {"source": source, "bucket": bucket, "arrived": 0, **run_fields}

    def _open(self, name: str) -> Run:
        """The standing run of this name. It is begun if it is not there."""
        for _ in range(OPEN_ATTEMPTS):
            if run := self._table.run(name):
                return run
            self._table.begin(name, self._fields)  # another invocation may begin it at the same time
        raise NotBegun(f"run {name} is being begun or deleted by others")

    def _take(self, run: Run, arrived: Iterable[Arrival], *, reconciling: bool = False) -> int:
        """Count images, and send those that wait for an outcome. How many were sent."""
        return sum(
            self._send(
                run,
                [each.key for each in self._table.announce(run, some, reconciling=reconciling)],
            )
            for some in groups(arrived, MAX_ARRIVALS)
        )

    def _send(self, run: Run, keys: Sequence[str]) -> int:
        """Put images on the stream as jobs. How many there are."""
        some = groups(keys, self._images_per_job)
        for records in jobs.batches(
            Job(run.run_id, run.uid, self._bucket, tuple(group), continued=True) for group in some
        ):
            jobs.put(self._kinesis, self._stream, records)
        return len(keys)


def from_environment() -> dict[str, Any]:
    """What StandingRuns is made with, from the environment variables of a function."""
    return {
        "kinesis": boto3.client("kinesis", config=CONFIG),
        "table": RunTable(boto3.client("dynamodb", config=CONFIG), os.environ["TABLE_NAME"]),
        "bucket": os.environ["BUCKET_NAME"],
        "prefix": os.environ["KEY_PREFIX"],
        "stream": os.environ["STREAM_NAME"],
        "images_per_job": int(os.environ["IMAGES_PER_JOB"]),
        "run_fields": json.loads(os.environ["RUN_FIELDS"], parse_float=Decimal),
    }
