"""A run on a DynamoDB table that throttles, and on an AWS that is broken for some minutes, as a simulation.

Nothing is called: lanes, classifiers and the partitions of the table are processes on one clock of their own.
How long a classifier waits comes from `runs.backoff`, how Lambda delivers from
`cxr.local_aws.stream_mapping`, and service times from a Workload. `python -m reliability.throttling` prints
what becomes of some runs.

What it takes for granted:

- A partition takes 1,000 write units/s (DynamoDB guide, bp-partition-key-design), and a new table has four of
  them (warm-throughput: 4,000). The hash of a partition key chooses the partition.
- A transaction writes each item twice, to prepare and to commit, and each takes a unit a KB
  (transaction-apis). Each partition decides alone whether it prepares. If one refuses, the transaction is
  cancelled, and what the others have prepared is spent (Idziorek et al., Distributed Transactions at Scale in
  Amazon DynamoDB, 2023).
- A partition saves what it does not use for one second. AWS keeps more, up to 300 s, but promises none of it
  (burst-adaptive-capacity). Nor is it counted on that AWS splits a partition during the run.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any

from classifier.handler import DEADLINE_MARGIN_MS, SCORES_AHEAD
from runs.backoff import OVERLOAD, Patience, most_of
from runs.layout import PARTITIONS

from cxr.local_aws.stream_mapping import Lane, MappingSettings, StreamMapping
from cxr.planning.capacity import (
    FIRST_BYTE_SECONDS,
    PARTITION_WRITES,
    POLL_SECONDS,
    Workload,
    cold_start_seconds,
    jobs,
    lanes,
    table_partitions,
    worker_rate,
)
from stacks.config import Config

TRANSACTION_SECONDS = 0.03  # one TransactWriteItems of some 30 items, assumed
SAVED_SECONDS = 1
SEEDS = 20  # of each row that main prints

Process = Generator[float, None, Any]  # yields how many seconds it waits


@dataclass(frozen=True)
class Outage:
    """A time in which a service refuses every request."""

    service: str  # "S3" or "DynamoDB"
    begin: float  # seconds after the start of the run
    end: float


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    seconds: float
    discarded: int  # jobs in the failure bucket
    transactions: int
    cancelled: int  # of the transactions


class Table:
    """The partitions of a table, each a bucket of write units that fills with time."""

    def __init__(self, partitions: int) -> None:
        self._saved = [float(PARTITION_WRITES * SAVED_SECONDS)] * partitions
        self._at = 0.0

    def transact(self, items: Counter[int], now: float) -> bool:
        """Write so many items of one KB to each partition, all or none. Whether they were written."""
        filled = (now - self._at) * PARTITION_WRITES
        self._saved = [min(saved + filled, PARTITION_WRITES * SAVED_SECONDS) for saved in self._saved]
        self._at = now
        prepared = Counter({p: min(number, max(0, int(self._saved[p]))) for p, number in items.items()})
        for partition, number in prepared.items():
            self._saved[partition] -= number
        if prepared != items:
            return False
        for partition, number in items.items():
            self._saved[partition] -= number  # a commit is never refused
        return True


class Run:
    """One run of the simulation. The same seed gives the same run."""

    def __init__(self, workload: Workload, config: Config, seed: int, outage: Outage | None = None) -> None:
        self._workload, self._config, self._outage = workload, config, outage
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self._now = 0.0
        self._slept = 0.0  # by the mapping, in the step of a lane
        self._discarded = self._transactions = self._cancelled = 0
        partitions = table_partitions(workload.table_writes)
        self._table = Table(partitions)
        self._places = [self._random.randrange(partitions) for _ in range(PARTITIONS)]
        self._counters = self._random.randrange(partitions)
        self._items = list(map(self._items_of, range(jobs(workload, config))))

    def result(self) -> Result:
        """Carry out the run."""
        waiting: list[tuple[float, int, Process]] = []
        numbers = count()
        start = POLL_SECONDS + self._config.batch_window + cold_start_seconds(self._workload, self._config)
        for lane in self._lanes():
            heapq.heappush(waiting, (start, next(numbers), self._deliver(lane)))
        while waiting:
            self._now, _, process = heapq.heappop(waiting)
            seconds = next(process, None)
            if seconds is not None:
                heapq.heappush(waiting, (self._now + seconds, next(numbers), process))
        return Result(self._now, self._discarded, self._transactions, self._cancelled)

    def _items_of(self, job: int) -> Counter[int]:
        """How many items each partition gets from a job: one for each image, and a counter."""
        size = self._config.images_per_job
        images = min(size, self._workload.images - job * size)
        return Counter([*self._random.choices(self._places, k=images), self._counters])

    def _lanes(self) -> Iterator[Lane]:
        """The lanes, with all jobs in them."""
        config = self._config
        settings = MappingSettings(
            "mapping",
            "function",
            "stream",
            batch_size=config.batch_size,
            maximum_retry_attempts=config.retries,
            maximum_record_age_in_seconds=config.record_age * 3600,
            bisect_batch_on_function_error=True,
            report_batch_item_failures=True,
        )
        mapping = _Mapping(settings, self)
        found = [Lane(mapping) for _ in range(lanes(config))]
        for job in range(len(self._items)):
            record = {"sequenceNumber": str(job), "data": "", "approximateArrivalTimestamp": 0.0}
            self._random.choice(found).waiting.append({"kinesis": record})
        return (lane for lane in found if not lane.idle)

    def _deliver(self, lane: Lane) -> Process:
        """Lambda delivers the jobs of a lane, one batch after the other."""
        while not lane.idle:
            if batch := lane.take():
                failed = yield from self._invoke([int(r["kinesis"]["sequenceNumber"]) for r in batch.records])
                answer = {"batchItemFailures": [{"itemIdentifier": str(job)} for job in failed]}
                self._slept = 0.0
                lane.settle(batch, answer)
                yield self._slept

    def _invoke(self, batch: list[int]) -> Process:
        """A classifier scores the jobs of a batch. Returns those that were not done."""
        stop = self._now + self._config.timeout - DEADLINE_MARGIN_MS / 1000

        def seconds_left() -> float:
            return stop - self._now

        rate = worker_rate(self._workload, self._config)
        yield FIRST_BYTE_SECONDS
        failed, ahead = [], 0.0
        for job in batch:
            yield self._images(job) / rate - ahead
            written = yield from self._try(lambda: not self._is_out("S3"), most_of(seconds_left))
            began = self._now
            if not written or not (yield from self._write(job, seconds_left)):
                failed.append(job)
            ahead = min(self._now - began, SCORES_AHEAD / rate)
        return failed

    def _write(self, job: int, seconds_left: Callable[[], float]) -> Process:
        def transact() -> bool:
            self._transactions += 1
            written = not self._is_out("DynamoDB") and self._table.transact(self._items[job], self._now)
            self._cancelled += not written
            return written

        yield TRANSACTION_SECONDS
        return (yield from self._try(transact, seconds_left))

    def _try(self, request: Callable[[], bool], seconds_left: Callable[[], float]) -> Process:
        """Make a request until it succeeds or the classifier has to stop. Whether it succeeded."""
        patience = Patience(seconds_left, jitter=lambda longest: self._random.uniform(0, longest))
        while not request():
            wait = patience.next_wait(OVERLOAD)
            if wait is None:
                return False
            yield wait + TRANSACTION_SECONDS
        return True

    def _images(self, job: int) -> int:
        return self._items[job].total() - 1

    def _is_out(self, service: str) -> bool:
        outage = self._outage
        return outage is not None and service == outage.service and outage.begin <= self._now < outage.end


class _Mapping(StreamMapping):
    """A mapping on the clock of a run, which counts the jobs that it discards."""

    def __init__(self, settings: MappingSettings, run: Any) -> None:
        def sleep(seconds: float) -> None:
            run._slept += seconds

        super().__init__(settings, lambda *_: None, lambda *_: None, now=lambda: run._now, sleep=sleep)
        self._run = run

    def discard(self, batch: Any, condition: str) -> None:
        self._run._discarded += len(batch.records)


def main() -> None:
    """Print what becomes of runs on a new table, with more and more classifiers, and in outages."""
    from benchmarks import NIH_IMAGES
    from benchmarks.scaling import plan

    columns = ("shards", "outage", "plan, s", "median, s", "longest, s", "cancelled", "discarded")
    print(*columns, sep="\t")
    cases: list[tuple[int, Outage | None]] = [(shards, None) for shards in (1, 2, 5, 10, 20, 50)]
    cases += [(1, Outage(service, 20, 620)) for service in ("S3", "DynamoDB")]
    for shards, outage in cases:
        planned = plan(NIH_IMAGES, Config(shards=shards))
        found = [Run(planned.workload, planned.config, seed, outage).result() for seed in range(SEEDS)]
        seconds = [result.seconds for result in found]
        cancelled = sum(result.cancelled for result in found) / sum(result.transactions for result in found)
        print(
            shards,
            outage.service if outage else "",
            *(round(number) for number in (planned.seconds, median(seconds), max(seconds))),
            f"{cancelled:.0%}",
            sum(result.discarded for result in found),
            sep="\t",
        )


if __name__ == "__main__":
    main()
