"""Random schedules of faults: the real job creator and the real classifier over moto, by Lambda's rules.

A schedule is data: what is done, in which order, and what goes wrong at which AWS request. `run` carries it
out and raises Violation if an image was lost or doubled. It is drawn whole before it runs, by `schedules`,
so what Hypothesis shrinks and prints is a value that `run` takes again.

All happens in one thread, so that a schedule always runs alike. What AWS does at the same time happens here
in the middle of one another: a step may have others within it, at any of its AWS requests.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import boto3
import numpy as np
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from classifier import handler as classifier_handler
from classifier import predictions
from classifier.handler import NotDone
from classifier.jobs import JobError, from_record
from classifier.model import Model
from classifier.predictions import SCORED
from classifier.table import RunIdTaken
from hypothesis import strategies as st
from moto import mock_aws
from moto.dynamodb.models import dynamodb_backends
from moto.kinesis.models import kinesis_backends
from moto.s3.models import s3_backends
from PIL import Image

from cxr import operations, retry, stack
from cxr.errors import Failed, InputError
from cxr.stream_mapping import FunctionError, MappingSettings, StreamMapping, first_failure
from reliability.faults import KINDS, Killed, Request, aws, kinds
from reliability.table import create_table

sys.path.append(str(Path(__file__).parents[1] / "lambdas" / "job_creator"))  # a zip, and no package

import handler as creator_handler
import jobs as creator_jobs

ACCOUNT, REGION = "123456789012", "us-east-1"
BUCKET, FAILURES, STREAM, TABLE, PREFIX = "images", "failures", "jobs", "predictions", "cxr-nih/"
STACK = stack.Stack("ChestXray", BUCKET, PREFIX, "creator", STREAM, "classifier", "mapping", TABLE, FAILURES)
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "BUCKET_NAME": BUCKET,
    "STREAM_NAME": STREAM,
    "TABLE_NAME": TABLE,
    "KEY_PREFIX": PREFIX,
    "IMAGES_PER_JOB": "1",
}
OTHER_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_PROFILE", "MODEL_DIR")
START = 1_800_000_000.0  # of the clock
ENOUGH_MS, TOO_LITTLE_MS = 100_000, 5_000
DEPTH = 3  # of steps within one another
ROUNDS = 4  # of `retry` that must bring everything: to send, to delete, and one more for each that failed
CODES = ("IMAGE_CORRUPT", "IMAGE_EMPTY", "IMAGE_MISSING", "NOT_AN_IMAGE")
DIRECT = "direct"


class Violation(AssertionError):
    """An image was lost or doubled, or a count or an event is wrong."""


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


@dataclass
class Totals:
    """What schedules have come to."""

    schedules: int = 0
    images: int = 0  # expected by a run at the end of a schedule
    lost: int = 0  # of these, those without a prediction
    doubled: int = 0  # SCORED predictions that were written over
    faults: Counter[str] = field(default_factory=Counter)  # requests that met one, by kind


# --- what is drawn


READS = ("GetItem", "Query", "GetObject", "ListObjectsV2", "UpdateItem")
# The AWS calls of each part, those more often that an image hangs on: a fault before them hides theirs.
CREATOR = (*READS, "PutItem", *["PutRecords"] * 4, "PutEvents")
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
WITHIN = ("create", "deliver", "deliver", "again", "cancel", "retry", "retry failed", "swap", "wait")
STEPS = (*WITHIN, "create", "deliver", "drain", "drain", "direct", "delete")


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


# --- the world


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


class _SameThread:
    """A ThreadPoolExecutor that does its work at once."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _SameThread:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does; a kill goes through
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., Any], items: Any) -> Iterator[Any]:
        return map(work, items)


@dataclass
class _Doing:
    """A step at work."""

    step: Step
    sent: Counter[str] = field(default_factory=Counter)
    looked: int = 0

    def remaining_ms(self) -> int:
        self.looked += 1
        return ENOUGH_MS if self.step.looks is None or self.looked <= self.step.looks else TOO_LITTLE_MS


@dataclass
class _Call:
    """A function at work: what is watched of one invocation."""

    stopped: set[str]  # runs that were CANCELLED or gone at some time while it was at work
    pending: int = 0  # completions that are to be announced yet
    unheard: int = 0  # events that were sent and whose answer was lost
    ended_between: bool = False  # killed, or could not undo the completion, before it was announced


class World:
    """moto, the functions and the operator; made once a process, and emptied for every schedule."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._stack = ExitStack()
        enter = self._stack.enter_context
        enter(patch.dict(os.environ, ENVIRONMENT))
        for name in OTHER_ENDPOINTS:
            os.environ.pop(name, None)
        enter(mock_aws())
        enter(aws(self._meet))
        for module in (classifier_handler, creator_handler, operations):
            enter(patch.object(module, "ThreadPoolExecutor", _SameThread))
        client = functools.cache(stack.client)
        enter(patch.object(retry, "client", client))
        enter(patch.object(operations, "client", client))
        enter(patch.object(predictions, "PARTITIONS", 4))  # each is asked when a run is deleted or retried
        enter(patch.object(creator_jobs, "_MAX_RECORDS", 2))  # so that a run has several PutRecords
        self._doing: list[_Doing] = []
        self._s3 = boto3.client("s3")
        for bucket in (BUCKET, FAILURES):
            self._s3.create_bucket(Bucket=bucket)
        boto3.client("kinesis").create_stream(StreamName=STREAM, ShardCount=2)
        create_table(boto3.client("dynamodb"), TABLE)
        model = _remembering(classifier_handler.load_model())
        os.environ |= {"MODEL": model.name, "MODEL_SHA256": model.sha256}
        enter(patch.object(classifier_handler, "load_model", lambda: model))
        events = boto3.client("events")
        self._classifier = classifier_handler.setup.__wrapped__()
        self._classifier._events = lambda: events
        self._creator = creator_handler.setup.__wrapped__()
        self._creator._events = lambda: events
        self._dynamodb = boto3.client("dynamodb")
        self._there: set[int] = set()
        for number, body in enumerate(IMAGES):
            if body is not None:
                self._s3.put_object(Bucket=BUCKET, Key=_key(number, listed=True), Body=body)
        self._restore_images(range(len(IMAGES)))

    def close(self) -> None:
        """Give the process back its environment."""
        self._stack.close()

    # --- a schedule

    def run(self, schedule: Schedule) -> None:
        """Carry out the schedule, then end all faults, let everybody finish, and look. Raises Violation."""
        self._begin(schedule)
        watch = 0 if schedule.watchful else 10**9
        try:
            with redirect_stdout(io.StringIO()), patch.object(creator_handler, "CHECK_SECONDS", watch):
                for step in schedule.steps:
                    self._do(step)
                    self._raise()
                self._finish()
        finally:
            self._doing = []
            self._restore_images(self._swapped)
        self._raise()
        self.totals.schedules += 1

    def _begin(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._creator._images_per_job = schedule.images_per_job
        dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items.clear()
        for shard in kinesis_backends[ACCOUNT][REGION].streams[STREAM].shards.values():
            shard.records.clear()
        s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.clear()
        settings = MappingSettings(
            "mapping",
            "arn:function",
            "arn:stream",
            batch_size=schedule.batch_size,
            parallelization_factor=schedule.factor,
            maximum_retry_attempts=schedule.retries,
            maximum_record_age_in_seconds=schedule.record_age,
            bisect_batch_on_function_error=schedule.bisect,
            report_batch_item_failures=True,
            failure_bucket=FAILURES,
        )
        self._clock = START
        self._mapping = StreamMapping(
            settings, self._invoke, self._put_failure, now=lambda: self._clock, sleep=self._sleep
        )
        self._taken: Counter[str] = Counter()  # shard -> its records that the mapping has
        self._at_work: set[Any] = set()  # lanes
        self._history: list[dict[str, Any]] = []  # events that the classifier was invoked with
        self._doing = []  # steps, each within the one before
        self._calls: list[_Call] = []  # functions, the same
        self._violations: list[str] = []
        self._scored: set[tuple[str, str]] = set()  # where a SCORED prediction was ever committed
        self._completed: set[str] = set()  # completions, by who made them
        self._swapped: set[int] = set()
        # Runs that somebody was told to start again, or cancelled, with how often that was.
        self._unfinished: Counter[int] = Counter()
        self._started: set[int] = set()
        self._settled: dict[int, int] = {}

    def _restore_images(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            self._put_image(number, IMAGES[number])

    def _put_image(self, number: int, body: bytes | None) -> None:
        if body is None:
            self._s3.delete_object(Bucket=BUCKET, Key=_key(number))
        else:
            self._s3.put_object(Bucket=BUCKET, Key=_key(number), Body=body)

    def _raise(self) -> None:
        if self._violations:
            raise Violation("; ".join(self._violations))

    # --- what somebody does

    def _do(self, step: Step) -> None:
        self._doing.append(_Doing(step))
        actions: dict[str, Callable[[Step], None]] = {
            "create": self._create,
            "deliver": self._deliver,
            "drain": self._drain,
            "again": self._again,
            "cancel": self._cancel,
            "retry": self._retry,
            "retry failed": lambda step: self._retry(step, CODES),
            "direct": self._direct,
            "swap": self._swap,
            "wait": lambda step: self._sleep(40),
            "delete": self._delete,
        }
        try:
            actions[step.do](step)
        finally:
            self._doing.pop()

    def _create(self, step: Step) -> None:
        """Invoke the job creator, anew or again."""
        run = self._run(step)
        kind, count = self._schedule.sources[run]
        event: dict[str, Any] = {"RunId": _run_id(run)} | ({"JobCount": count} if count else {})
        if kind == "Prefix":
            event["Prefix"] = f"{PREFIX}listed/"
        elif kind == "IndexKey":
            event["IndexKey"] = f"{PREFIX}{run}.csv"
            with self._unwatched():
                self._s3.put_object(Bucket=BUCKET, Key=event["IndexKey"], Body=_index(self._keys(run)))
        else:
            event["Keys"] = [*self._keys(run), self._keys(run)[0]]
        self._started.add(run)
        before = self._unfinished[run]
        try:
            with self._call():
                answer = self._creator(event, self._doing[-1].remaining_ms)
        except (
            Killed,
            ClientError,
            BotoCoreError,
            creator_jobs.EventError,
            creator_handler.RunIdTaken,
            creator_handler.RunStopped,
        ):
            self._unfinished[run] += 1
            return
        if answer["ImageCount"] != len(self._expected(run)):
            self._violations.append(f"{answer['ImageCount']} images for {len(self._expected(run))}")
        if self._unfinished[run] == before:
            self._settled[run] = before

    def _deliver(self, step: Step) -> None:
        """Lambda invokes the classifier with the next batch of a lane."""
        self._take_records()
        lanes = [lane for lane in self._mapping.busy_lanes() if lane not in self._at_work]
        if not lanes:
            return
        lane = lanes[step.which % len(lanes)]
        self._at_work.add(lane)
        try:
            lane.deliver_next()
        finally:
            self._at_work.discard(lane)

    def _drain(self, step: Step) -> None:
        """Lambda delivers all there is."""
        self._take_records()
        while any(lane not in self._at_work for lane in self._mapping.busy_lanes()):
            self._deliver(step)

    def _again(self, step: Step) -> None:
        """Lambda delivers a batch once more, be it done or still at work, and nobody takes the answer."""
        if self._history:
            event = self._history[step.which % len(self._history)]
            with contextlib.suppress(FunctionError):
                self._classify(event)

    def _cancel(self, step: Step) -> None:
        with contextlib.suppress(InputError, ClientError, BotoCoreError, Killed):
            operations.cancel_run(STACK, _run_id(self._run(step)))

    def _retry(self, step: Step, codes: tuple[str, ...] = ()) -> None:
        with contextlib.suppress(InputError, Failed, ClientError, BotoCoreError, Killed):
            retry.retry_run(STACK, _run_id(self._run(step)), codes=codes)

    def _direct(self, step: Step) -> None:
        keys = [_key(number) for number in range(step.which % self._schedule.images + 1)]
        try:
            with self._call():
                self._classifier(
                    {"Jobs": [{"RunId": DIRECT, "Key": key} for key in keys]}, self._doing[-1].remaining_ms
                )
        except (JobError, RunIdTaken, NotDone, ClientError, BotoCoreError, Killed):
            return
        if self._missing(DIRECT, keys):
            self._violations.append("a direct job was answered and has no prediction")

    def _swap(self, step: Step) -> None:
        """Somebody takes an image out of the bucket, or puts one in."""
        number = step.which % len(IMAGES)
        self._swapped ^= {number}
        body = IMAGES[number]
        if number in self._swapped:
            body = PUT_LATER if body is None else None
        with self._unwatched():
            self._put_image(number, body)

    def _delete(self, step: Step) -> None:
        """Cancel the run and delete it, the classifier being given its time to end."""
        with contextlib.suppress(InputError, ClientError, BotoCoreError, Killed):
            run = _run_id(self._run(step))
            with contextlib.suppress(InputError):
                operations.cancel_run(STACK, run)
            operations.delete_run(STACK, run)

    # --- what AWS does

    def _take_records(self) -> None:
        """Bring the stream's new records to the mapping."""
        for shard in kinesis_backends[ACCOUNT][REGION].streams[STREAM].shards.values():
            new = list(shard.records.values())[self._taken[shard.shard_id] :]
            self._taken[shard.shard_id] += len(new)
            self._mapping.add(
                {
                    "eventID": f"{shard.shard_id}:{found.sequence_number}",
                    "eventSource": "aws:kinesis",
                    "kinesis": {
                        "sequenceNumber": str(found.sequence_number),
                        "partitionKey": found.partition_key,
                        "approximateArrivalTimestamp": self._clock,
                        "data": found.data,
                    },
                }
                for found in new
            )

    def _invoke(self, event: dict[str, Any], _request_id: str) -> object:
        self._history.append(event)
        answer, stopped = self._classify(event)
        failed = first_failure(answer, event["Records"])
        for record in event["Records"][:failed]:
            job = from_record(record)
            if job.run_id not in stopped and (missing := self._missing(job.run_id, job.keys)):
                self._violations.append(f"{len(missing)} images were acknowledged and have no prediction")
        return answer

    def _classify(self, event: dict[str, Any]) -> tuple[object, set[str]]:
        """The classifier's answer, and the runs whose jobs it may have dropped. Raises FunctionError."""
        try:
            with self._call() as call:
                answer = self._classifier(event, self._doing[-1].remaining_ms)
        except Killed:
            raise FunctionError({"errorType": "Runtime.ExitError"}) from None
        return json.loads(json.dumps(answer)), call.stopped

    def _put_failure(self, key: str, document: str) -> None:
        with self._unwatched():
            self._s3.put_object(Bucket=FAILURES, Key=key, Body=document.encode())

    def _sleep(self, seconds: float) -> None:
        self._clock += seconds

    @contextmanager
    def _call(self) -> Iterator[_Call]:
        """A function is at work."""
        at_work = ("LISTING", "SCORING", "COMPLETE")
        runs = [_run_id(run) for run in range(len(self._schedule.sources))]
        call = _Call({run for run in runs if self._item(run).get("state") not in at_work})
        self._calls.append(call)
        try:
            yield call
        except Killed:
            call.ended_between = True
            raise
        finally:
            self._calls.pop()
            if call.pending > 0 and not call.ended_between:
                self._violations.append("a run was completed and nobody was told")
            if call.pending < -call.unheard:
                self._violations.append("a run's completion was told twice")

    # --- the seam

    def _meet(self, request: Request) -> AWSResponse:
        """A request of a step: what happens meanwhile, then the trouble it meets or its answer."""
        if not self._doing:
            return request.forward()
        if request.operation == "GetFunctionConfiguration":  # asked before a run is deleted: time has passed
            return request.answer(200, b'{"Timeout": -60}')
        doing = self._doing[-1]
        number = doing.sent[request.operation]
        doing.sent[request.operation] += 1
        for operation, at, step in doing.step.within:
            if (operation, at) == (request.operation, number):
                self._do(step)
        watched = replace(request, carry_out=functools.partial(self._carry_out, request))
        for trouble in doing.step.troubles:
            if trouble.operation == request.operation and 0 <= number - trouble.at < trouble.times:
                self.totals.faults[trouble.kind] += 1
                if self._calls:
                    call = self._calls[-1]
                    call.unheard += trouble.kind == "lost answer" and request.operation == "PutEvents"
                    call.ended_between |= _reopens(request.operation, request.body)
                return KINDS[trouble.kind](watched)
        return watched.forward()

    def _carry_out(self, request: Request, body: Any) -> AWSResponse:
        if request.operation == "DeleteObject":
            self._check_deletion(request)
        answer = request.carry_out(body)
        if answer.status_code == 200:
            self._note(request.operation, body)
        return answer

    def _note(self, operation: str, body: Any) -> None:
        """Watch what is committed."""
        if operation == "TransactWriteItems":
            for put in (action["Put"]["Item"] for action in body["TransactItems"] if "Put" in action):
                place = (put["pk"]["S"], put["sk"]["S"])
                if place in self._scored:
                    self.totals.doubled += 1
                    self._violations.append("a SCORED prediction was written over")
                if put["status"]["S"] == SCORED:
                    self._scored.add(place)
        elif operation == "PutEvents":
            self._calls[-1].pending -= 1
        elif operation == "UpdateItem" and body["Key"]["pk"]["S"] == "RUN":
            update, run = body["UpdateExpression"], body["Key"]["sk"]["S"]
            if update.startswith("SET #state = :complete"):
                by = body["ExpressionAttributeValues"][":by"]["S"]
                self._calls[-1].pending += by not in self._completed  # the SDK may send one twice
                self._completed.add(by)
            elif update.startswith(("SET #state = :cancelled", "SET #state = :deleting")):
                self._stopped(run)
            elif _reopens(operation, body):
                self._calls[-1].pending -= 1
        elif operation == "DeleteItem" and body["Key"]["pk"]["S"] == "RUN":
            run = body["Key"]["sk"]["S"]
            self._stopped(run)
            self._scored = {place for place in self._scored if place[0].rpartition("#")[0] != f"RUN#{run}"}

    def _stopped(self, run: str) -> None:
        """The run's jobs may be dropped, and it has to be started again to go on."""
        self._unfinished[int(run.removeprefix("run-"))] += 1
        for call in self._calls:
            call.stopped.add(run)

    def _check_deletion(self, request: Request) -> None:
        """A failure object may go only when every image in it has a prediction, or its run is going."""
        keys = s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys
        key = unquote(urlsplit(request.url).path).lstrip("/")
        if key not in keys:
            return  # deleted once already, and the answer was lost
        jobs = [job for job in _jobs_in(keys[key].value) if self._item(job[0]).get("state") != "DELETING"]
        if any(self._missing(*job) for job in jobs):
            self._violations.append("a failure object was deleted with images that have no prediction")

    @contextmanager
    def _unwatched(self) -> Iterator[None]:
        doing, self._doing = self._doing, []
        try:
            yield
        finally:
            self._doing = doing

    # --- the end

    def _finish(self) -> None:
        """No more faults: the stream is delivered, everybody does what he was told to, and all is there."""
        self._do(Step("drain"))
        waiting = [job for body in self._failure_objects() for job in _jobs_in(body)]
        for run in self._started:
            name = _run_id(run)
            if self._settled.get(run) == self._unfinished[run]:
                held = {key for run_id, keys in waiting if run_id == name for key in keys}
                if set(self._missing(name, self._expected(run))) - held:
                    self._violations.append(f"{name}: images have no prediction and wait nowhere")
        self._raise()
        for run in self._started:
            if self._item(_run_id(run)).get("state") == "DELETING":
                self._do(Step("delete", run))
            if self._settled.get(run) != self._unfinished[run]:
                self._do(Step("create", run))
                self._do(Step("drain"))
        for _ in range(ROUNDS):
            if not self._failure_objects():
                break
            for run in self._started:
                self._do(Step("retry", run))
                self._do(Step("drain"))
        self._raise()
        for run in self._started:
            name = _run_id(run)
            state = self._item(name).get("state")
            if state != "COMPLETE":
                self._violations.append(f"{name} is {state}")
            if {key for _, key in self._predictions(name)} != set(self._expected(run)):
                self._violations.append(f"{name} has not the images that it expects")
            self.totals.images += len(self._expected(run))
            self.totals.lost += len(self._missing(name, self._expected(run)))
        for name in (DIRECT, *map(_run_id, self._started)):
            if self._counted(name) != self._recounted(name):
                self._violations.append(f"{name} counts {self._counted(name)} for {self._recounted(name)}")
        if self._failure_objects():
            self._violations.append("failure objects are left")

    # --- what is there

    def _run(self, step: Step) -> int:
        return step.which % len(self._schedule.sources)

    def _keys(self, run: int) -> list[str]:
        """A run's keys in the order in which its source has them, before JobCount."""
        numbers = range(self._schedule.images)
        if self._schedule.sources[run][0] == "Prefix":
            return [_key(n, listed=True) for n in range(len(IMAGES)) if IMAGES[n] is not None]
        return [_key(n) for n in (reversed(numbers) if run else numbers)]

    def _expected(self, run: int) -> list[str]:
        return self._keys(run)[: self._schedule.sources[run][1]]

    def _rows(self) -> dict[str, dict[str, Any]]:
        """pk -> sk -> attributes: the table as it is."""
        items: Any = dynamodb_backends[ACCOUNT][REGION].tables[TABLE].items
        return {
            pk.value: {
                sk.value: predictions.unpack(item.to_json()["Attributes"]) for sk, item in rows.items()
            }
            for pk, rows in items.items()
        }

    def _item(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self._rows().get("RUN", {}).get(run, {})
        return found

    def _predictions(self, run: str) -> dict[tuple[str, str], dict[str, Any]]:
        return {
            (pk, sk): row
            for pk, rows in self._rows().items()
            if pk.rpartition("#")[0] == f"RUN#{run}"
            for sk, row in rows.items()
        }

    def _missing(self, run: str, keys: Iterable[str]) -> list[str]:
        """Those without a prediction; none of a run that is gone."""
        if not self._item(run):
            return []
        there = {key for _, key in self._predictions(run)}
        return [key for key in keys if key not in there]

    def _counted(self, run: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for row in self._rows().get(f"RUN#{run}", {}).values():
            total.update({name: int(n) for name, n in row.items() if name not in ("pk", "sk")})
        return {name: n for name, n in total.items() if n}

    def _recounted(self, run: str) -> dict[str, int]:
        total: Counter[str] = Counter()
        for row in self._predictions(run).values():
            total[SCORED if row["status"] == SCORED else f"FAILED#{row['error']}"] += 1
            total.update(f"WARNING#{warning}" for warning in row.get("warnings", ()))
        return dict(total)

    def _failure_objects(self) -> list[bytes]:
        return [entry.value for entry in s3_backends[ACCOUNT]["aws"].buckets[FAILURES].keys.values()]


def _run_id(run: int) -> str:
    return f"run-{run}"


def _key(number: int, *, listed: bool = False) -> str:
    return f"{PREFIX}{'listed/' if listed else ''}{number}.png"


def _index(keys: Iterable[str]) -> bytes:
    """A CSV that names each image twice."""
    file = io.StringIO()
    csv.writer(file).writerows([["Key"], *([key] for key in keys), *([key] for key in keys)])
    return file.getvalue().encode()


def _jobs_in(document: bytes) -> list[tuple[str, tuple[str, ...]]]:
    """Run and keys of each job of a failure object."""
    jobs = map(from_record, json.loads(json.loads(document)["payload"])["Records"])
    return [(job.run_id, job.keys) for job in jobs]


def _reopens(operation: str, body: Any) -> bool:
    """Whether a request undoes a completion."""
    undoes = "SET #state = :scoring REMOVE completed_at"
    return operation == "UpdateItem" and str(body["UpdateExpression"]).startswith(undoes)


def _remembering(model: Model) -> Model:
    """The real model, which scores each of the few images once; they come thousands of times."""
    score, known = model.score, {}

    def once(batch: Any) -> Any:
        (pixels,) = batch
        if pixels.tobytes() not in known:
            known[pixels.tobytes()] = score(batch)
        return known[pixels.tobytes()]

    model.prepare = functools.cache(model.prepare)  # type: ignore[method-assign]
    model.score = once  # type: ignore[method-assign,assignment]
    return model
