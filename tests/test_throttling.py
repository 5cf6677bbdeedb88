"""A run on a table that throttles: no job is discarded, and `cxr plan` says how long it takes."""

from collections import Counter
from dataclasses import replace
from statistics import median

import pytest
from runs.backoff import CONFLICT, OVERLOAD, Patience

from benchmarks.scaling import plan
from cxr.planning.capacity import Plan
from reliability.throttling import Outage, Result, Run, Table
from stacks.config import Config

IMAGES = 113_178  # 3,537 jobs
SEEDS = range(100, 111)  # not those that capacity.RETRIED was measured with


def runs(planned: Plan) -> list[Result]:
    return [Run(planned.workload, planned.config, seed).result() for seed in SEEDS]


@pytest.mark.parametrize("shards", [1, 5, 10])
def test_no_job_is_discarded_and_the_plan_knows_the_time(shards: int) -> None:
    planned = plan(IMAGES, Config(shards=shards))
    found = runs(planned)
    assert [result.discarded for result in found] == [0] * len(SEEDS)
    assert median(result.seconds for result in found) == pytest.approx(planned.seconds, rel=0.2)
    assert max(result.seconds for result in found) <= 1.5 * planned.seconds


def test_the_defaults_are_not_throttled() -> None:
    assert all(result.cancelled < 0.01 * result.transactions for result in runs(plan(IMAGES)))


def test_a_warm_table_is_faster() -> None:
    """As the plan says it."""
    planned = plan(IMAGES, Config(shards=5), table_writes=16_000)
    found = runs(planned)
    assert [result.discarded for result in found] == [0] * len(SEEDS)
    assert median(result.seconds for result in found) == pytest.approx(planned.seconds, rel=0.2)
    assert planned.seconds < 0.6 * plan(IMAGES, Config(shards=5)).seconds


def test_short_waits_are_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits as after a conflict: most transactions are cancelled."""
    planned = plan(IMAGES, Config(shards=5))
    longer = Run(planned.workload, planned.config, 100).result()
    monkeypatch.setattr("reliability.throttling.OVERLOAD", replace(CONFLICT, cap=1))
    shorter = Run(planned.workload, planned.config, 100).result()
    assert shorter.seconds > 1.2 * longer.seconds
    assert shorter.cancelled > 0.6 * shorter.transactions
    assert longer.cancelled < 0.5 * longer.transactions


@pytest.mark.parametrize("service", ["S3", "DynamoDB"])
def test_ten_minutes_of_an_outage_use_up_no_retries(service: str) -> None:
    """Not even with one job in a batch, which is never bisected."""
    planned = plan(IMAGES, Config(batch_size=1))
    outage = Outage(service, 20, 620)
    found = Run(planned.workload, planned.config, 100, outage).result()
    assert found.discarded == 0
    assert found.seconds < 600 + 1.2 * planned.seconds
    few = replace(planned.config, retries=3)
    assert Run(planned.workload, few, 100, outage).result().discarded > 0


def test_a_transaction_is_written_by_all_partitions_or_by_none() -> None:
    table = Table(2)
    assert table.transact(Counter({0: 400, 1: 10}), 0)  # two units an item: 200 and 980 are left
    assert not table.transact(Counter({0: 201, 1: 100}), 0)  # what was prepared is spent: 0 and 880
    assert not table.transact(Counter({0: 1}), 0)
    assert table.transact(Counter({0: 100, 1: 440}), 0.1)  # 100 and 980 by now; a commit may overdraw
    assert not table.transact(Counter({0: 1}), 0.2)
    assert table.transact(Counter({0: 1}), 0.21)


def test_patience_ends_at_the_deadline_or_after_some_attempts() -> None:
    left = 10.0
    patience = Patience(lambda: left, jitter=lambda longest: longest)
    assert [patience.next_wait(OVERLOAD) for _ in range(3)] == [0.5, 1, 2]
    assert patience.next_wait(CONFLICT) == 0.04  # conflicts and throttling are counted apart
    left = 3.0
    assert patience.next_wait(OVERLOAD) is None
    few = Patience(attempts=3, jitter=lambda longest: longest)
    assert [few.next_wait(CONFLICT) for _ in range(3)] == [0.04, 0.08, None]
    assert OVERLOAD.longest(10**6) == OVERLOAD.cap
