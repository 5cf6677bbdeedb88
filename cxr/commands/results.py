"""`cxr results`: a run's predictions, as CSV, JSON Lines or JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cxr.commands.options import Json, RunName, StackName
from cxr.commands.row_output import Format, RowFormat, write_rows
from cxr.commands.terminal import errors_reported, notes
from cxr.errors import InputError
from cxr.result_rows import Row
from cxr.result_rows import results as read_results
from cxr.runs import how_far, run_status, run_table
from cxr.stack import Stack
from stacks.config import DEFAULT_NAME

SINCE = ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"]


class Status(StrEnum):
    scored = "scored"
    failed = "failed"


def results(
    run: RunName,
    form: RowFormat = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File to write, - for standard output. Default: -."),
    ] = None,
    status: Annotated[
        Status | None,
        typer.Option(case_sensitive=False, help="Only images that were scored, or only those that failed."),
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
    since: Annotated[
        datetime | None,
        typer.Option(
            formats=SINCE,
            metavar="TIME",
            help="Only images that have their outcome since then, in UTC: 2026-11-28, 2026-11-28T09:30.",
        ),
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Write a run's predictions, as CSV, JSON Lines or JSON.

    The columns are key, status (SCORED or FAILED), score (0 to 1), label, error,
    warnings, model, model_version, and score_<label> for each label if there
    are several. The label is `abnormal` if the score reaches the model's
    threshold, else `normal` (for another label X: `X` or `no X`). Warnings have
    `;` between them. The rows are not sorted. `cxr evaluate`, `compare` and
    `report` read the CSV.

    While a run is not complete, it has the rows of the images that are done. A
    line on standard error says how many there are.

    The JSON is a list of objects with these fields, as with --format json;
    warnings is a list, and what is not known is null. With --format jsonl each
    line is such an object.

    Ends with 0, also if there are no rows, with 1 if the file cannot be
    written, and with 2 for wrong input. If it fails, an existing file stays as
    it was.
    """

    def read() -> Iterator[Row]:
        """The rows. Nothing is read before the file is known to be writable."""
        found = Stack.find(stack)
        before = run_status(run_table(found), run)
        rows = read_results(
            found,
            run,
            status=None if status is None else status.value.upper(),  # type: ignore[arg-type]
            label=label,
            positive=positive,
            min_score=min_score,
            max_score=max_score,
            since=since and since.replace(tzinfo=UTC),
        )
        if before.state != "COMPLETE" and not (before.standing and before.remaining == 0):
            notes.print(f"Not all results: {how_far(before)}", markup=False, soft_wrap=True)
        yield from rows

    with errors_reported():
        for option, value in (("--min-score", min_score), ("--max-score", max_score)):
            if value is not None and not 0 <= value <= 1:
                raise InputError(f"{option} {value:g}: expected a score from 0 to 1")
        if as_json and form not in (None, Format.json):
            raise InputError(f"--json and --format {form}: expected one of them")
        write_rows(read(), out, Format.json if as_json else form)
