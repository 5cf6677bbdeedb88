"""Handlers that are broken on purpose, by name: what proves delivery has to catch every one of them.

Each entry of BROKEN is a context manager that patches a handler in this process. Nothing but the handlers
is imported, and that only when one is broken, so this file also works copied beside a classifier.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

Actions = list[dict[str, Any]]


@contextmanager
def _empty_answer_on_error() -> Iterator[None]:
    """The classifier answers "all done" where it should name the records that are not."""
    from classifier.handler import Classifier

    stream = Classifier._stream

    def broken(self: Any, *args: Any) -> dict[str, Any]:
        stream(self, *args)
        return {"batchItemFailures": []}

    with patch.object(Classifier, "_stream", broken):
        yield


@contextmanager
def _acknowledges_on_deadline() -> Iterator[None]:
    """A job that the time ran out for counts as done."""
    from classifier.handler import Classifier, NotDone

    write = Classifier._write

    def broken(self: Any, *args: Any) -> Any:
        outcome = write(self, *args)
        return [] if isinstance(outcome, NotDone) and str(outcome) == "too little time left" else outcome

    with patch.object(Classifier, "_write", broken):
        yield


@contextmanager
def _drops_one_write() -> Iterator[None]:
    """One image of every job is counted, but its prediction is not written."""

    def broken(actions: Actions) -> Actions:
        puts, others = _split(actions)
        return puts[:-1] + others

    with _transaction(broken):
        yield


@contextmanager
def _forgets_one_image() -> Iterator[None]:
    """One image of every job is neither written nor counted."""
    from runs.table import RunTable

    write = RunTable.write

    def broken(self: Any, run_id: str, uid: str, done: Collection[Any], *others: Any) -> None:
        write(self, run_id, uid, list(done)[:-1], *others)

    with patch.object(RunTable, "write", broken):
        yield


@contextmanager
def _counts_twice() -> Iterator[None]:
    """Counts are added outside the transaction, for every delivery of a job."""
    from runs import table

    write = table.RunTable.write

    def broken(self: Any, run_id: str, uid: str, done: Collection[Any], *others: Any) -> None:
        write(self, run_id, uid, done, *others)
        counted = [a["Update"] for a in whole("", run_id, uid, done, {}, {}) if "Update" in a]
        for update in counted:
            self._dynamodb.update_item(**{**update, "TableName": self._name})

    def adding_nothing(actions: Actions) -> Actions:
        return _counting(actions, lambda _: 0)

    whole = table.write_actions
    with _transaction(adding_nothing), patch.object(table.RunTable, "write", broken):
        yield


@contextmanager
def _overwrites_scored() -> Iterator[None]:
    """An image that is SCORED is put again when its job comes again; it is not counted again."""
    from runs import table as runs_table

    whole = runs_table.write_actions

    def broken(
        table: str,
        run_id: str,
        uid: str,
        done: Collection[Any],
        stored: Mapping[str, str],
        stamp: Mapping[str, str],
    ) -> Actions:
        again = [p for p in done if not p.error and stored.get(p.key) == "SCORED"]
        puts, _ = _split(whole(table, run_id, uid, again, {}, stamp))
        for action in puts:
            del action["Put"]["ConditionExpression"]
        return puts + whole(table, run_id, uid, done, stored, stamp)

    with patch.object(runs_table, "write_actions", broken):
        yield


@contextmanager
def _forgets_a_mended_failure() -> Iterator[None]:
    """An image that goes from FAILED to SCORED stays in both counts."""

    with _transaction(lambda actions: _counting(actions, lambda number: max(0, number))):
        yield


@contextmanager
def _takes_silence_for_success() -> Iterator[None]:
    """A write whose connection broke counts as made."""
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
def _announces_again() -> Iterator[None]:
    """Whoever finds the run COMPLETE says so, not only the one that made it so."""
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
def _completes_early() -> Iterator[None]:
    """A run is taken for complete when one image of it is missing still."""
    from runs import table
    from runs.predictions import outcomes

    with patch.object(table, "outcomes", lambda counts: outcomes(counts) + 1):
        yield


@contextmanager
def _files_by_delivery() -> Iterator[None]:
    """A prediction's partition is not its key's: when its job comes again, there are two of it."""
    from runs import layout

    times: Counter[str] = Counter()

    def broken(run_id: str, key: str) -> Any:
        times[key] += 1
        return {"pk": layout.partitions(run_id)[times[key] % layout.PARTITIONS], "sk": key}

    with patch.object(layout, "prediction_key", broken):
        yield


@contextmanager
def _takes_forbidden_for_missing() -> Iterator[None]:
    """An image that S3 refuses to give, for now, counts as missing for ever."""
    from classifier.handler import Classifier

    with patch.object(Classifier, "_exists", lambda *_: False):
        yield


@contextmanager
def _forgets_refused_jobs() -> Iterator[None]:
    """The job creator takes a PutRecords that was refused in part for a whole one."""
    from job_creator import handler

    def broken(kinesis: Any, stream: str, records: list[Any]) -> int:
        kinesis.put_records(StreamName=stream, Records=records)
        return 0

    with patch.object(handler, "put", broken):
        yield


@contextmanager
def _deletes_what_waits() -> Iterator[None]:
    """`cxr retry` deletes a failure object as soon as it has sent what is in it."""
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
def _transaction(change: Callable[[Actions], Actions]) -> Iterator[None]:
    """Every transaction of the classifier goes through `change`."""
    from runs import table

    whole = table.write_actions
    with patch.object(table, "write_actions", lambda *args: change(whole(*args))):
        yield


def _counting(actions: Actions, otherwise: Callable[[int], int]) -> Actions:
    """The transaction, with other numbers to add to the counter."""
    for action in actions:
        values = action.get("Update", {}).get("ExpressionAttributeValues", {})
        for name, value in values.items():
            values[name] = {"N": str(otherwise(int(value["N"])))} if "N" in value else value
    return actions


def _split(actions: Actions) -> tuple[Actions, Actions]:
    puts = [action for action in actions if "Put" in action]
    return puts, [action for action in actions if "Put" not in action]


BROKEN: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "empty answer on error": _empty_answer_on_error,
    "acknowledges on deadline": _acknowledges_on_deadline,
    "drops one write": _drops_one_write,
    "forgets one image": _forgets_one_image,
    "counts twice": _counts_twice,
    "overwrites SCORED": _overwrites_scored,
    "forgets a mended failure": _forgets_a_mended_failure,
    "takes silence for success": _takes_silence_for_success,
    "announces again": _announces_again,
    "completes early": _completes_early,
    "files by delivery": _files_by_delivery,
    "takes forbidden for missing": _takes_forbidden_for_missing,
    "forgets refused jobs": _forgets_refused_jobs,
    "deletes what waits": _deletes_what_waits,
}
