"""What must hold of a schedule, whatever goes wrong in it: no image lost or doubled, counts and events right.

A Checker sees each write as it is committed, and looks at what there is when everybody has done his part.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from botocore.awsrequest import AWSResponse
from runs import layout
from runs.jobs import Job, decode
from runs.predictions import SCORED

from reliability import fake_aws as account
from reliability.faults import Killed, Request
from reliability.schedules import ERRORS, Schedule, image_number, run_id, run_number


class Violation(AssertionError):
    """An image was lost or doubled, or a count or an event is wrong."""


@dataclass
class Totals:
    """What schedules have come to."""

    schedules: int = 0
    images: int = 0  # expected by a run at the end of a schedule
    lost: int = 0  # of these, those without a prediction
    doubled: int = 0  # SCORED predictions that were written over
    faults: Counter[str] = field(default_factory=Counter)  # requests that met one, by kind


@dataclass
class Call:
    """A function at work: what is watched of one invocation."""

    stopped: set[str]  # runs that were CANCELLED or gone at some time while it was at work
    pending: int = 0  # completions that are to be announced yet
    unheard: int = 0  # events that were sent and whose answer was lost
    ended_between: bool = False  # killed, or could not undo the completion, before it was announced


class Checker:
    """Watches one schedule. What is wrong gathers, until `check` raises it."""

    def __init__(self, schedule: Schedule, totals: Totals) -> None:
        self._schedule = schedule
        self._totals = totals
        self._violations: list[str] = []
        self.started: set[int] = set()  # runs
        self.swapped: set[str] = set()  # keys of images that were taken out or put in
        # Runs that somebody was told to start again, or cancelled, with how often that was.
        self.unfinished: Counter[int] = Counter()
        self._settled: dict[int, int] = {}  # run -> how often that was when it was last started whole
        self._calls: list[Call] = []  # functions at work, each within the one before
        self._scored: set[tuple[str, str]] = set()  # where a SCORED prediction was ever committed
        self._completed: set[str] = set()  # completions, by who made them

    def check(self) -> None:
        """Raises Violation."""
        if self._violations:
            raise Violation("; ".join(self._violations))

    # --- what somebody was told

    def created(self, run: int, images: int, unfinished: int) -> None:
        """The job creator answered with so many images; `unfinished` is the run's when it was invoked."""
        expected = len(self._schedule.expected(run))
        if images != expected:
            self._violations.append(f"{images} images for {expected}")
        if self.unfinished[run] == unfinished:
            self._settled[run] = unfinished

    def settled(self, run: int) -> bool:
        """Whether nobody has to start the run again."""
        return self._settled.get(run) == self.unfinished[run]

    def acknowledged(self, run: str, keys: Iterable[str]) -> None:
        """The classifier said that these images of a run are done."""
        if missing := account.missing(run, keys):
            self._violations.append(f"{len(missing)} images were acknowledged and have no prediction")

    def answered(self, keys: list[str], predictions: list[dict[str, Any]]) -> None:
        """The classifier answered direct jobs for these images."""
        if [found["Key"] for found in predictions] != keys:
            self._violations.append("a direct job was answered for other images")
        for found in predictions:
            if found["Key"] not in self.swapped and found.get("Error") != ERRORS[image_number(found["Key"])]:
                self._violations.append("a direct job has an image with another outcome than is its own")

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A function is at work."""
        at_work = ("LISTING", "SCORING", "COMPLETE")
        runs = map(run_id, range(len(self._schedule.sources)))
        call = Call({run for run in runs if account.run(run).get("state") not in at_work})
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

    # --- requests

    def spoilt(self, request: Request, kind: str) -> None:
        """A request meets this kind of fault."""
        if self._calls:
            call = self._calls[-1]
            call.unheard += kind == "lost answer" and request.operation == "PutEvents"
            call.ended_between |= _reopens(request.operation, request.body)

    def carry_out(self, request: Request, body: Any) -> AWSResponse:
        """Carries out a request with this body, and notes what is committed by it."""
        if request.operation == "DeleteObject":
            self._check_deletion(request)
        answer = request.carry_out(body)
        if answer.status_code == 200:
            self._note(request.operation, body)
        return answer

    def _check_deletion(self, request: Request) -> None:
        """A failure object may go only when every image in it has a prediction, or its run is going."""
        body = account.failure_objects().get(unquote(urlsplit(request.url).path).lstrip("/"))
        if body is None:
            return  # deleted once already, and the answer was lost
        jobs = [job for job in jobs_of(body) if there(job) and account.run(job.run_id)["state"] != "DELETING"]
        if any(account.missing(job.run_id, job.keys) for job in jobs):
            self._violations.append("a failure object was deleted with images that have no prediction")

    def _note(self, operation: str, body: Any) -> None:
        if operation == "TransactWriteItems":
            for put in (action["Put"]["Item"] for action in body["TransactItems"] if "Put" in action):
                if "status" not in put:
                    continue  # a run begins
                place = (put["pk"]["S"], put["sk"]["S"])
                if place in self._scored:
                    self._totals.doubled += 1
                    self._violations.append("a SCORED prediction was written over")
                if put["status"]["S"] == SCORED:
                    self._scored.add(place)
        elif operation == "PutEvents":
            self._calls[-1].pending -= 1
            told = json.loads(body["Entries"][0]["Detail"])
            images = len(self._schedule.expected(run_number(told["RunId"])))
            if told["Scored"] + told["Failed"] != images:
                self._violations.append(f"{images} images were announced as {told}")
        elif operation == "UpdateItem" and body["Key"]["pk"]["S"] == layout.RUNS:
            update = body["UpdateExpression"]
            if update.startswith("SET #state = :complete"):
                by = body["ExpressionAttributeValues"][":by"]["S"]
                self._calls[-1].pending += by not in self._completed  # the SDK may send one twice
                self._completed.add(by)
                run = body["Key"]["sk"]["S"]
                if account.missing(run, self._schedule.expected(run_number(run))):
                    self._violations.append(f"{run} was completed with images that have no prediction")
            elif update.startswith(("SET #state = :cancelled", "SET #state = :deleting")):
                self._stopped(body["Key"]["sk"]["S"])
            elif _reopens(operation, body):
                self._calls[-1].pending -= 1
        elif operation == "DeleteItem" and body["Key"]["pk"]["S"] == layout.RUNS:
            run = body["Key"]["sk"]["S"]
            self._stopped(run)
            self._scored = {place for place in self._scored if place[0] not in layout.partitions(run)}

    def _stopped(self, run: str) -> None:
        """The run's jobs may be dropped, and it has to be started again to go on."""
        self.unfinished[run_number(run)] += 1
        for call in self._calls:
            call.stopped.add(run)

    # --- the end

    def check_delivered(self) -> None:
        """Nothing is left on the stream: each image has a prediction or waits. Raises Violation."""
        waiting = [job for body in account.failure_objects().values() for job in jobs_of(body) if there(job)]
        for run in filter(self.settled, self.started):
            held = {key for job in waiting if job.run_id == run_id(run) for key in job.keys}
            if set(account.missing(run_id(run), self._schedule.expected(run))) - held:
                self._violations.append(f"{run_id(run)}: images have no prediction and wait nowhere")
        self.check()

    def check_finished(self) -> None:
        """Everybody has done what he was told to: all is there, once. Raises Violation."""
        for run in self.started:
            name, expected = run_id(run), self._schedule.expected(run)
            state = account.run(name).get("state")
            if state != "COMPLETE":
                self._violations.append(f"{name} is {state}")
            stored = account.stored(name)
            if sorted(row["sk"] for row in stored) != sorted(expected):
                self._violations.append(f"{name} has not the images that it expects")
            if any(
                row.get("error") != ERRORS[image_number(row["sk"])]
                for row in stored
                if row["sk"] not in self.swapped
            ):
                self._violations.append(f"{name} has an image with another outcome than is its own")
            self._totals.images += len(expected)
            self._totals.lost += len(account.missing(name, expected))
        for name in map(run_id, self.started):
            counted, recounted = account.counted(name), account.recounted(name)
            if counted != recounted:
                self._violations.append(f"{name} counts {counted} for {recounted}")
        if account.failure_objects():
            self._violations.append("failure objects are left")
        self.check()


def jobs_of(document: bytes) -> list[Job]:
    """The jobs of a failure object."""
    return list(map(decode, json.loads(json.loads(document)["payload"])["Records"]))


def there(job: Job) -> bool:
    """Whether the job's run is: no other that has its name since."""
    return bool(account.run(job.run_id).get("uid") == job.run_uid)


def _reopens(operation: str, body: Any) -> bool:
    """Whether a request undoes a completion."""
    undoes = "SET #state = :scoring REMOVE completed_at"
    return operation == "UpdateItem" and str(body["UpdateExpression"]).startswith(undoes)
