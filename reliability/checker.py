"""What must hold in every schedule: no image is lost or doubled, and counts and events are right.

A Checker sees each write when AWS executes it. At the end it compares what is in AWS with what must be there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from typing import Any
from urllib.parse import unquote, urlsplit

from botocore.awsrequest import AWSResponse
from runs import layout
from runs.arrivals import day_of
from runs.completion import RUN_COMPLETE
from runs.jobs import Job, decode
from runs.predictions import SCORED, WAITING

from reliability import fake_aws
from reliability.faults import Killed, Request
from reliability.schedules import ERRORS, Schedule, image_number, run_id, run_number


class Violation(AssertionError):
    """An image was lost or doubled, or a count or an event is wrong."""


@dataclass
class Totals:
    """Totals of all schedules so far."""

    schedules: int = 0
    images: int = 0  # that the runs expected at the end of their schedules
    lost: int = 0  # of these, images without a prediction
    doubled: int = 0  # SCORED predictions that were written again
    faults: Counter[str] = field(default_factory=Counter)  # requests that met a fault, by its kind


@dataclass
class Invocation:
    """An invocation of a function that is running."""

    stopped_runs: set[str]  # runs that were CANCELLED or gone at some time during the invocation
    unannounced: int = 0  # completions without an event so far; negative if there were more events
    lost_answers: int = 0  # events that were sent and whose answer was lost
    interrupted: bool = False  # it was killed, or could not undo a completion that it did not announce


class Checker:
    """Watches one schedule and collects violations, until `check` raises them."""

    def __init__(self, schedule: Schedule, totals: Totals) -> None:
        self._schedule = schedule
        self._totals = totals
        self._violations: list[str] = []
        self.started: set[int] = set()  # runs
        self.swapped: set[str] = set()  # keys of images that were removed or put there
        self.interruptions: Counter[int] = Counter()  # run -> how often its start failed or it was stopped
        self._uninterrupted: dict[int, int] = {}  # run -> its interruptions when it was last started whole
        self._invocations: list[Invocation] = []  # running, each nested in the one before
        self._scored: set[tuple[str, str]] = set()  # (pk, sk) of every SCORED prediction ever written
        self._arrivals: Counter[tuple[str, str]] = Counter()  # (pk, sk) -> contents announced so far
        self._completions: set[str] = set()  # the `completed_by` of each completion

    def check(self) -> None:
        """Raise Violation if anything was wrong so far."""
        if self._violations:
            raise Violation("; ".join(self._violations))

    # What the functions answered

    def run_started(self, run: int, images: int, interruptions: int) -> None:
        """The job creator answered with this number of images.

        `interruptions` is the number of interruptions of the run when the job creator was invoked.
        """
        expected = len(self._schedule.expected(run))
        if images != expected:
            self._violations.append(f"the job creator answered {images} images instead of {expected}")
        if self.interruptions[run] == interruptions:
            self._uninterrupted[run] = interruptions

    def needs_restart(self, run: int) -> bool:
        """Whether the operator has to start the run again."""
        return self._uninterrupted.get(run) != self.interruptions[run]

    def job_acknowledged(self, run: str, keys: Iterable[str]) -> None:
        """The classifier did not report this job, so Lambda does not deliver it again."""
        if missing := fake_aws.missing_keys(run, keys):
            self._violations.append(f"{len(missing)} images were acknowledged and have no prediction")

    def direct_jobs_answered(self, keys: list[str], predictions: list[dict[str, Any]]) -> None:
        """The classifier answered direct jobs for these keys."""
        if [prediction["Key"] for prediction in predictions] != keys:
            self._violations.append("direct jobs were answered with other keys")
        if any(self._is_wrong(found["Key"], found.get("Error")) for found in predictions):
            self._violations.append("a direct job was answered with a wrong outcome")

    @contextmanager
    def invocation(self) -> Iterator[Invocation]:
        """Watch one invocation of a function, in a `with` block."""
        working = ("LISTING", "SCORING", "COMPLETE")
        runs = map(run_id, range(len(self._schedule.sources)))  # no step cancels a standing run
        invocation = Invocation({run for run in runs if fake_aws.run_item(run).get("state") not in working})
        self._invocations.append(invocation)
        try:
            yield invocation
        except Killed:
            invocation.interrupted = True
            raise
        finally:
            self._invocations.pop()
            if invocation.unannounced > 0 and not invocation.interrupted:
                self._violations.append("a run was completed and no event was sent")
            if invocation.unannounced < -invocation.lost_answers:
                self._violations.append("a run's completion was announced twice")

    # Requests

    def fault_injected(self, request: Request, kind: str) -> None:
        """A request meets this kind of fault."""
        if self._invocations:
            invocation = self._invocations[-1]
            invocation.lost_answers += kind == "lost answer" and request.operation == "PutEvents"
            invocation.interrupted |= _undoes_completion(request.operation, request.body)

    def execute(self, request: Request, body: Any) -> AWSResponse:
        """Execute a request with this body, and check what it does."""
        if request.operation == "DeleteObject":
            self._check_deletion(request)
        answer = request.execute(body)
        if answer.status_code == 200:
            self._observe(request.operation, body)
        return answer

    def _check_deletion(self, request: Request) -> None:
        """A failure object may be deleted if every image in it has a prediction, or its run is gone."""
        body = fake_aws.failure_objects().get(unquote(urlsplit(request.url).path).lstrip("/"))
        if body is None:
            return  # it was deleted before, and the answer was lost
        for job in filter(run_exists, jobs_of(body)):
            deleting = fake_aws.run_item(job.run_id)["state"] == "DELETING"
            if not deleting and fake_aws.missing_keys(job.run_id, job.keys):
                self._violations.append("a failure object was deleted with images that have no prediction")

    def _observe(self, operation: str, body: Any) -> None:
        """Check a request that AWS has executed."""
        if operation == "TransactWriteItems":
            for action in body["TransactItems"]:
                self._observe_put(action.get("Put", {}).get("Item", {}))
        elif operation == "PutEvents" and body["Entries"][0]["DetailType"] == RUN_COMPLETE:
            self._invocations[-1].unannounced -= 1
            detail = json.loads(body["Entries"][0]["Detail"])
            images = len(self._expected(detail["RunId"]))
            if detail["Scored"] + detail["Failed"] != images:
                self._violations.append(f"a run of {images} images was announced as {detail}")
        elif operation == "UpdateItem" and body["Key"]["pk"]["S"] == layout.RUNS:
            run, update = body["Key"]["sk"]["S"], body["UpdateExpression"]
            if update.startswith("SET #state = :complete"):
                by = body["ExpressionAttributeValues"][":by"]["S"]
                self._invocations[-1].unannounced += by not in self._completions  # the SDK may send it twice
                self._completions.add(by)
                if fake_aws.missing_keys(run, self._expected(run)) or fake_aws.waiting_keys(run):
                    self._violations.append(f"{run} was completed with images that have no prediction")
                if fake_aws.retrying_keys(run):
                    self._violations.append(f"{run} was completed with images that are retried")
            elif update.startswith(("SET #state = :cancelled", "SET #state = :deleting")):
                self._run_stopped(run)
            elif _undoes_completion(operation, body):
                self._invocations[-1].unannounced -= 1
        elif operation == "DeleteItem" and body["Key"]["pk"]["S"] == layout.RUNS:
            run = body["Key"]["sk"]["S"]
            self._run_stopped(run)
            self._scored = {key for key in self._scored if key[0] not in layout.partitions(run)}

    def _observe_put(self, item: dict[str, dict[str, str]]) -> None:
        """Check an item that a transaction has put, if it is a prediction."""
        if "status" not in item:
            return
        key = (item["pk"]["S"], item["sk"]["S"])
        arrivals = int(item.get("arrivals", {"N": "0"})["N"])
        if arrivals < self._arrivals[key]:
            self._violations.append("an image has the outcome of an older content than the one it waited for")
        self._arrivals[key] = arrivals
        if item["status"]["S"] == WAITING:
            self._scored.discard(key)  # another content arrived
        elif key in self._scored:
            self._totals.doubled += 1
            self._violations.append("a SCORED prediction was written again")
        if item["status"]["S"] == SCORED:
            self._scored.add(key)
        if "retrying" in item:
            names = [*map(run_id, self.started), *fake_aws.standing_runs()]
            name = next(run for run in names if key[0] in layout.partitions(run))
            if fake_aws.run_item(name).get("state") == "COMPLETE":
                self._violations.append(f"{name} is COMPLETE with images that are retried")

    def _run_stopped(self, run: str) -> None:
        """The run was cancelled or deleted: its jobs may be dropped until it is started again."""
        self.interruptions[run_number(run)] += 1
        for invocation in self._invocations:
            invocation.stopped_runs.add(run)

    def _expected(self, run: str) -> list[str]:
        """The images that a run must have when it is completed: of a standing run, those that it has."""
        if day_of(run):
            return [item["sk"] for item in fake_aws.prediction_items(run)]
        return self._schedule.expected(run_number(run))

    # The end

    def check_arrived(
        self, images: Mapping[str, tuple[str, date]], contents: Mapping[str, str | None]
    ) -> None:
        """Check the standing runs after their reconciliation. Raises Violation.

        `images` has the ETag and the day of each image that is in S3, `contents` the error code of each ETag.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for name in fake_aws.standing_runs():
            run, predictions = fake_aws.run_item(name), fake_aws.prediction_items(name)
            if run["state"] != "COMPLETE":
                self._violations.append(f"{name} is {run['state']}")
            if not run.get("expected") == run["arrived"] == len(predictions):
                self._violations.append(f"{name} expects other images than it has")
            stored, recounted = fake_aws.stored_counts(name), fake_aws.recount(name)
            if stored != recounted:
                self._violations.append(f"{name} counts {stored}, and its predictions are {recounted}")
            for item in predictions:
                found.setdefault(item["sk"], []).append(item | {"day": day_of(name)})
            self._totals.images += len(predictions)
        for key, (etag, day) in images.items():
            of_day = [item for item in found.get(key, []) if item["day"] == day]
            if len(of_day) != 1:
                self._totals.lost += 1
                self._violations.append("an image that arrived has no prediction in the run of its day")
            elif (of_day[0].get("etag"), of_day[0].get("error")) != (etag, contents[etag]):
                self._violations.append("an image that arrived has the outcome of another content")
        self.check()

    def check_delivered(self) -> None:
        """Check that each image has a prediction or is in a failure object. Raises Violation.

        Call it when the stream is delivered.
        """
        jobs = [job for body in fake_aws.failure_objects().values() for job in jobs_of(body)]
        for run in self.started:
            if self.needs_restart(run):
                continue
            name = run_id(run)
            failed = {key for job in jobs if job.run_id == name and run_exists(job) for key in job.keys}
            if set(fake_aws.missing_keys(name, self._schedule.expected(run))) - failed:
                self._violations.append(
                    f"{name} has images without a prediction that are in no failure object"
                )
        self.check()

    def check_finished(self) -> None:
        """Check that each run is COMPLETE and has every prediction once. Raises Violation.

        Call it when the operator has finished all runs.
        """
        for run in self.started:
            name, expected = run_id(run), self._schedule.expected(run)
            state = fake_aws.run_item(name).get("state")
            if state != "COMPLETE":
                self._violations.append(f"{name} is {state}")
            predictions = fake_aws.prediction_items(name)
            if sorted(item["sk"] for item in predictions) != sorted(expected):
                self._violations.append(f"{name} has predictions for other images than it expects")
            if any(self._is_wrong(item["sk"], item.get("error")) for item in predictions):
                self._violations.append(f"{name} has an image with a wrong outcome")
            stored, recounted = fake_aws.stored_counts(name), fake_aws.recount(name)
            if stored != recounted:
                self._violations.append(f"{name} counts {stored}, and its predictions are {recounted}")
            self._totals.images += len(expected)
            self._totals.lost += len(fake_aws.missing_keys(name, expected))
        if fake_aws.failure_objects():
            self._violations.append("failure objects are left")
        self.check()

    def _is_wrong(self, key: str, error: str | None) -> bool:
        """Whether an image has another outcome than it must have. Swapped images are not checked."""
        return key not in self.swapped and error != ERRORS[image_number(key)]


def jobs_of(document: bytes) -> list[Job]:
    """The jobs in a failure object."""
    return list(map(decode, json.loads(json.loads(document)["payload"])["Records"]))


def run_exists(job: Job) -> bool:
    """Whether the job's run still exists. Another run may have its name now."""
    return bool(fake_aws.run_item(job.run_id).get("uid") == job.run_uid)


def _undoes_completion(operation: str, body: Any) -> bool:
    """Whether a request takes a run from COMPLETE back to SCORING."""
    undo = "SET #state = :scoring REMOVE completed_at"
    return operation == "UpdateItem" and str(body["UpdateExpression"]).startswith(undo)
