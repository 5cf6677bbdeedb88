"""How a run is shown in a terminal and in JSON: uploads, jobs sent, progress and status."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer
from rich.table import Table

from cxr.commands.terminal import console, notes, progress, shown
from cxr.errors import InputError
from cxr.runs import RunStatus, Status, run_status, run_table
from cxr.runs import status as read_status
from cxr.stack import Stack, client
from cxr.upload import upload
from cxr.words import counted, duration

LOOK_SECONDS = 0.5  # between two looks at a run that is watched, of two small requests each
SPEED_SECONDS = 10  # the speed of a run that is watched is that of these last seconds
IDLE_SECONDS = 10  # without progress, before the failure bucket is read to see whether the run is stuck
COLOURS = {
    "LISTING": "cyan",
    "SCORING": "cyan",
    "COMPLETE": "green",
    "CANCELLED": "yellow",
    "DELETING": "red",
}


def upload_files(
    stack: Stack, folder: Path, files: list[Path], prefix: str | None = None, tell: bool = True
) -> int:
    """Upload with a progress bar; how many were sent. Raises InputError."""
    prefix = stack.prefix if prefix is None else prefix.rstrip("/") + "/"
    if not prefix.startswith(stack.prefix):
        raise InputError(
            f"--prefix {prefix}: expected one that begins with {stack.prefix}, all that the stack reads"
        )
    uploaded = 0
    with progress("Uploading") as bar:
        task = bar.add_task("", total=len(files), note="")
        for sent in upload(client("s3"), stack.images_bucket, prefix, folder, files):
            uploaded += sent
            bar.advance(task)
    if tell:
        unchanged = f", {len(files) - uploaded:,} unchanged" if uploaded < len(files) else ""
        console.print(f"[green]✓[/] {counted(uploaded, 'file')} uploaded{unchanged}")
    return uploaded


def print_started(images: int, jobs: int) -> None:
    """Print what the job creator has sent."""
    console.print(f"[green]✓[/] {counted(images, 'image')} in {counted(jobs, 'job')} on the stream")


def watch_run(stack: Stack, run: str, as_json: bool) -> None:
    """Follow the run and print its status at the end. Raises typer.Exit(1) if it is not COMPLETE by then."""
    table = run_table(stack)

    def stuck(_: float) -> bool:
        now = read_status(stack, run)
        return now.failed_jobs.images >= (now.remaining or 0) > 0

    follow(lambda: run_status(table, run), stuck)
    now = read_status(stack, run)
    print_status(now, as_json)
    if now.state != "COMPLETE":
        raise typer.Exit(1)


def follow(look: Callable[[], RunStatus], stuck: Callable[[float], bool]) -> RunStatus:
    """Show the run's progress until it is COMPLETE, CANCELLED or stuck. Returns its last status.

    While nothing happens, `stuck` is called now and then with the seconds since the last progress.
    """
    looks: deque[tuple[float, int]] = deque()  # when, and images done
    with progress("Scoring") as bar:
        task = bar.add_task("", total=None, note="")
        done, since, asked = -1, time.monotonic(), time.monotonic()
        while (status := look()).at_work:
            now = time.monotonic()
            looks.append((now, status.done))
            while now - looks[0][0] > SPEED_SECONDS:
                looks.popleft()
            bar.update(task, total=status.expected, completed=status.done, note=_pace(looks, status))
            if status.done != done:
                done, since, asked = status.done, now, now
            if now - asked > IDLE_SECONDS:
                if stuck(now - since):
                    break
                asked = now
            time.sleep(LOOK_SECONDS)
        bar.update(task, total=status.expected, completed=status.done)
    return status


@contextmanager
def interrupt_message(run: str, what: str = "continues") -> Iterator[None]:
    """On Ctrl-C, say that the run does not end with the command."""
    try:
        yield
    except SystemExit:
        line = f"Run {run} {what}: `cxr status {run}`, `cxr cancel {run}`"
        notes.print(line, markup=False, soft_wrap=True)
        raise


def print_status(status: Status, as_json: bool) -> None:
    """Print the status as a table, or as JSON."""
    waiting = status.failed_jobs
    if as_json:
        document: dict[str, Any] = {
            **run_document(status),
            "failures": dict(sorted(status.failures.items())),
            "warnings": dict(sorted(status.warnings.items())),
            "remaining": status.remaining,
            "images_per_second": status.speed,
            "seconds_left": status.seconds_left,
            "stream_lag_seconds": status.stream_lag,
            "failure_bucket": {
                "images": waiting.images,
                "more": waiting.more,
                "until": _iso(waiting.until),
            },
        }
        typer.echo(json.dumps(document, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    unknown = "?" if status.at_work else "-"
    speed = "" if status.speed is None else f"{status.speed:,.1f} images/s"
    took = status.completed_at and status.created_at and status.completed_at - status.created_at
    if status.at_work and status.seconds_left is not None:
        speed += f", {duration(status.seconds_left)} left at that"
    elif status.state == "COMPLETE" and took and speed:
        speed += f", in {duration(took.total_seconds())}"
    table.add_row("expected", unknown if status.expected is None else f"{status.expected:,}", "")
    table.add_row("scored", f"{status.scored:,}", f"[dim]{speed}[/]")
    table.add_row("failed", f"{status.failures.total():,}", _codes(status.failures, "red"))
    table.add_row("remaining", unknown if status.remaining is None else f"{status.remaining:,}", "")
    if status.warnings:
        table.add_row("warnings", f"{status.warnings.total():,}", _codes(status.warnings, "yellow"))
    if status.stream_lag is not None:
        table.add_row("stream lag", duration(status.stream_lag), "")
    if waiting.images or waiting.more:
        number = f"{'at least ' if waiting.more else ''}{waiting.images:,}"
        until = f", kept until {waiting.until:%Y-%m-%d}" if waiting.until else ""
        # A retry of a cancelled run would be dropped. Started again, the run sends these images too.
        again = f": `cxr retry {shown(status.run_id)}`" if status.state != "CANCELLED" else ""
        table.add_row("discarded", number, f"in the failure bucket{until}{again}")
    console.print(
        f"[bold]{shown(status.run_id)}[/] [{COLOURS[status.state]}]{status.state}[/], "
        f"by {shown(status.model)}, started {moment_text(status.created_at)}"
    )
    console.print(table)


def _pace(looks: deque[tuple[float, int]], status: RunStatus) -> str:
    """Speed, time left and failures, to print beside the progress bar."""
    (first_time, first_done), (last_time, last_done) = looks[0], looks[-1]
    parts = []
    if last_done > first_done:
        speed = (last_done - first_done) / (last_time - first_time)
        parts.append(f"{speed:,.1f} images/s")
        if status.remaining:
            parts.append(f"{duration(status.remaining / speed)} left")
    if failed := status.failures.total():
        parts.append(f"[red]{failed:,} failed[/]")
    return ", ".join(parts)


def run_document(run: RunStatus) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "state": run.state,
        "model": run.model,
        "expected": run.expected,
        "scored": run.scored,
        "failed": run.failures.total(),
        "created_at": _iso(run.created_at),
        "completed_at": _iso(run.completed_at),
    }


def _codes(counts: dict[str, int], colour: str) -> str:
    return ", ".join(f"[{colour}]{code}[/] {n:,}" for code, n in sorted(counts.items()))


def moment_text(moment: datetime | None) -> str:
    """A time as a person reads it, in the time zone of this machine."""
    return f"{moment.astimezone():%Y-%m-%d %H:%M}" if moment else "?"


def _iso(moment: datetime | None) -> str | None:
    return moment.astimezone(UTC).isoformat(timespec="seconds") if moment else None
