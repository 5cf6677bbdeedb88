"""How every command speaks to a person: one console, stages, progress bars, and errors in one line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cxr.errors import InputError
from cxr.local import LocalAwsError

console = Console(highlight=False)


def counted(number: int, noun: str) -> str:
    """The number and its noun: 1 file, 2 files."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@contextmanager
def stage(label: str) -> Iterator[None]:
    """Show that something is going on, and at its end how long it took."""
    started = time.monotonic()
    with console.status(label):
        yield
    console.print(f"[green]✓[/] {label} [dim]{time.monotonic() - started:.1f} s[/]")


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar that goes away when it is done, and is not there at all without a terminal."""
    columns = (
        TextColumn(label),
        BarColumn(bar_width=max(10, min(40, console.width - 45))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("[red]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield bar


@contextmanager
def errors_reported() -> Iterator[None]:
    """Turn errors that a person can mend into a message and an exit code: 2 for a wrong argument, else 1."""
    try:
        yield
    except (InputError, LocalAwsError, ClientError, BotoCoreError, OSError) as error:
        Console(stderr=True, highlight=False).print(f"Error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None
