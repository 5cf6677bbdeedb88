"""Images that failed, back onto the stream."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runs.codes import ErrorCode
from runs.jobs import Job, StreamRefused, batches, groups, put
from runs.predictions import Prediction
from runs.run import Run, State
from runs.table import RunGone, RunTable

from cxr.errors import Failed, InputError
from cxr.failure_bucket import jobs_in, objects
from cxr.runs import RunStatus, run_status, run_table
from cxr.stack import Stack, client

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client

IMAGES_PER_JOB = 32  # of FAILED images; jobs of the failure bucket keep their size


@dataclass(frozen=True)
class Retried:
    """What became of a run's failures."""

    given_up: int = 0  # images sent that were in the failure bucket without a prediction
    failed: int = 0  # FAILED images sent, or sent once more because an earlier retry had no outcome yet
    waiting: int = 0  # images of a standing run sent that had no outcome yet
    completing: int = 0  # jobs sent although every image has its outcome: to complete the run
    objects_deleted: int = 0  # of the failure bucket: no run needs them any more
    objects_left: int = 0  # with images of the run that have none yet


def retry_run(stack: Stack, run_id: str, *, codes: Collection[str] = ()) -> Retried:
    """Send again what the failure bucket holds of the run, and its FAILED images with one of these codes.

    Of a standing run, it also sends the images that wait for their first outcome.

    FAILED images keep their code until they have a new outcome, and a COMPLETE run is SCORING until all of
    them have. Images that an earlier call has sent and that have no outcome yet are sent once more: their job
    may be lost.

    A failure object is deleted once every image in it has a prediction and every other run in it is complete,
    cancelled or gone. The images that this call sends have none yet: their objects go with the next call.
    Sent twice, an image is scored once. A run that has all its predictions but is not COMPLETE gets a job
    again: the classifier then completes it.

    Raises InputError if the run is not there or CANCELLED, or a code is unknown; Failed if the stream does
    not take a job.
    """
    for code in codes:
        if code not in ErrorCode.__members__:
            raise InputError(f"{code} is no error code; expected one of {', '.join(ErrorCode)}")
    table, s3, kinesis = run_table(stack), client("s3"), client("kinesis")
    run = run_status(table, run_id)
    if run.state == State.CANCELLED:
        how = f"resume it by `cxr resume {run_id}`" if run.standing else "start it again by `cxr run`"
        raise InputError(f"run {run_id} is CANCELLED, and its jobs would be dropped; {how}")
    if run.state == State.DELETING:
        raise InputError(f"run {run_id} is being deleted; `cxr delete {run_id}` continues that")
    missing = Missing(table, run)
    given_up = deleted = left = 0
    for entry in list(objects(s3, stack.failure_bucket)):  # a whole list: objects go while it is walked
        outcome = _retry_object(s3, kinesis, stack, entry["Key"], missing)
        given_up += outcome.given_up
        deleted += outcome.objects_deleted
        left += outcome.objects_left
    failed = 0

    def jobs_of_failed_images() -> Iterator[Job]:
        nonlocal failed
        wanted = (found for found in table.failed(run_id) if found.retrying or found.error in codes)
        for group in groups(wanted, IMAGES_PER_JOB):
            table.mark_retrying(run, group)
            failed += len(group)
            yield _job(stack, run, group)

    try:
        if codes or run.retrying:
            _send(kinesis, stack.stream, jobs_of_failed_images())
    except RunGone as error:
        raise Failed(str(error)) from None
    waiting = 0
    for group in groups(table.waiting(run_id) if run.standing else (), IMAGES_PER_JOB):
        _send(kinesis, stack.stream, [_job(stack, run, group)])
        waiting += len(group)
    completing = run.state == State.SCORING and run.complete
    if completing:
        # After every job, also one with nothing to do, the classifier checks whether its run is complete.
        key = next(table.predicted_keys(run_id))
        _send(kinesis, stack.stream, [Job(run_id, run.uid, stack.images_bucket, (key,))])
    return Retried(given_up, failed, waiting, int(completing), deleted, left)


class Missing:
    """Which images of which runs still have no prediction."""

    def __init__(self, table: RunTable, run: RunStatus) -> None:
        self._uid = run.uid
        self._table = table
        self._sent: set[str] = set()  # keys of the run; several objects may hold the same image
        self._runs: dict[str, Run | None] = {}

    def belongs(self, job: Job) -> bool:
        """Whether the job is of the run that is retried."""
        return job.run_uid == self._uid

    def of(self, job: Job) -> tuple[str, ...]:
        """The keys of the job that have no prediction. Of a run that was deleted none is missing."""
        if not self.state(job):
            return ()
        stored = self._table.stored(job.run_id, job.keys)
        return tuple(key for key in job.keys if key not in stored or stored[key].waiting)

    def unsent(self, keys: Iterable[str]) -> tuple[str, ...]:
        """Those of the run's keys that were not asked for before."""
        found = tuple(key for key in keys if key not in self._sent)
        self._sent.update(found)
        return found

    def keep(self, job: Job) -> bool:
        """Whether another run needs the job: for its images, or to be completed."""
        return self.state(job) in (State.LISTING, State.SCORING) or bool(self.of(job))

    def state(self, job: Job) -> State | None:
        """The state of the job's run. None if that run is gone, also if another has its name now."""
        if job.run_id not in self._runs:
            self._runs[job.run_id] = self._table.run(job.run_id)
        run = self._runs[job.run_id]
        return run.state if run and run.uid == job.run_uid else None


def _job(stack: Stack, run: Run, images: Iterable[Prediction]) -> Job:
    return Job(run.run_id, run.uid, stack.images_bucket, tuple(image.key for image in images))


def _retry_object(s3: S3Client, kinesis: KinesisClient, stack: Stack, key: str, missing: Missing) -> Retried:
    """Send what is missing of the run; delete the object if no run needs it any more."""
    jobs = jobs_in(s3, stack.failure_bucket, key)
    ours = [job for job in jobs if missing.belongs(job)]
    others = [job for job in jobs if not missing.belongs(job)]
    if not ours and (not others or any(map(missing.state, others))):
        return Retried()
    lacking = [(job, keys) for job in ours if (keys := missing.of(job))]
    if lacking:
        again = [replace(job, keys=keys) for job, found in lacking if (keys := missing.unsent(found))]
        _send(kinesis, stack.stream, again)
        return Retried(given_up=sum(len(job.keys) for job in again), objects_left=1)
    if any(map(missing.keep, others)):
        return Retried()
    s3.delete_object(Bucket=stack.failure_bucket, Key=key)
    return Retried(objects_deleted=1)


def _send(kinesis: KinesisClient, stream: str, jobs: Iterable[Job]) -> None:
    """Put jobs onto the stream; the classifier skips what is SCORED by then. Raises Failed."""
    try:
        for records in batches(replace(job, continued=True) for job in jobs):
            put(kinesis, stream, records)
    except StreamRefused as error:
        raise Failed(f"{error}; try again in some minutes") from None
