"""What is said on EventBridge: that a run is complete, and what came of the jobs of a standing run."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from runs.predictions import SCORED, Prediction, outcomes

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient

    from runs.table import RunTable

EVENT_SOURCE = "chest-xray-inference"  # on the default event bus
RUN_COMPLETE, IMAGES_SCORED = "Run Complete", "Images Scored"


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
    return _entry(RUN_COMPLETE, {"RunId": run_id, "Scored": scored, "Failed": outcomes(counts) - scored})


def announce_scored(
    events: Callable[[], EventBridgeClient], run_id: str, predictions: Collection[Prediction]
) -> None:
    """Say what came of a job of a standing run. No key is in it.

    The predictions are stored by now, so an event that EventBridge does not take is not sent again. Of a job
    that is delivered twice, the event may be sent twice.
    """
    positive = Counter(label for prediction in predictions for label in prediction.positive)
    scored = sum(not prediction.error for prediction in predictions)
    detail = {"RunId": run_id, "Scored": scored, "Failed": len(predictions) - scored, "Positive": positive}
    with suppress(ClientError, BotoCoreError):
        events().put_events(Entries=[_entry(IMAGES_SCORED, detail)])


def _entry(kind: str, detail: Mapping[str, Any]) -> Any:
    return {"Source": EVENT_SOURCE, "DetailType": kind, "Detail": json.dumps(detail)}
