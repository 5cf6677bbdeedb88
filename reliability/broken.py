"""Handlers that are broken on purpose: the tests of delivery must catch every one of them.

BROKEN maps a name to a context manager that breaks a handler in this process. This file imports only the
handlers, and each of them only when it breaks it. So a copy of this file works inside the classifier's image.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

Actions = list[dict[str, Any]]


@contextmanager
def _report_nothing() -> Iterator[None]:
    """The classifier answers that all jobs are done after some have failed."""
    from classifier.handler import Classifier

    stream = Classifier._stream

    def broken(self: Any, *args: Any) -> dict[str, Any]:
        stream(self, *args)
        return {"batchItemFailures": []}

    with patch.object(Classifier, "_stream", broken):
        yield


@contextmanager
def _drop_jobs_at_the_deadline() -> Iterator[None]:
    """A job that the classifier had no time for counts as done."""
    from classifier.handler import Classifier, NotDone

    write = Classifier._write

    def broken(self: Any, *args: Any) -> Any:
        outcome = write(self, *args)
        return [] if isinstance(outcome, NotDone) and str(outcome) == "too little time left" else outcome

    with patch.object(Classifier, "_write", broken):
        yield


@contextmanager
def _count_without_writing() -> Iterator[None]:
    """One image of every job is counted, but its prediction is not written."""

    def broken(actions: Actions) -> Actions:
        puts, others = _split(actions)
        return puts[:-1] + others

    with _changed_transactions(broken):
        yield


@contextmanager
def _skip_an_image() -> Iterator[None]:
    """One image of every job is neither written nor counted."""
    from runs.table import RunTable

    write = RunTable.write

    def broken(self: Any, run_id: str, uid: str, done: Collection[Any], *others: Any) -> None:
        write(self, run_id, uid, list(done)[:-1], *others)

    with patch.object(RunTable, "write", broken):
        yield


@contextmanager
def _count_every_delivery() -> Iterator[None]:
    """The counts are changed outside the transaction, for every delivery of a job."""
    from runs import table

    write = table.RunTable.write

    def broken(self: Any, run_id: str, uid: str, done: Collection[Any], *others: Any) -> None:
        write(self, run_id, uid, done, *others)
        counted = [a["Update"] for a in original("", run_id, uid, done, {}, {}) if "Update" in a]
        for update in counted:
            self._dynamodb.update_item(**{**update, "TableName": self._name})

    original = table.write_actions
    without_counts = _changed_transactions(lambda actions: _with_other_counts(actions, lambda _: 0))
    with without_counts, patch.object(table.RunTable, "write", broken):
        yield


@contextmanager
def _overwrite_scored() -> Iterator[None]:
    """A second delivery writes a SCORED prediction again, but does not count it again."""
    from runs import table as runs_table

    original = runs_table.write_actions

    def broken(
        table: str,
        run_id: str,
        uid: str,
        done: Collection[Any],
        stored: Mapping[str, Any],
        stamp: Mapping[str, str],
    ) -> Actions:
        again = [p for p in done if not p.error and p.key in stored and stored[p.key].count == "SCORED"]
        puts, _ = _split(original(table, run_id, uid, again, {}, stamp))
        for action in puts:
            del action["Put"]["ConditionExpression"]
        return puts + original(table, run_id, uid, done, stored, stamp)

    with patch.object(runs_table, "write_actions", broken):
        yield


@contextmanager
def _keep_failed_counts() -> Iterator[None]:
    """An image that goes from FAILED to SCORED stays in both counts."""

    with _changed_transactions(lambda actions: _with_other_counts(actions, lambda number: max(0, number))):
        yield


@contextmanager
def _ignore_connection_errors() -> Iterator[None]:
    """A write that ended with a connection error counts as done."""
    from botocore.exceptions import BotoCoreError
    from runs.table import RunTable

    write = RunTable.write

    def broken(self: Any, *args: Any) -> None:
        try:
            write(self, *args)
        except BotoCoreError:
            return

    with patch.object(RunTable, "write", broken):
        yield


@contextmanager
def _announce_again() -> Iterator[None]:
    """Every caller that finds the run COMPLETE sends the event, not only the one that completed it."""
    from runs.predictions import total
    from runs.table import RunTable

    complete = RunTable.complete

    def broken(self: Any, run_id: str, by: str) -> Any:
        counts = complete(self, run_id, by)
        if counts is None and (run := self.run(run_id)) and run.state == "COMPLETE":
            return total([])
        return counts

    with patch.object(RunTable, "complete", broken):
        yield


@contextmanager
def _complete_early() -> Iterator[None]:
    """A run is completed while one image has no prediction."""
    from runs import table
    from runs.predictions import outcomes

    with patch.object(table, "outcomes", lambda counts: outcomes(counts) + 1):
        yield


@contextmanager
def _change_the_partition() -> Iterator[None]:
    """A second delivery writes a second prediction, because the partition differs each time."""
    from runs import layout

    calls: Counter[str] = Counter()

    def broken(run_id: str, key: str) -> Any:
        calls[key] += 1
        return {"pk": layout.partitions(run_id)[calls[key] % layout.PARTITIONS], "sk": key}

    with patch.object(layout, "prediction_key", broken):
        yield


@contextmanager
def _call_forbidden_images_missing() -> Iterator[None]:
    """An image in the bucket becomes IMAGE_MISSING when S3 answers 403."""
    from classifier.handler import Classifier

    with patch.object(Classifier, "_exists", lambda *_: False):
        yield


@contextmanager
def _ignore_refused_records() -> Iterator[None]:
    """The job creator does not send the jobs again that PutRecords refused."""
    from job_creator import handler

    def broken(kinesis: Any, stream: str, records: list[Any]) -> int:
        kinesis.put_records(StreamName=stream, Records=records)
        return 0

    with patch.object(handler, "put", broken):
        yield


@contextmanager
def _delete_failure_objects_early() -> Iterator[None]:
    """`cxr retry` deletes a failure object as soon as its jobs are sent."""
    from cxr import retry

    retry_object = retry._retry_object

    def broken(s3: Any, kinesis: Any, stack: Any, key: str, missing: Any) -> Any:
        outcome = retry_object(s3, kinesis, stack, key, missing)
        if outcome.given_up:
            s3.delete_object(Bucket=stack.failure_bucket, Key=key)
        return outcome

    with patch.object(retry, "_retry_object", broken):
        yield


@contextmanager
def _retry_without_reopening() -> Iterator[None]:
    """A run stays COMPLETE while images that were sent again have no new outcome."""
    from dataclasses import replace

    from runs.table import RunTable

    def broken(self: Any, run: Any, failed: Collection[Any]) -> None:
        stored = {prediction.key: prediction for prediction in failed}
        self.write(run.run_id, run.uid, [replace(each, retrying=True) for each in failed], stored, {})

    with patch.object(RunTable, "mark_retrying", broken):
        yield


@contextmanager
def _count_every_event() -> Iterator[None]:
    """An image that is announced twice is counted twice in its standing run."""
    from runs.table import RunTable

    admit = RunTable._admit

    def broken(self: Any, run: Any, images: int, **options: Any) -> Any:
        return admit(self, run, max(images, 1), **options)

    with patch.object(RunTable, "_admit", broken):
        yield


@contextmanager
def _forget_overwrites() -> Iterator[None]:
    """An image that has a score in its standing run is not scored again when another content arrives."""
    from runs.arrivals import Arrival

    waiting_after = Arrival.waiting_after

    def broken(self: Any, before: Any) -> Any:
        return None if before and before.count == "SCORED" else waiting_after(self, before)

    with patch.object(Arrival, "waiting_after", broken):
        yield


@contextmanager
def _close_early() -> Iterator[None]:
    """A standing run expects the images that it has before S3 was listed."""
    from arrivals.reconciler import Reconciler
    from runs.table import RunTable

    close = RunTable.close

    def broken(self: Any, run: Any) -> None:
        close(self, run)
        self.expect_arrived(run)

    with patch.object(RunTable, "close", broken), patch.object(Reconciler, "_take", lambda *_, **__: 0):
        yield


@contextmanager
def _write_old_contents() -> Iterator[None]:
    """A score of an old content ends the wait for the one that arrived while the old one was scored."""
    from dataclasses import replace

    from runs import table

    replaces = table._replaces

    def broken(new: Any, before: Any) -> bool:
        return replaces(replace(new, arrivals=before.arrivals) if before else new, before)

    with patch.object(table, "_replaces", broken):
        yield


@contextmanager
def _changed_transactions(change: Callable[[Actions], Actions]) -> Iterator[None]:
    """Pass every transaction that writes predictions through `change`."""
    from runs import table

    original = table.write_actions
    with patch.object(table, "write_actions", lambda *args: change(original(*args))):
        yield


def _with_other_counts(actions: Actions, change: Callable[[int], int]) -> Actions:
    """The transaction, with every number that it adds to the counter changed."""
    for action in actions:
        values = action.get("Update", {}).get("ExpressionAttributeValues", {})
        for name, value in values.items():
            values[name] = {"N": str(change(int(value["N"])))} if "N" in value else value
    return actions


def _split(actions: Actions) -> tuple[Actions, Actions]:
    """The puts of a transaction, and its other actions."""
    puts = [action for action in actions if "Put" in action]
    return puts, [action for action in actions if "Put" not in action]


BROKEN: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "reports no failed job": _report_nothing,
    "drops jobs at the deadline": _drop_jobs_at_the_deadline,
    "counts an image without writing it": _count_without_writing,
    "skips an image": _skip_an_image,
    "counts every delivery": _count_every_delivery,
    "overwrites SCORED predictions": _overwrite_scored,
    "keeps the FAILED count of a SCORED image": _keep_failed_counts,
    "ignores connection errors of writes": _ignore_connection_errors,
    "announces a COMPLETE run again": _announce_again,
    "completes a run one image early": _complete_early,
    "changes the partition at every delivery": _change_the_partition,
    "calls a forbidden image missing": _call_forbidden_images_missing,
    "ignores records that Kinesis refuses": _ignore_refused_records,
    "deletes failure objects too early": _delete_failure_objects_early,
    "retries without reopening the run": _retry_without_reopening,
    "counts an event twice": _count_every_event,
    "forgets that an image was overwritten": _forget_overwrites,
    "closes a day before S3 is listed": _close_early,
    "writes the score of an old content": _write_old_contents,
}
