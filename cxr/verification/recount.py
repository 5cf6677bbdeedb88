"""The outcomes of a run, counted anew: from the predictions, the counters and the bucket, each by itself.

It reads the table by requests of its own, so that an error in the library that everything else uses shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from runs import layout
from runs.attributes import unpack
from runs.predictions import FAILED, SCORED, WARNING

from cxr.stack import Stack, client
from cxr.verification.check import CheckFailed
from cxr.words import counted

READERS = 16  # partitions that are read at once
LOOK = "see the classifier's log, and `cxr doctor`; deploy the stack again by `npx cdk deploy`"


@dataclass(frozen=True)
class Recount:
    """What the table holds of a run."""

    run: dict[str, Any]  # its item
    counters: tuple[dict[str, Any], ...]  # its counter items
    predictions: tuple[dict[str, Any], ...]  # its predictions: pk, sk (the S3 key), status, scores, ...

    @classmethod
    def read(cls, stack: Stack, run: str) -> Recount:
        """Everything, by consistent reads. Raises ClientError and BotoCoreError."""
        dynamodb = client("dynamodb")
        answer = dynamodb.get_item(
            TableName=stack.table,
            Key={name: {"S": value} for name, value in layout.run_key(run).items()},
            ConsistentRead=True,
        )
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(partial(_items, dynamodb, stack.table), layout.partitions(run))
            predictions = tuple(item for items in found for item in items)
        counters = tuple(_items(dynamodb, stack.table, layout.counters_partition(run)))
        return cls(unpack(answer.get("Item", {})), counters, predictions)

    @property
    def codes(self) -> dict[str, str]:
        """S3 key -> error code, of the FAILED images."""
        return {item["sk"]: str(item["error"]) for item in self.predictions if item["status"] == FAILED}

    def check_counters(self) -> None:
        """Raise CheckFailed unless the run has all its counters."""
        ours = sum(item.get("uid") == self.run.get("uid") for item in self.counters)
        if ours != layout.COUNTERS:
            raise CheckFailed(
                f"the run has {ours} of its {layout.COUNTERS} counters in the table, so no prediction of it "
                "can be written",
                "the job creator makes them with the run: deploy the stack again by `npx cdk deploy`",
            )

    def check(self, keys: Collection[str]) -> None:
        """Raise CheckFailed unless these keys, and no others, have one outcome each, and the counts agree."""
        self.check_counters()
        predicted = Counter(item["sk"] for item in self.predictions)
        wrong = []
        if missing := len(set(keys) - predicted.keys()):
            wrong.append(f"{missing} of {len(keys)} images without a prediction")
        if doubled := sum(number > 1 for number in predicted.values()):
            wrong.append(f"{counted(doubled, 'image')} with more than one prediction")
        if foreign := len(predicted.keys() - set(keys)):
            wrong.append(f"{counted(foreign, 'prediction')} of images that the run does not have")
        if self.run.get("expected") != len(keys):
            wrong.append(f"the run expects {self.run.get('expected')} images, and the bucket has {len(keys)}")
        counts = self._counted()
        recounted = self._recounted()
        for name in sorted(counts.keys() | recounted.keys()):
            if counts[name] != recounted[name]:
                wrong.append(f"the counters say {counts[name]} {name}, the predictions {recounted[name]}")
        if wrong:
            raise CheckFailed("; ".join(wrong), LOOK)

    def _counted(self) -> Counter[str]:
        """The sum of the counters, without zeros."""
        found: Counter[str] = Counter()
        for item in self.counters:
            found.update({name: int(n) for name, n in item.items() if name not in ("pk", "sk", "uid")})
        return Counter({name: number for name, number in found.items() if number})

    def _recounted(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for item in self.predictions:
            found[f"{FAILED}#{item['error']}" if item["status"] == FAILED else SCORED] += 1
            found.update(f"{WARNING}#{warning}" for warning in item.get("warnings", ()))
        return found


def keys_below(stack: Stack, prefix: str) -> list[str]:
    """The keys in the images bucket that begin with the prefix."""
    pages = client("s3").get_paginator("list_objects_v2").paginate(Bucket=stack.images_bucket, Prefix=prefix)
    return [entry["Key"] for page in pages for entry in page.get("Contents", ())]


def _items(dynamodb: Any, table: str, partition: str) -> list[dict[str, Any]]:
    pages = dynamodb.get_paginator("query").paginate(
        TableName=table,
        KeyConditionExpression="pk = :pk",
        ExpressionAttributeValues={":pk": {"S": partition}},
        ConsistentRead=True,
    )
    return [unpack(item) for page in pages for item in page["Items"]]
