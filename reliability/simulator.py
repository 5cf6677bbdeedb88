"""Runs schedules: the real job creator, classifier and `cxr` on moto, with Lambda's rules of delivery.

Everything runs in one thread and with a clock of its own, so a schedule always runs the same way.
"""

from __future__ import annotations

import csv
import functools
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import boto3
from arrivals import announcer, reconciler
from arrivals.standing_runs import NotBegun
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from classifier import handler as classifier_handler
from classifier.handler import NotDone
from classifier.model import Model
from job_creator import handler as creator_handler
from job_creator.events import EventError
from job_creator.handler import RunStopped
from moto import mock_aws
from runs import backoff, jobs, layout, table
from runs.arrivals import run_id as run_id_of_day
from runs.jobs import StreamRefused, decode
from runs.table import RunClosed, RunGone, RunPaused

from cxr import operations, retry, runs, stack
from cxr.errors import Failed, InputError
from cxr.local_aws.stream_mapping import FunctionError, MappingSettings, StreamMapping, first_failure
from reliability import fake_aws
from reliability.checker import Checker, Totals, run_exists
from reliability.fake_aws import BUCKET, FAILURES, REGION, STREAM, TABLE
from reliability.faults import FAULT_KINDS, Killed, Request, intercept_aws
from reliability.schedules import (
    ARRIVING,
    ARRIVING_CONTENTS,
    ARRIVING_KEYS,
    IMAGES,
    LATE_IMAGE,
    PREFIX,
    Schedule,
    Step,
    arriving_key,
    image_key,
    run_id,
)

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
UNSET = ("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_PROFILE", "MODEL_DIR")
FIRST_DAY, TIME_OF_DAY = date(2027, 1, 15), time(12)  # of what arrives
START = 1_800_000_000.0  # what the clock shows at first, seconds since 1970
ENOUGH_MS, TOO_LITTLE_MS = 100_000, 9_000
# Rounds of `cxr retry` that must be enough: one sends, one deletes the objects, and each may fail once.
RETRY_ROUNDS = 4
ERROR_CODES = ("IMAGE_CORRUPT", "IMAGE_EMPTY", "IMAGE_MISSING", "NOT_AN_IMAGE")


class _InlineExecutor:
    """A ThreadPoolExecutor that does its work at once, in the caller's thread."""

    def __init__(self, *_: object) -> None:
        pass

    def __enter__(self) -> _InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 - as an executor does; Killed is no Exception
            future.set_exception(error)
        return future

    def map(self, work: Callable[..., Any], items: Any) -> Iterator[Any]:
        return map(work, items)


@dataclass
class _ActiveStep:
    """A step that is running."""

    step: Step
    requests: Counter[str] = field(default_factory=Counter)  # sent so far, by operation
    time_checks: int = 0
    waited_ms: int = 0  # before something that failed was tried again

    def remaining_ms(self) -> int:
        self.time_checks += 1
        enough = self.step.time_checks is None or self.time_checks <= self.step.time_checks
        return max(TOO_LITTLE_MS, ENOUGH_MS - self.waited_ms) if enough else TOO_LITTLE_MS


class Simulator:
    """moto, both functions and the operator. One simulator runs any number of schedules."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._active: list[_ActiveStep] = []  # each nested in the one before
        self._stack = ExitStack()
        enter = self._stack.enter_context
        enter(patch.dict(os.environ, ENVIRONMENT))
        for name in UNSET:
            os.environ.pop(name, None)
        enter(mock_aws())
        enter(intercept_aws(self._respond))
        for module in (classifier_handler, creator_handler, table):
            enter(patch.object(module, "ThreadPoolExecutor", _InlineExecutor))
        client = functools.cache(stack.client)
        for commands in (operations, retry, runs):
            enter(patch.object(commands, "client", client))
        # The longest waits, on the clock of the step: with jitter, a schedule would run in several ways.
        enter(patch.object(backoff, "time", SimpleNamespace(sleep=self._wait)))
        enter(patch.object(backoff, "random", SimpleNamespace(uniform=lambda _, longest: longest)))
        enter(patch.object(layout, "PARTITIONS", 4))  # deletion and retry read each of them
        enter(patch.object(jobs, "MAX_RECORDS", 2))  # so that a run needs several PutRecords
        fake_aws.create()
        model = _cache_scores(classifier_handler.load_model())
        run_fields = {"model": model.name, "model_sha256": model.sha256, "labels": [], "settings": {}}
        os.environ["RUN_FIELDS"] = json.dumps(run_fields)
        enter(patch.object(classifier_handler, "load_model", lambda: model))
        events = boto3.client("events")
        self._classifier = classifier_handler.setup.__wrapped__(read=None)
        self._classifier._events = lambda: events
        self._creator = creator_handler.setup.__wrapped__()
        self._creator._events = lambda: events
        self._announcer = announcer.setup.__wrapped__()
        self._reconciler = reconciler.setup.__wrapped__()
        self._reconciler._events = lambda: events
        enter(patch.object(reconciler, "_today", lambda: self._day))
        self._contents: dict[str, str | None] = {}  # ETag of what arrives -> its error code
        self._s3 = boto3.client("s3")
        for number, body in enumerate(IMAGES):
            self._put(BUCKET, image_key(number), body)
            self._put(BUCKET, image_key(number, listed=True), body)

    def close(self) -> None:
        """Restore the environment of the process."""
        self._stack.close()

    # Schedules

    def run(self, schedule: Schedule) -> None:
        """Run the steps, finish all runs without faults, and check what is there. Raises Violation."""
        self._reset(schedule)
        check_seconds = 0 if schedule.checks_run else 10**9
        try:
            with (
                redirect_stdout(io.StringIO()),
                patch.object(creator_handler, "CHECK_SECONDS", check_seconds),
            ):
                for step in schedule.steps:
                    self._perform(step)
                    self._checker.check()
                self._finish()
        finally:
            for number in self._swapped:
                self._put(BUCKET, image_key(number), IMAGES[number])
        self.totals.schedules += 1

    def _reset(self, schedule: Schedule) -> None:
        fake_aws.empty()
        fake_aws.remove_images(ARRIVING)
        self._schedule = schedule
        self._checker = Checker(schedule, self.totals)
        self._creator._images_per_job = schedule.images_per_job
        settings = MappingSettings(
            "mapping",
            "arn:function",
            "arn:stream",
            batch_size=schedule.batch_size,
            parallelization_factor=schedule.parallelization_factor,
            maximum_retry_attempts=schedule.retries,
            maximum_record_age_in_seconds=schedule.record_age,
            bisect_batch_on_function_error=schedule.bisect,
            report_batch_item_failures=True,
            failure_bucket=FAILURES,
        )
        self._clock = START
        self._mapping = StreamMapping(
            settings,
            self._invoke,
            lambda name, document: self._put(FAILURES, name, document.encode()),
            now=lambda: self._clock,
            sleep=self._sleep,
        )
        self._day = FIRST_DAY
        self._announced: list[dict[str, Any]] = []  # messages of the queue of arrivals
        self._taken_messages: list[dict[str, Any]] = []  # that the announcer has taken
        self._arrivals = 0  # so far
        self._taken: Counter[str] = Counter()  # shard -> how many of its records the mapping has
        self._busy: set[Any] = set()  # lanes
        self._events: list[dict[str, Any]] = []  # that the mapping has invoked the classifier with
        self._swapped: set[int] = set()  # images, by number

    def _finish(self) -> None:
        """Deliver all jobs and finish all runs, as an operator would. No step meets a fault any more."""
        checker = self._checker
        self._perform(Step("deliver all"))
        checker.check_delivered()
        late = self._take_messages(0, (len(self._announced) + 1) // 2)
        self._announce_all()
        self._announced += self._taken_messages[:2]  # S3 may announce an object twice
        self._announce_all()
        self._perform(Step("next day"))
        self._perform(Step("reconcile"))
        self._perform(Step("reconcile missed days"))
        standing = fake_aws.standing_runs()
        self._announced += late[1:]  # and an event can be lost
        self._announce_all()
        if fake_aws.standing_runs() != standing:  # a late event has opened a day, which the next night closes
            self._perform(Step("next day"))
            self._perform(Step("reconcile"))
        self._perform(Step("deliver all"))
        for run in checker.started:
            if fake_aws.run_item(run_id(run)).get("state") == "DELETING":
                self._perform(Step("delete", run))
            if checker.needs_restart(run):
                self._perform(Step("start", run))
                self._perform(Step("deliver all"))
        for _ in range(RETRY_ROUNDS):
            retrying = any(fake_aws.retrying_keys(run_id(run)) for run in checker.started)
            if not fake_aws.failure_objects() and not retrying:
                break
            for run in checker.started:
                self._perform(Step("retry", run))
                self._perform(Step("deliver all"))
            for number in range(len(fake_aws.standing_runs())):
                self._perform(Step("retry arrivals", number))
                self._perform(Step("deliver all"))
        checker.check()
        checker.check_arrived(fake_aws.images_of(ARRIVING), self._contents)
        checker.check_finished()

    # Steps

    def _perform(self, step: Step) -> None:
        actions: dict[str, Callable[[Step], None]] = {
            "arrive": self._arrive,
            "announce": self._announce,
            "announce and keep": lambda step: self._announce(step, keep=True),
            "lose event": self._lose_event,
            "remove arrival": lambda step: self._put(BUCKET, arriving_key(step.target % ARRIVING_KEYS), None),
            "next day": lambda step: self._next_day(),
            "reconcile": self._reconcile,
            "reconcile missed days": lambda step: self._reconcile_missed_days(),
            "retry arrivals": self._retry_arrivals,
            "retry failed arrivals": lambda step: self._retry_arrivals(step, ERROR_CODES),
            "start": self._start,
            "deliver": self._deliver,
            "deliver all": self._deliver_all,
            "redeliver": self._redeliver,
            "cancel": self._cancel,
            "retry": self._retry,
            "retry failed": lambda step: self._retry(step, ERROR_CODES),
            "direct": self._invoke_directly,
            "swap image": self._swap_image,
            "wait": lambda step: self._sleep(40),
            "delete": self._delete,
        }
        self._active.append(_ActiveStep(step))
        try:
            actions[step.action](step)
        finally:
            self._active.pop()

    def _start(self, step: Step) -> None:
        """Invoke the job creator: for a new run, or once more for the same run."""
        run = self._run(step)
        keys, (kind, count) = self._schedule.keys(run), self._schedule.sources[run]
        event: dict[str, Any] = {"RunId": run_id(run)} | ({"JobCount": count} if count else {})
        if kind == "Prefix":
            event["Prefix"] = f"{PREFIX}listed/"
        elif kind == "IndexKey":
            event["IndexKey"] = f"{PREFIX}{run}.csv"
            self._put(BUCKET, event["IndexKey"], _csv_index(keys))
        else:
            event["Keys"] = [*keys, keys[0]]
        self._checker.started.add(run)
        interruptions = self._checker.interruptions[run]
        try:
            with self._checker.invocation():
                answer = self._creator(event, self._active[-1].remaining_ms)
        except (
            Killed,
            ClientError,
            BotoCoreError,
            EventError,
            creator_handler.RunIdTaken,
            creator_handler.RunImagesGone,
            creator_handler.RunStopped,
        ):
            self._checker.interruptions[run] += 1
        else:
            self._checker.run_started(run, answer["ImageCount"], interruptions)

    def _cancel(self, step: Step) -> None:
        with suppress(InputError, ClientError, BotoCoreError, Killed):
            operations.cancel_run(STACK, run_id(self._run(step)))

    def _retry(self, step: Step, codes: tuple[str, ...] = ()) -> None:
        with suppress(InputError, Failed, ClientError, BotoCoreError, Killed):
            retry.retry_run(STACK, run_id(self._run(step)), codes=codes)

    def _arrive(self, step: Step) -> None:
        """Write an image of today to S3, which announces it. It may replace the one that is there."""
        key = arriving_key(step.target % ARRIVING_KEYS)
        body, error = ARRIVING_CONTENTS[self._arrivals % len(ARRIVING_CONTENTS)]
        time = datetime.combine(self._day, TIME_OF_DAY, UTC)
        self._put(BUCKET, key, body)
        fake_aws.set_last_modified(key, time)
        etag = fake_aws.images_of(ARRIVING)[key][0]
        self._contents[etag] = error
        event = {
            "time": time.isoformat(),
            "detail": {"bucket": {"name": BUCKET}, "object": {"key": key, "etag": etag}},
        }
        self._announced.append({"messageId": str(self._arrivals), "body": json.dumps(event)})
        self._arrivals += 1

    def _announce(self, step: Step, *, keep: bool = False) -> None:
        """Give some messages of the queue to the announcer. What it does not take comes again; or all do."""
        messages = self._take_messages(step.target, 1 + step.target % 3)
        failed = {message["messageId"] for message in messages}
        with suppress(Killed), self._checker.invocation():
            answer = self._announcer(messages)
            if not keep:
                failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in messages:
            (self._announced if message["messageId"] in failed else self._taken_messages).append(message)

    def _announce_all(self) -> None:
        while self._announced:
            self._perform(Step("announce"))

    def _take_messages(self, first: int, number: int) -> list[dict[str, Any]]:
        """Take messages out of the queue, which has no order."""
        return [self._announced.pop(first % len(self._announced)) for _ in range(number) if self._announced]

    def _lose_event(self, step: Step) -> None:
        self._take_messages(step.target, 1)

    def _next_day(self) -> None:
        self._day += timedelta(days=1)

    def _reconcile(self, step: Step) -> None:
        """Close all days that are over, or reconcile today."""
        event = {"RunId": run_id_of_day(self._day)} if step.target % 3 == 2 else {}
        self._invoke_reconciler(event)

    def _reconcile_missed_days(self) -> None:
        """Reconcile by hand each day of which no event came, and that was not reconciled on the day after."""
        for days in range((self._day - FIRST_DAY).days):
            name = run_id_of_day(FIRST_DAY + timedelta(days=days))
            if not fake_aws.run_item(name):
                self._invoke_reconciler({"RunId": name})

    def _invoke_reconciler(self, event: dict[str, str]) -> None:
        stopped = (
            *(ClientError, BotoCoreError, StreamRefused),
            *(NotBegun, RunClosed, RunGone, RunPaused, RunStopped),
        )
        with suppress(Killed, *stopped), self._checker.invocation():
            self._reconciler(event, self._active[-1].remaining_ms)

    def _retry_arrivals(self, step: Step, codes: tuple[str, ...] = ()) -> None:
        names = fake_aws.standing_runs()
        if names:
            with suppress(InputError, Failed, ClientError, BotoCoreError, Killed):
                retry.retry_run(STACK, names[step.target % len(names)], codes=codes)

    def _invoke_directly(self, step: Step) -> None:
        """Invoke the classifier with direct jobs: it answers them and stores nothing."""
        names = [image_key(number) for number in range(step.target % self._schedule.images + 1)]
        event = {"Jobs": [{"RunId": run_id(self._run(step)), "Key": name} for name in names]}
        with suppress(NotDone, Killed), self._checker.invocation():
            answer = self._classifier(event, self._active[-1].remaining_ms)
            self._checker.direct_jobs_answered(names, answer["Predictions"])

    def _swap_image(self, step: Step) -> None:
        """Remove an image from the bucket, or put the missing one there; the next time, undo that."""
        number = step.target % len(IMAGES)
        self._swapped ^= {number}
        self._checker.swapped.add(image_key(number))
        body = IMAGES[number]
        if number in self._swapped:
            body = LATE_IMAGE if body is None else None
        self._put(BUCKET, image_key(number), body)

    def _delete(self, step: Step) -> None:
        """Cancel the run and delete it, while jobs of it may be running."""
        run = run_id(self._run(step))
        with suppress(InputError, ClientError, BotoCoreError, Killed):
            with suppress(InputError):
                operations.cancel_run(STACK, run)
            operations.delete_run(STACK, run)

    def _run(self, step: Step) -> int:
        return step.target % len(self._schedule.sources)

    def _deliver(self, step: Step) -> None:
        """Invoke the classifier with the next batch of a lane."""
        self._take_records()
        lanes = [lane for lane in self._mapping.busy_lanes() if lane not in self._busy]
        if not lanes:
            return
        lane = lanes[step.target % len(lanes)]
        self._busy.add(lane)
        try:
            lane.deliver_next()
        finally:
            self._busy.discard(lane)

    def _deliver_all(self, step: Step) -> None:
        """Deliver batches until none is left."""
        self._take_records()
        while any(lane not in self._busy for lane in self._mapping.busy_lanes()):
            self._deliver(step)

    def _redeliver(self, step: Step) -> None:
        """Deliver a batch a second time, done or still running, and ignore the answer."""
        if self._events:
            event = self._events[step.target % len(self._events)]
            with suppress(FunctionError):
                self._classify(event)

    def _take_records(self) -> None:
        """Give the new records of the stream to the mapping."""
        for shard in fake_aws.shards():
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
        self._events.append(event)
        answer, stopped_runs = self._classify(event)
        failed = first_failure(answer, event["Records"])
        for job in map(decode, event["Records"][:failed]):
            if job.run_id not in stopped_runs and run_exists(job):
                self._checker.job_acknowledged(job.run_id, job.keys)
        return answer

    def _classify(self, event: dict[str, Any]) -> tuple[object, set[str]]:
        """The classifier's answer, and the runs whose jobs it may drop. Raises FunctionError."""
        try:
            with self._checker.invocation() as invocation:
                answer = self._classifier(event, self._active[-1].remaining_ms)
        except Killed:
            raise FunctionError({"errorType": "Runtime.ExitError"}) from None
        return json.loads(json.dumps(answer)), invocation.stopped_runs

    def _put(self, bucket: str, name: str, body: bytes | None) -> None:
        """Put an object; None deletes it. This is no request of a step, so it meets no fault."""
        active, self._active = self._active, []
        try:
            if body is None:
                self._s3.delete_object(Bucket=bucket, Key=name)
            else:
                self._s3.put_object(Bucket=bucket, Key=name, Body=body)
        finally:
            self._active = active

    def _sleep(self, seconds: float) -> None:
        self._clock += seconds

    def _wait(self, seconds: float) -> None:
        """Wait as part of the step that is running."""
        self._active[-1].waited_ms += round(seconds * 1000)

    # Requests

    def _respond(self, request: Request) -> AWSResponse:
        """Run the steps that are nested before this request, then let it meet its fault or be answered."""
        if not self._active:
            return request.forward()
        active = self._active[-1]
        number = active.requests[request.operation]
        active.requests[request.operation] += 1
        for operation, at, step in active.step.nested:
            if (operation, at) == (request.operation, number):
                self._perform(step)
        checked = replace(request, execute=functools.partial(self._checker.execute, request))
        for fault in active.step.faults:
            if fault.operation == request.operation and 0 <= number - fault.first < fault.times:
                self.totals.faults[fault.kind] += 1
                self._checker.fault_injected(request, fault.kind)
                return FAULT_KINDS[fault.kind](checked)
        return checked.forward()


def _csv_index(keys: Iterable[str]) -> bytes:
    """A CSV index that lists each key twice."""
    file = io.StringIO()
    csv.writer(file).writerows([["Key"], *([key] for key in keys), *([key] for key in keys)])
    return file.getvalue().encode()


def _cache_scores(model: Model) -> Model:
    """Let the model score each image once. The schedules score the same few images thousands of times."""
    score, scores = model.score, {}

    def cached(batch: Any) -> Any:
        (pixels,) = batch
        if pixels.tobytes() not in scores:
            scores[pixels.tobytes()] = score(batch)
        return scores[pixels.tobytes()]

    model.prepare = functools.cache(model.prepare)  # type: ignore[method-assign]
    model.score = cached  # type: ignore[method-assign,assignment]
    return model
