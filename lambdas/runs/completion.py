"""Completing a run, and saying so on EventBridge."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from runs.predictions import SCORED, outcomes

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

    from runs.table import RunTable

EVENT_SOURCE, EVENT_TYPE = "chest-xray-inference", "Run Complete"  # on the default event bus


class NotAnnounced(Exception):
    """EventBridge did not take the event that a run is complete. The run is SCORING again."""


def complete(table: RunTable, events: Callable[[], EventBridgeClient], run_id: str) -> None:
    """Complete the run if every expected image has a prediction, and announce it once.

    Whoever completes the run announces it. If that fails, the run is made SCORING again, so that the next
    caller completes and announces it. If the answer of PutEvents is lost, the event is sent twice. If the
    process ends between the two steps, or cannot undo the first, no event is sent: a later caller could not
    tell that completion from one that was announced.

    Raises NotAnnounced, ClientError and BotoCoreError.
    """
    by = uuid.uuid4().hex  # one value a call: if an answer is lost, the SDK's next try finds its own mark
    try:
        counts = table.complete(run_id, by)
        if counts is None:
            return
        answer = events().put_events(Entries=[announcement(run_id, counts)])
        if answer["FailedEntryCount"]:
            raise NotAnnounced(f"PutEvents: {answer['Entries'][0]['ErrorCode']}")
    except (ClientError, BotoCoreError, NotAnnounced):
        table.undo_completion(run_id, by)
        raise


def announcement(run_id: str, counts: Mapping[str, int]) -> Any:
    """The entry of PutEvents that says that a run is complete."""
    scored = counts.get(SCORED, 0)
    detail = {"RunId": run_id, "Scored": scored, "Failed": outcomes(counts) - scored}
    return {"Source": EVENT_SOURCE, "DetailType": EVENT_TYPE, "Detail": json.dumps(detail)}
