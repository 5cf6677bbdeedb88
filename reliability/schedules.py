"""A schedule of faults, as data: which steps happen, in which order, and which AWS requests fail.

`schedules` draws a whole schedule before `reliability.simulator` runs it. So Hypothesis shrinks and prints a
value that you can paste into a test. Steps that overlap on AWS are nested here: before any AWS request of a
step, other steps can happen.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from reliability.faults import fault_kinds

PREFIX = "cxr-nih/"
DEPTH = 3  # levels of nested steps


def _png(seed: int, mode: str = "L", side: int = 64) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "PNG")
    return file.getvalue()


# None is a missing image.
IMAGES: tuple[bytes | None, ...] = (
    _png(0),
    _png(1, "RGB"),
    _png(2)[:-60],
    None,
    _png(4, side=80),
    b"",
    _png(6),
    b"This is no image.",
)
# The contents that arrive, one after the other, under few keys: (body, error code).
ARRIVING_CONTENTS: tuple[tuple[bytes, str | None], ...] = (
    (IMAGES[0] or b"", None),
    (_png(2)[:-60], "IMAGE_CORRUPT"),
    (_png(6), None),
)
ARRIVING_KEYS = 2
ARRIVING = f"{PREFIX}arriving/"
LATE_IMAGE = _png(9)  # what the step "swap image" puts in the place of a missing image
# The error code of each image, if no step swaps it. None: it is SCORED.
ERRORS = (None, None, "IMAGE_CORRUPT", "IMAGE_MISSING", None, "IMAGE_EMPTY", None, "NOT_AN_IMAGE")


def image_key(number: int, *, listed: bool = False) -> str:
    """The key of an image. Each image has a second key under the prefix that runs list."""
    return f"{PREFIX}{'listed/' if listed else ''}{number}.png"


def arriving_key(number: int) -> str:
    """The key of an image that arrives in a standing run."""
    return f"{ARRIVING}{number} +%20ä.png"


def image_number(key: str) -> int:
    """The image that has this key."""
    return int(key.rpartition("/")[2].removesuffix(".png"))


def run_id(run: int) -> str:
    """The RunId of a run of the schedule."""
    return f"run-{run}"


def run_number(run_id: str) -> int:
    """The number of the run in the schedule."""
    return int(run_id.removeprefix("run-"))


@dataclass(frozen=True)
class Fault:
    """A fault that a step meets."""

    operation: str  # one of the operations of its step: see OPERATIONS
    first: int  # the first request for this operation that fails, from 0; retries of the SDK count, too
    kind: str  # one of faults.FAULT_KINDS
    times: int = 1  # how many requests fail in a row; the SDK makes 5 to 8 attempts


@dataclass(frozen=True)
class Step:
    """One action of the operator, of S3, of Lambda or of the job creator."""

    action: str  # one of OPERATIONS
    target: int = 0  # the run, image, lane, event or day that it acts on; taken modulo how many there are
    faults: tuple[Fault, ...] = ()
    time_checks: int | None = None  # checks of the remaining time that find enough; None: all of them
    nested: tuple[tuple[str, int, Step], ...] = ()  # (operation, number of its request, step before it)


@dataclass(frozen=True)
class Schedule:
    """Settings and steps. When the steps are done, the faults end and the operator finishes the runs."""

    images: int  # the first ones of IMAGES
    sources: tuple[tuple[str, int | None], ...]  # kind and JobCount of each run
    images_per_job: int
    batch_size: int
    retries: int
    bisect: bool
    parallelization_factor: int
    record_age: int  # seconds; -1: no limit
    checks_run: bool  # whether the job creator checks its run before each PutRecords, or never
    steps: tuple[Step, ...]

    def keys(self, run: int) -> list[str]:
        """The keys of a run in the order of its source, before JobCount."""
        numbers = range(self.images)
        if self.sources[run][0] == "Prefix":
            return [image_key(n, listed=True) for n in range(len(IMAGES)) if IMAGES[n] is not None]
        return [image_key(n) for n in (reversed(numbers) if run else numbers)]

    def expected(self, run: int) -> list[str]:
        """The keys that must end with a prediction."""
        return self.keys(run)[: self.sources[run][1]]


READS = ("GetItem", "Query", "GetObject", "ListObjectsV2", "UpdateItem")
# The operations of each part. Those that decide about an image are drawn more often: a fault in an earlier
# request keeps the part from calling them.
CREATOR = (*READS, "TransactWriteItems", *["PutRecords"] * 4, "PutEvents")
CLASSIFIER = (*READS, "BatchGetItem", *["TransactWriteItems"] * 4, "PutEvents")
OPERATOR = (*READS, "BatchGetItem", "PutRecords", "DeleteObject")
ANNOUNCER = ("GetItem", "BatchGetItem", *["TransactWriteItems"] * 3, *["PutRecords"] * 2)
RECONCILER = (*ANNOUNCER, "ListObjectsV2", "Query", *["UpdateItem"] * 2, "PutEvents")
OPERATIONS = {
    "arrive": (),
    "announce": ANNOUNCER,
    "announce and keep": ANNOUNCER,
    "lose event": (),
    "remove arrival": (),
    "next day": (),
    "reconcile": RECONCILER,
    "retry arrivals": OPERATOR,
    "retry failed arrivals": OPERATOR,
    "start": CREATOR,
    "deliver": CLASSIFIER,
    "deliver all": CLASSIFIER,
    "redeliver": CLASSIFIER,
    "direct": ("GetObject", "ListObjectsV2"),
    "cancel": ("GetItem", "UpdateItem"),
    "retry": OPERATOR,
    "retry failed": OPERATOR,
    "delete": ("GetItem", "Query", "UpdateItem", "BatchWriteItem", "DeleteItem"),
    "swap image": (),
    "wait": (),
}
# The actions of steps that are nested in others.
NESTED_RUN_ACTIONS = (
    "start",
    "deliver",
    "deliver",
    "redeliver",
    "cancel",
    "retry",
    "retry failed",
    "swap image",
    "wait",
    "delete",
)
NESTED_ARRIVAL_ACTIONS = ("arrive", "announce", "reconcile", "deliver", "redeliver")
RUN_ACTIONS = (*NESTED_RUN_ACTIONS, "start", "deliver", "deliver all", "deliver all", "direct")
ARRIVAL_ACTIONS = (
    *["arrive"] * 3,
    *["announce"] * 3,
    "announce and keep",
    "lose event",
    "remove arrival",
    "next day",
    "reconcile",
    "retry arrivals",
    "retry failed arrivals",
    "deliver",
    "deliver all",
    "deliver all",
    "redeliver",
)
# The actions of a schedule, and those of its nested steps. Half of the schedules have no arrivals: steps
# about them take the place of steps that a fault of a started run needs in order to show.
KINDS_OF_SCHEDULES = (
    (RUN_ACTIONS, NESTED_RUN_ACTIONS),
    (RUN_ACTIONS, NESTED_RUN_ACTIONS),
    (ARRIVAL_ACTIONS, NESTED_ARRIVAL_ACTIONS),
    ((*RUN_ACTIONS, *ARRIVAL_ACTIONS), (*NESTED_RUN_ACTIONS, *NESTED_ARRIVAL_ACTIONS)),
)


def run_random_schedules(
    run: Callable[[Schedule], None], number: int, seed_text: str, *, shrink: bool = True
) -> None:
    """Call `run` with random schedules, the same ones for the same seed.

    If `run` raises, this raises the error of the shortest schedule that was found to raise it, and Hypothesis
    adds that schedule to the error as a note. Without `shrink`, it is the first such schedule.
    """

    @seed(seed_text)
    @settings(
        max_examples=number,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(schedules())
    def check(schedule: Schedule) -> None:
        run(schedule)

    check()


def schedules() -> st.SearchStrategy[Schedule]:
    """A strategy that draws schedules."""
    source = st.tuples(st.sampled_from(("Prefix", "IndexKey", "Keys")), st.sampled_from((None, None, 1, 3)))
    return st.builds(
        Schedule,
        images=st.integers(1, len(IMAGES)),
        sources=st.lists(source, min_size=1, max_size=2).map(tuple),
        images_per_job=st.integers(1, 3),
        batch_size=st.integers(1, 4),
        retries=st.integers(0, 2),
        bisect=st.booleans(),
        parallelization_factor=st.integers(1, 3),
        record_age=st.sampled_from((-1, 60)),
        checks_run=st.booleans(),
        steps=st.sampled_from(KINDS_OF_SCHEDULES).flatmap(lambda actions: _all_steps(*actions)),
    )


def _all_steps(actions: tuple[str, ...], nested: tuple[str, ...]) -> st.SearchStrategy[tuple[Step, ...]]:
    steps = st.lists(_steps(DEPTH - 1, actions, nested), min_size=1, max_size=7).map(tuple)
    if "start" not in actions:
        return steps
    return steps.map(lambda steps: steps if steps[0].action == "start" else (Step("start"), *steps))


def _steps(depth: int, actions: tuple[str, ...], nested: tuple[str, ...]) -> st.SearchStrategy[Step]:
    return st.sampled_from(actions).flatmap(lambda action: _step(action, depth, nested))


def _step(action: str, depth: int, nested_actions: tuple[str, ...]) -> st.SearchStrategy[Step]:
    operations = OPERATIONS[action]
    nested: st.SearchStrategy[tuple[tuple[str, int, Step], ...]] = st.just(())
    if depth and operations:
        step = _steps(depth - 1, nested_actions, nested_actions)
        one = st.tuples(st.sampled_from(operations), st.integers(0, 3), step)
        nested = st.one_of(nested, nested, st.lists(one, max_size=2).map(tuple))
    return st.builds(
        Step,
        action=st.just(action),
        target=st.integers(0, 7),
        faults=_faults(operations),
        time_checks=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12)),
        nested=nested,
    )


def _faults(operations: tuple[str, ...]) -> st.SearchStrategy[tuple[Fault, ...]]:
    if not operations:
        return st.just(())
    possible = [(operation, kind) for operation in operations for kind in fault_kinds(operation)]
    fault = st.builds(
        lambda chosen, first, times: Fault(chosen[0], first, chosen[1], times),
        st.sampled_from(possible),
        st.sampled_from((0, 0, 1, 2, 3)),
        st.sampled_from((1, 2, 6, 100)),
    )
    return st.lists(fault, max_size=3).map(tuple)
