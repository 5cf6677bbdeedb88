"""The run's items, predictions and counts in DynamoDB: every call the classifier makes to its table."""

import random
import secrets
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from classifier import predictions
from classifier.predictions import Prediction, pack, unpack

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient

WRITE_ATTEMPTS = 8
# Reasons of a cancelled transaction that another attempt may find gone.
_PASSING = {
    "None",
    "ConditionalCheckFailed",
    "TransactionConflict",
    "ThrottlingError",
    "ProvisionedThroughputExceeded",
}


class RunIdTaken(Exception):
    """Direct jobs name a run that is not theirs."""


class RunGone(Exception):
    """The run was deleted meanwhile, and takes no prediction any more."""


class Table:
    """The table as one model's classifier sees it. Every method raises ClientError and BotoCoreError."""

    def __init__(self, name: str, dynamodb: "DynamoDBClient", model: str, model_sha256: str) -> None:
        self._name = name
        self._dynamodb = dynamodb
        self._model = {"model": model, "model_sha256": model_sha256}

    def run(self, run_id: str) -> dict[str, Any]:
        """The run's item, empty if there is none."""
        key = predictions.run_key(run_id)
        return unpack(
            self._dynamodb.get_item(TableName=self._name, Key=key, ConsistentRead=True).get("Item", {})
        )

    def stored(self, run_id: str, keys: Iterable[str]) -> dict[str, str]:
        """S3 key -> name of its count, for those of at most 100 keys that have a prediction."""
        wanted: Any = [predictions.prediction_key(run_id, key) for key in keys]
        found: dict[str, str] = {}
        attempt = 0
        while wanted:
            request: Any = {
                "Keys": wanted,
                "ConsistentRead": True,
                "ProjectionExpression": "sk, #status, #error",
                "ExpressionAttributeNames": {"#status": "status", "#error": "error"},
            }
            answer: Any = self._dynamodb.batch_get_item(RequestItems={self._name: request})
            found |= {item["sk"]["S"]: predictions.count_of(item) for item in answer["Responses"][self._name]}
            wanted = answer["UnprocessedKeys"].get(self._name, {}).get("Keys")
            if wanted:  # DynamoDB was throttled: its guide asks to wait (BatchGetItem)
                attempt = min(attempt + 1, WRITE_ATTEMPTS)
                _wait(attempt)
        return found

    def write(self, run_id: str, uid: str, done: Collection[Prediction], stored: Mapping[str, str]) -> None:
        """Writes at most 99 predictions and the run's counts, all or nothing.

        `stored` is what is known to be there; where it is out of date, it is read and the rest written.
        Raises RunGone where there is no run of this uid any more.
        """
        stamp = {**self._model, "scored_at": _now()}
        for attempt in range(1, WRITE_ATTEMPTS + 1):
            actions: Any = predictions.transaction(self._name, run_id, uid, done, stored, stamp)
            if not actions:
                return
            try:
                self._dynamodb.transact_write_items(TransactItems=actions)
                return
            except self._dynamodb.exceptions.TransactionCanceledException as error:
                *_, of_counter = reasons = [
                    reason["Code"] for reason in error.response["CancellationReasons"]
                ]
                if of_counter == "ConditionalCheckFailed":
                    raise RunGone(f"run {run_id} was deleted") from None
                if not _PASSING.issuperset(reasons) or attempt == WRITE_ATTEMPTS:
                    raise
            _wait(attempt)
            stored = self.stored(run_id, [prediction.key for prediction in done])

    def complete(self, run_id: str, by: str) -> Counter[str] | None:
        """Marks the run COMPLETE once its counts reach what is expected; one of all callers gets them.

        `by` is the caller's own: where an answer is lost, the SDK's next try is known for the same call. If
        this raises, the run may have been completed all the same: `reopen` it.
        """
        run = self.run(run_id)
        if run.get("state") != "SCORING":
            return None
        # Read after the caller's own write, so the last to write sees the counts of all.
        counters = self._dynamodb.query(
            TableName=self._name,
            KeyConditionExpression="pk = :pk",
            ExpressionAttributeValues=pack({":pk": f"RUN#{run_id}"}),
            ConsistentRead=True,
        )
        counts = predictions.total(counters["Items"])
        if predictions.outcomes(counts) < run["expected"]:
            return None
        completed = self._update_run(
            run_id,
            "SET #state = :complete, completed_at = :now, completed_by = :by",
            "expected = :expected AND (#state = :scoring OR #state = :complete AND completed_by = :by)",
            {
                ":complete": "COMPLETE",
                ":scoring": "SCORING",
                ":expected": run["expected"],
                ":by": by,
                ":now": _now(),
            },
            {"#state": "state"},
        )
        return counts if completed else None

    def reopen(self, run_id: str, by: str) -> None:
        """Undoes `complete`, for the next caller to do it."""
        self._update_run(
            run_id,
            "SET #state = :scoring REMOVE completed_at, completed_by",
            "#state = :complete AND completed_by = :by",
            {":complete": "COMPLETE", ":scoring": "SCORING", ":by": by},
            {"#state": "state"},
        )

    def claim(self, run_id: str) -> None:
        """Makes the run of direct jobs. It expects nothing, and so is COMPLETE at any time.

        Raises RunIdTaken if it is the job creator's or another model's: their counts must stay their own.
        """
        # Another may begin it between the first two.
        if not (self._claim_again(run_id) or self._begin(run_id) or self._claim_again(run_id)):
            raise RunIdTaken(
                f"RunId {run_id} is the job creator's, another model's or being deleted; "
                "direct jobs need one of their own"
            )

    def _claim_again(self, run_id: str) -> bool:
        """Whether the run is there, and is one of direct jobs and of this model."""
        return self._update_run(
            run_id,
            "SET completed_at = :now",
            "#source.kind = :direct AND model_sha256 = :model_sha256 AND #state = :complete",
            {
                ":direct": "Direct",
                ":complete": "COMPLETE",
                ":model_sha256": self._model["model_sha256"],
                ":now": _now(),
            },
            {"#source": "source", "#state": "state"},
        )

    def _begin(self, run_id: str) -> bool:
        """Whether a run of direct jobs was made: there was none of that name."""
        now = _now()
        fields = {
            "uid": secrets.token_hex(8),
            "source": {"kind": "Direct"},
            "state": "COMPLETE",
            **self._model,
            "created_at": now,
            "completed_at": now,
        }
        actions: Any = predictions.begin(self._name, run_id, fields)
        try:
            self._dynamodb.transact_write_items(TransactItems=actions)
        except self._dynamodb.exceptions.TransactionCanceledException as error:
            if error.response["CancellationReasons"][0]["Code"] != "ConditionalCheckFailed":
                raise
            return False
        return True

    def _update_run(
        self, run_id: str, update: str, condition: str, values: Mapping[str, Any], names: Mapping[str, str]
    ) -> bool:
        """Whether the condition held and the update was made."""
        try:
            self._dynamodb.update_item(
                TableName=self._name,
                Key=predictions.run_key(run_id),
                UpdateExpression=update,
                ConditionExpression=condition,
                ExpressionAttributeNames=names,
                ExpressionAttributeValues=pack(values),
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            return False
        return True


def _wait(attempt: int) -> None:
    time.sleep(random.uniform(0, 0.02 * 2**attempt))  # noqa: S311 - jitter, not a secret


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
