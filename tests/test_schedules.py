"""Hundreds of random schedules of faults, the same ones each time, and schedules that once found a bug."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from reliability.faults import FAULT_KINDS, fault_kinds
from reliability.schedules import CLASSIFIER, Fault, Schedule, Step, run_random_schedules
from reliability.simulator import Simulator


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    simulator = Simulator()
    yield simulator
    simulator.close()


def schedule(*steps: Step, retries: int = 1) -> Schedule:
    """A schedule of one run: four images in two jobs."""
    return Schedule(
        images=4,
        sources=(("Keys", None),),
        images_per_job=2,
        batch_size=2,
        retries=retries,
        bisect=False,
        parallelization_factor=1,
        record_age=-1,
        checks_run=True,
        steps=(*steps,),
    )


@pytest.mark.xdist_group("schedules")  # Groups begin first. Without one, this long test would begin last.
@pytest.mark.examples(few=20, many=200)
def test_random_schedules_lose_and_double_nothing(simulator: Simulator, examples: int) -> None:
    """A failure prints the shortest schedule that shows it: paste it into the list below."""
    before, met_before = simulator.totals.schedules, simulator.totals.faults.copy()
    run_random_schedules(simulator.run, examples, "schedules")
    assert simulator.totals.schedules - before >= examples
    met = set(simulator.totals.faults - met_before)
    assert met == set(FAULT_KINDS) if examples >= 200 else met  # few schedules do not meet every kind


@pytest.mark.parametrize(
    "drawn",
    [
        pytest.param(
            schedule(
                Step("start"),
                Step("deliver all", faults=(Fault("UpdateItem", 0, "throttled", 100),)),
                retries=0,
            ),
            id="`cxr retry` did not complete a run that had all its predictions",
        ),
        pytest.param(
            schedule(Step("start"), Step("deliver all", faults=(Fault("UpdateItem", 0, "lost answer"),))),
            id="a completion was not announced when its answer was lost",
        ),
        pytest.param(
            schedule(Step("start"), Step("deliver all", faults=(Fault("UpdateItem", 0, "lost answer", 5),))),
            id="a completion was not announced when the answers to all retries were lost",
        ),
        pytest.param(
            schedule(
                Step(
                    "start",
                    faults=(Fault("UpdateItem", 1, "lost answer"),),
                    nested=(("UpdateItem", 0, Step("deliver all")),),
                )
            ),
            id="a completion by the job creator was not announced when its answer was lost",
        ),
        pytest.param(
            schedule(
                Step("start"),
                Step("deliver all", faults=(Fault("GetItem", 0, "throttled", 6),)),
                Step("retry", faults=(Fault("DeleteObject", 0, "lost answer"),)),
                retries=0,
            ),
            id="the checker failed when an object was deleted twice",
        ),
        pytest.param(
            replace(
                schedule(
                    Step("start"),
                    Step("start", 1),
                    Step("deliver", faults=(Fault("GetItem", 2, "killed before"),)),
                    retries=0,
                ),
                images=1,
                sources=(("IndexKey", None), ("IndexKey", None)),
                images_per_job=1,
            ),
            id="`cxr retry` deleted a failure object that another run needed for its completion",
        ),
        pytest.param(
            schedule(Step("arrive"), Step("arrive"), Step("next day"), Step("arrive")),
            id="the simulator did not close a day that only a late event had opened",
        ),
    ],
)
def test_schedules_that_found_a_bug(simulator: Simulator, drawn: Schedule) -> None:
    simulator.run(drawn)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [(operation, kind) for operation in dict.fromkeys(CLASSIFIER) for kind in fault_kinds(operation)],
)
def test_each_fault_at_each_call_of_the_classifier(simulator: Simulator, operation: str, kind: str) -> None:
    """The fault happens once, and in a second schedule at every attempt."""
    # The classifier lists the bucket only after S3 has answered 403 to GetObject.
    cause = (Fault("GetObject", 0, "forbidden"),) if operation == "ListObjectsV2" else ()
    for times in (1, 100):
        before = simulator.totals.faults.copy()
        deliver_all = Step("deliver all", faults=(*cause, Fault(operation, 0, kind, times)))
        # Some operations are called only when jobs are sent again.
        simulator.run(schedule(Step("start"), deliver_all, Step("start"), deliver_all))
        met = simulator.totals.faults - before
        assert met[kind] > sum(each.kind == kind for each in cause)
