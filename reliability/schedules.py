"""A schedule of faults is data: what is done, in which order, and what goes wrong at which AWS request.

`schedules` draws it whole before `reliability.world` carries it out, so what Hypothesis shrinks and prints is
a value that a test takes again. What AWS does at the same time happens here in the middle of one another: a
step may have others within it, at any of its AWS requests.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from reliability.faults import kinds

PREFIX = "cxr-nih/"
DEPTH = 3  # of steps within one another


def _png(seed: int, mode: str = "L", side: int = 64) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "PNG")
    return file.getvalue()


# None is not there, until somebody puts it there.
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
PUT_LATER = _png(9)
# What each comes to, while nobody takes it out or puts it in.
ERRORS = (None, None, "IMAGE_CORRUPT", "IMAGE_MISSING", None, "IMAGE_EMPTY", None, "NOT_AN_IMAGE")


def key(number: int, *, listed: bool = False) -> str:
    """An image's key; each has another under the prefix that is listed."""
    return f"{PREFIX}{'listed/' if listed else ''}{number}.png"


def image_number(key: str) -> int:
    return int(key.rpartition("/")[2].removesuffix(".png"))


def run_id(run: int) -> str:
    return f"run-{run}"


def run_number(name: str) -> int:
    return int(name.removeprefix("run-"))


@dataclass(frozen=True)
class Trouble:
    """A fault that a step meets."""

    operation: str  # of CALLS
    at: int  # the first of the step's requests for it that is met, from 0; what the SDK tries again counts
    kind: str  # of faults.KINDS
    times: int = 1  # requests in a row; the SDK gives up after 5 to 8


@dataclass(frozen=True)
class Step:
    """One thing that somebody does."""

    do: str  # of STEPS
    which: int = 0  # run, image, lane or invocation, by the step; taken modulo how many there are
    troubles: tuple[Trouble, ...] = ()
    looks: int | None = None  # at the remaining time, after which too little is left; None: there is enough
    within: tuple[tuple[str, int, Step], ...] = ()  # before which request for which operation happens what


@dataclass(frozen=True)
class Schedule:
    """A world and what happens in it, before all faults end and everybody does what is left to do."""

    images: int  # the first of IMAGES
    sources: tuple[tuple[str, int | None], ...]  # kind and JobCount of each run
    images_per_job: int
    batch_size: int
    retries: int
    bisect: bool
    factor: int
    record_age: int  # seconds, -1 without limit
    watchful: bool  # whether the job creator looks after its run at every PutRecords, or not in this time
    steps: tuple[Step, ...]

    def keys(self, run: int) -> list[str]:
        """A run's keys in the order in which its source has them, before JobCount."""
        numbers = range(self.images)
        if self.sources[run][0] == "Prefix":
            return [key(n, listed=True) for n in range(len(IMAGES)) if IMAGES[n] is not None]
        return [key(n) for n in (reversed(numbers) if run else numbers)]

    def expected(self, run: int) -> list[str]:
        """The keys that end as a prediction each."""
        return self.keys(run)[: self.sources[run][1]]


READS = ("GetItem", "Query", "GetObject", "ListObjectsV2", "UpdateItem")
# The AWS calls of each part, those more often that an image hangs on: a fault before them hides theirs.
CREATOR = (*READS, "TransactWriteItems", *["PutRecords"] * 4, "PutEvents")
CLASSIFIER = (*READS, "BatchGetItem", *["TransactWriteItems"] * 4, "PutEvents")
OPERATOR = (*READS, "BatchGetItem", "PutRecords", "DeleteObject")
CALLS = {
    "create": CREATOR,
    "deliver": CLASSIFIER,
    "drain": CLASSIFIER,
    "again": CLASSIFIER,
    "direct": CLASSIFIER,
    "cancel": ("GetItem", "UpdateItem"),
    "retry": OPERATOR,
    "retry failed": OPERATOR,
    "delete": ("GetItem", "Query", "UpdateItem", "BatchWriteItem", "DeleteItem"),
    "swap": (),
    "wait": (),
}
WITHIN = (
    "create",
    "deliver",
    "deliver",
    "again",
    "cancel",
    "retry",
    "retry failed",
    "swap",
    "wait",
    "delete",
)
STEPS = (*WITHIN, "create", "deliver", "drain", "drain", "direct")


def schedules() -> st.SearchStrategy[Schedule]:
    """Every schedule there is."""
    source = st.tuples(st.sampled_from(("Prefix", "IndexKey", "Keys")), st.sampled_from((None, None, 1, 3)))
    return st.builds(
        Schedule,
        images=st.integers(1, len(IMAGES)),
        sources=st.lists(source, min_size=1, max_size=2).map(tuple),
        images_per_job=st.integers(1, 3),
        batch_size=st.integers(1, 4),
        retries=st.integers(0, 2),
        bisect=st.booleans(),
        factor=st.integers(1, 3),
        record_age=st.sampled_from((-1, 60)),
        watchful=st.booleans(),
        steps=st.lists(_steps(DEPTH - 1, STEPS), min_size=1, max_size=7).map(
            lambda steps: (Step("create"), *steps) if steps[0].do != "create" else tuple(steps)
        ),
    )


def _steps(depth: int, names: tuple[str, ...]) -> st.SearchStrategy[Step]:
    return st.sampled_from(names).flatmap(lambda name: _step(name, depth))


def _step(name: str, depth: int) -> st.SearchStrategy[Step]:
    operations = CALLS[name]
    inner: st.SearchStrategy[tuple[tuple[str, int, Step], ...]] = st.just(())
    if depth and operations:
        within = st.tuples(st.sampled_from(operations), st.integers(0, 3), _steps(depth - 1, WITHIN))
        inner = st.one_of(inner, inner, st.lists(within, max_size=2).map(tuple))
    looks = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 12))
    return st.builds(
        Step,
        do=st.just(name),
        which=st.integers(0, 7),
        troubles=_troubles(operations),
        looks=looks,
        within=inner,
    )


def _troubles(operations: tuple[str, ...]) -> st.SearchStrategy[tuple[Trouble, ...]]:
    if not operations:
        return st.just(())
    meeting = [(operation, kind) for operation in operations for kind in kinds(operation)]
    trouble = st.builds(
        lambda meets, at, times: Trouble(meets[0], at, meets[1], times),
        st.sampled_from(meeting),
        st.sampled_from((0, 0, 1, 2, 3)),
        st.sampled_from((1, 2, 6, 100)),
    )
    return st.lists(trouble, max_size=3).map(tuple)
