"""What commands print with: two consoles, stages, progress bars, and errors in one line."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cxr.errors import Failed, InputError

console = Console(highlight=False)  # answers
notes = Console(stderr=True, highlight=False)  # progress and errors
_tracebacks = False


def plain(text: str) -> str:
    """The text, with everything that controls a terminal (escape sequences, right-to-left marks) escaped."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """Text from elsewhere, for example an object key, as rich markup that prints exactly that text."""
    return escape(plain(text))


@contextmanager
def stage(label: str) -> Iterator[None]:
    """Show that something is being done, and in the end how long it took."""
    started = time.monotonic()
    with notes.status(label):
        yield
    console.print(f"[green]✓[/] {label} [dim]{time.monotonic() - started:.1f} s[/]")


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """A progress bar. It disappears when it is done, and does not show without a terminal."""
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
    """Print errors that a person can put right in one line; exit with 2 for a wrong argument, else with 1.

    With `cxr --debug` they keep their traceback.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # the reader of the pipe has closed it, as `head` does: typer then ends quietly
    except Exception as error:
        text = _explained(error)
        if text is None or _tracebacks:
            raise
        print_plainly(f"Error: {text}")
        raise typer.Exit(2 if isinstance(error, InputError) else 1) from None


def _explained(error: Exception) -> str | None:
    """What a person reads of an error; None for one that nobody foresaw."""
    if isinstance(error, InputError | Failed):
        return str(error)
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
    from cxr.aws_errors import AWS_ERRORS, explained  # here: `cxr --help` does without botocore

    return explained(error) if isinstance(error, AWS_ERRORS) else None


def show_tracebacks(on: bool) -> None:
    """Choose whether errors are printed with their traceback or in one line, unforeseen ones included."""
    global _tracebacks
    _tracebacks = on
    sys.excepthook = _print_traceback if on else _report_crash


def print_plainly(text: str) -> None:
    """Print lines that may hold text from elsewhere, for example from AWS or a file."""
    lines = "\n".join(plain(line) for line in text.split("\n"))
    notes.print(lines, markup=False, soft_wrap=True)


def _print_traceback(_kind: type[BaseException], error: BaseException, _trace: TracebackType | None) -> None:
    print_plainly("".join(traceback.format_exception(error)).rstrip("\n"))


def _report_crash(kind: type[BaseException], _error: BaseException, _trace: TracebackType | None) -> None:
    """Print the kind of an unforeseen error. Its message is left out: it may hold an object key."""
    notes.print(f"Error: an unexpected {kind.__name__}; `cxr --debug` shows where", markup=False)
