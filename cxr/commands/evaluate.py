"""`cxr evaluate`: how good a run's scores are against reference labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Json, StackName, scored_by_bundle
from cxr.commands.terminal import console, errors_reported, shown
from cxr.errors import InputError
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from classifier.model import Model

    from cxr.evaluation.assessment import Assessment
    from cxr.evaluation.cohort import Cohort
    from cxr.evaluation.measures import AtPrevalence, Performance
    from cxr.evaluation.results import Results, Threshold

GROUP_MEASURES = ("auc", "sensitivity", "specificity")  # the JSON has all


def evaluate(
    results: Annotated[
        str, typer.Argument(metavar="RESULTS.csv|RUN", help="Results as a CSV file, or the name of a run.")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="CSV of reference labels, also those of NIH, CheXpert, VinDr and RSNA. A column file, key "
            "or image names the image by key or base name. The label is 0 or 1 in a column of its name. With "
            "patient_id, intervals are by patient.",
        ),
    ],
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Label to evaluate. Default: the primary one of the results."),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="T", help="Call scores of at least T positive. Default: the threshold of the results."
        ),
    ] = None,
    at_sensitivity: Annotated[
        float | None,
        typer.Option(metavar="S", help="Use the highest threshold with this sensitivity, for example 0.95."),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(metavar="P", help="Also compute PPV, NPV and counts if this share were positive."),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also measure by this column of the labels. Repeatable."),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Bundle that made the scores. Default: the one that ships, if it can be the one.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for plots (PNG, SVG) and evaluation.json.")
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Measure scores against reference labels, each measure with its 95% interval.

    If the model was trained on some of the images or patients, the first line
    says so.

    Ends with 0, with 2 if what was given cannot be used, and with 1 if the
    files cannot be written.
    """
    with errors_reported():
        from cxr.bundles import SHIPPED, load
        from cxr.evaluation.assessment import assess, labelled_scores
        from cxr.evaluation.cohort import TrainingSet, join
        from cxr.evaluation.labels import read_labels
        from cxr.evaluation.results import find_results

        check_options(threshold, at_sensitivity, prevalence, out)
        model = load(bundle)
        found = find_results(results, label, stack=stack, primary=next(iter(model.thresholds)))
        scored_by = scored_by_bundle(found, model, bundle)
        cohort = join(found, read_labels(labels, found.label, group or ()))
        with console.status("Evaluating"):
            assessment = assess(
                cohort,
                choose_threshold(found, cohort, scored_by, threshold, at_sensitivity),
                model=scored_by,
                training_set=TrainingSet.read(bundle or SHIPPED) if scored_by else None,
                prevalence=prevalence,
            )
            text = assessment.to_json(results=results, labels=str(labels))
            if out:
                from cxr.evaluation.plots import write_files

                write_files(out, assessment, labelled_scores(cohort), text)
        if as_json:
            typer.echo(text)
            return
        print_assessment(assessment)
        if out:
            console.print(f"\nWrote plots and evaluation.json to {shown(str(out))}")
        console.print(f"[bold]{RESEARCH_ONLY}[/]")


def check_options(
    threshold: float | None, at_sensitivity: float | None, prevalence: float | None, out: Path | None
) -> None:
    """Raise InputError for a value that an option cannot have."""
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


def choose_threshold(
    results: Results,
    cohort: Cohort,
    model: Model | None,
    threshold: float | None,
    at_sensitivity: float | None,
) -> Threshold:
    """The threshold that the options ask for. Raises InputError."""
    from cxr.evaluation.assessment import threshold_at
    from cxr.evaluation.results import Threshold

    if threshold is not None:
        return Threshold(threshold, "as given")
    if at_sensitivity is not None:
        try:
            return threshold_at(cohort, at_sensitivity)
        except InputError as error:
            raise InputError(f"--at-sensitivity {at_sensitivity:g}: {error}") from None
    try:
        return results.decided_by(model)
    except InputError as error:
        raise InputError(f"{error}; choose a threshold with --threshold") from None


def print_assessment(found: Assessment) -> None:
    """Print what a person must know first, then the figures."""
    overall = found.overall
    console.print(_about_training(found))
    console.print(
        f"\n[bold]{shown(found.label)}[/] on {overall.sample}: "
        f"{overall.positives:,} positive, prevalence {overall.prevalence:.3f}"
    )
    console.print(f"Threshold {found.threshold.value:g}: {shown(found.threshold.source)}")
    if found.left_out:
        console.print(f"Left out: {found.left_out}")
    measures = _table("measure", "value", "95% interval")
    for row in overall.texts:
        measures.add_row(*row)
    console.print(measures, f"[dim]Intervals: {found.intervals}[/]", sep="\n")
    for column, groups in found.groups.items():
        console.print(_groups_table(column, groups))
    if found.groups:
        console.print("[dim]The JSON has all measures of each group.[/]")
    if found.at_prevalence:
        console.print(_prevalence_table(found.at_prevalence, overall))
        console.print(
            "[dim]By Bayes' rule, if sensitivity and specificity stay the same. On other patients they may "
            "not. AUC stays the same too; accuracy, F1, average precision and calibration change.[/]"
        )


def _about_training(found: Assessment) -> str:
    model = shown(str(found.model))
    overlap = found.training_overlap
    if not found.model:
        return (
            f"[yellow]It is not known which model made these scores of {shown(found.label)}, what it was "
            "trained on, and whether they are probabilities. Give its bundle with --bundle.[/]"
        )
    if not overlap:
        return (
            f"[yellow]It is not known whether {model} was trained on these: it has no trained_on.json, or no "
            "image and no patient of these is in it by that name.[/]"
        )
    if not overlap.any:
        return f"{model} was trained on {overlap.text}."
    return (
        f"[bold red]{model} was trained on {overlap.text}: "
        "these figures do not show how good it is on other images.[/]"
    )


def _groups_table(column: str, groups: dict[str, Performance]) -> Table:
    from cxr.evaluation.measures import MEASURES

    patients = "" if None in {found.patients for found in groups.values()} else "\npatients"
    table = _table(column, f"images{patients}", "positive", *(MEASURES[name] for name in GROUP_MEASURES))
    table.padding = (0, 1, 0, 0)  # so that it fits into 60 columns
    for value, found in groups.items():
        images = f"{found.images:,}" + (f"\n{found.patients:,}" if patients else "")
        cells = ("\n".join(found.measures[name].texts(2, "-")) for name in GROUP_MEASURES)
        table.add_row(shown(value), images, f"{found.positives:,}", *cells)
    return table


def _prevalence_table(there: AtPrevalence, here: Performance) -> Table:
    table = _table(
        f"at prevalence {there.prevalence:g}", "value", "interval", f"here ({here.prevalence:.3f})"
    )
    for name, estimate in {"PPV": there.ppv, "NPV": there.npv}.items():
        table.add_row(name, *estimate.texts(3), here.measures[name.lower()].texts(3)[0])
    for name, estimate in there.per_1000.items():
        per_1000 = 1000 * (here.measures[name].value or 0) / here.images
        table.add_row(f"{name.upper()} per 1,000", *estimate.texts(0), f"{per_1000:.0f}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, header_style="bold", box=None, pad_edge=False, title=" ")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    return table
