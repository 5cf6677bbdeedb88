"""Where rows of predictions go: standard output or a file, as CSV, JSON Lines or JSON."""

from __future__ import annotations

import select
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr.commands.terminal import is_standard_output, notes, plain, progress, shown
from cxr.files import whole_file
from cxr.result_rows import Row, write_csv, write_json, write_json_lines
from cxr.words import counted


class Format(StrEnum):
    """How rows are written."""

    csv = "csv"
    jsonl = "jsonl"
    json = "json"


WRITERS = {Format.csv: write_csv, Format.jsonl: write_json_lines, Format.json: write_json}

RowFormat = Annotated[
    Format | None,
    typer.Option(
        "--format",
        help="CSV, JSON Lines or JSON. Default: as the name of the file ends, else CSV.",
    ),
]


def write_rows(
    rows: Iterable[Row],
    out: Path | None,
    form: Format | None,
    *,
    doing: str = "Reading",
    total: int | None = None,
) -> None:
    """Write rows to a file, whole or not at all, or to standard output. Raises InputError and OSError.

    The progress bar is labelled `doing`. `total` is how many rows there will be, if that is known.
    """
    suffix = out.suffix.removeprefix(".").lower() if out else ""
    write = WRITERS[form or (Format(suffix) if suffix in WRITERS else Format.csv)]
    if out and not is_standard_output(out):
        with (
            whole_file(out) as part,
            # A file name that is no UTF-8 is written with escapes.
            part.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file,
        ):
            number = write(file, _counting(rows, doing, total))
        notes.print(f"Wrote {counted(number, 'row')} to {shown(str(out))}", soft_wrap=True)
        return
    output = typer.get_text_stream("stdout", encoding="utf-8", errors="backslashreplace")
    if output.isatty():  # there the rows show the progress
        write(output, map(_readable, rows) if write is write_csv else rows)
    else:
        write(output, _while_read(_counting(rows, doing, total)))
    output.flush()


def _readable(row: Row) -> Row:
    """The row with control characters escaped, for a terminal. A file gets keys and labels as they are."""
    return {plain(name): plain(value) if isinstance(value, str) else value for name, value in row.items()}


def _counting(rows: Iterable[Row], doing: str, total: int | None) -> Iterator[Row]:
    """The same rows, with their number on the terminal."""
    with progress(doing) as bar:
        task = bar.add_task("", total=total, note="")
        for row in rows:
            bar.advance(task)
            yield row


def _while_read(rows: Iterable[Row]) -> Iterator[Row]:
    """The same rows, until the reader of standard output has left, as `head` does."""
    pipe = select.poll()
    pipe.register(1, 0)  # no events: only whether the other end is closed
    for row in rows:
        if pipe.poll(0):
            return
        yield row
