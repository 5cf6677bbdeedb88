"""The table of runs, counts and predictions: every call that anybody makes to it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from runs import layout
from runs.arrivals import Arrival
from runs.attributes import Item, pack, unpack
from runs.backoff import CONFLICT, OVERLOAD, Patience, full_jitter
from runs.predictions import SCORED, WAITING, Counts, Prediction, counts_of, outcomes, total
from runs.run import Run, State

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

DELETERS = 8  # partitions whose items are deleted at once
DELETE_BATCH = 25  # keys that BatchWriteItem takes
# What decides how a prediction may be replaced, and moves which counts.
_STORED = ("sk", "status", "error", "retrying", "warnings", "arrivals", "arrived_at", "etag")
# Reasons of a cancelled transaction that may be gone in the next attempt (DynamoDB API, TransactWriteItems).
_THROTTLED = {"ThrottlingError", "ProvisionedThroughputExceeded"}
_TRANSIENT = {"None", "ConditionalCheckFailed", "TransactionConflict", *_THROTTLED}


class RunGone(Exception):
    """The run was deleted meanwhile, and takes no prediction any more."""


class RunClosed(Exception):
    """The standing run takes no more arrivals."""


class RunPaused(Exception):
    """The standing run takes no arrivals for now: it is CANCELLED, or being deleted."""


class RunTable:
    """The table. Every method raises ClientError and BotoCoreError."""

    def __init__(self, dynamodb: DynamoDBClient, name: str) -> None:
        self._dynamodb = dynamodb
        self._name = name

    # Runs

    def run(self, run_id: str) -> Run | None:
        """The run of this name; None if there is none."""
        answer = self._dynamodb.get_item(
            TableName=self._name, Key=pack(layout.run_key(run_id)), ConsistentRead=True
        )
        return Run.from_fields(unpack(answer["Item"])) if "Item" in answer else None

    def runs(self) -> Iterator[Run]:
        """Every run, in the order of their names."""
        return (Run.from_fields(unpack(item)) for item in self._query(layout.RUNS))

    def begin(self, run_id: str, fields: Mapping[str, Any]) -> str | None:
        """Make the run's item and its counters, all or nothing. Its uid; None if there is such a run.

        None also where another caller is making or deleting it: ask again.
        """
        uid = secrets.token_hex(8)
        item = {**fields, "uid": uid, "state": State.LISTING, "created_at": now()}
        actions = begin_actions(self._name, run_id, item)
        try:
            self._dynamodb.transact_write_items(TransactItems=actions)
        except self._dynamodb.exceptions.TransactionCanceledException:
            return None
        return uid

    def resume(self, run: Run, done: int) -> None:
        """Continue the run, which has `done` outcomes so far. A CANCELLED run becomes LISTING."""
        values = {":uid": run.uid, ":now": now(), ":done": done}
        resumed = "SET resumed_at = :now, resumed_with = :done"
        self._update_run(run.run_id, resumed, "uid = :uid", values)
        self._update_run(
            run.run_id,
            "SET #state = :listing REMOVE expected",
            "uid = :uid AND #state = :cancelled",
            {":uid": run.uid, ":listing": State.LISTING, ":cancelled": State.CANCELLED},
        )

    def expect(self, run_id: str, uid: str, images: int, keys_sha256: str) -> bool:
        """Take the run to SCORING, now that all its jobs are sent: it expects so many images.

        Whether that was done. It is not for a run that is CANCELLED or gone by now, nor for one that another
        invocation with the same event has brought to COMPLETE with as many images.
        """
        return self._update_run(
            run_id,
            "SET #state = :scoring, expected = :expected, keys_sha256 = :keys_sha256, listed_at = :now",
            "uid = :uid AND (#state IN (:listing, :scoring) OR #state = :complete AND expected <> :expected)",
            {
                ":uid": uid,
                ":listing": State.LISTING,
                ":scoring": State.SCORING,
                ":complete": State.COMPLETE,
                ":expected": images,
                ":keys_sha256": keys_sha256,
                ":now": now(),
            },
        )

    def cancel(self, run_id: str) -> bool:
        """Take the run to CANCELLED. Whether it was at work."""
        return self._update_run(
            run_id,
            "SET #state = :cancelled, cancelled_at = :now",
            "#state IN (:listing, :scoring)",
            {
                ":cancelled": State.CANCELLED,
                ":listing": State.LISTING,
                ":scoring": State.SCORING,
                ":now": now(),
            },
        )

    def complete(self, run_id: str, by: str) -> Counts | None:
        """Mark the run COMPLETE once its counts reach what it expects; one of all callers gets the counts.

        `by` is the caller's own: if an answer is lost, the SDK's next try finds its own mark. If this raises,
        the run may have been completed all the same: call `undo_completion`.
        """
        run = self.run(run_id)
        if run is None or run.state != State.SCORING or run.expected is None:
            return None
        counts = self.counts(run_id)  # read after the caller's own write: the last to write sees all counts
        if outcomes(counts) < run.expected:
            return None
        completed = self._update_run(
            run_id,
            "SET #state = :complete, completed_at = :now, completed_by = :by",
            # A retry after the counts were read has changed `retries`.
            "uid = :uid AND expected = :expected AND (attribute_not_exists(retries) OR retries = :retries) "
            "AND (#state = :scoring OR #state = :complete AND completed_by = :by)",
            {
                ":uid": run.uid,
                ":complete": State.COMPLETE,
                ":scoring": State.SCORING,
                ":expected": run.expected,
                ":retries": run.retries,
                ":by": by,
                ":now": now(),
            },
        )
        return counts if completed else None

    def undo_completion(self, run_id: str, by: str) -> None:
        """Take a run that this caller has completed back to SCORING, for the next caller to complete."""
        self._update_run(
            run_id,
            "SET #state = :scoring REMOVE completed_at, completed_by",
            "#state = :complete AND completed_by = :by",
            {":complete": State.COMPLETE, ":scoring": State.SCORING, ":by": by},
        )

    def delete(self, run: Run) -> Iterator[int]:
        """Delete the run's counters and predictions, and yield how many predictions each partition had.

        The item of the run stays, in state DELETING, for `forget`. Without its counters the run takes no
        prediction any more, so they go first.
        """
        self._delete_partition(layout.counters_partition(run.run_id))
        with ThreadPoolExecutor(DELETERS) as pool:
            yield from pool.map(self._delete_partition, layout.partitions(run.run_id))

    def mark_deleting(self, run: Run) -> bool:
        """Take the run to DELETING. Whether it was still in the state that `run` says."""
        return self._update_run(
            run.run_id,
            "SET #state = :deleting",
            "uid = :uid AND #state = :found",
            {":uid": run.uid, ":found": run.state, ":deleting": State.DELETING},
        )

    def forget(self, run: Run) -> None:
        """Delete the item of a run that is DELETING, if it is still there."""
        try:
            self._dynamodb.delete_item(
                TableName=self._name,
                Key=pack(layout.run_key(run.run_id)),
                ConditionExpression="uid = :uid AND #state = :deleting",
                ExpressionAttributeNames={"#state": "state"},
                ExpressionAttributeValues=pack({":uid": run.uid, ":deleting": State.DELETING}),
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return

    # Counts and predictions

    def counts(self, run_id: str) -> Counts:
        """The counts of the run, in one request."""
        return total(map(unpack, self._query(layout.counters_partition(run_id))))

    def stored(self, run_id: str, images: Iterable[str]) -> dict[str, Prediction]:
        """S3 key -> its prediction without the scores, for those of at most 100 keys that have one."""
        wanted: Any = [pack(layout.prediction_key(run_id, key)) for key in images]
        found: dict[str, Prediction] = {}
        failures = 0
        while wanted:
            request: Any = {
                "Keys": wanted,
                "ConsistentRead": True,
                "ProjectionExpression": ", ".join(f"#{name}" for name in _STORED),
                "ExpressionAttributeNames": {f"#{name}": name for name in _STORED},
            }
            answer: Any = self._dynamodb.batch_get_item(RequestItems={self._name: request})
            for item in answer["Responses"][self._name]:
                prediction = Prediction.from_fields(unpack(item))
                found[prediction.key] = prediction
            wanted = answer["UnprocessedKeys"].get(self._name, {}).get("Keys")
            if wanted:  # DynamoDB was throttled, and its guide asks to wait (BatchGetItem)
                failures += 1
                time.sleep(full_jitter(CONFLICT.longest(failures)))
        return found

    def write(
        self,
        run_id: str,
        uid: str,
        done: Collection[Prediction],
        stored: Mapping[str, Prediction],
        stamp: Mapping[str, str],
        seconds_left: Callable[[], float] | None = None,
    ) -> None:
        """Write at most 99 predictions and move the run's counts with them, all or nothing.

        `stored` is what is known to be in the table, by S3 key. Where it is out of date, it is read, and the
        rest written. `stamp` (model, model_sha256) goes into every prediction. A transaction that is
        cancelled by throttling or a conflict is tried again while there are `seconds_left`, without them a
        few times. Raises RunGone if there is no run of this uid any more.
        """
        stamp = {**stamp, "scored_at": now()}
        self._write(
            run_id,
            lambda known: write_actions(self._name, run_id, uid, done, known, stamp),
            [prediction.key for prediction in done],
            stored,
            Patience(seconds_left),
        )

    def mark_retrying(self, run: Run, failed: Collection[Prediction]) -> None:
        """Let at most 98 FAILED images wait for a new outcome, and a COMPLETE run be SCORING again.

        All or nothing, so that nobody completes the run meanwhile. What is SCORED by now is left out. Raises
        RunGone.
        """
        waiting = [replace(prediction, retrying=True) for prediction in failed]
        stored = {prediction.key: prediction for prediction in failed}
        stamp = {"model": run.model, "model_sha256": run.model_sha256, "scored_at": now()}

        def actions(known: Mapping[str, Prediction]) -> list[dict[str, Any]]:
            writes = write_actions(self._name, run.run_id, run.uid, waiting, known, stamp)
            return writes and [self._reopen(run, len(writes) - 1), *writes]

        self._write(run.run_id, actions, list(stored), stored, Patience())

    def announce(
        self, run: Run, arrivals: Collection[Arrival], *, reconciling: bool = False
    ) -> list[Prediction]:
        """Let at most 98 images of a standing run wait for an outcome, and count them.

        Returns those of them that wait now, also the ones that did before: their jobs may be lost. An image
        that has an outcome of the same content waits for none. Raises RunClosed, RunPaused and RunGone.
        """
        waiting: list[Prediction] = []

        def actions(known: Mapping[str, Prediction]) -> list[dict[str, Any]]:
            found = (arrival.waiting_after(known.get(arrival.key)) for arrival in arrivals)
            waiting[:] = [prediction for prediction in found if prediction]
            writes = write_actions(self._name, run.run_id, run.uid, waiting, known, {})
            new = sum(each.key not in known for each in waiting)
            return writes and [self._admit(run, new, reconciling=reconciling), *writes]

        keys = [arrival.key for arrival in arrivals]
        self._write(run.run_id, actions, keys, self.stored(run.run_id, keys), Patience())
        return waiting

    def _admit(self, run: Run, images: int, *, reconciling: bool) -> dict[str, Any]:
        """The update that adds so many images to a standing run. Raises as `announce` does."""
        found = self.run(run.run_id)
        if found is None or found.uid != run.uid:
            raise RunGone(f"run {run.run_id} was deleted")
        if found.state in (State.CANCELLED, State.DELETING):
            raise RunPaused(f"run {run.run_id} is {found.state}")
        if not (found.state == State.LISTING or (reconciling and found.reconciling)):
            raise RunClosed(f"run {run.run_id} is {found.state}")
        condition = "uid = :uid AND #state = :found AND attribute_not_exists(expected)"
        values = {":uid": run.uid, ":found": found.state, ":images": images}
        return {"Update": self._run_update(run.run_id, "ADD arrived :images", condition, values)}

    def close(self, run: Run) -> None:
        """Let a standing run take no more arrivals but those of its reconciliation."""
        self._update_run(
            run.run_id,
            "SET #state = :scoring",
            "uid = :uid AND #state = :listing",
            {":uid": run.uid, ":listing": State.LISTING, ":scoring": State.SCORING},
        )

    def expect_arrived(self, run: Run) -> None:
        """Let a standing run that is reconciled expect the images that it has."""
        self._update_run(
            run.run_id,
            "SET expected = arrived, listed_at = :now",
            "uid = :uid AND #state = :scoring AND attribute_not_exists(expected)",
            {":uid": run.uid, ":scoring": State.SCORING, ":now": now()},
        )

    def _reopen(self, run: Run, images: int) -> dict[str, Any]:
        """The update that counts a retry of so many images, and takes the run from COMPLETE to SCORING."""
        found = self.run(run.run_id)
        if found is None or found.uid != run.uid:
            raise RunGone(f"run {run.run_id} was deleted")
        values: dict[str, Any] = {":uid": run.uid, ":one": 1, ":found": found.state}
        if found.state == State.COMPLETE:
            update = (
                "SET #state = :scoring, resumed_at = :now, resumed_with = :done "
                "REMOVE completed_at, completed_by ADD retries :one"
            )
            done = outcomes(self.counts(run.run_id)) - images
            values |= {":scoring": State.SCORING, ":now": now(), ":done": done}
        else:
            update = "ADD retries :one, resumed_with :images"
            values[":images"] = -images
        condition = "uid = :uid AND #state = :found"
        return {"Update": self._run_update(run.run_id, update, condition, values)}

    def _write(
        self,
        run_id: str,
        actions_for: Callable[[Mapping[str, Prediction]], list[dict[str, Any]]],
        images: Collection[str],
        stored: Mapping[str, Prediction],
        patience: Patience,
    ) -> None:
        """Write the transaction for what the table holds: `stored`, and if that is out of date what is read.

        Raises RunGone.
        """
        while True:
            actions: Any = actions_for(stored)
            if not actions:
                return
            try:
                self._dynamodb.transact_write_items(TransactItems=actions)
                return
            except self._dynamodb.exceptions.TransactionCanceledException as error:
                reasons = [reason["Code"] for reason in error.response["CancellationReasons"]]
                if reasons[-1] == "ConditionalCheckFailed":  # of the counter
                    raise RunGone(f"run {run_id} was deleted") from None
                backoff = CONFLICT if _THROTTLED.isdisjoint(reasons) else OVERLOAD
                if not _TRANSIENT.issuperset(reasons) or not patience.wait(backoff):
                    raise
            if "ConditionalCheckFailed" in reasons:
                stored = self.stored(run_id, images)

    def predictions(self, run_id: str) -> Iterator[Prediction]:
        """Every outcome of the run, partition by partition, in each in the order of the keys."""
        names = ("scores", "positive", "scored_at", "model", *_STORED)
        for partition in layout.partitions(run_id):
            for item in self._query(partition, names):
                prediction = Prediction.from_fields(unpack(item))
                if not prediction.waiting:
                    yield prediction

    def predicted_keys(self, run_id: str) -> Iterator[str]:
        """The keys of all images that have a prediction."""
        for partition in layout.partitions(run_id):
            yield from (item["sk"]["S"] for item in self._query(partition, ("sk",)))

    def waiting(self, run_id: str) -> Iterator[Prediction]:
        """The images of a standing run that wait for an outcome."""
        for partition in layout.partitions(run_id):
            found = self._query(
                partition,
                _STORED,
                FilterExpression="#status = :waiting",
                ExpressionAttributeValues={":waiting": {"S": WAITING}},
            )
            yield from (Prediction.from_fields(unpack(item)) for item in found)

    def failed(self, run_id: str) -> Iterator[Prediction]:
        """The FAILED predictions, also those that are retried."""
        for partition in layout.partitions(run_id):
            found = self._query(partition, _STORED, FilterExpression="attribute_exists(#error)")
            yield from (Prediction.from_fields(unpack(item)) for item in found)

    # Requests

    def _query(self, partition: str, names: Sequence[str] = (), **options: Any) -> Iterator[Item]:
        """The items of a partition, page by page; with `names`, only these attributes of them."""
        if names:
            options["ProjectionExpression"] = ", ".join(f"#{name}" for name in names)
            named = {f"#{name}": name for name in names}
            options["ExpressionAttributeNames"] = named | options.get("ExpressionAttributeNames", {})
        options["ExpressionAttributeValues"] = {
            **options.get("ExpressionAttributeValues", {}),
            ":pk": {"S": partition},
        }
        pages = self._dynamodb.get_paginator("query").paginate(
            TableName=self._name, KeyConditionExpression="pk = :pk", ConsistentRead=True, **options
        )
        return (item for page in pages for item in page["Items"])

    def _update_run(self, run_id: str, update: str, condition: str, values: Mapping[str, Any]) -> bool:
        """Update the run's item if the condition holds. Whether it held."""
        try:
            self._dynamodb.update_item(**self._run_update(run_id, update, condition, values))
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True

    def _run_update(self, run_id: str, update: str, condition: str, values: Mapping[str, Any]) -> Any:
        """An update of the run's item, as UpdateItem and a transaction take it."""
        names = {"#state": "state"} if "#state" in update + condition else {}
        return {
            "TableName": self._name,
            "Key": pack(layout.run_key(run_id)),
            "UpdateExpression": update,
            "ConditionExpression": condition,
            **({"ExpressionAttributeNames": names} if names else {}),
            "ExpressionAttributeValues": pack(values),
        }

    def _delete_partition(self, partition: str) -> int:
        """Delete all items of a partition. How many there were."""
        deleted = 0
        items = self._query(partition, ("pk", "sk"))
        while batch := list(islice(items, DELETE_BATCH)):
            requests: Any = {self._name: [{"DeleteRequest": {"Key": key}} for key in batch]}
            while requests:  # the client's own retries slow it down where DynamoDB throttles
                requests = self._dynamodb.batch_write_item(RequestItems=requests)["UnprocessedItems"]
            deleted += len(batch)
        return deleted


def begin_actions(table: str, run_id: str, fields: Mapping[str, Any]) -> Any:
    """One TransactWriteItems that puts a run's item with these fields, its uid among them, and its counters.

    The first action's condition fails if there is a run of that name. A counter holds the uid of its run, and
    every write of predictions adds to a counter on that condition: after the run is deleted, no write of its
    jobs succeeds, also if its name is used again.
    """
    uid = {"uid": fields["uid"]}
    counters = [layout.counter_key(run_id, number) | uid for number in range(layout.COUNTERS)]
    actions: list[dict[str, Any]] = [
        {"Put": {"TableName": table, "Item": pack(item)}}
        for item in ({**layout.run_key(run_id), **fields}, *counters)
    ]
    actions[0]["Put"]["ConditionExpression"] = "attribute_not_exists(pk)"
    return actions


def write_actions(
    table: str,
    run_id: str,
    uid: str,
    predictions: Iterable[Prediction],
    stored: Mapping[str, Prediction],
    stamp: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One TransactWriteItems that puts predictions and moves the run's counts with them.

    Each put has the condition that the table still holds what `stored` says. The last action is the
    counter's; its condition fails if the run of this uid is gone. Empty if there is nothing to change.
    """
    changed = [each for each in predictions if _replaces(each, stored.get(each.key))]
    if not changed:
        return []
    puts = [
        {
            "Put": {
                "TableName": table,
                "Item": pack({**layout.prediction_key(run_id, each.key), **each.to_fields(), **stamp}),
                **_unchanged(stored.get(each.key)),
            }
        }
        for each in changed
    ]
    moved = counts_of(changed)
    moved.subtract(counts_of(stored[each.key] for each in changed if each.key in stored))
    counter = int(hashlib.sha256(changed[0].key.encode()).hexdigest(), 16) % layout.COUNTERS
    return [*puts, {"Update": {"TableName": table, **_add(run_id, counter, uid, moved)}}]


def _replaces(new: Prediction, before: Prediction | None) -> bool:
    """Whether a prediction takes the place of the one that the table holds.

    An arrival replaces everything that is of another content. A SCORED prediction is otherwise never
    overwritten, a FAILED one only by another outcome or a retry, and one that waits by every outcome. But an
    outcome must not end the wait for a content that was announced after its image was fetched.
    """
    if before is None:
        return True
    if new.waiting:
        return new.etag != before.etag
    return new.arrivals == before.arrivals and before.count not in (SCORED, new.count)


def _unchanged(before: Prediction | None) -> dict[str, Any]:
    """The condition that the prediction is as it was read (None: there was none)."""
    if before is None:
        return {"ConditionExpression": "attribute_not_exists(pk)"}
    conditions: list[str] = []
    names: dict[str, str] = {}
    values: dict[str, Any] = {}
    if before.arrivals:
        conditions += ["arrivals = :arrivals", "#status = :status"]
        names["#status"] = "status"
        values |= {":arrivals": before.arrivals, ":status": before.status}
    if before.error:
        conditions += [
            "#error = :error",
            "attribute_exists(retrying)" if before.retrying else "attribute_not_exists(retrying)",
        ]
        names["#error"] = "error"
        values[":error"] = before.error
    return {
        "ConditionExpression": " AND ".join(conditions),
        "ExpressionAttributeNames": names,
        "ExpressionAttributeValues": pack(values),
    }


def _add(run_id: str, counter: int, uid: str, changes: Mapping[str, int]) -> dict[str, Any]:
    """The update that adds to one counter of the run of this uid."""
    return {
        "Key": pack(layout.counter_key(run_id, counter)),
        "UpdateExpression": "ADD " + ", ".join(f"#c{i} :c{i}" for i in range(len(changes))),
        "ConditionExpression": "uid = :uid",
        "ExpressionAttributeNames": {f"#c{i}": name for i, name in enumerate(changes)},
        "ExpressionAttributeValues": pack(
            {":uid": uid, **{f":c{i}": n for i, n in enumerate(changes.values())}}
        ),
    }


def now() -> str:
    """The time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
