"""How every command speaks to a person: two consoles, stages, progress bars, and errors in one line."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cxr.errors import Failed, InputError, explained

console = Console(highlight=False)  # what a command answers
notes = Console(stderr=True, highlight=False)  # what goes on meanwhile, and errors
_tracebacks = False


def plain(text: str) -> str:
    """What a terminal would obey (escape sequences, right-to-left overrides), written out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Text from elsewhere, such as a key, as rich's markup that says just that, plainly."""
    return escape(plain(text))


@contextmanager
def stage(label: str) -> Iterator[None]:
    """Show that something is going on, and at its end how long it took."""
    started = time.monotonic()
    with notes.status(label):
        yield
    console.print(f"[green]✓[/] {label} [dim]{time.monotonic() - started:.1f} s[/]")


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar that goes away when it is done, and is not there at all without a terminal."""
    columns = (
        TextColumn(label),
        BarColumn(bar_width=max(10, min(40, notes.width - 75))),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as bar:
        yield bar


@contextmanager
def errors_reported() -> Iterator[None]:
    """Turn errors that a person can mend into a message and an exit code: 2 for a wrong argument, else 1.

    With `cxr --debug` they keep their traceback.
    """
    try:
        yield
    except (InputError, Failed, ClientError, BotoCoreError, OSError) as error:
        if _tracebacks or isinstance(error, BrokenPipeError):
            raise  # a pipe that its reader has closed, as `head` does, is no error: click ends quietly
        text = str(error) if isinstance(error, InputError | Failed) else explained(error)
        _print_plainly(f"Error: {text}")
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def show_tracebacks(on: bool) -> None:
    """Whether an error is printed with its traceback, or in one line: an unforeseen one too."""
    global _tracebacks
    _tracebacks = on
    sys.excepthook = _print_traceback if on else _report_crash


def _print_plainly(text: str) -> None:
    """Print lines that may hold what others wrote, such as AWS or a file, to the terminal."""
    lines = "\n".join(plain(line) for line in text.split("\n"))
    notes.print(lines, markup=False, soft_wrap=True)


def _print_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    _print_plainly("".join(traceback.format_exception(error)).rstrip("\n"))


def _report_crash(kind: type[BaseException], _error: BaseException, _trace: TracebackType | None) -> None:
    """Its message is left out: it may hold a key."""
    notes.print(f"Error: an unexpected {kind.__name__}; `cxr --debug` shows where", markup=False)
