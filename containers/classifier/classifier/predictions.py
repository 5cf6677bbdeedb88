"""Predictions and a run's counts, as DynamoDB holds them.

pk                    sk          one item for
RUN                   <run>       each run: uid, source, model, state, expected
RUN#<run>             COUNT#<n>   a sixteenth of its counts: SCORED and FAILED#<code>, summed when read
RUN#<run>#<00..3f>    <key>       each prediction; 64 partitions, for one holds 1,000 writes a second

A run's name may be used again once the run is deleted; its uid may not. The counters are made with the run
and hold its uid, and each transaction that writes predictions adds to one on that condition: so a run whose
counters are gone takes no prediction any more.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from boto3.dynamodb.types import TypeDeserializer, TypeSerializer

from classifier.checks import WarningCode
from classifier.images import ErrorCode

SCORED = "SCORED"
PARTITIONS = 64
_COUNTERS = 16

Item = dict[str, Any]
_serialize = TypeSerializer().serialize
_deserialize = TypeDeserializer().deserialize


@dataclass(frozen=True)
class Prediction:
    """What one image came to: scores, or the code of why there are none."""

    key: str
    scores: Mapping[str, Decimal] = field(default_factory=dict)  # label -> 0..1, 6 decimals
    positive: tuple[str, ...] = ()
    warnings: tuple[WarningCode, ...] = ()
    error: ErrorCode | None = None

    @property
    def count(self) -> str:
        """The name of the count it belongs to."""
        return f"FAILED#{self.error}" if self.error else SCORED

    def fields(self) -> dict[str, Any]:
        """Its attributes, those of a FAILED one without scores."""
        if self.error:
            return {"status": "FAILED", "error": self.error}
        return {
            "status": SCORED,
            "scores": dict(self.scores),
            "positive": list(self.positive),
            "warnings": list(self.warnings),
        }


def run_key(run_id: str) -> Item:
    """Where the run's item is."""
    return pack({"pk": "RUN", "sk": run_id})


def prediction_key(run_id: str, key: str) -> Item:
    """Where the prediction for one S3 key is."""
    partition = hashlib.sha256(key.encode()).digest()[0] % PARTITIONS
    return pack({"pk": f"RUN#{run_id}#{partition:02x}", "sk": key})


def count_of(item: Item) -> str:
    """The name of the count that a stored prediction belongs to."""
    fields = unpack(item)
    return SCORED if fields["status"] == SCORED else f"FAILED#{fields['error']}"


def transaction(
    table: str,
    run_id: str,
    uid: str,
    predictions: Iterable[Prediction],
    stored: Mapping[str, str],
    stamp: Mapping[str, str],
) -> list[dict[str, Any]]:
    """One TransactWriteItems that puts predictions and moves the run's counts with them.

    `stored` is what is known to be in the table, S3 key -> name of its count; each put is conditional on it.
    SCORED is never overwritten, and FAILED only by another outcome. `stamp` goes into every prediction. The
    last action is the counter's; its condition fails where the run of this uid is gone. Empty when there is
    nothing to change.
    """
    puts = []
    moved: Counter[str] = Counter()
    for prediction in predictions:
        before = stored.get(prediction.key)
        if before in (SCORED, prediction.count):
            continue
        item = prediction_key(run_id, prediction.key) | pack({**prediction.fields(), **stamp})
        puts.append({"Put": {"TableName": table, "Item": item, **_still(before)}})
        moved[prediction.count] += 1
        moved.update(f"WARNING#{warning}" for warning in prediction.warnings)
        if before:
            moved[before] -= 1
    if not puts:
        return []
    counter = int(hashlib.sha256(puts[0]["Put"]["Item"]["sk"]["S"].encode()).hexdigest(), 16) % _COUNTERS
    return [*puts, {"Update": {"TableName": table, **_add(run_id, counter, uid, moved)}}]


def begin(table: str, run_id: str, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One TransactWriteItems that puts the run's item, of these fields with its uid, and its counters.

    The first action's condition fails where there is a run of that name.
    """
    uid = pack({"uid": fields["uid"]})
    items = [run_key(run_id) | pack(fields), *(counter_key(run_id, n) | uid for n in range(_COUNTERS))]
    actions: list[dict[str, Any]] = [{"Put": {"TableName": table, "Item": item}} for item in items]
    actions[0]["Put"]["ConditionExpression"] = "attribute_not_exists(pk)"
    return actions


def counter_key(run_id: str, counter: int) -> Item:
    """Where one of the run's sixteen counters is."""
    return pack({"pk": f"RUN#{run_id}", "sk": f"COUNT#{counter:02d}"})


def total(counters: Iterable[Item]) -> Counter[str]:
    """The run's counts by name, from its counter items. `outcomes` of them are images."""
    counts: Counter[str] = Counter()
    for item in map(unpack, counters):
        counts.update({name: int(n) for name, n in item.items() if name not in ("pk", "sk", "uid")})
    return counts


def outcomes(counts: Mapping[str, int]) -> int:
    """How many images have a prediction. An image may have several warnings or none."""
    return sum(n for name, n in counts.items() if not name.startswith("WARNING#"))


def announcement(run_id: str, counts: Mapping[str, int]) -> dict[str, str]:
    """The EventBridge event that a run is complete, as the job creator sends it too."""
    scored = counts.get(SCORED, 0)
    detail = {"RunId": run_id, "Scored": scored, "Failed": outcomes(counts) - scored}
    return {"Source": "chest-xray-inference", "DetailType": "Run Complete", "Detail": json.dumps(detail)}


def pack(fields: Mapping[str, Any]) -> Item:
    """Plain values as DynamoDB attributes."""
    return {name: _serialize(value) for name, value in fields.items()}


def unpack(item: Item) -> dict[str, Any]:
    """DynamoDB attributes as plain values."""
    return {name: _deserialize(value) for name, value in item.items()}


def _still(before: str | None) -> dict[str, Any]:
    """The condition that nothing has changed since `before` was read (None: there was no prediction)."""
    if before is None:
        return {"ConditionExpression": "attribute_not_exists(pk)"}
    return {
        "ConditionExpression": "#error = :error",  # only a FAILED prediction has an error
        "ExpressionAttributeNames": {"#error": "error"},
        "ExpressionAttributeValues": pack({":error": before.removeprefix("FAILED#")}),
    }


def _add(run_id: str, counter: int, uid: str, changes: Mapping[str, int]) -> dict[str, Any]:
    return {
        "Key": counter_key(run_id, counter),
        "UpdateExpression": "ADD " + ", ".join(f"#c{i} :c{i}" for i in range(len(changes))),
        "ConditionExpression": "uid = :uid",
        "ExpressionAttributeNames": {f"#c{i}": name for i, name in enumerate(changes)},
        "ExpressionAttributeValues": pack(
            {":uid": uid, **{f":c{i}": n for i, n in enumerate(changes.values())}}
        ),
    }
