"""`cxr results`: a run's predictions, as CSV or JSON Lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TextIO

import typer

from cxr.commands.options import RunName, StackName
from cxr.commands.terminal import errors_reported, notes, plain, progress
from cxr.errors import InputError
from cxr.files import whole_file
from cxr.result_rows import Row, write_csv, write_json_lines
from cxr.result_rows import results as read_results
from cxr.stack import Stack
from cxr.words import counted
from stacks.config import DEFAULT_NAME


class Format(StrEnum):
    csv = "csv"
    jsonl = "jsonl"


class Status(StrEnum):
    scored = "scored"
    failed = "failed"


def results(
    run: RunName,
    format: Annotated[  # noqa: A002 - the option's name
        Format, typer.Option(help="CSV, or JSON Lines: one object a line, with warnings.")
    ] = Format.csv,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="File to write. Default: standard output.")
    ] = None,
    status: Annotated[
        Status | None, typer.Option(help="Only images that were scored, or only those that failed.")
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Label that the score and the filters below are for. Default: the primary one.",
        ),
    ] = None,
    positive: Annotated[
        bool | None,
        typer.Option(
            "--positive/--negative",
            help="Only images at or above the label's threshold, or below it.",
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(metavar="X", help="Only scores of at least X.")] = None,
    max_score: Annotated[float | None, typer.Option(metavar="X", help="Only scores of at most X.")] = None,
    stack: StackName = DEFAULT_NAME,
) -> None:
    """Write a run's predictions, as CSV or JSON Lines.

    The columns are key, status (SCORED or FAILED), score (0 to 1), label,
    error, and score_<label> for each label if there are several. The label is
    `abnormal` if the score reaches the model's threshold, else `normal` (for
    another label X: `X` or `no X`). The rows are not sorted. `cxr evaluate`
    reads the CSV. While a run is at work, it has the rows of the images that
    are done.

    Ends with 0, also if there are no rows, with 1 if the file cannot be
    written, and with 2 for wrong input. If it fails, an existing file stays as
    it was.
    """
    with errors_reported():
        for option, value in (("--min-score", min_score), ("--max-score", max_score)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{option} {value:g}: expected a score from 0 to 1")
        with opened(out) as file:
            found = read_results(
                Stack.find(stack),
                run,
                status=None if status is None else status.value.upper(),  # type: ignore[arg-type]
                label=label,
                positive=positive,
                min_score=min_score,
                max_score=max_score,
            )
            # On a terminal the rows show the progress. Control characters are escaped there, as in JSON.
            shown = found if format is Format.jsonl else map(readable, found)
            write = write_csv if format is Format.csv else write_json_lines
            number = write(file, shown if file.isatty() else counting(found))
    if out:
        notes.print(f"Wrote {counted(number, 'row')} to {out}", markup=False)


@contextmanager
def opened(out: Path | None) -> Iterator[TextIO]:
    """The file, which is written whole or not at all, or standard output. Raises OSError."""
    if out is None:
        output = typer.get_text_stream("stdout", encoding="utf-8")
        yield output
        output.flush()
        return
    with whole_file(out) as part, part.open("w", newline="", encoding="utf-8") as file:
        yield file


def readable(row: Row) -> Row:
    """The row with control characters escaped, for a terminal. A file gets keys and labels as they are."""
    return {plain(name): plain(value) if isinstance(value, str) else value for name, value in row.items()}


def counting(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, with their number on the terminal."""
    with progress("Reading") as bar:
        task = bar.add_task("", total=None, note="")
        for row in rows:
            bar.advance(task)
            yield row
