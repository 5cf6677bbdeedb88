"""`cxr evaluate`: how good a run's scores are against reference labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Json, StackName, scored_by_bundle
from cxr.commands.terminal import console, errors_reported, expect_folder, notes, shown, stacked
from cxr.errors import InputError, NotMeasurable
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from classifier.model import Model

    from cxr.evaluation.assessment import Assessment
    from cxr.evaluation.cohort import Cohort
    from cxr.evaluation.measures import AtPrevalence, LabelledScores, Performance
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
        typer.Option(metavar="NAME", help="Evaluate only this label. Default: all that the labels file has."),
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

    If the results have scores of several labels, it measures each one that the
    labels file says something of, and prints a table with a row for each.

    If the model was trained on some of the images or patients, the first line
    says so.

    The JSON is one object: note, results and labels (what was given), label,
    model, probability (whether the scores are meant as probabilities),
    training_overlap (images, patients, of_images, of_patients), failed,
    without_label, labels_without_image, repeated_labels, unknown_labels (how
    many are left out, and why), threshold (value, source), intervals (how they
    were computed), overall, groups, at_prevalence, by_label and not_evaluated.
    overall is images, patients, positives, prevalence, threshold and measures:
    auc, average_precision, accuracy, sensitivity, specificity, ppv, npv, f1,
    tp, fp, tn, fn, brier, calibration_slope, each with value, ci95 and
    undefined (why there is no value). groups has the same for each value of
    each --group. at_prevalence is prevalence, ppv, npv and per_1000.

    by_label has all these fields, from label to at_prevalence, for each label.
    At the top they are those of the first label. not_evaluated has the reason
    for each label that was not measured. --out has its plots in DIR, and those
    of each further label in a folder of its name.

    Ends with 0, with 2 if what was given cannot be used, and with 1 if the
    files cannot be written.
    """
    with errors_reported():
        from cxr.bundles import SHIPPED, load
        from cxr.evaluation.assessment import assess, labelled_scores, none_evaluated, to_json
        from cxr.evaluation.cohort import TrainingSet, join
        from cxr.evaluation.labels import read_labels
        from cxr.evaluation.results import AllResults, find_all_results, find_results

        check_options(threshold, at_sensitivity, prevalence, out)
        model = load(bundle)
        primary = next(iter(model.thresholds))
        if label:
            only = find_results(results, label, stack=stack, primary=primary)
            found = AllResults([label], lambda _: only)
        else:
            found = find_all_results(results, stack=stack, primary=primary)

        def measured(name: str) -> tuple[Assessment, LabelledScores]:
            """Raises NotMeasurable, and InputError."""
            of_label = found.of(name)
            cohort = join(of_label, read_labels(labels, name, group or ()))
            scored_by = scored_by_bundle(of_label, model, bundle)
            assessment = assess(
                cohort,
                choose_threshold(of_label, cohort, scored_by, threshold, at_sensitivity),
                model=scored_by,
                training_set=TrainingSet.read(bundle or SHIPPED) if scored_by else None,
                prevalence=prevalence,
            )
            return assessment, labelled_scores(cohort)

        done: list[tuple[Assessment, LabelledScores]] = []
        not_evaluated: dict[str, str] = {}
        for number, name in enumerate(found.labels, 1):
            with notes.status(f"Evaluating {shown(name)}, {number} of {len(found.labels)}"):
                try:
                    done.append(measured(name))
                except NotMeasurable as error:
                    not_evaluated[name] = str(error)
        if not done:
            raise InputError(none_evaluated(not_evaluated))
        assessments = [assessment for assessment, _ in done]
        text = to_json(assessments, not_evaluated, results=results, labels=str(labels))
        if out:
            from cxr.evaluation.plots import write_files

            write_files(out, done, text)
        if as_json:
            typer.echo(text)
            return
        recorded = found.of(found.labels[0]).model
        if len(assessments) == 1:
            print_assessment(assessments[0], recorded)
        else:
            print_table(assessments, recorded)
        if not_evaluated:
            console.print("\nNot evaluated:", *by_text(not_evaluated.items()), sep="\n")
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
    expect_folder(out)


def choose_threshold(
    results: Results,
    cohort: Cohort,
    model: Model | None,
    threshold: float | None,
    at_sensitivity: float | None,
) -> Threshold:
    """The threshold that the options ask for. Raises NotMeasurable."""
    from cxr.evaluation.assessment import threshold_at
    from cxr.evaluation.results import Threshold

    if threshold is not None:
        return Threshold(threshold, "as given")
    if at_sensitivity is not None:
        try:
            return threshold_at(cohort, at_sensitivity)
        except NotMeasurable as error:
            raise NotMeasurable(f"--at-sensitivity {at_sensitivity:g}: {error}") from None
    try:
        return results.decided_by(model)
    except NotMeasurable as error:
        raise NotMeasurable(f"{error}; choose a threshold with --threshold") from None


def by_text(texts: Iterable[tuple[str, str]]) -> list[str]:
    """A line of rich markup for each different text, with the labels that it is about. `texts` are plain."""
    labels: dict[str, list[str]] = {}
    for label, text in texts:
        labels.setdefault(text, []).append(label)
    return [shown(f"{', '.join(names)}: {text}") for text, names in labels.items()]


def print_table(found: Sequence[Assessment], recorded: str) -> None:
    """Print what a person must know first, then the figures of several labels, a row each."""
    training = {one.label: _about_training(one, recorded) for one in found}
    for line in dict.fromkeys(training.values()):
        about = (
            "" if len(set(training.values())) == 1 else ", ".join(n for n in training if training[n] == line)
        )
        console.print(f"{shown(about)}: {line}" if about else line)
    samples = {one.overall.sample for one in found}
    console.print(f"\n[bold]{len(found)} labels[/]" + (f" on {samples.pop()}" if len(samples) == 1 else ""))
    console.print(*by_text((one.label, f"threshold: {one.threshold.source}") for one in found), sep="\n")
    console.print(*by_text((one.label, f"left out: {one.left_out or 'nothing'}") for one in found), sep="\n")
    console.print(_performances_table("label", {one.label: one.overall for one in found}, threshold=True))
    console.print(f"[dim]Intervals: {found[0].intervals}[/]")
    console.print("[dim]For all measures of a label use --label. The JSON has all of all labels.[/]")
    for one in found:
        if one.groups or one.at_prevalence:
            console.print(f"\n[bold]{shown(one.label)}[/]")
            _print_groups_and_prevalence(one)


def print_assessment(found: Assessment, recorded: str) -> None:
    """Print what a person must know first, then the figures of one label."""
    overall = found.overall
    console.print(_about_training(found, recorded))
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
    _print_groups_and_prevalence(found)


def _print_groups_and_prevalence(found: Assessment) -> None:
    for column, groups in found.groups.items():
        console.print(_performances_table(column, groups))
    if found.groups:
        console.print("[dim]The JSON has all measures of each group.[/]")
    if found.at_prevalence:
        console.print(_prevalence_table(found.at_prevalence, found.overall))
        console.print(
            "[dim]By Bayes' rule, if sensitivity and specificity stay the same. On other patients they may "
            "not. AUC stays the same too; accuracy, F1, average precision and calibration change.[/]"
        )


def _about_training(found: Assessment, recorded: str) -> str:
    """Whether the model was trained on these images. `recorded` is its name in the results, if known."""
    model = shown(str(found.model))
    overlap = found.training_overlap
    if not found.model:
        which = f"what {shown(recorded)}" if recorded else "which model made these scores, what it"
        return (
            f"[yellow]It is not known {which} was trained on, and whether its scores are probabilities. Give "
            "its bundle with --bundle.[/]"
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


def _performances_table(first: str, rows: Mapping[str, Performance], *, threshold: bool = False) -> Table:
    from cxr.evaluation.measures import MEASURES

    with_patients = None not in {found.patients for found in rows.values()}
    names = ["threshold"] * threshold + [MEASURES[name] for name in GROUP_MEASURES]
    heading = stacked("images", "patients") if with_patients else "images"
    table = _table(first, heading, "positive", *names)
    table.padding = (0, 1, 0, 0)  # so that it fits into 60 columns
    for value, found in rows.items():
        images = f"{found.images:,}"
        if with_patients:
            images = stacked(images, f"{found.patients:,}")
        cells = [f"{found.threshold:g}"] * threshold
        cells += [stacked(*found.measures[name].texts(2, "-")) for name in GROUP_MEASURES]
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
