"""One verification of a deployed stack: its checks, what it measures, and how it cleans up."""

from __future__ import annotations

import json
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from botocore.exceptions import ClientError
from runs import layout
from runs.attributes import pack
from runs.codes import ErrorCode
from runs.jobs import Job, batches, put
from runs.run import State

from cxr.aws_errors import AWS_ERRORS, explained
from cxr.classifier_log import recent_failures
from cxr.doctor import NOT_CHECKED as REFUSALS
from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.local_aws.processes import signals_held
from cxr.operations import start_run
from cxr.retry import retry_run
from cxr.runs import RunStatus, run_status, run_table, wait
from cxr.stack import Stack, client
from cxr.upload import files_in, upload
from cxr.verification.check import CheckFailed, NotChecked, Outcome, Result
from cxr.verification.drawings import GOOD, write_files
from cxr.verification.measurement import Measurement, measure
from cxr.verification.recount import LOOK, Recount, keys_below
from cxr.verification.roles import check_roles
from cxr.verification.scratch import Scratch, abandoned, check_idle

RUN_SECONDS = 600  # that a run of some hundred images may take
FAILING = 8  # images of the run whose jobs fail
MOST_RETRIES = 20  # of the mapping: with more, the check of the failure path would take too long
FAILURE_SECONDS = 600  # that retries take until a job is in the failure bucket
SETTLE_SECONDS = 6  # after which jobs of a cancelled run have reached the classifier
EVENT_SECONDS = 60  # that EventBridge and SQS may take
LOOK_SECONDS = 1.0

T = TypeVar("T")

# Name of each check -> the promise that it is about.
PROMISES = {
    "mapping": "Lambda retries failing jobs, splits their batch, and keeps them in the failure bucket",
    "roles": "The functions may do what they do, and nothing else",
    "outcomes": "Every image ends with exactly one outcome, and the counts equal the predictions",
    "bad files": "A bad file gets its error code, and stops no other image",
    "duplicates": "An event or a job that comes twice changes nothing",
    "cancel": "A cancelled run stops, and the same command continues it",
    "failures": "A job out of retries is in the failure bucket, and `cxr retry` scores its images",
    "event": "A run that is complete is announced on EventBridge",
    "clean-up": "Nothing of the verification is left",
}


def refuse_arrivals(stack: Stack) -> None:
    """Raise InputError if the stack scores what arrives."""
    if stack.settings.get("arrivals") == "on":
        raise InputError(
            f"stack {stack.name} scores what arrives, so it would score the drawings in the run of the day; "
            "verify another stack with the same settings and arrivals=off"
        )


class Verification:
    """`with Verification(stack) as verification:` checks the stack, and removes what it made at the end.

    It makes a folder of files below the stack's prefix, runs, an EventBridge rule and an SQS queue, each with
    a name that begins with `cxr-verify-`. It changes nothing that was there.
    """

    def __init__(self, stack: Stack, images: int) -> None:
        self.stack = stack
        self.images = images
        self.results: list[Result] = []
        self._scratch = Scratch.new(stack)
        self._codes: Mapping[str, ErrorCode] = {}  # key of each bad file -> its code
        self._queue: str | NotChecked = NotChecked("the check of outcomes ended before")
        self._complete: list[str] = []  # runs that have to be announced
        self._began = datetime.now(UTC)
        self._first_run = (self._began, self._began)  # when it started, and when it was complete
        self._model = ""
        self._left: list[str] | None = None  # what could not be removed

    def __enter__(self) -> Self:
        """Remove what killed verifications have left. Raises InputError if the stack is not idle."""
        refuse_arrivals(self.stack)
        table = run_table(self.stack)
        check_idle(table)
        for scratch in abandoned(self.stack, table):
            if left := scratch.remove():
                raise Failed(f"{scratch.name} was killed, and cannot be removed: {'; '.join(left)}")
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: Any, _trace: TracebackType | None) -> None:
        with signals_held():
            if self._left is None and (left := self._scratch.remove()):
                raise Failed(
                    f"not all of {self._scratch.name} could be removed: {'; '.join(left)}; in an hour, the "
                    "next verification removes it"
                )

    def checks(self) -> Iterator[Result]:
        """Make every check; yields each result as it is there, and `results` collects them."""
        for name, check in (
            ("mapping", self._check_mapping),
            ("roles", lambda: check_roles(self.stack)),
            ("outcomes", self._check_outcomes),
            ("bad files", self._check_bad_files),
            ("duplicates", self._check_duplicates),
            ("cancel", self._check_cancel),
            ("failures", self._check_failures),
            ("event", self._check_event),
            ("clean-up", self._check_clean_up),
        ):
            result = _result(name, check)
            self.results.append(result)
            yield result

    def measure(self) -> Measurement:
        """What the runs of the checks have measured. Raises Failed if there is nothing to read."""
        if not self._model:
            raise Failed("nothing was measured, because no run was complete")
        whole = ("outcomes", "duplicates", "cancel")  # the checks that score all images
        scored = sum(result.name in whole and result.outcome == Outcome.PASSED for result in self.results)
        try:
            return measure(
                self.stack,
                began=self._began,
                first_run=self._first_run,
                runs=self._scratch.name,
                model=self._model,
                images=self.images,
                seen=scored * self.images,
            )
        except AWS_ERRORS as error:
            raise Failed(f"nothing was measured: {explained(error)}") from None

    # The checks: each returns what it has seen. They raise CheckFailed, NotChecked, and what AWS raises.

    def _check_mapping(self) -> str:
        found = client("lambda").get_event_source_mapping(UUID=self.stack.mapping)
        settings = self.stack.settings
        destination = found.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination", "none")
        wanted = {
            "State": "Enabled",
            "BisectBatchOnFunctionError": True,
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
            "DestinationConfig": self.stack.failure_bucket,
            **{
                field: settings[name] * factor
                for field, name, factor in (
                    ("BatchSize", "batchSize", 1),
                    ("ParallelizationFactor", "parallelizationFactor", 1),
                    ("MaximumRetryAttempts", "retries", 1),
                    ("MaximumRecordAgeInSeconds", "recordAge", 3600),
                )
                if name in settings
            },
        }
        there = {**found, "DestinationConfig": destination.rpartition(":")[2]}
        wrong = [
            f"{field} is {there.get(field)}, expected {value}"
            for field, value in wanted.items()
            if there.get(field) != value
        ]
        if wrong:
            raise CheckFailed(
                f"the event source mapping: {'; '.join(wrong)}",
                "deploy the stack again by `npx cdk deploy`; if that finds no change, set these values in "
                "the Lambda console, among the triggers of the classifier",
            )
        return (
            f"{there['MaximumRetryAttempts']} retries, batches are split, failures go to the failure bucket"
        )

    def _check_outcomes(self) -> str:
        run = self._scratch.run("outcomes")
        self._upload()
        prefix = f"{self._scratch.folder}{GOOD}"
        started = datetime.now(UTC)
        # The same event twice at once, as from a caller that hears no answer and asks again.
        with ThreadPoolExecutor(2) as pool:
            starts = [pool.submit(start_run, self.stack, run, prefix=prefix) for _ in range(2)]
            for start in starts:
                start.result()
        Recount.read(self.stack, run).check_counters()
        self._model = self._wait(run).model
        self._first_run = (started, datetime.now(UTC))
        keys = keys_below(self.stack, prefix)
        found = Recount.read(self.stack, run)
        found.check(keys)
        if found.codes:
            codes = ", ".join(sorted(set(found.codes.values())))
            raise CheckFailed(f"{len(found.codes)} drawn X-rays FAILED with {codes}", LOOK)
        self._complete.append(run)
        return f"{len(keys)} images, {len(keys)} predictions, and the counters say the same"

    def _check_bad_files(self) -> str:
        self._need("outcomes")
        run = self._scratch.run("bad")
        good = keys_below(self.stack, f"{self._scratch.folder}{GOOD}")[:FAILING]
        keys = [*good, *self._codes]
        start_run(self.stack, run, keys=keys)
        self._wait(run)
        found = Recount.read(self.stack, run)
        found.check(keys)
        wrong = [
            f"{key.rpartition('/')[2]} became {found.codes.get(key, 'SCORED')}, expected {code}"
            for key, code in self._codes.items()
            if found.codes.get(key) != code
        ]
        if stopped := len(found.codes.keys() & set(good)):
            wrong.append(f"{stopped} good images beside them FAILED")
        if wrong:
            raise CheckFailed("; ".join(wrong), LOOK)
        self._complete.append(run)
        return f"{len(self._codes)} bad files have their codes, {len(good)} images beside them are scored"

    def _check_duplicates(self) -> str:
        self._need("outcomes")
        run = self._scratch.run("outcomes")
        before = Recount.read(self.stack, run)
        keys = [item["sk"] for item in before.predictions]
        start_run(self.stack, run, prefix=f"{self._scratch.folder}{GOOD}")
        # Lambda may deliver a job again after a success. Here it is delivered by a direct invocation, which
        # is over when it answers.
        size = int(self.stack.settings.get("imagesPerJob", 32))
        jobs = [Job(run, before.run["uid"], before.run["bucket"], group) for group in _groups(keys, size)]
        for group in _groups(jobs, int(self.stack.settings.get("batchSize", 4))):
            self._deliver(group)
        after = Recount.read(self.stack, run)
        after.check(keys)
        unchanged = sorted(before.predictions, key=_key) == sorted(after.predictions, key=_key)
        if not unchanged:
            raise CheckFailed("predictions were written again when their jobs came again", LOOK)
        return f"the event came 3 times and {len(jobs)} jobs twice: counts and predictions are as before"

    def _deliver(self, jobs: tuple[Job, ...]) -> None:
        """Give jobs to the classifier as Lambda does, and wait for its answer. Raises CheckFailed."""
        records = [
            {"kinesis": {"sequenceNumber": str(number), "data": b64encode(record["Data"]).decode()}}
            for number, record in enumerate(record for group in batches(jobs) for record in group)
        ]
        # A second attempt would be a third delivery.
        functions = client("lambda", read_timeout=900, retries={"total_max_attempts": 1})
        answer = functions.invoke(
            FunctionName=self.stack.classifier, Payload=json.dumps({"Records": records}).encode()
        )
        said = json.loads(answer["Payload"].read())
        if "FunctionError" in answer or said.get("batchItemFailures"):
            raise CheckFailed(f"the classifier returned jobs that came again{self._reason()}", LOOK)

    def _check_cancel(self) -> str:
        self._need("outcomes")
        run, prefix = self._scratch.run("cancel"), f"{self._scratch.folder}{GOOD}"
        table = run_table(self.stack)
        with ThreadPoolExecutor(1) as pool, suppress(Failed):  # the job creator may find it cancelled
            start = pool.submit(start_run, self.stack, run, prefix=prefix)
            while not start.done() and table.run(run) is None:
                time.sleep(LOOK_SECONDS / 50)
            if not table.cancel(run):
                raise NotChecked("the run was complete before it could be cancelled: verify with more images")
            start.result()
        time.sleep(SETTLE_SECONDS)
        then = run_status(table, run)
        time.sleep(SETTLE_SECONDS / 2)
        stopped = run_status(table, run)
        if stopped.state != State.CANCELLED or stopped.done != then.done:
            raise CheckFailed(
                f"the cancelled run is {stopped.state} and went on from {then.done} to {stopped.done} images",
                LOOK,
            )
        start_run(self.stack, run, prefix=prefix)
        self._wait(run)
        Recount.read(self.stack, run).check(keys_below(self.stack, prefix))
        self._complete.append(run)
        return f"{stopped.done} of {self.images} images were done when it stopped, all after it continued"

    def _check_failures(self) -> str:
        """Jobs of a run that is pinned to a model which the classifier does not hold.

        The classifier returns them, Lambda retries them and puts them into the failure bucket. Then the run
        gets the model of the stack, and is retried. Reserved concurrency of zero would not do: retries do not
        end for a throttled function before the record age (Lambda guide, kinesis-on-failure-destination); it
        would stop all other runs, and stay if this program is killed.
        """
        self._need("outcomes")
        retries = client("lambda").get_event_source_mapping(UUID=self.stack.mapping)["MaximumRetryAttempts"]
        if not 0 <= retries <= MOST_RETRIES:
            raise NotChecked(f"the mapping has {retries} retries, which take too long to wait for")
        run = self._scratch.run("failures")
        model = Recount.read(self.stack, self._scratch.run("outcomes")).run
        keys = keys_below(self.stack, f"{self._scratch.folder}{GOOD}")[:FAILING]
        table = run_table(self.stack)
        made = {name: model[name] for name in ("bucket", "labels", "settings") if name in model}
        source = {"kind": "Keys", "value": self._scratch.name}
        uid = table.begin(run, made | {"source": source, "model": "none:0", "model_sha256": "0" * 64})
        if uid is None:
            raise CheckFailed(f"the run {run} cannot be made", LOOK)
        jobs = [Job(run, uid, model["bucket"], group) for group in _groups(keys, FAILING // 2)]
        for records in batches(jobs):
            put(client("kinesis"), self.stack.stream, records)
        table.expect(run, uid, len(keys), "")
        began = time.monotonic()
        self._wait_for_failures(uid, set(keys))
        seconds = time.monotonic() - began
        client("dynamodb").update_item(
            TableName=self.stack.table,
            Key=pack(layout.run_key(run)),
            UpdateExpression="SET model = :model, model_sha256 = :sha256",
            ExpressionAttributeValues=pack({":model": model["model"], ":sha256": model["model_sha256"]}),
        )
        sent = retry_run(self.stack, run).given_up
        self._wait(run)
        Recount.read(self.stack, run).check(keys)
        self._complete.append(run)
        deleted = retry_run(self.stack, run).objects_deleted
        if sent != len(keys) or not deleted:
            raise CheckFailed(
                f"of {len(keys)} images in the failure bucket {sent} were sent again, and {deleted} objects "
                "deleted afterwards",
                LOOK,
            )
        return f"{len(jobs)} jobs were in the failure bucket after {seconds:.0f} s, `cxr retry` scored them"

    def _wait_for_failures(self, uid: str, keys: set[str]) -> None:
        """Wait until the failure bucket holds all these images of the run. Raises CheckFailed."""
        s3, until = client("s3"), time.monotonic() + FAILURE_SECONDS
        found: set[str] = set()
        while not keys <= found:
            if time.monotonic() > until:
                raise CheckFailed(
                    f"{len(keys - found)} of {len(keys)} images of jobs that always fail are not in the "
                    f"failure bucket after {FAILURE_SECONDS} s, so `cxr retry` cannot find them",
                    "see the metric DroppedEventCount of the mapping: if it is not 0, Lambda cannot write to "
                    f"{self.stack.failure_bucket}: look at its policy, its key and the classifier's role",
                )
            time.sleep(LOOK_SECONDS)
            found = {
                key
                for entry in objects(s3, self.stack.failure_bucket)
                for job in jobs_in(s3, self.stack.failure_bucket, entry["Key"])
                if job.run_uid == uid
                for key in job.keys
            }

    def _check_event(self) -> str:
        if isinstance(self._queue, NotChecked):
            raise self._queue
        wanted = {run: run_status(run_table(self.stack), run) for run in self._complete}
        heard: dict[str, dict[str, Any]] = {}
        sqs, until = client("sqs"), time.monotonic() + EVENT_SECONDS
        while wanted.keys() - heard.keys() and time.monotonic() < until:
            answer = sqs.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=10, WaitTimeSeconds=2)
            for message in answer.get("Messages", ()):
                detail = json.loads(message["Body"])["detail"]
                heard[detail["RunId"]] = detail
        for run, status in wanted.items():
            if run not in heard:
                raise CheckFailed(f"no event said that {run} is complete", LOOK)
            counted = {"Scored": status.scored, "Failed": status.failures.total()}
            said = {name: heard[run].get(name) for name in counted}
            if said != counted:
                raise CheckFailed(f"the event of {run} says {said}, and its counts are {counted}", LOOK)
        return f"{len(wanted)} runs, each with an event that has its counts"

    def _check_clean_up(self) -> str:
        self._left = self._scratch.remove()
        if self._left:
            raise CheckFailed("; ".join(self._left), "remove it in the AWS console")
        return "runs, predictions, files, failure objects, rule and queue are removed"

    # What the checks share

    def _upload(self) -> None:
        """Draw the files, upload them, and subscribe to the completion events."""
        with tempfile.TemporaryDirectory(prefix="cxr-verify-") as name:
            folder = Path(name)
            codes = write_files(folder, self.images)
            self._codes = {f"{self._scratch.folder}{path}": code for path, code in codes.items()}
            for _ in upload(
                client("s3"), self.stack.images_bucket, self._scratch.folder, folder, files_in(folder)
            ):
                pass
        try:
            self._queue = self._scratch.subscribe()
        except ClientError as error:
            if error.response["Error"]["Code"] not in REFUSALS:
                raise
            self._queue = NotChecked(explained(error))

    def _wait(self, run: str) -> RunStatus:
        """Wait until the run is complete. Raises CheckFailed with the reason of the classifier's log."""
        try:
            return wait(self.stack, run, timeout=RUN_SECONDS)
        except Failed as error:
            what = str(error).partition("; ")[0]
            raise CheckFailed(f"{what}{self._reason()}", LOOK) from None

    def _reason(self) -> str:
        """Why the classifier returned jobs last, as far as its log says."""
        with suppress(*AWS_ERRORS):
            for reason, _ in recent_failures(self.stack).most_common(1):
                return f"; the classifier's log says: {reason}"
        return ""

    def _need(self, name: str) -> None:
        """Raise NotChecked if an earlier check did not pass."""
        if any(result.name == name and result.outcome != Outcome.PASSED for result in self.results):
            raise NotChecked(f"it needs the run of the check of {name}, which did not pass")


def _groups(things: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    rest = iter(things)
    while group := tuple(islice(rest, size)):
        yield group


def _key(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["pk"], item["sk"]


def _result(name: str, check: Callable[[], str]) -> Result:
    """Make a check, and put what it raises into words."""
    began = time.monotonic()

    def result(outcome: Outcome, seen: str, remedy: str = "") -> Result:
        return Result(name, PROMISES[name], outcome, seen, remedy, round(time.monotonic() - began, 1))

    try:
        return result(Outcome.PASSED, check())
    except CheckFailed as error:
        return result(Outcome.FAILED, error.seen, error.remedy)
    except NotChecked as error:
        return result(Outcome.NOT_CHECKED, str(error))
    except (Failed, InputError) as error:
        what, _, remedy = str(error).partition("; ")
        return result(Outcome.FAILED, what, remedy or LOOK)
    except AWS_ERRORS as error:
        refused = isinstance(error, ClientError) and error.response["Error"]["Code"] in REFUSALS
        what, _, remedy = explained(error).partition("; ")
        return result(Outcome.NOT_CHECKED if refused else Outcome.FAILED, what, "" if refused else remedy)
