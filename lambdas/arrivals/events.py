"""What EventBridge says of an object that S3 has received."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from job_creator.sources import images
from runs.arrivals import Arrival


class NotAnArrival(ValueError):
    """A message that is no event of an object. It holds no part of the message: that may name a patient."""


def arrival(message: Mapping[str, Any], bucket: str, prefix: str) -> Arrival | None:
    """The arrival in a message of the queue; None if the object is no image of the stack.

    EventBridge gives keys as they are, not URL-encoded (S3 user guide, ev-events). Raises NotAnArrival.
    """
    try:
        event = json.loads(message["body"])
        detail = event["detail"]
        key, etag = detail["object"]["key"], detail["object"]["etag"]
        found = Arrival(key, etag, datetime.fromisoformat(event["time"]).astimezone(UTC))
        of_bucket = detail["bucket"]["name"] == bucket
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise NotAnArrival("expected EventBridge's event of an object in S3") from None
    return found if of_bucket and key.startswith(prefix) and any(images([key])) else None


def newest(arrivals: Iterable[Arrival]) -> dict[str, list[Arrival]]:
    """Standing run -> the last arrival of each key in it."""
    runs: dict[str, dict[str, Arrival]] = {}
    for each in sorted(arrivals, key=lambda arrival: arrival.time):
        runs.setdefault(each.run_id, {})[each.key] = each
    return {run_id: list(found.values()) for run_id, found in runs.items()}
