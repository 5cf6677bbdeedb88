"""The schedules catch every handler that is broken on purpose."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from test_schedules import schedule

from reliability.broken import BROKEN
from reliability.checker import Violation
from reliability.schedules import Fault, Step, run_random_schedules
from reliability.simulator import Simulator

SEED = "b-1"
ENOUGH = 400  # random schedules that must catch a broken handler

# These take more random schedules than a test has time for. Their shortest schedule catches them.
RARE = {
    "ignores connection errors of writes",
    "keeps the FAILED count of a SCORED image",
    "ignores records that Kinesis refuses",
    "calls a forbidden image missing",
    "counts an event twice",
    "forgets that an image was overwritten",
    "writes the score of an old content",
}

start, deliver_all = Step("start"), Step("deliver all")
# The shortest schedule that catches each of them.
SHORTEST = {
    "reports no failed job": schedule(
        start, Step("deliver all", faults=(Fault("TransactWriteItems", 0, "throttled", 100),))
    ),
    "drops jobs at the deadline": schedule(start, Step("deliver all", time_checks=0)),
    "counts an image without writing it": schedule(start, deliver_all),
    "skips an image": schedule(start, deliver_all),
    "counts every delivery": schedule(start, deliver_all, Step("redeliver")),
    "overwrites SCORED predictions": schedule(start, deliver_all, Step("redeliver", 1)),
    "keeps the FAILED count of a SCORED image": schedule(
        start, deliver_all, Step("swap image", 3), Step("retry failed"), deliver_all
    ),
    "ignores connection errors of writes": schedule(
        start, Step("deliver all", faults=(Fault("TransactWriteItems", 0, "no connection", 100),))
    ),
    "announces a COMPLETE run again": schedule(start, deliver_all, Step("redeliver")),
    "completes a run one image early": replace(schedule(start, deliver_all), images_per_job=1, batch_size=1),
    "changes the partition at every delivery": schedule(start, deliver_all, Step("redeliver")),
    "calls a forbidden image missing": schedule(
        start, Step("deliver all", faults=(Fault("GetObject", 0, "forbidden"),))
    ),
    "ignores records that Kinesis refuses": schedule(
        Step("start", faults=(Fault("PutRecords", 0, "in part"),)), deliver_all
    ),
    "deletes failure objects too early": schedule(
        start,
        Step("deliver all", faults=(Fault("GetObject", 0, "forbidden", 100),)),
        Step("retry"),
        retries=0,
    ),
    "retries without reopening the run": schedule(start, deliver_all, Step("retry failed")),
    "counts an event twice": schedule(Step("arrive"), Step("announce"), Step("arrive"), Step("announce")),
    "forgets that an image was overwritten": schedule(
        Step("arrive"), Step("announce"), deliver_all, Step("arrive"), Step("arrive"), Step("announce", 1)
    ),
    "closes a day before S3 is listed": schedule(Step("arrive"), Step("lose event")),
    "writes the score of an old content": schedule(
        Step("arrive"),
        Step("announce"),
        Step(
            "deliver all",
            nested=(
                ("TransactWriteItems", 0, Step("arrive")),
                ("TransactWriteItems", 0, Step("announce")),
            ),
        ),
    ),
}


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    yield simulator
    simulator.close()


def test_each_has_a_shortest_schedule() -> None:
    assert SHORTEST.keys() == BROKEN.keys()


@pytest.mark.parametrize("name", BROKEN)
def test_the_shortest_schedule_passes_and_catches_the_broken_handler(simulator: Simulator, name: str) -> None:
    simulator.run(SHORTEST[name])
    with BROKEN[name](), pytest.raises(Violation):
        simulator.run(SHORTEST[name])


@pytest.mark.xdist_group("schedules")
@pytest.mark.examples(many=ENOUGH)
@pytest.mark.parametrize("name", sorted(BROKEN.keys() - RARE))
def test_random_schedules_catch_the_broken_handler(simulator: Simulator, name: str) -> None:
    before = simulator.totals.schedules
    with BROKEN[name](), pytest.raises(Violation):
        run_random_schedules(simulator.run, ENOUGH, SEED, shrink=False)
    print(f"{name}: caught after {simulator.totals.schedules - before} schedules")
