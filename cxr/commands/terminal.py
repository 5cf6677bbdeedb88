"""What commands print with: two consoles, stages, progress bars, and errors in one line."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import typer
from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cxr import RESEARCH_ONLY
from cxr.errors import Failed, InputError
from cxr.files import whole_file
from stacks.config import DEFAULT_NAME

UNLIMITED = 1_000_000  # columns, more than any line has
# The commands that are about a stack, as messages name them.
OF_A_STACK = re.compile(
    "`(cxr (?:cancel|compare|delete|doctor|evaluate|report|results|retry|run|runs|scale|status|upload|verify)"
    "|npx cdk deploy)\\b([^`]*)`"
)
_stack = DEFAULT_NAME
_tracebacks = False


class StackConsole(Console):
    """A console whose messages name commands for the stack that is worked on."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does."""
        super().print(*(for_stack(one) if isinstance(one, str) else one for one in objects), **options)


def use_stack(name: str) -> str:
    """Remember the stack that is worked on, and return its name."""
    global _stack
    _stack = name
    return name


def stack_words() -> list[str]:
    """The words that name the stack in a command of `cxr`; none for the default stack."""
    return [] if _stack == DEFAULT_NAME else ["--stack", _stack]


def for_stack(text: str) -> str:
    """The text, with the stack in each `command` of it: without, the command would take the default stack."""

    def named(found: re.Match[str]) -> str:
        words = ["-c", f"stackName={_stack}"] if found[1].startswith("npx") else stack_words()
        return f"`{' '.join([found[1] + found[2], *words])}`"

    return text if _stack == DEFAULT_NAME else OF_A_STACK.sub(named, text)


def console_of(*, stderr: bool) -> Console:
    """A console that fits a terminal. A pipe or a file gets each row in one line, with nothing cut."""
    made = StackConsole(stderr=stderr, highlight=False)
    if not made.file.isatty():
        made.size = ConsoleDimensions(UNLIMITED, made.height)
    return made


console = console_of(stderr=False)  # answers
notes = console_of(stderr=True)  # progress and errors


def on_terminal() -> bool:
    """Whether answers go to a terminal, and not to a pipe or a file."""
    return console.width < UNLIMITED


def stacked(*parts: str) -> str:
    """Parts of a cell: below each other on a terminal, which is narrow, and else in one line."""
    return ("\n" if on_terminal() else " ").join(parts)


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


def is_standard_output(out: Path | None) -> bool:
    """Whether `--out -` was given."""
    return str(out) == "-"


@contextmanager
def out_file(out: Path) -> Iterator[Path]:
    """A path to write to. When the block ends, its file is moved to `out` or goes to standard output.

    Raises InputError, also if standard output is a terminal, and OSError.
    """
    if not is_standard_output(out):
        with whole_file(out) as part:
            yield part
        return
    if sys.stdout.isatty():
        raise InputError("--out -: expected a pipe or a file as standard output, found a terminal")
    with tempfile.TemporaryDirectory(prefix="cxr-") as folder:
        yield Path(folder) / "out"
        with (Path(folder) / "out").open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def print_written(out: Path, before: str = "", after: str = "") -> None:
    """Say what was written; on standard error if `out` is standard output. The texts are rich markup."""
    if is_standard_output(out):
        said, wrote = notes, ""
    else:
        said, wrote = console, f"Wrote {shown(str(out))}."
    said.print(*filter(None, (before, wrote, after, f"[bold]{RESEARCH_ONLY}[/]")), soft_wrap=True)


def expect_one_answer(out: Path | None, as_json: bool) -> None:
    """Raise InputError if standard output was asked for twice."""
    if as_json and is_standard_output(out):
        raise InputError("--json and --out -: expected one of them")


def expect_folder(out: Path | None) -> None:
    """Raise InputError for an `--out` that cannot be a folder."""
    if is_standard_output(out):
        raise InputError("--out -: expected a folder, because several files are written")
    if out and out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: expected a folder")


@contextmanager
def answers_aside(aside: bool) -> Iterator[None]:
    """Print answers to standard error while the block runs, if standard output is for JSON alone."""
    console.stderr = aside
    try:
        yield
    finally:
        console.stderr = False


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
