"""Deliberately broken handlers, each of which the schedules have to find out."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from test_schedules import schedule

from reliability.broken import BROKEN
from reliability.checker import Violation
from reliability.schedules import Schedule, Step, Trouble, schedules
from reliability.simulator import World

ENOUGH = 400  # random schedules that must find every one of them

# What takes more random schedules than a test has time for; the simplest schedule catches these.
RARE = {"forgets a mended failure", "forgets refused jobs", "takes forbidden for missing"}

create, drain = Step("create"), Step("drain")
# The shortest way to see each of them.
SIMPLEST = {
    "empty answer on error": schedule(
        create, Step("drain", troubles=(Trouble("TransactWriteItems", 0, "throttled", 100),))
    ),
    "acknowledges on deadline": schedule(create, Step("drain", looks=0)),
    "drops one write": schedule(create, drain),
    "forgets one image": schedule(create, drain),
    "counts twice": schedule(create, drain, Step("again")),
    "overwrites SCORED": schedule(create, drain, Step("again", 1)),
    "forgets a mended failure": schedule(create, drain, Step("swap", 3), Step("retry failed"), drain),
    "takes silence for success": schedule(
        create, Step("drain", troubles=(Trouble("TransactWriteItems", 0, "no connection", 100),))
    ),
    "announces again": schedule(create, drain, Step("again")),
    "completes early": replace(schedule(create, drain), images_per_job=1, batch_size=1),
    "files by delivery": schedule(create, drain, Step("again")),
    "takes forbidden for missing": schedule(
        create, Step("drain", troubles=(Trouble("GetObject", 0, "forbidden"),))
    ),
    "forgets refused jobs": schedule(Step("create", troubles=(Trouble("PutRecords", 0, "in part"),)), drain),
    "deletes what waits": schedule(
        create,
        Step("drain", troubles=(Trouble("GetObject", 0, "forbidden", 100),)),
        Step("retry"),
        retries=0,
    ),
}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_each_has_its_simplest_schedule() -> None:
    assert SIMPLEST.keys() == BROKEN.keys()


@pytest.mark.parametrize("name", BROKEN)
def test_the_simplest_schedule_passes_whole_and_catches_it_broken(world: World, name: str) -> None:
    world.run(SIMPLEST[name])
    with BROKEN[name](), pytest.raises(Violation):
        world.run(SIMPLEST[name])


@pytest.mark.parametrize("name", sorted(BROKEN.keys() - RARE))
def test_random_schedules_catch_it(world: World, name: str) -> None:
    @settings(
        max_examples=ENOUGH,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate,),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(schedules())
    def check(drawn: Schedule) -> None:
        world.run(drawn)

    before = world.totals.schedules
    with BROKEN[name](), pytest.raises(Violation):
        check()
    print(f"{name}: caught after {world.totals.schedules - before} schedules")
