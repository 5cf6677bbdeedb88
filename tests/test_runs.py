"""What a run has come to, as the operator reads it from what the classifier wrote."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from runs import layout
from runs.predictions import Prediction
from runs.table import RunGone, RunTable
from support import BUCKET, FAILURES, PREFIX, STREAM, TABLE, begin_run, client, table_items, uid

import cxr
from cxr import operations
from cxr.commands import results as results_command
from cxr.commands import runs as run_commands
from cxr.commands.local import print_predictions
from cxr.commands.row_output import Format
from cxr.errors import InputError
from cxr.evaluation.results import read_results
from cxr.result_rows import COLUMNS, Row, results, row, write_csv, write_json_lines
from cxr.runs import RunStatus, list_runs, run_status, run_table
from cxr.stack import Stack

SCORED = Prediction("a.png", {"abnormal": Decimal("0.5"), "mass": Decimal("0.25")}, ("abnormal",))
FAILED = Prediction("b.png", error="IMAGE_EMPTY")
STACK = Stack("Test", BUCKET, PREFIX, "creator", STREAM, "classifier", "mapping", TABLE, FAILURES)
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


def put_run(run: str, **fields: Any) -> None:
    """A run's item, as the job creator makes it."""
    made = {"state": "COMPLETE", "model": "demo:1.0.0", "model_sha256": "ab" * 32}
    begin_run(run, **{"created_at": "2026-11-24T12:00:00+00:00", **made, **fields})


def put_predictions(run: str, *predictions: Prediction) -> None:
    RunTable(client("dynamodb"), TABLE).write(run, uid(run), predictions, {}, {})


def rows(predictions: list[Prediction], labels: list[str]) -> list[Row]:
    return [row(prediction, labels, "demo:1.0.0") for prediction in predictions]


def two_labels(key: str, abnormal: str, mass: str) -> Prediction:
    scores = {"abnormal": Decimal(abnormal), "mass": Decimal(mass)}
    return Prediction(key, scores, tuple(label for label, score in scores.items() if score >= Decimal("0.5")))


def test_a_run_as_the_classifier_leaves_it(aws: None) -> None:
    put_run("first", state="SCORING", expected=200)
    scores = {"abnormal": Decimal("0.75")}
    scored = [
        Prediction(f"{number:03}.png", scores, ("abnormal",), ("COLOUR",) if number < 2 else ())
        for number in range(98)
    ]
    put_predictions("first", *scored, Prediction("empty.png", error="IMAGE_EMPTY"))

    table = run_table(STACK)
    status = run_status(table, "first")
    assert (status.run_id, status.state, status.model, status.expected) == (
        "first",
        "SCORING",
        "demo:1.0.0",
        200,
    )
    assert (status.done, status.scored, status.remaining, status.complete) == (99, 98, 101, False)
    assert status.failures == Counter({"IMAGE_EMPTY": 1})
    assert status.warnings == Counter({"COLOUR": 2})

    found = {prediction.key: prediction for prediction in table.predictions("first")}
    assert found.keys() == {*(f"{number:03}.png" for number in range(98)), "empty.png"}
    at, by = found["002.png"].scored_at, found["002.png"].model
    assert found["002.png"] == dataclasses.replace(scored[2], scored_at=at, model=by)
    assert found["000.png"].warnings == ("COLOUR",)
    assert found["empty.png"] == Prediction("empty.png", error="IMAGE_EMPTY", scored_at=at, model=by)


def test_a_run_that_is_not_there(aws: None) -> None:
    with pytest.raises(InputError, match="no run first; `cxr runs` lists"):
        run_status(run_table(STACK), "first")


def test_runs_are_listed_with_their_counts_the_newest_first(aws: None) -> None:
    assert list_runs(STACK) == []
    put_run("old", expected=2)
    put_run("new", state="LISTING", created_at="2026-11-25T12:00:00+00:00")
    put_predictions("old", two_labels("a", "0.5", "0.1"), Prediction("b", error="IMAGE_EMPTY"))
    new, old = list_runs(STACK)
    assert (new.run_id, new.expected, new.remaining, new.done) == ("new", None, None, 0)
    assert (old.run_id, old.scored, old.failures.total(), old.remaining) == ("old", 1, 1, 0)


@pytest.mark.parametrize(
    ("fields", "speed"),
    [
        ({"state": "SCORING"}, 10),  # by now, a minute on
        ({"state": "COMPLETE", "completed_at": NOON + timedelta(seconds=30)}, 20),
        ({"state": "CANCELLED", "cancelled_at": NOON}, None),
        ({"state": "SCORING", "cancelled_at": NOON}, None),  # who knows how long it rested
        ({"state": "SCORING", "counts": Counter()}, None),
    ],
)
def test_speed_is_said_where_it_is_known(fields: dict[str, Any], speed: float | None) -> None:
    made = {"run_id": "r", "uid": "u", "model": "m", "expected": 900, "created_at": NOON}
    run = RunStatus(**{**made, "counts": Counter(SCORED=600), **fields})
    assert run.images_per_second(NOON + timedelta(minutes=1)) == speed


def test_results_are_filtered_by_status_label_and_score(aws: None) -> None:
    labels = [{"name": name, "threshold": Decimal("0.5")} for name in ("abnormal", "mass")]
    put_run("first", expected=5, labels=labels)
    put_predictions(
        "first",
        two_labels("a", "0.9", "0.9"),
        two_labels("b", "0.5", "0.1"),
        two_labels("c", "0.3", "0.2"),
        two_labels("d", "0.1", "0.6"),
        Prediction("e", error="IMAGE_EMPTY"),
    )

    def found(**filters: Any) -> dict[str, Any]:
        return {row["key"]: row for row in results(STACK, "first", **filters)}

    for keys, filters in (
        ("abcde", {}),
        ("abcd", {"status": "SCORED"}),
        ("e", {"status": "FAILED"}),
        ("ab", {"positive": True}),
        ("cd", {"positive": False}),
        ("ab", {"min_score": 0.5}),
        ("bc", {"min_score": 0.3, "max_score": 0.5}),
        ("ad", {"label": "mass", "positive": True}),
        ("cd", {"label": "mass", "min_score": 0.2, "max_score": 0.6}),
    ):
        assert "".join(sorted(found(**filters))) == keys, filters
    row = {"key": "d", "status": "SCORED", "score": 0.1, "label": "normal", "error": None, "warnings": []}
    row |= {"model": "demo", "model_version": "1.0.0"}
    assert found()["d"] == row | {"score_abnormal": 0.1, "score_mass": 0.6}
    of_mass = found(label="mass")["d"]
    assert (of_mass["score"], of_mass["label"]) == (0.6, "mass")


def test_of_a_run_without_recorded_labels_the_label_has_to_be_named(aws: None) -> None:
    put_run("first")
    put_predictions("first", Prediction("e", error="IMAGE_EMPTY"), two_labels("a", "0.9", "0.1"))
    with pytest.raises(
        InputError, match="does not say which of its labels is the primary one: choose one of abn"
    ):
        results(STACK, "first")
    with pytest.raises(InputError, match="run first has no label Mass; expected abnormal, mass"):
        results(STACK, "first", label="Mass")
    scored = [row for row in results(STACK, "first", label="mass") if row["score"]]
    assert [(row["score"], row["label"], row["score_abnormal"]) for row in scored] == [(0.1, "no mass", 0.9)]


def test_a_run_in_which_nothing_was_scored_has_results_too(aws: None) -> None:
    put_run("first")
    put_predictions("first", Prediction("e", error="IMAGE_EMPTY"))
    (row,) = results(STACK, "first")
    assert (row["status"], row["score"], row["label"], row["error"]) == ("FAILED", None, None, "IMAGE_EMPTY")


@pytest.mark.parametrize(
    ("primary", "positive", "label"),
    [
        ("abnormal", {"abnormal"}, "abnormal"),
        ("abnormal", set(), "normal"),
        ("mass", {"mass"}, "mass"),
        ("mass", {"abnormal"}, "no mass"),
    ],
)
def test_an_image_is_labelled_by_the_primary_label(primary: str, positive: set[str], label: str) -> None:
    assert Prediction("a.png", {primary: Decimal(1)}, tuple(positive)).label(primary) == label


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (
            ["abnormal"],
            "key,status,score,label,error,warnings,model,model_version\n"
            "a.png,SCORED,0.500000,abnormal,,,demo,1.0.0\n"
            "b.png,FAILED,,,IMAGE_EMPTY,,demo,1.0.0\n",
        ),
        (
            ["mass", "abnormal"],
            "key,status,score,label,error,warnings,model,model_version,score_mass,score_abnormal\n"
            "a.png,SCORED,0.250000,no mass,,,demo,1.0.0,0.250000,0.500000\n"
            "b.png,FAILED,,,IMAGE_EMPTY,,demo,1.0.0,,\n",
        ),
    ],
)
def test_a_csv(labels: list[str], text: str, tmp_path: Path) -> None:
    file = io.StringIO()
    assert write_csv(file, rows([SCORED, FAILED], labels)) == 2
    assert file.getvalue() == text
    (tmp_path / "results.csv").write_text(text)
    read = read_results(tmp_path / "results.csv")
    assert (read.label, read.model) == (labels[0], "demo:1.0.0")
    assert [one.scores.get(labels[0]) for one in read.predictions] == [SCORED.scores[labels[0]], None]


@pytest.mark.parametrize("key", ["a\rb.png", "a\nb.png", 'a"b.png', "a,b.png", "a;b.png", "a\tb.png"])
def test_a_csv_of_any_key_is_read_again(key: str) -> None:
    file = io.StringIO()
    write_csv(file, rows([dataclasses.replace(SCORED, key=key), FAILED], ["abnormal"]))
    read = list(csv.DictReader(io.StringIO(file.getvalue(), newline="")))
    assert [row["key"] for row in read] == [key, FAILED.key]


@pytest.mark.parametrize("separator", [";", "\t"])
def test_no_part_of_a_key_becomes_a_cell_of_its_own(separator: str) -> None:
    """A spreadsheet may split at another separator than the comma, and obeys a cell that begins with =."""
    key = f"a{separator}=HYPERLINK(A1){separator}.png"
    file = io.StringIO()
    write_csv(file, rows([dataclasses.replace(SCORED, key=key)], ["abnormal"]))
    _, row = csv.reader(io.StringIO(file.getvalue(), newline=""), delimiter=separator)
    assert [cell for cell in row if cell.startswith("=")] == []
    assert row[0].startswith(key)


def test_a_csv_of_nothing_has_its_heading() -> None:
    file = io.StringIO()
    assert write_csv(file, []) == 0
    assert list(csv.reader([file.getvalue()])) == [list(COLUMNS)]


def test_json_lines_hold_any_key() -> None:
    odd = Prediction('é "x"\n\x1b[2J\x9b31m\u202egnp.png', {"abnormal": Decimal("0.5")}, (), ("COLOUR",))
    file = io.StringIO()
    write_json_lines(file, rows([odd, FAILED], ["abnormal"]))
    assert file.getvalue().replace("\n", "").isprintable()  # piped to a terminal, no key commands it
    first, second = map(json.loads, file.getvalue().splitlines())
    assert (first["key"], first["score"], first["warnings"]) == (odd.key, 0.5, ["COLOUR"])
    assert (second["score"], second["error"]) == (None, "IMAGE_EMPTY")


def test_on_a_terminal_no_key_and_no_label_commands_it(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    key, label = "a\x1b[2J\x9b31m\u202egnp.png", "mass\x1b]0;owned\x07"
    put_run("first")
    put_predictions("first", Prediction(key, {"abnormal": Decimal("0.1"), label: Decimal("0.9")}, (label,)))
    monkeypatch.setattr(Stack, "find", lambda *_: STACK)
    ours, terminal = os.openpty()
    with open(terminal, "w", encoding="utf-8") as stdout, monkeypatch.context() as patch:  # noqa: PTH123 - it has no path
        patch.setattr(sys, "stdout", stdout)
        results_command.results("first", label=label)
        results_command.results("first", Format.jsonl, label=label)
    heading, row, line = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    assert heading == ",".join(COLUMNS) + r",score_mass\x1b]0;owned\x07,score_abnormal"
    assert row.startswith(r'"a\x1b[2J\x9b31m\u202egnp.png","SCORED","0.900000","mass\x1b]0;owned\x07",')
    assert line.isprintable()
    assert (json.loads(line)["key"], json.loads(line)["label"]) == (key, label)


def test_no_name_in_a_bundle_commands_the_terminal(
    aws: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    model, label = "x\x1b[2Jy[red]", "ab\x1b[31mn[red]"
    put_run("first", model=model)
    monkeypatch.setattr(Stack, "find", lambda *_: STACK)
    run_commands.runs()
    listed = capsys.readouterr().out
    found = [Prediction("a.png", {label: Decimal("0.9")}, (label,))]
    print_predictions(found, label, PREFIX, run_status(run_table(STACK), "first"))
    printed = capsys.readouterr().out
    for text in (listed, printed):
        assert text.replace("\n", "").isprintable()
        assert r"x\x1b[2Jy[red]" in text
    assert printed.count(r"ab\x1b[31mn[red]") == 2


def test_a_run_at_work_is_cancelled(aws: None) -> None:
    for state in ("LISTING", "SCORING", "CANCELLED"):
        put_run("first", state=state)
        assert cxr.cancel_run(STACK, "first").state == "CANCELLED"
        # When it was cancelled before stays what it was.
        assert ("cancelled_at" in table_items()["RUN", "first"]) == (state != "CANCELLED")


def test_a_complete_run_is_not_cancelled(aws: None) -> None:
    put_run("first")
    with pytest.raises(InputError, match="COMPLETE: nothing is left"):
        cxr.cancel_run(STACK, "first")
    assert table_items()["RUN", "first"]["state"] == "COMPLETE"


def test_a_run_is_deleted_and_no_other(aws: None) -> None:
    for run in ("first", "first-1"):
        put_run(run)
        put_predictions(run, *(Prediction(f"{number}.png", error="IMAGE_EMPTY") for number in range(60)))
    told: list[int] = []
    assert cxr.delete_run(STACK, "first", told.append) == 60
    assert told[-1] == 60
    left = {pk for pk, _ in table_items()}
    assert left.isdisjoint({layout.counters_partition("first"), *layout.partitions("first")})
    assert ("RUN", "first") not in table_items()
    assert len([pk for pk, _ in table_items() if pk in layout.partitions("first-1")]) == 60


def test_an_interrupted_deletion_goes_on(aws: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put_run("first")
    put_predictions("first", *(Prediction(f"{number}.png", error="IMAGE_EMPTY") for number in range(60)))
    delete, seen = RunTable._delete_partition, count()

    def interrupted(*arguments: Any) -> int:
        if next(seen) == 2:
            raise KeyboardInterrupt
        return delete(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunTable, "_delete_partition", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cxr.delete_run(STACK, "first")
    assert table_items()["RUN", "first"]["state"] == "DELETING"
    for use in (cxr.results, cxr.cancel_run, cxr.retry_run):
        with pytest.raises(InputError, match="run first is being deleted; `cxr delete first` continues that"):
            use(STACK, "first")
    cxr.delete_run(STACK, "first")
    assert table_items() == {}


def test_a_run_without_a_name_is_none(aws: None) -> None:
    with pytest.raises(InputError, match="name is empty"):
        cxr.status(STACK, "")


def test_a_deleted_run_takes_no_prediction_from_who_is_still_at_work(
    aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier that read the run before writes at the worst moment: when the first partition is gone."""
    put_run("first")
    put_predictions("first", *(Prediction(f"{number}.png", error="IMAGE_EMPTY") for number in range(9)))
    delete, calls = RunTable._delete_partition, count()

    def at_work(*arguments: Any) -> int:
        if next(calls) == 3:
            with pytest.raises(RunGone, match="run first was deleted"):
                put_predictions("first", *(Prediction(f"{n}.png", error="IMAGE_MISSING") for n in range(50)))
        return delete(*arguments)

    monkeypatch.setattr(RunTable, "_delete_partition", at_work)
    monkeypatch.setattr("runs.table.DELETERS", 1)  # moto's table is not for two threads
    assert cxr.delete_run(STACK, "first") == 9
    assert table_items() == {}


def test_a_run_that_was_started_again_meanwhile_is_not_deleted(
    aws: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_run("first", state="CANCELLED")
    found = operations.check_deletable(STACK, "first")
    put_run("first", state="LISTING")
    before = table_items()
    monkeypatch.setattr(operations, "check_deletable", lambda *_: found)
    with pytest.raises(InputError, match="run first has just been changed by somebody else"):
        cxr.delete_run(STACK, "first")
    assert table_items() == before


def test_a_run_at_work_is_not_deleted(aws: None) -> None:
    for state in ("LISTING", "SCORING"):
        put_run("first", state=state)
        with pytest.raises(InputError, match=f"{state}; `cxr cancel first` first"):
            cxr.delete_run(STACK, "first")
        assert ("RUN", "first") in table_items()


def test_the_package_has_what_it_names() -> None:
    assert {name for name in cxr.__all__ if not hasattr(cxr, name)} == set()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        cxr.nothing  # noqa: B018 - looking is the point


def test_importing_the_package_loads_no_aws() -> None:
    code = "import cxr, sys; sys.exit('boto3' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_results_of_an_unknown_status_are_refused(aws: None) -> None:
    put_run("first")
    with pytest.raises(InputError, match="status 'scored': expected SCORED, FAILED or None"):
        results(STACK, "first", status="scored")  # type: ignore[arg-type]
