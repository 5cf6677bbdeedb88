"""The predictions of a run as rows, and rows as CSV, JSON Lines or JSON."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Literal, TextIO

from runs.predictions import Prediction
from runs.run import Run, State
from runs.table import RunTable

from cxr.errors import InputError, NoSuchLabel
from cxr.runs import run_status, run_table
from cxr.stack import Stack

COLUMNS = ("key", "status", "score", "label", "error", "warnings", "model", "model_version")

Row = dict[str, Any]  # see `row`


def results(
    stack: Stack,
    run_id: str,
    *,
    status: Literal["SCORED", "FAILED"] | None = None,
    label: str | None = None,
    positive: bool | None = None,
    min_score: float | None = None,
    max_score: float | None = None,
    since: datetime | None = None,
) -> Iterator[Row]:
    """The run's images as rows, read as they are asked for; in no order that means anything.

    Of a run that is not COMPLETE it gives the rows that are there.

    With `since`, those that have their outcome since then. `score`, `label` and the filters on scores are
    about `label`, by default the primary one. Raises
    InputError at once if there is no such run or label.
    """
    if status not in (None, "SCORED", "FAILED"):
        raise InputError(f"status {status!r}: expected SCORED, FAILED or None")
    table = run_table(stack)
    run = run_status(table, run_id)
    labels = labels_of(table, run, label)
    about = labels[0] if labels else ""

    def wanted(prediction: Prediction) -> bool:
        score = prediction.scores.get(about)
        return (
            (status is None or prediction.status == status)
            and (positive is None or (score is not None and (about in prediction.positive) == positive))
            and (min_score is None or (score is not None and float(score) >= min_score))
            and (max_score is None or (score is not None and float(score) <= max_score))
            and (since is None or datetime.fromisoformat(prediction.scored_at) >= since)
        )

    return (
        row(prediction, labels, prediction.model or run.model)
        for prediction in table.predictions(run_id)
        if wanted(prediction)
    )


def row(prediction: Prediction, labels: Sequence[str], model: str) -> Row:
    """A prediction as a row: key, status, score (0..1) and label of the first label, error, warnings, model.

    `model` is name:version, or empty if it is not known; the row has model and model_version. If there are
    several labels, it also has score_<label> of each.
    """
    model_name, _, version = model.rpartition(":")
    scores = {name: float(score) for name, score in prediction.scores.items()}
    return {
        "key": prediction.key,
        "status": prediction.status,
        "score": scores.get(labels[0]) if labels else None,
        "label": prediction.label(labels[0]) if labels else None,
        "error": prediction.error,
        "warnings": list(prediction.warnings),
        "model": model_name or None,
        "model_version": version or None,
        **{f"score_{name}": scores.get(name) for name in (labels if len(labels) > 1 else ())},
    }


def labels_of(table: RunTable, run: Run, about: str | None = None) -> list[str]:
    """The labels of the run's model: `about` or the primary one, then all others. Raises InputError.

    A run of an older version records no labels. Then an image that was scored tells which there are, but not
    which is the primary one. A run that is being deleted has none to tell of.
    """
    if run.state == State.DELETING:
        raise InputError(f"run {run.run_id} is being deleted; `cxr delete {run.run_id}` continues that")
    labels = list(run.thresholds)
    if not labels:
        scored = next((found for found in table.predictions(run.run_id) if found.scores), None)
        labels = sorted(scored.scores) if scored else []
        if len(labels) > 1 and not about:
            raise InputError(
                f"run {run.run_id} does not say which of its labels is the primary one: choose one "
                f"of {', '.join(labels)}"
            )
    if about and labels and about not in labels:
        raise NoSuchLabel(f"run {run.run_id} has no label {about}; expected {', '.join(labels)}")
    return sorted(labels, key=lambda name: name != about)  # which keeps the order of the others


def write_csv(file: TextIO, rows: Iterable[Row]) -> int:
    """Write rows under their heading. Returns how many there were. Raises OSError."""
    number = 0
    table = None
    for number, found in enumerate(rows, 1):  # noqa: B007 - it is the count
        if not table:
            scores = [name for name in found if name.startswith("score_")]
            table, quoted = _writer(file, scores), _writer(file, scores, csv.QUOTE_ALL)
            table.writeheader()
        cells = {name: _cell(value) for name, value in found.items()}
        # The csv module quotes its own separator only. A spreadsheet that splits at another one, or at a
        # carriage return, would make cells of the parts of a key, and maybe formulas.
        (quoted if set("\r;\t") & set("".join(cells.values())) else table).writerow(cells)
    if not table:
        _writer(file, []).writeheader()
    return number


def write_json_lines(file: TextIO, rows: Iterable[Row]) -> int:
    """Write one object a line. Returns how many there were. Raises OSError."""
    number = 0
    for number, found in enumerate(rows, 1):  # noqa: B007 - it is the count
        file.write(f"{json.dumps(found)}\n")
    return number


def write_json(file: TextIO, rows: Iterable[Row]) -> int:
    """Write one list with an object a line. Returns how many there were. Raises OSError."""
    number = 0
    for number, found in enumerate(rows, 1):
        file.write(f"{'[' if number == 1 else ','}\n{json.dumps(found)}")
    file.write("\n]\n" if number else "[]\n")
    return number


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    if isinstance(value, list):
        return ";".join(value)
    return "" if value is None else str(value)


def _writer(
    file: TextIO, scores: list[str], quoting: Literal[0, 1] = csv.QUOTE_MINIMAL
) -> csv.DictWriter[str]:
    return csv.DictWriter(
        file, [*COLUMNS, *scores], extrasaction="ignore", lineterminator="\n", quoting=quoting
    )
