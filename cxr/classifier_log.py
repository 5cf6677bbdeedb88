"""Why the classifier did not finish its jobs, as its log says: CloudWatch Logs, or the file of local AWS."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cxr.stack import Stack, client

RECENT = timedelta(minutes=5)
LOCAL_LOGS = "CXR_LOCAL_LOGS"  # the variable that names the folder of local AWS's logs
LINES = 200  # of CloudWatch Logs, the oldest of the last minutes first
LONGEST_REASON = 200
PATTERN = (
    '{ $.JobsReturned > 0 || $.level = "ERROR" || $.record.status = "error" || $.record.status = "timeout" }'
)


def recent_failures(stack: Stack) -> Counter[str]:
    """Reason -> how often, in the last minutes: of jobs that were returned, and of invocations that failed.

    Raises ClientError and BotoCoreError.
    """
    since = datetime.now(UTC) - RECENT
    folder = os.environ.get(LOCAL_LOGS)
    lines = _local_lines(Path(folder)) if folder else _cloudwatch_lines(stack, since)
    return Counter(reason for line in lines for reason in _reasons(line, since))


def _local_lines(folder: Path) -> Iterable[str]:
    try:
        return (folder / "classifier.log").read_text(errors="replace").splitlines()
    except OSError:
        return ()


def _cloudwatch_lines(stack: Stack, since: datetime) -> Iterable[str]:
    found = client("lambda").get_function_configuration(FunctionName=stack.classifier)
    group = found.get("LoggingConfig", {}).get("LogGroup", f"/aws/lambda/{stack.classifier}")
    start = int(since.timestamp() * 1000)
    answer = client("logs").filter_log_events(
        logGroupName=group, startTime=start, filterPattern=PATTERN, limit=LINES
    )
    return (event["message"] for event in answer["events"])


def _reasons(line: str, since: datetime) -> Iterator[str]:
    """What went wrong in the invocation of this line (docs/runbook.md, "Logs, metrics, traces")."""
    try:
        record = json.loads(line)
        if datetime.fromisoformat(record.get("timestamp") or record["time"]) < since:
            return
    except (ValueError, KeyError, TypeError, AttributeError):  # a line of something else
        return
    if isinstance(record.get("failures"), dict):
        yield from record["failures"].values()
    elif "errorType" in record:
        yield f"{record['errorType']}: {record.get('errorMessage', '')}"[:LONGEST_REASON]
    elif isinstance(record.get("record"), dict) and record["record"].get("status") in ("error", "timeout"):
        yield f"an invocation ended by {record['record']['status']}"
