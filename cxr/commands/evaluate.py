"""`cxr evaluate`: how good a run's scores are against reference labels."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from botocore.exceptions import BotoCoreError, ClientError
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.aws_errors import explained
from cxr.commands.model import SHIPPED, load
from cxr.commands.options import Json, StackName
from cxr.commands.terminal import console, errors_reported, shown
from cxr.errors import InputError
from cxr.evaluation.cohort import Result, TrainingSet, join, read_labels, read_results
from cxr.files import whole_file
from cxr.runs import run_status, run_table
from cxr.stack import NAME, Stack
from cxr.words import counted

if TYPE_CHECKING:  # scikit-learn and matplotlib take a second or two, which `cxr --help` should not
    from classifier.model import Model

    from cxr.evaluation.assessment import Report
    from cxr.evaluation.measures import AtPrevalence, Estimate, Evaluation, LabelledScores

COUNTS = ("tp", "fp", "tn", "fn")
GROUP_MEASURES = ("auc", "sensitivity", "specificity")  # all of them are in the JSON


def evaluate(
    results: Annotated[
        str, typer.Argument(metavar="RESULTS.csv|RUN", help="Results as a CSV file, or the name of a run.")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="CSV of reference labels. An image is named in a column file, key or image, by key or base "
            "name; its label is 0 or 1 in a column of the label's name, or among NIH's Finding Labels; "
            "patient_id makes the intervals by patient.",
        ),
    ],
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Label to evaluate. Default: the results' primary one.")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(metavar="T", help="Score from which an image is called positive. Default: as decided."),
    ] = None,
    at_sensitivity: Annotated[
        float | None,
        typer.Option(metavar="S", help="Take the highest threshold with this sensitivity, such as 0.95."),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(metavar="P", help="Also reckon PPV, NPV and counts where this share is positive."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also by the values of this column of the labels. Repeatable."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Bundle that made the scores. Default: the one that ships."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for plots (PNG, SVG) and evaluation.json.")
    ] = None,
    stack: StackName = NAME,
    as_json: Json = False,
) -> None:
    """Measure scores against reference labels, each measure with its 95% interval.

    If the bundle was trained on some of the images or patients, that is said first.

    Ends with 0, with 2 if what was given cannot be used, and with 1 if the files cannot be written.
    """
    with errors_reported():
        from cxr.evaluation.assessment import labelled_scores, report

        if threshold is not None and not 0 <= threshold <= 1:
            raise InputError(f"--threshold {threshold:g}: expected a score from 0 to 1")
        if at_sensitivity is not None and not 0 < at_sensitivity <= 1:
            raise InputError(f"--at-sensitivity {at_sensitivity:g}: expected a share over 0, up to 1")
        if prevalence is not None and not 0 < prevalence < 1:
            raise InputError(f"--prevalence {prevalence:g}: expected a share between 0 and 1")
        if threshold is not None and at_sensitivity is not None:
            raise InputError("--threshold and --at-sensitivity: expected one of the two")
        if out and out.exists() and not out.is_dir():
            raise InputError(f"--out {out}: expected a folder")
        model = load(bundle or SHIPPED)
        label, scored, scored_by = read_scores(results, label, model, stack)
        known = label in model.thresholds and scored_by in (None, model.name)
        if bundle and not known:
            raise InputError(
                f"--bundle {bundle}: {model.name} of {', '.join(model.thresholds)}; "
                f"expected what scored these images{f', {scored_by},' if scored_by else ''} for {label}"
            )
        references, repeated = read_labels(labels, label, group or ())
        cohort = join(scored, references)
        with console.status("Evaluating"):
            found = report(
                cohort,
                label,
                model=model if known else None,
                training_set=TrainingSet.read(bundle or SHIPPED) if known else None,
                threshold=threshold,
                sensitivity=at_sensitivity,
                prevalence=prevalence,
                columns=group or (),
            )
            document = {
                "note": RESEARCH_ONLY,
                "results": results,
                "labels": str(labels),
                "repeated_labels": repeated,
                **asdict(found),
            }
            text = json.dumps(document, indent=2)
            if out:
                write_files(out, found, labelled_scores(cohort), text)
        if as_json:
            typer.echo(text)
            return
        print_report(found, repeated)
        if out:
            console.print(f"\nWrote plots and evaluation.json to {shown(str(out))}")
        console.print(f"[bold]{RESEARCH_ONLY}[/]")


def read_scores(
    source: str, label: str | None, model: Model, stack: str
) -> tuple[str, list[Result], str | None]:
    """The label, its results, and which model scored them if that is known. Raises InputError."""
    primary = next(iter(model.thresholds))
    if source.endswith(".csv") or os.sep in source or Path(source).exists():
        found, results = read_results(Path(source), label)
        return found or primary, results, None
    try:
        table = run_table(Stack.find(stack))
        scored_by = run_status(table, source).model
    except (InputError, BotoCoreError, ClientError) as error:
        why = error if isinstance(error, InputError) else explained(error)
        raise InputError(f"{source} is no file, and no run was found: {why}") from None
    label = label or primary
    of_run: list[Result] = []
    for outcome in table.predictions(source):
        if outcome.scores and label not in outcome.scores:
            raise InputError(
                f"{source} has no scores of {label}; --label: {', '.join(sorted(outcome.scores))}"
            )
        score = float(outcome.scores[label]) if outcome.scores else None
        of_run.append(Result(outcome.key, score, label in outcome.positive))
    return label, of_run, scored_by


def write_files(folder: Path, found: Report, data: LabelledScores, document: str) -> None:
    """The plots as PNG and SVG, and evaluation.json, each whole or not at all. Raises OSError."""
    from cxr.evaluation.plots import figures, save

    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(found, data):
        for file_format in ("png", "svg"):
            path = folder / f"{name}.{file_format}"
            if figure is None:
                path.unlink(missing_ok=True)  # of another evaluation
            else:
                with whole_file(path) as part:
                    save(figure, part, file_format)
    with whole_file(folder / "evaluation.json") as part:
        part.write_text(document + "\n")


def print_report(found: Report, repeated: int) -> None:
    """For a person: what they must know first, then the figures."""
    overall = found.overall
    console.print(_about_training(found))
    patients = "" if overall.patients is None else f" of {counted(overall.patients, 'patient')}"
    console.print(
        f"\n[bold]{shown(found.label)}[/] on {counted(overall.images, 'image')}{patients}: "
        f"{overall.positives:,} positive, prevalence {overall.prevalence:.3f}"
    )
    console.print(f"Threshold {found.threshold.value:g}: {shown(found.threshold.source)}")
    left_out = {
        "FAILED images": found.failed,
        "images without a label": found.without_label,
        "labels without an image": found.labels_without_image,
        "labels given again": repeated,
    }
    if any(left_out.values()):
        console.print("Left out: " + ", ".join(f"{n:,} {what}" for what, n in left_out.items() if n))
    console.print(_measures_table(overall), f"[dim]Intervals: {found.intervals}[/]", sep="\n")
    for column, evaluations in found.groups.items():
        console.print(_groups_table(column, evaluations))
    if found.groups:
        console.print("[dim]All measures of each group are in the JSON.[/]")
    if found.at_prevalence:
        console.print(_prevalence_table(found.at_prevalence, overall))
        console.print(
            "[dim]By Bayes' rule, if sensitivity and specificity stay what they are, which on other patients "
            "they may not. AUC stays too; accuracy, F1, average precision and calibration change.[/]"
        )


def _about_training(found: Report) -> str:
    model = shown(str(found.model))
    overlap = found.training_overlap
    if not found.model:
        return (
            f"[yellow]Not known: which bundle these scores of {shown(found.label)} are by, what it was "
            "trained on, and whether they are probabilities. --bundle tells.[/]"
        )
    if not overlap:
        return f"[yellow]Not known: whether {model} was trained on these. It has no trained_on.json.[/]"
    if not overlap.any:
        return f"{model} was trained on {overlap.text}."
    return (
        f"[bold red]{model} was trained on {overlap.text}: "
        "these figures do not tell how good it is on others.[/]"
    )


def _measures_table(overall: Evaluation) -> Table:
    from cxr.evaluation.measures import MEASURES

    table = _table("measure", "value", "95% interval")
    for name, estimate in overall.measures.items():
        decimals = 0 if name in COUNTS else 3
        table.add_row(MEASURES[name], *_value_and_interval(estimate, decimals))
    return table


def _groups_table(column: str, evaluations: dict[str, Evaluation]) -> Table:
    from cxr.evaluation.measures import MEASURES

    patients = "" if None in {evaluation.patients for evaluation in evaluations.values()} else "\npatients"
    table = _table(column, f"images{patients}", "positive", *(MEASURES[name] for name in GROUP_MEASURES))
    table.padding = (0, 1, 0, 0)  # so that it goes into 60 columns
    for value, evaluation in evaluations.items():
        images = f"{evaluation.images:,}" + (f"\n{evaluation.patients:,}" if patients else "")
        cells = ("\n".join(_value_and_interval(evaluation.measures[name], 2, "-")) for name in GROUP_MEASURES)
        table.add_row(shown(value), images, f"{evaluation.positives:,}", *cells)
    return table


def _prevalence_table(there: AtPrevalence, here: Evaluation) -> Table:
    table = _table(
        f"at prevalence {there.prevalence:g}", "value", "interval", f"here ({here.prevalence:.3f})"
    )
    for name, estimate in {"PPV": there.ppv, "NPV": there.npv}.items():
        measured = _value_and_interval(here.measures[name.lower()], 3)[0]
        table.add_row(name, *_value_and_interval(estimate, 3), measured)
    for name, estimate in there.per_1000.items():
        per_1000 = 1000 * (here.measures[name].value or 0) / here.images
        table.add_row(f"{name.upper()} per 1,000", *_value_and_interval(estimate, 0), f"{per_1000:.0f}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, header_style="bold", box=None, pad_edge=False, title=" ")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _value_and_interval(estimate: Estimate, decimals: int, between: str = " to ") -> tuple[str, str]:
    if estimate.value is None:
        return f"[dim]not defined: {estimate.undefined}[/]", ""
    value = f"{estimate.value:,.{decimals}f}"
    if not estimate.ci95:
        return value, "[dim]no interval[/]"
    return value, between.join(f"{limit:,.{decimals}f}" for limit in estimate.ci95)
