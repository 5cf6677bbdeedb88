"""The Lambda function: jobs in, images from S3, scores from the model, predictions to the table."""

from __future__ import annotations

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from runs import jobs, metrics
from runs.backoff import Patience, keep_trying, most_of
from runs.codes import REFUSED_BY_S3, ErrorCode
from runs.completion import NotAnnounced, announce_scored, complete
from runs.errors import reason
from runs.jobs import Job, JobError
from runs.predictions import SCORED, Prediction
from runs.run import Run, State
from runs.table import RunGone, RunTable
from urllib3.exceptions import HTTPError

from classifier import objects
from classifier.bounds import MAX_BYTES, ImageError
from classifier.model import Model
from classifier.objects import Object

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_s3 import S3Client

FETCHES = 16  # objects fetched at once: S3 takes some 50 ms for the first byte, scoring an image takes less
AHEAD_BYTES = 16 * 2**20  # a larger object is fetched when its turn comes: all those ahead share the memory
SCORES_AHEAD = 4  # images that each vCPU scores while predictions are being written
DEADLINE_MARGIN_MS = 10_000
WRITE_MARGIN_MS = 7_000  # no write begins later: it and the answer to Lambda need the rest
VCPU_MB = 1769  # megabytes of memory that come with one vCPU (Lambda guide, configuration-memory)

Result = TypeVar("Result")
Read = Callable[[str, str, int], Object | int]  # objects.read: a bucket, a key, and the most bytes


class NotDone(Exception):
    """A job that was not finished; it may be when it is delivered again. The message names no key."""


class _TooLargeAhead(Exception):
    """The object is fetched when its turn comes."""


@dataclass(frozen=True)
class Task:
    """A job with what is left of it."""

    job: Job
    run: Run | None  # None if it is gone
    keys: tuple[str, ...]  # those that are not SCORED, as far as the table was read
    stored: Mapping[str, Prediction]  # by S3 key, as far as the table was read


def handle(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Lambda's entry point, for a Kinesis event or `{"Jobs": [{"RunId": ..., "Key": ...}]}`."""
    return setup()(event, context.get_remaining_time_in_millis)


@functools.cache
def setup(read: Read | None = objects.read) -> Classifier:
    """The classifier of this execution environment, from its environment variables. Raises BundleError.

    Without `read`, boto3 makes all requests.
    """
    config = Config(
        connect_timeout=3,
        read_timeout=20,
        # Few attempts, whose waits take at most 3 s: until the deadline, the classifier tries again itself.
        retries={"mode": "standard", "total_max_attempts": 3},
        max_pool_connections=FETCHES,
    )
    return Classifier(
        model=load_model(),
        table=RunTable(boto3.client("dynamodb", config=config), os.environ["TABLE_NAME"]),
        s3=boto3.client("s3", config=config),
        events=functools.cache(lambda: boto3.client("events", config=config)),
        read=read,
        bucket=os.environ["BUCKET_NAME"],
        vcpus=max(1, int(os.environ.get("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", VCPU_MB)) // VCPU_MB),
    )


def load_model(*, trial: bool = False) -> Model:
    """The bundle in MODEL_DIR, by default the one beside this package. Raises BundleError.

    With `trial`, it must also score test images as it should.
    """
    return Model(Path(os.environ.get("MODEL_DIR") or Path(__file__).parents[1] / "model"), trial=trial)


class Classifier:
    """Scores jobs: made once, called for every invocation. Direct jobs are read from `bucket`."""

    def __init__(
        self,
        *,
        model: Model,
        table: RunTable,
        s3: S3Client,
        events: Callable[[], EventBridgeClient],  # made for the first event, and not at every cold start
        bucket: str,
        vcpus: int,
        read: Read | None = None,
    ) -> None:
        self._model = model
        self._table = table
        self._s3 = s3
        self._events = events
        self._bucket = bucket
        self._read = read
        self._fetchers = ThreadPoolExecutor(FETCHES)
        self._scorers = ThreadPoolExecutor(vcpus)
        self._scores_ahead = vcpus * SCORES_AHEAD

    def __call__(self, event: Mapping[str, Any], remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Answer `batchItemFailures` to a Kinesis event, and `Predictions` to direct jobs.

        Raises, for direct jobs only, JobError and NotDone.
        """
        if "Records" in event:
            return self._stream(event["Records"], remaining_ms)
        return self._direct(event, remaining_ms)

    def _stream(
        self, records: Iterable[Mapping[str, Any]], remaining_ms: Callable[[], int]
    ) -> dict[str, Any]:
        started = time.monotonic()
        given: dict[str, Job] = {}  # sequence number -> job
        failures: dict[str, str] = {}  # sequence number -> why Lambda has to deliver it again
        for record in records:
            number = record["kinesis"]["sequenceNumber"]
            try:
                given[number] = jobs.decode(record)
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
                keep_trying(
                    Patience(_seconds_left(remaining_ms)), complete, self._table, self._events, run_id
                )
            except (ClientError, BotoCoreError, NotAnnounced) as error:
                # Delivered again, the jobs find their predictions in the table and come back to this check.
                failures |= {number: _reason(error) for number, job in given.items() if job.run_id == run_id}
        _print_line(
            {job.run_id for job in given.values()}, written, started, len(given.keys() - failures), failures
        )
        return {"batchItemFailures": [{"itemIdentifier": number} for number in failures]}

    def _direct(self, event: Mapping[str, Any], remaining_ms: Callable[[], int]) -> dict[str, Any]:
        """Score the images of direct jobs and answer their predictions. Nothing is stored."""
        started = time.monotonic()
        entries = event.get("Jobs")
        if not isinstance(entries, list) or not entries or not all(isinstance(job, dict) for job in entries):
            raise JobError('expected a Kinesis event or {"Jobs": [{"RunId": ..., "Key": ...}]}')
        given = [(jobs.run_id(entry), jobs.text(entry, "Key")) for entry in entries]
        scores = self._scores([(self._bucket, key) for _, key in given], remaining_ms)
        try:
            found = [score.result() for score in scores]
        except (ClientError, BotoCoreError) as error:
            # Lambda logs what is raised, and AWS's message may name the object.
            raise NotDone(_reason(error)) from None
        _print_line({run_id for run_id, _ in given}, found, started, len(given), {})
        answers = [_answer(run_id, prediction) for (run_id, _), prediction in zip(given, found, strict=True)]
        return {"Predictions": answers}

    def _outcomes(
        self, given: list[Job], remaining_ms: Callable[[], int]
    ) -> Iterator[list[Prediction] | NotDone]:
        """What came of each job, in order: the predictions it has now, or why it has to come again.

        The jobs behind one that is not done are worked on all the same. Lambda delivers them again, but what
        they have written is safe if Lambda discards the batch.
        """
        read_run = functools.cache(lambda run_id: self._read_run(run_id, remaining_ms))
        tasks = [self._task(job, read_run(job.run_id), remaining_ms) for job in given]
        wanted = [(task.job.bucket, key) for task in tasks if isinstance(task, Task) for key in task.keys]
        scores = self._scores(wanted, remaining_ms)
        for task in tasks:
            yield task if isinstance(task, NotDone) else self._write(task, scores, remaining_ms)

    def _read_run(self, run_id: str, remaining_ms: Callable[[], int]) -> Run | NotDone | None:
        try:
            return keep_trying(_patience(remaining_ms), self._table.run, run_id)
        except (ClientError, BotoCoreError) as error:
            return NotDone(_reason(error))

    def _task(self, job: Job, run: Run | NotDone | None, remaining_ms: Callable[[], int]) -> Task | NotDone:
        """What is to be done for a job. Nothing, if its run is cancelled, deleted, or has another uid."""
        if isinstance(run, NotDone):
            return run
        if run is None or run.uid != job.run_uid or run.state in (State.DELETING, State.CANCELLED):
            return Task(job, run, (), {})
        # The X-rays of a day may be scored by two models: a deployment must not stop what arrives.
        if run.model_sha256 != self._model.sha256 and not run.standing:
            return NotDone(
                f"run {job.run_id} is pinned to {run.model}, this function holds {self._model.name}"
            )
        if not job.continued:
            return Task(job, run, job.keys, {})
        try:
            stored = keep_trying(_patience(remaining_ms), self._table.stored, job.run_id, job.keys)
        except (ClientError, BotoCoreError) as error:
            return NotDone(_reason(error))
        left = tuple(key for key in job.keys if key not in stored or stored[key].status != SCORED)
        return Task(job, run, left, stored)

    def _scores(
        self, images: list[tuple[str, str]], remaining_ms: Callable[[], int]
    ) -> Iterator[Future[Prediction]]:
        """A prediction for each (bucket, key), in order. Fetching and scoring run ahead of the caller."""
        fetched = _ahead(
            FETCHES,
            self._fetchers,
            self._fetch,
            ((*image, remaining_ms, AHEAD_BYTES) for image in images),
        )
        return _ahead(
            self._scores_ahead,
            self._scorers,
            self._predict,
            ((*image, fetching, remaining_ms) for image, fetching in zip(images, fetched, strict=True)),
        )

    def _fetch(self, bucket: str, key: str, remaining_ms: Callable[[], int], most: int) -> Object:
        """An object. Raises ImageError, NotDone, and what boto3 raises."""
        _check_time(remaining_ms)
        with suppress(objects.NotRead):
            if self._read:
                read = self._read(bucket, key, min(most, MAX_BYTES))
                if isinstance(read, int):
                    raise _too_large(read)
                return read
        try:
            found = keep_trying(_patience(remaining_ms), self._s3.get_object, Bucket=bucket, Key=key)
            if found["ContentLength"] > min(most, MAX_BYTES):
                found["Body"].close()
                raise _too_large(found["ContentLength"])
            return Object(_body(found), found["ETag"])
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in REFUSED_BY_S3:
                raise ImageError(REFUSED_BY_S3[code]) from None
            # To a role that may not list the whole bucket, S3 answers 403 for a missing key too.
            if code == "NoSuchKey" or (code == "AccessDenied" and not self._exists(bucket, key)):
                raise ImageError(ErrorCode.IMAGE_MISSING) from None
            raise

    def _exists(self, bucket: str, key: str) -> bool:
        listed = self._s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1)
        return any(entry["Key"] == key for entry in listed.get("Contents", []))

    def _predict(
        self, bucket: str, key: str, fetching: Future[Object], remaining_ms: Callable[[], int]
    ) -> Prediction:
        etag = ""
        try:
            try:
                found = fetching.result()
            except _TooLargeAhead:
                found = self._fetch(bucket, key, remaining_ms, MAX_BYTES)
            etag = found.etag.strip('"')
            _check_time(remaining_ms)
            pixels, warnings = self._model.prepare(found.data)
        except ImageError as error:
            return Prediction(key, error=error.code, etag=etag)
        (scores,) = self._model.score([pixels])
        return Prediction(key, scores, self._model.positive(scores), warnings, etag=etag)

    def _write(
        self, task: Task, scores: Iterator[Future[Prediction]], remaining_ms: Callable[[], int]
    ) -> list[Prediction] | NotDone:
        """Write what can be written. Takes as many scores as the task has keys: the rest are other jobs'."""
        done = []
        problem = None
        for score in islice(scores, len(task.keys)):
            try:
                done.append(_of_arrival(score.result(), task.stored))
            except (ClientError, BotoCoreError, NotDone) as error:
                problem = _reason(error)
        stamp = {"model": self._model.name, "model_sha256": self._model.sha256}
        if remaining_ms() < WRITE_MARGIN_MS:
            return NotDone("too little time left")
        try:
            keep_trying(
                Patience(_seconds_left(remaining_ms)),
                self._table.write,
                *(task.job.run_id, task.job.run_uid, done, task.stored, stamp),
                _seconds_left(remaining_ms),
            )
        except (ClientError, BotoCoreError, RunGone) as error:
            problem = _reason(error)
        else:
            if done and task.run and task.run.standing:
                announce_scored(self._events, task.job.run_id, done)
        return NotDone(problem) if problem else done


def _ahead(
    window: int, pool: ThreadPoolExecutor, work: Callable[..., Result], items: Iterable[tuple[Any, ...]]
) -> Iterator[Future[Result]]:
    """`work(*item)` of every item in the pool, in order. While one is taken, `window` more are at work."""
    futures: deque[Future[Result]] = deque()
    for item in items:
        futures.append(pool.submit(work, *item))
        if len(futures) > window:
            yield futures.popleft()
    yield from futures


def _too_large(size: int) -> ImageError | _TooLargeAhead:
    """Why an object of so many bytes is not read now."""
    return ImageError(ErrorCode.IMAGE_TOO_LARGE) if size > MAX_BYTES else _TooLargeAhead()


def _of_arrival(prediction: Prediction, stored: Mapping[str, Prediction]) -> Prediction:
    """The outcome of an image that waited in a standing run, as of the arrival that it waited for.

    The table was read before the image was fetched, so what was fetched is no older than that arrival. An
    image that S3 holds and that was not fetched, for example because it is too large, is of that arrival.
    """
    before = stored.get(prediction.key)
    if not before or not before.arrivals:
        return prediction
    etag = prediction.etag or ("" if prediction.error == ErrorCode.IMAGE_MISSING else before.etag)
    return replace(prediction, arrivals=before.arrivals, arrived_at=before.arrived_at, etag=etag)


def _body(answer: Mapping[str, Any]) -> bytes:
    """The bytes of an object. Raises NotDone, and BotoCoreError: botocore wraps only some network errors."""
    try:
        return bytes(answer["Body"].read())
    except (HTTPError, OSError) as error:
        raise NotDone(type(error).__name__) from None


def _seconds_left(remaining_ms: Callable[[], int]) -> Callable[[], float]:
    """Says how many seconds are left until this invocation has to stop."""
    return lambda: (remaining_ms() - DEADLINE_MARGIN_MS) / 1000


def _patience(remaining_ms: Callable[[], int]) -> Patience:
    """While AWS is throttled or broken, a read is tried again for most of the time that is left.

    The rest is for the images and jobs behind it. If all fail, a job uses up one retry of the mapping
    in the time of an invocation, and the retries last for minutes.
    """
    return Patience(most_of(_seconds_left(remaining_ms)))


def _check_time(remaining_ms: Callable[[], int]) -> None:
    if remaining_ms() < DEADLINE_MARGIN_MS:
        raise NotDone("too little time left")


def _answer(run_id: str, prediction: Prediction) -> dict[str, Any]:
    """A prediction in the answer to direct jobs."""
    answer: dict[str, Any] = {"RunId": run_id, "Key": prediction.key, "Status": prediction.status}
    if prediction.error:
        return answer | {"Error": prediction.error}
    return answer | {
        "Scores": {label: float(score) for label, score in prediction.scores.items()},
        "Positive": list(prediction.positive),
        "Warnings": list(prediction.warnings),
    }


def _print_line(
    run_ids: Collection[str],
    predictions: Collection[Prediction],
    started: float,
    jobs_done: int,
    failures: Mapping[str, str],
) -> None:
    """Print the line of this invocation, which began at `started` of the monotonic clock.

    `failures` maps the sequence number of each job that Lambda has to deliver again to the reason.
    """
    scored = sum(prediction.error is None for prediction in predictions)
    counts = {
        "ImagesScored": scored,
        "ImagesFailed": len(predictions) - scored,
        "JobsDone": jobs_done,
        "JobsReturned": len(failures),
    }
    if predictions:
        counts["MillisecondsPerImage"] = round((time.monotonic() - started) * 1000 / len(predictions))
    metrics.print_line(
        counts, {"MillisecondsPerImage": "Milliseconds"}, runs=sorted(run_ids), failures=failures
    )


def _reason(error: ClientError | BotoCoreError | NotDone | NotAnnounced | RunGone) -> str:
    """What went wrong, in words that may be logged."""
    return reason(error) if isinstance(error, ClientError | BotoCoreError) else str(error)


if "AWS_LAMBDA_RUNTIME_API" in os.environ:
    metrics.silence_libraries()
    setup()  # in Lambda's init phase: the first invocation finds the model loaded
