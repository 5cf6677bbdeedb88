"""Hundreds of random schedules of faults, the same ones every time, and those that once found a bug."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from reliability.faults import KINDS, kinds
from reliability.schedules import CLASSIFIER, Schedule, Step, Trouble, schedules
from reliability.simulator import World


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def schedule(*steps: Step, retries: int = 1) -> Schedule:
    """Four images in two jobs of one run."""
    return Schedule(
        images=4,
        sources=(("Keys", None),),
        images_per_job=2,
        batch_size=2,
        retries=retries,
        bisect=False,
        factor=1,
        record_age=-1,
        watchful=True,
        steps=(*steps,),
    )


@pytest.mark.examples(few=60, many=500)
def test_random_schedules_lose_and_double_nothing(world: World, examples: int) -> None:
    """A failure prints the schedule it shrank to: paste it into the list below."""

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(schedules())
    def check(drawn: Schedule) -> None:
        world.run(drawn)

    before, met_before = world.totals.schedules, world.totals.faults.copy()
    check()
    assert world.totals.schedules - before >= examples
    assert set(world.totals.faults - met_before) == set(KINDS)


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(
            schedule(
                Step("create"),
                Step("drain", troubles=(Trouble("UpdateItem", 0, "throttled", 100),)),
                retries=0,
            ),
            id="retry left a run SCORING whose images were all there when Lambda gave up on its last job",
        ),
        pytest.param(
            schedule(Step("create"), Step("drain", troubles=(Trouble("UpdateItem", 0, "lost answer"),))),
            id="a completion whose answer was lost was never announced",
        ),
        pytest.param(
            schedule(Step("create"), Step("drain", troubles=(Trouble("UpdateItem", 0, "lost answer", 5),))),
            id="the same, with every answer of the SDK's tries lost",
        ),
        pytest.param(
            schedule(
                Step(
                    "create",
                    troubles=(Trouble("UpdateItem", 1, "lost answer"),),
                    within=(("UpdateItem", 0, Step("drain")),),
                )
            ),
            id="the same, where the job creator completes the run",
        ),
        pytest.param(
            schedule(
                Step("create"),
                Step("drain", troubles=(Trouble("GetItem", 0, "throttled", 6),)),
                Step("retry", troubles=(Trouble("DeleteObject", 0, "lost answer"),)),
                retries=0,
            ),
            id="the schedules themselves fell over an object that was deleted twice",
        ),
        pytest.param(
            replace(
                schedule(
                    Step("create"),
                    Step("create", 1),
                    Step("deliver", troubles=(Trouble("GetItem", 2, "killed before"),)),
                    retries=0,
                ),
                images=1,
                sources=(("IndexKey", None), ("IndexKey", None)),
                images_per_job=1,
            ),
            id="retry of one run deleted the object that another run's completion hung on",
        ),
    ],
)
def test_schedules_that_found_a_bug(world: World, drawn: Schedule) -> None:
    world.run(drawn)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(operation, kind) for operation in dict.fromkeys(CLASSIFIER) for kind in kinds(operation)],
)
def test_each_fault_at_each_call_of_the_classifier(world: World, operation: str, kind: str) -> None:
    # Only who is refused an image looks whether it is there.
    leads_there = (Trouble("GetObject", 0, "forbidden"),) if operation == "ListObjectsV2" else ()
    for at in range(2):  # there is no second of some
        for times in (1, 100):
            before = world.totals.faults[kind]
            meets = Step("drain", troubles=(*leads_there, Trouble(operation, at, kind, times)))
            world.run(schedule(Step("create"), meets, Step("create"), meets))
            assert at or world.totals.faults[kind] > before + len(leads_there)
