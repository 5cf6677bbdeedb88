"""The Lambda function: jobs in, images from S3, scores from the model, predictions to the table."""

import functools
import json
import logging
import os
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from classifier import jobs
from classifier.images import MAX_BYTES, ImageError
from classifier.jobs import Job, JobError
from classifier.model import Model
from classifier.predictions import SCORED, Prediction, announcement
from classifier.table import RunGone, Table

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_s3 import S3Client

FETCHES = 16  # objects on their way at once: S3 takes some 50 ms for the first byte, an image less to score
AHEAD_BYTES = 16 * 2**20  # at most, of an object fetched before its turn: they must fit into memory together
SCORES_AHEAD = 4  # images a vCPU scores while predictions are being written
DEADLINE_MARGIN_MS = 10_000
NAMESPACE = "chest-xray-inference"  # of the metrics, as the job creator's
VCPU_MB = 1769  # of memory buy one vCPU (Lambda guide, configuration-memory)

Result = TypeVar("Result")


class NotDone(Exception):
    """A job that was not finished, but may be when it is delivered again. The message names no key."""


class _TooLargeAhead(Exception):
    """An object that is to be fetched when its turn has come."""


@dataclass(frozen=True)
class Task:
    """A job with what is left of it."""

    job: Job
    run_uid: str
    keys: tuple[str, ...]  # those not SCORED, as far as that was read
    stored: Mapping[str, str]  # S3 key -> name of its count, as far as that was read


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Lambda's entry point, for a Kinesis event or `{"Jobs": [{"RunId": ..., "Key": ...}]}`."""
    return setup()(event, context.get_remaining_time_in_millis)


@functools.cache
def setup() -> "Classifier":
    """The classifier of this execution environment, from its environment variables. Raises BundleError."""
    config = Config(
        connect_timeout=3,
        read_timeout=20,
        retries={"mode": "standard", "total_max_attempts": 5},
        max_pool_connections=FETCHES,
    )
    model = load_model()
    dynamodb = boto3.client("dynamodb", config=config)
    return Classifier(
        model=model,
        table=Table(os.environ["TABLE_NAME"], dynamodb, model.name, model.sha256),
        s3=boto3.client("s3", config=config),
        events=lambda: boto3.client("events", config=config),
        bucket=os.environ["BUCKET_NAME"],
        vcpus=max(1, int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", VCPU_MB)) // VCPU_MB),
    )


def load_model() -> Model:
    """The bundle in MODEL_DIR, by default the one beside this package. Raises BundleError."""
    return Model(Path(os.environ.get("MODEL_DIR") or Path(__file__).parents[1] / "model"))


class Classifier:
    """Scores jobs: made once, called for every invocation. Direct jobs name no bucket: theirs is `bucket`."""

    def __init__(
        self,
        *,
        model: Model,
        table: Table,
        s3: "S3Client",
        events: Callable[[], "EventBridgeClient"],  # made when a run completes, and not at every cold start
        bucket: str,
        vcpus: int,
    ) -> None:
        self._model = model
        self._table = table
        self._s3 = s3
        self._events = events
        self._bucket = bucket
        self._fetchers = ThreadPoolExecutor(FETCHES)
        self._scorers = ThreadPoolExecutor(vcpus)
        self._scores_ahead = vcpus * SCORES_AHEAD

    def __call__(self, event: Mapping[str, Any], remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Answers `batchItemFailures` to a Kinesis event, and `Predictions` to direct jobs.

        Raises, for direct jobs only, JobError, RunIdTaken and NotDone.
        """
        if "Records" in event:
            return self._stream(event["Records"], remaining_ms)
        return self._direct(jobs.from_direct(event, self._bucket), remaining_ms)

    def _stream(
        self, records: Iterable[Mapping[str, Any]], remaining_ms: Callable[[], int]
    ) -> dict[str, Any]:
        started = time.monotonic()
        given: dict[str, Job] = {}  # sequence number -> job
        failures: dict[str, str] = {}  # sequence number -> why it has to come again
        for record in records:
            number = record["kinesis"]["sequenceNumber"]
            try:
                given[number] = jobs.from_record(record)
            except JobError as error:
                failures[number] = str(error)
        written: list[Prediction] = []
        for number, outcome in zip(given, self._outcomes(list(given.values()), remaining_ms), strict=True):
            if isinstance(outcome, NotDone):
                failures[number] = str(outcome)
            else:
                written += outcome
        for run_id in dict.fromkeys(job.run_id for job in given.values()):
            try:
                self._complete(run_id)
            except (ClientError, BotoCoreError, NotDone) as error:
                # Delivered again, the jobs find their predictions there and come back to this check.
                failures |= {number: _reason(error) for number, job in given.items() if job.run_id == run_id}
        _log({job.run_id for job in given.values()}, written, started, len(given.keys() - failures), failures)
        return {"batchItemFailures": [{"itemIdentifier": number} for number in failures]}

    def _complete(self, run_id: str) -> None:
        """Completes the run if all is there, and says so, once.

        Where the answer of PutEvents is lost, it is said again. Where this process ends between the two, or
        cannot reopen the run, it is not said: nobody could tell that from a completion that was.
        """
        by = uuid.uuid4().hex
        try:
            counts = self._table.complete(run_id, by)
            if counts is None:
                return
            entry: Any = announcement(run_id, counts)
            answer = self._events().put_events(Entries=[entry])
            if answer["FailedEntryCount"]:
                raise NotDone(f"PutEvents: {answer['Entries'][0]['ErrorCode']}")
        except (ClientError, BotoCoreError, NotDone):
            self._table.reopen(run_id, by)
            raise

    def _direct(self, given: list[Job], remaining_ms: Callable[[], int]) -> dict[str, Any]:
        started = time.monotonic()
        for run_id in dict.fromkeys(job.run_id for job in given):
            self._table.claim(run_id)
        answers = []
        written: list[Prediction] = []
        for job, outcome in zip(given, self._outcomes(given, remaining_ms), strict=True):
            if isinstance(outcome, NotDone):
                raise outcome
            written += outcome
            answers += [_answer(job.run_id, prediction) for prediction in outcome]
        _log({job.run_id for job in given}, written, started, len(given), {})
        return {"Predictions": answers}

    def _outcomes(
        self, given: list[Job], remaining_ms: Callable[[], int]
    ) -> Iterator[list[Prediction] | NotDone]:
        """What came of each job, in order: the predictions it has now, or why it has to come again.

        A job that is not done does not stop those behind it. Lambda delivers them again all the same, but
        what they have written is safe if it gives up on the batch.
        """
        read_run = functools.cache(self._read_run)
        tasks = [self._task(job, read_run(job.run_id)) for job in given]
        wanted = [(task.job.bucket, key) for task in tasks if isinstance(task, Task) for key in task.keys]
        ahead = ((*place, remaining_ms, AHEAD_BYTES) for place in wanted)
        fetched = _ahead(FETCHES, self._fetchers, self._fetch, ahead)
        scored = _ahead(
            self._scores_ahead,
            self._scorers,
            self._predict,
            ((*place, fetching, remaining_ms) for place, fetching in zip(wanted, fetched, strict=True)),
        )
        for task in tasks:
            yield task if isinstance(task, NotDone) else self._write(task, scored)

    def _read_run(self, run_id: str) -> dict[str, Any] | NotDone:
        try:
            return self._table.run(run_id)
        except (ClientError, BotoCoreError) as error:
            return NotDone(_reason(error))

    def _task(self, job: Job, run: Mapping[str, Any] | NotDone) -> Task | NotDone:
        if isinstance(run, NotDone):
            return run
        # A run that is not there was deleted; one with another uid was begun since, under the same name.
        gone = not run or run["state"] == "DELETING" or job.run_uid not in (None, run["uid"])
        if gone or run["state"] == "CANCELLED":
            return Task(job, "", (), {})
        if run["model_sha256"] != self._model.sha256:
            return NotDone(
                f"run {job.run_id} is pinned to {run['model']}, this function holds {self._model.name}"
            )
        if not job.continued:
            return Task(job, run["uid"], job.keys, {})
        try:
            stored = self._table.stored(job.run_id, job.keys)
        except (ClientError, BotoCoreError) as error:
            return NotDone(_reason(error))
        keys = tuple(key for key in job.keys if stored.get(key) != SCORED)
        return Task(job, run["uid"], keys, stored)

    def _fetch(self, bucket: str, key: str, remaining_ms: Callable[[], int], most: int) -> bytes:
        _check_time(remaining_ms)
        try:
            found = self._s3.get_object(Bucket=bucket, Key=key)
            size = found["ContentLength"]
            if size > min(most, MAX_BYTES):
                found["Body"].close()
                raise ImageError("IMAGE_TOO_LARGE") if size > MAX_BYTES else _TooLargeAhead
            return _body(found)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            # To a role that may not list the whole bucket, S3 answers 403 for a missing key too.
            if code == "NoSuchKey" or (code == "AccessDenied" and not self._exists(bucket, key)):
                raise ImageError("IMAGE_MISSING") from None
            raise

    def _exists(self, bucket: str, key: str) -> bool:
        listed = self._s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        return any(entry["Key"] == key for entry in listed.get("Contents", []))

    def _predict(
        self, bucket: str, key: str, fetching: Future[bytes], remaining_ms: Callable[[], int]
    ) -> Prediction:
        try:
            try:
                data = fetching.result()
            except _TooLargeAhead:
                data = self._fetch(bucket, key, remaining_ms, MAX_BYTES)
            _check_time(remaining_ms)
            pixels, warnings = self._model.prepare(data)
        except ImageError as error:
            return Prediction(key, error=error.code)
        (scores,) = self._model.score([pixels])
        return Prediction(key, scores, self._model.positive(scores), warnings)

    def _write(self, task: Task, scored: Iterator[Future[Prediction]]) -> list[Prediction] | NotDone:
        """Writes what can be; every key's future is taken, so that the next job finds its own."""
        done = []
        problem = None
        for prediction in islice(scored, len(task.keys)):
            try:
                done.append(prediction.result())
            except (ClientError, BotoCoreError, NotDone) as error:
                problem = _reason(error)
        try:
            self._table.write(task.job.run_id, task.run_uid, done, task.stored)
        except (ClientError, BotoCoreError, RunGone) as error:
            problem = _reason(error)
        return NotDone(problem) if problem else done


def _ahead(
    window: int, pool: ThreadPoolExecutor, work: Callable[..., Result], items: Iterable[tuple[Any, ...]]
) -> Iterator[Future[Result]]:
    """`work(*item)` of every item in the pool, in order: while one is taken, `window` are on their way."""
    futures: deque[Future[Result]] = deque()
    for item in items:
        futures.append(pool.submit(work, *item))
        if len(futures) > window:
            yield futures.popleft()
    yield from futures


def _body(answer: Mapping[str, Any]) -> bytes:
    """An object's bytes. Raises NotDone, and BotoCoreError: botocore has a name only for some of its ends."""
    try:
        return bytes(answer["Body"].read())
    except (HTTPError, OSError) as error:
        raise NotDone(type(error).__name__) from None


def _check_time(remaining_ms: Callable[[], int]) -> None:
    if remaining_ms() < DEADLINE_MARGIN_MS:
        raise NotDone("too little time left")


def _answer(run_id: str, prediction: Prediction) -> dict[str, Any]:
    answer: dict[str, Any] = {"RunId": run_id, "Key": prediction.key}
    if prediction.error:
        return answer | {"Status": "FAILED", "Error": prediction.error}
    scores = {label: float(score) for label, score in prediction.scores.items()}
    return answer | {
        "Status": SCORED,
        "Scores": scores,
        "Positive": list(prediction.positive),
        "Warnings": list(prediction.warnings),
    }


def _log(
    runs: Collection[str],
    written: Collection[Prediction],
    started: float,
    jobs_done: int,
    failures: Mapping[str, str],
) -> None:
    """Prints the invocation's one line: a record to search, and the metrics that CloudWatch takes from it.

    `started` is of the monotonic clock; `failures` are sequence number -> why it has to come again. The form
    is the embedded metric format (CloudWatch user guide, CloudWatch_Embedded_Metric_Format_Specification). A
    run is in the record but no dimension of a metric: each would be metrics of its own, to be paid for.
    """
    scored = sum(prediction.error is None for prediction in written)
    metrics = {
        "ImagesScored": scored,
        "ImagesFailed": len(written) - scored,
        "JobsDone": jobs_done,
        "JobsReturned": len(failures),
    }
    units = dict.fromkeys(metrics, "Count")
    if written:
        metrics["MillisecondsPerImage"] = round((time.monotonic() - started) * 1000 / len(written))
        units["MillisecondsPerImage"] = "Milliseconds"
    now = datetime.now(UTC)
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [["FunctionName"]],
        "Metrics": [{"Name": name, "Unit": unit} for name, unit in units.items()],
    }
    record = {
        "timestamp": now.isoformat(timespec="milliseconds"),
        "level": "INFO",
        "runs": sorted(runs),
        "failures": failures,
        "FunctionName": os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local"),
        **metrics,
        "_aws": {"Timestamp": int(now.timestamp() * 1000), "CloudWatchMetrics": [directive]},
    }
    print(json.dumps(record))


def _reason(error: ClientError | BotoCoreError | NotDone | RunGone) -> str:
    """What went wrong, without AWS's message: some of S3's name the object."""
    if isinstance(error, NotDone | RunGone):
        return str(error)
    if isinstance(error, ClientError):
        return f"{error.operation_name}: {error.response['Error']['Code']}"
    return type(error).__name__


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    # What libraries would say names keys (urllib3 a URL, botocore a request) and quotes headers of files.
    logging.disable()
    warnings.simplefilter("ignore")
    setup()  # in Lambda's init phase, so that the first invocation finds the model loaded
