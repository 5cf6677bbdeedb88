"""Standing runs: how soon their images have an outcome, and how they are paused and reconciled."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

from runs.arrivals import day_of, run_id
from runs.predictions import Prediction
from runs.run import State

from cxr.errors import Failed, InputError
from cxr.operations import cancel_run
from cxr.retry import Retried, retry_run
from cxr.runs import LAMBDA_SECONDS, RunStatus, run_status, run_table
from cxr.stack import Stack, client


@dataclass(frozen=True)
class Delay:
    """Seconds from an arrival in S3 to its outcome, over the images that have one."""

    median: float
    worst: float


@dataclass(frozen=True)
class Reconciled:
    """What the reconciliation of a standing run found."""

    run: str
    missed: int  # images that no event had announced, or not with their present content
    sent_again: int  # others that had no outcome
    compared: bool  # whether S3 was asked: a run that was closed before takes no more images
    exists: bool  # whether there is such a run: there is none where no image arrived


def check_on(stack: Stack) -> None:
    """Raise InputError if the stack does not score what arrives."""
    if not stack.reconciler:
        raise InputError(
            f'stack {stack.name} does not score what arrives; write arrivals = "on" into its table of '
            "settings.toml and deploy it"
        )


def today() -> str:
    """The name of the standing run of today, in UTC."""
    return run_id(datetime.now(UTC).date())


def delay(predictions: Iterable[Prediction]) -> Delay | None:
    """The delay of the images that have an outcome; None if none has one."""
    seconds = [
        max(0.0, (_moment(each.scored_at) - _moment(each.arrived_at)).total_seconds())
        for each in predictions
        if each.arrived_at and each.scored_at and not each.waiting
    ]
    return Delay(median(seconds), max(seconds)) if seconds else None


def reconcile(stack: Stack, run: str) -> Reconciled:
    """Compare a standing run with what S3 holds of its day, and close it if the day is over.

    Raises InputError if this is no standing run of a day until today or if it is CANCELLED, and Failed if the
    reconciler failed.
    """
    check_on(stack)
    day = day_of(run)
    if day is None or day > datetime.now(UTC).date():
        raise InputError(f"{run}: expected the standing run of a day until today, like {today()}")
    table = run_table(stack)
    before = table.run(run)
    if before and before.state == State.CANCELLED:
        raise InputError(f"run {run} is CANCELLED; resume it first")
    functions = client(
        "lambda", read_timeout=LAMBDA_SECONDS + 60, retries={"total_max_attempts": 1}, tcp_keepalive=True
    )
    answer = functions.invoke(FunctionName=stack.reconciler, Payload=json.dumps({"RunId": run}).encode())
    found = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        raise Failed(f"the reconciler failed: {found.get('errorMessage')}; reconcile the run again")
    return Reconciled(
        run,
        found["Runs"][run]["Missed"],
        found["Runs"][run]["SentAgain"],
        compared=before is None or before.expected is None,
        exists=before is not None or table.run(run) is not None,
    )


def pause(stack: Stack, run: str) -> RunStatus:
    """Cancel a standing run; if it is that of today, let what arrives wait in the queue.

    The queue keeps an arrival for 14 days. Raises InputError as `cancel_run` does.
    """
    cancelled = cancel_run(stack, run)
    if run == today() and stack.arrivals_mapping:
        client("lambda").update_event_source_mapping(UUID=stack.arrivals_mapping, Enabled=False)
    return cancelled


def resume(stack: Stack, run: str) -> Retried:
    """Continue a standing run that was cancelled: what waited in the queue, and what the run had left.

    The queue stays paused while the run of today is CANCELLED. Interrupted, it can be called again. Raises
    InputError if this is no standing run or not paused, and Failed if the stream does not take a job.
    """
    check_on(stack)
    table, functions = run_table(stack), client("lambda")
    found = run_status(table, run)
    if not found.standing:
        raise InputError(f"run {run} is no standing run; start it again as it was started")
    mapping = functions.get_event_source_mapping(UUID=stack.arrivals_mapping)["State"]
    if found.state == State.CANCELLED:
        table.resume(found, found.done)
    elif not (found.state == State.LISTING and mapping in ("Disabled", "Disabling")):
        raise InputError(f"run {run} is {found.state}: only one that was cancelled can be resumed")
    sent = retry_run(stack, run)
    of_today = table.run(today())
    if not of_today or of_today.state != State.CANCELLED:
        functions.update_event_source_mapping(UUID=stack.arrivals_mapping, Enabled=True)
    return sent


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)
