"""The world of a schedule: the real job creator, classifier and operator over moto, by Lambda's rules.

All happens in one thread and by a clock of its own, so that a schedule always runs alike.
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
from typing import Any
from unittest.mock import patch

import boto3
from botocore.awsrequest import AWSResponse
from botocore.exceptions import BotoCoreError, ClientError
from classifier import handler as classifier_handler
from classifier.handler import NotDone
from classifier.model import Model
from job_creator import handler as creator_handler
from job_creator.events import EventError
from moto import mock_aws
from runs import jobs, layout, table
from runs.jobs import decode

from cxr import operations, retry, runs, stack
from cxr.errors import Failed, InputError
from cxr.local_aws.stream_mapping import FunctionError, MappingSettings, StreamMapping, first_failure
from reliability import fake_aws as account
from reliability.checker import Checker, Totals, there
from reliability.fake_aws import BUCKET, FAILURES, REGION, STREAM, TABLE
from reliability.faults import KINDS, Killed, Request, aws
from reliability.schedules import IMAGES, PREFIX, PUT_LATER, Schedule, Step, key, run_id

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
ROUNDS = 4  # of `retry` that must bring everything: to send, to delete, and one more for each that failed
CODES = ("IMAGE_CORRUPT", "IMAGE_EMPTY", "IMAGE_MISSING", "NOT_AN_IMAGE")


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


class World:
    """moto, the functions and the operator; made once a process, and emptied for every schedule."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._doing: list[_Doing] = []  # steps, each within the one before
        self._stack = ExitStack()
        enter = self._stack.enter_context
        enter(patch.dict(os.environ, ENVIRONMENT))
        for name in OTHER_ENDPOINTS:
            os.environ.pop(name, None)
        enter(mock_aws())
        enter(aws(self._meet))
        for module in (classifier_handler, creator_handler, table):
            enter(patch.object(module, "ThreadPoolExecutor", _SameThread))
        client = functools.cache(stack.client)
        for commands in (operations, retry, runs):
            enter(patch.object(commands, "client", client))
        enter(patch.object(layout, "PARTITIONS", 4))  # each is asked when a run is deleted or retried
        enter(patch.object(jobs, "MAX_RECORDS", 2))  # so that a run has several PutRecords
        account.create()
        model = _remembering(classifier_handler.load_model())
        run_fields = {"model": model.name, "model_sha256": model.sha256, "labels": [], "settings": {}}
        os.environ["RUN_FIELDS"] = json.dumps(run_fields)
        enter(patch.object(classifier_handler, "load_model", lambda: model))
        events = boto3.client("events")
        self._classifier = classifier_handler.setup.__wrapped__()
        self._classifier._events = lambda: events
        self._creator = creator_handler.setup.__wrapped__()
        self._creator._events = lambda: events
        self._s3 = boto3.client("s3")
        for number, body in enumerate(IMAGES):
            self._put(BUCKET, key(number), body)
            self._put(BUCKET, key(number, listed=True), body)

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
                    self._checker.check()
                self._finish()
        finally:
            for number in self._swapped:
                self._put(BUCKET, key(number), IMAGES[number])
        self.totals.schedules += 1

    def _begin(self, schedule: Schedule) -> None:
        account.empty()
        self._schedule = schedule
        self._checker = Checker(schedule, self.totals)
        self._creator._images_per_job = schedule.images_per_job
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
            settings,
            self._invoke,
            lambda name, document: self._put(FAILURES, name, document.encode()),
            now=lambda: self._clock,
            sleep=self._sleep,
        )
        self._taken: Counter[str] = Counter()  # shard -> its records that the mapping has
        self._at_work: set[Any] = set()  # lanes
        self._history: list[dict[str, Any]] = []  # events that the classifier was invoked with
        self._swapped: set[int] = set()  # images

    def _finish(self) -> None:
        """No more faults: the stream is delivered, everybody does what he was told to, and all is there."""
        checker = self._checker
        self._do(Step("drain"))
        checker.check_delivered()
        for run in checker.started:
            if account.run(run_id(run)).get("state") == "DELETING":
                self._do(Step("delete", run))
            if not checker.settled(run):
                self._do(Step("create", run))
                self._do(Step("drain"))
        for _ in range(ROUNDS):
            if not account.failure_objects():
                break
            for run in checker.started:
                self._do(Step("retry", run))
                self._do(Step("drain"))
        checker.check()
        checker.check_finished()

    # --- what somebody does

    def _do(self, step: Step) -> None:
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
        self._doing.append(_Doing(step))
        try:
            actions[step.do](step)
        finally:
            self._doing.pop()

    def _create(self, step: Step) -> None:
        """Invoke the job creator, anew or again."""
        run = self._run(step)
        keys, (kind, count) = self._schedule.keys(run), self._schedule.sources[run]
        event: dict[str, Any] = {"RunId": run_id(run)} | ({"JobCount": count} if count else {})
        if kind == "Prefix":
            event["Prefix"] = f"{PREFIX}listed/"
        elif kind == "IndexKey":
            event["IndexKey"] = f"{PREFIX}{run}.csv"
            self._put(BUCKET, event["IndexKey"], _index(keys))
        else:
            event["Keys"] = [*keys, keys[0]]
        self._checker.started.add(run)
        before = self._checker.unfinished[run]
        try:
            with self._checker.call():
                answer = self._creator(event, self._doing[-1].remaining_ms)
        except (
            Killed,
            ClientError,
            BotoCoreError,
            EventError,
            creator_handler.RunIdTaken,
            creator_handler.RunStopped,
        ):
            self._checker.unfinished[run] += 1
        else:
            self._checker.created(run, answer["ImageCount"], before)

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
            with suppress(FunctionError):
                self._classify(event)

    def _cancel(self, step: Step) -> None:
        with suppress(InputError, ClientError, BotoCoreError, Killed):
            operations.cancel_run(STACK, run_id(self._run(step)))

    def _retry(self, step: Step, codes: tuple[str, ...] = ()) -> None:
        with suppress(InputError, Failed, ClientError, BotoCoreError, Killed):
            retry.retry_run(STACK, run_id(self._run(step)), codes=codes)

    def _direct(self, step: Step) -> None:
        """Somebody invokes the classifier with direct jobs, which it answers and does not store."""
        names = [key(number) for number in range(step.which % self._schedule.images + 1)]
        event = {"Jobs": [{"RunId": run_id(self._run(step)), "Key": name} for name in names]}
        with suppress(NotDone, ClientError, BotoCoreError, Killed), self._checker.call():
            answer = self._classifier(event, self._doing[-1].remaining_ms)
            self._checker.answered(names, answer["Predictions"])

    def _swap(self, step: Step) -> None:
        """Somebody takes an image out of the bucket, or puts one in."""
        number = step.which % len(IMAGES)
        self._swapped ^= {number}
        self._checker.swapped.add(key(number))
        body = IMAGES[number]
        if number in self._swapped:
            body = PUT_LATER if body is None else None
        self._put(BUCKET, key(number), body)

    def _delete(self, step: Step) -> None:
        """Cancel the run and delete it, whoever is at work on it."""
        run = run_id(self._run(step))
        with suppress(InputError, ClientError, BotoCoreError, Killed):
            with suppress(InputError):
                operations.cancel_run(STACK, run)
            operations.delete_run(STACK, run)

    def _run(self, step: Step) -> int:
        return step.which % len(self._schedule.sources)

    # --- what AWS does

    def _take_records(self) -> None:
        """Bring the stream's new records to the mapping."""
        for shard in account.shards():
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
        for job in map(decode, event["Records"][:failed]):
            if job.run_id not in stopped and there(job):
                self._checker.acknowledged(job.run_id, job.keys)
        return answer

    def _classify(self, event: dict[str, Any]) -> tuple[object, set[str]]:
        """The classifier's answer, and the runs whose jobs it may have dropped. Raises FunctionError."""
        try:
            with self._checker.call() as call:
                answer = self._classifier(event, self._doing[-1].remaining_ms)
        except Killed:
            raise FunctionError({"errorType": "Runtime.ExitError"}) from None
        return json.loads(json.dumps(answer)), call.stopped

    def _put(self, bucket: str, name: str, body: bytes | None) -> None:
        """Put an object, or with None take it away: no request of the step at work, so it meets no fault."""
        doing, self._doing = self._doing, []
        try:
            if body is None:
                self._s3.delete_object(Bucket=bucket, Key=name)
            else:
                self._s3.put_object(Bucket=bucket, Key=name, Body=body)
        finally:
            self._doing = doing

    def _sleep(self, seconds: float) -> None:
        self._clock += seconds

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
        watched = replace(request, carry_out=functools.partial(self._checker.carry_out, request))
        for trouble in doing.step.troubles:
            if trouble.operation == request.operation and 0 <= number - trouble.at < trouble.times:
                self.totals.faults[trouble.kind] += 1
                self._checker.spoilt(request, trouble.kind)
                return KINDS[trouble.kind](watched)
        return watched.forward()


def _index(keys: Iterable[str]) -> bytes:
    """A CSV that names each image twice."""
    file = io.StringIO()
    csv.writer(file).writerows([["Key"], *([key] for key in keys), *([key] for key in keys)])
    return file.getvalue().encode()


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
