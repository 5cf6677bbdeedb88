"""How a run is shown in a terminal and in JSON: uploads, jobs sent, progress and status."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from cxr.commands.terminal import console, for_stack, notes, progress, shown
from cxr.errors import InputError
from cxr.runs import RunStatus, Status, run_status, run_table
from cxr.runs import status as read_status
from cxr.stack import Stack, client
from cxr.upload import upload
from cxr.words import counted, duration

if TYPE_CHECKING:
    from cxr.arrivals import Delay
    from cxr.doctor import Finding

LOOK_SECONDS = 0.5  # between two looks at a run that is watched, of two small requests each
SPEED_SECONDS = 10  # the speed of a run that is watched is that of these last seconds
CAUSE_SECONDS = 5  # without progress, before the causes are looked for
IDLE_SECONDS = 10  # without progress, before the failure bucket is read to see whether the run is stuck
LONG_SECONDS = 30  # without progress and without a cause
SIGNS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]"}
WAYS = ("status", "cancel")  # after Ctrl-C
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
    if jobs:
        console.print(f"[green]✓[/] {counted(images, 'image')} in {counted(jobs, 'job')} on the stream")
    else:
        console.print(f"[green]✓[/] Nothing to do: all {counted(images, 'image')} have a score")


def watch_run(stack: Stack, run: str, as_json: bool) -> None:
    """Follow the run and print its status at the end. Raises typer.Exit(1) if it is not COMPLETE by then."""
    table = run_table(stack)

    def stuck(_: float) -> bool:
        return read_status(stack, run).stuck

    follow(lambda: run_status(table, run), stuck, lambda status: causes(stack, status))
    now = read_status(stack, run)
    print_status(now, as_json, causes(stack, now) if now.at_work else [])
    if now.state != "COMPLETE":
        raise typer.Exit(1)


def causes(stack: Stack, status: RunStatus) -> list[Finding]:
    """Why nothing moves in a run at work, as far as that can be seen."""
    from cxr.doctor import stall_causes  # here: `cxr --help` does without botocore

    return stall_causes(stack, status)


def follow(
    look: Callable[[], RunStatus],
    stuck: Callable[[float], bool],
    causes_of: Callable[[RunStatus], list[Finding]],
) -> RunStatus:
    """Show the run's progress until it is COMPLETE, CANCELLED or stuck. Returns its last status.

    While nothing happens, `stuck` is called now and then with the seconds since the last progress, and the
    causes that `causes_of` finds are printed, each once.
    """
    looks: deque[tuple[float, int]] = deque()  # when, and images done
    told: set[Finding | None] = set()
    with progress("Scoring") as bar:
        task = bar.add_task("", total=None, note="")
        done, since, asked, looked = -1, time.monotonic(), time.monotonic(), time.monotonic()
        while (status := look()).at_work:
            now = time.monotonic()
            looks.append((now, status.done))
            while now - looks[0][0] > SPEED_SECONDS:
                looks.popleft()
            bar.update(task, total=status.images, completed=status.done, note=_pace(looks, status))
            if status.done != done:
                done, since, asked, looked = status.done, now, now, now
            if now - looked > CAUSE_SECONDS and status.remaining != 0:
                found: list[Finding | None] = [*causes_of(status)]
                if not found and now - since > LONG_SECONDS:
                    found = [None]
                _print_causes([finding for finding in found if finding not in told], now - since)
                told.update(found)
                looked = now
            if now - asked > IDLE_SECONDS:
                if stuck(now - since):
                    break
                asked = now
            time.sleep(LOOK_SECONDS)
        bar.update(task, total=status.images, completed=status.done)
    return status


def _print_causes(findings: Sequence[Finding | None], seconds: float) -> None:
    """Print why nothing has moved for so long; None is a cause that cannot be seen."""
    if findings:
        notes.print(f"Nothing has moved for {duration(seconds)}:")
    for finding in findings:
        if finding:
            print_finding(finding, notes)
        else:
            notes.print(
                "Stream, mapping and classifier are in order, and the classifier's log has no failure. If it "
                "stays so, start the run again by the same line: that sends lost jobs again",
                soft_wrap=True,
            )


def print_finding(finding: Finding, to: Console = console) -> None:
    """Print a finding of doctor, and what to do about it."""
    line = Table.grid(Column(width=1), Column(width=12), Column(overflow="fold"), padding=(0, 1))
    line.add_row(SIGNS[finding.level], f"[bold]{finding.name}[/]", for_stack(shown(finding.text)))
    to.print(line)
    if finding.remedy:  # not wrapped: it may be a command to copy
        to.print(f"{'':15}[dim]→[/] {shown(finding.remedy)}", soft_wrap=True)


def finding_document(finding: Finding) -> dict[str, str]:
    """A finding as an object for JSON."""
    return {name: for_stack(text) for name, text in asdict(finding).items()}


@contextmanager
def interrupt_message(run: str, what: str = "continues", ways: tuple[str, ...] = WAYS) -> Iterator[None]:
    """On Ctrl-C, say what becomes of the run, and which commands of `cxr` may come next."""
    try:
        yield
    except SystemExit:
        commands = ", ".join(f"`cxr {way} {run}`" for way in ways)
        notes.print(f"Run {run} {what}: {commands}", markup=False, soft_wrap=True)
        raise


def print_status(
    status: Status, as_json: bool, problems: Sequence[Finding] = (), delay: Delay | None = None
) -> None:
    """Print the status and the problems of a run at work, and the delay of a standing run, or all as JSON."""
    waiting = status.failed_jobs
    if as_json:
        document: dict[str, Any] = {
            **run_document(status),
            "failures": dict(sorted(status.failures.items())),
            "warnings": dict(sorted(status.warnings.items())),
            "remaining": status.remaining,
            "retrying": status.retrying.total(),
            "images_per_second": status.speed,
            "seconds_left": status.seconds_left,
            "stream_lag_seconds": status.stream_lag,
            "failure_bucket": {
                "images": waiting.images,
                "more": waiting.more,
                "until": _iso(waiting.until),
            },
            "seconds_to_outcome": asdict(delay) if delay else None,
            "problems": [finding_document(problem) for problem in problems],
        }
        typer.echo(json.dumps(document, indent=2))
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    unknown = "?" if status.at_work else "-"
    speed = "" if status.speed is None or status.standing else f"{status.speed:,.1f} images/s"
    if speed and status.at_work and status.seconds_left is not None:
        speed += f", {duration(status.seconds_left)} left at that"
    elif status.state == "COMPLETE" and status.seconds and speed:
        # Of a run that went on, both are about the time since then.
        speed += f", in {duration(status.seconds)}" + (" since it went on" if status.resumed_at else "")
    if status.standing:
        soon = (
            f"median {duration(delay.median)}, worst {duration(delay.worst)} to the outcome" if delay else ""
        )
        table.add_row("arrived", f"{status.arrived:,}", f"[dim]{soon}[/]")
    else:
        table.add_row("expected", unknown if status.expected is None else f"{status.expected:,}", "")
    table.add_row("scored", f"{status.scored:,}", f"[dim]{speed}[/]")
    table.add_row("failed", f"{status.failures.total():,}", _codes(status.failures, "red"))
    again = f"[dim]{status.retrying.total():,} sent again after they failed[/]" if status.retrying else ""
    table.add_row(
        "waiting" if status.standing else "remaining",
        unknown if status.remaining is None else f"{status.remaining:,}",
        again,
    )
    if status.warnings:
        table.add_row("warnings", f"{status.warnings.total():,}", _codes(status.warnings, "yellow"))
    if status.stream_lag is not None:
        table.add_row("stream lag", duration(status.stream_lag), "")
    if waiting.images or waiting.more:
        number = f"{'at least ' if waiting.more else ''}{waiting.images:,}"
        until = f", kept until {waiting.until:%Y-%m-%d}" if waiting.until else ""
        # A retry of a cancelled run would be dropped. Started again, the run sends these images too.
        retry = f": `cxr retry {shown(status.run_id)}`" if status.state != "CANCELLED" else ""
        table.add_row("discarded", number, for_stack(f"in the failure bucket{until}{retry}"))
    console.print(
        f"[bold]{shown(status.run_id)}[/] [{COLOURS[status.state]}]{status.state}[/], "
        f"by {shown(status.model)}, started {moment_text(status.created_at)}"
    )
    console.print(table)
    if status.state == "DELETING":
        console.print(f"Its deletion was not finished: `cxr delete {shown(status.run_id)}` continues it")
    for problem in problems:
        print_finding(problem)


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
        "expected": run.images,
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
