"""`cxr compare`: which of two models is better on the same images, or what changed between two runs."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Json, StackName, scored_by_bundle
from cxr.commands.terminal import console, errors_reported, expect_folder, shown
from cxr.errors import InputError, NoSuchLabel
from cxr.words import counted
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from classifier.model import Model

    from cxr.evaluation.comparison import Comparison, Disagreement, Reference, Side, Source
    from cxr.evaluation.paired import Agreement, Shift
    from cxr.evaluation.results import Results, Threshold

MAX_LISTED = 1000


def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="Results as a CSV file, or the name of a run.")],
    b: Annotated[str, typer.Argument(metavar="B", help="The results to compare with them.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of reference labels, as for `cxr evaluate`: says which of the two is better.",
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Label to compare. Default: the primary one of A."),
    ] = None,
    at_specificity: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Compare sensitivity at this specificity. Default: the one that A has at its threshold.",
        ),
    ] = None,
    thresholds: Annotated[
        tuple[float, float] | None,
        typer.Option(
            metavar="T T",
            help="Thresholds of A and of B: a score from T on is positive. Default: those of the results.",
        ),
    ] = None,
    bundle_a: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Bundle that made the scores of A. Default: the one that ships, if A names it.",
        ),
    ] = None,
    bundle_b: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Bundle that made the scores of B. Default: as for A.")
    ] = None,
    top: Annotated[
        int, typer.Option(metavar="N", help="How many of the images that they disagree on to list.")
    ] = 10,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for plots (PNG, SVG) and comparison.json.")
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Compare two models on the same images, or two runs of one model.

    With --labels it says which is better: the difference B - A of AUC, average
    precision and sensitivity at equal specificity, each with its 95% interval.
    With and without, it says how far the calls agree, how the scores shifted,
    and which images the two disagree on most. Only images that both scored
    count, and with --labels only those that have a label.

    The JSON is one object: note, label, a and b (name, model, threshold,
    failed, unpaired, training_overlap), same_model, images, patients,
    paired_by, intervals, reference (positives, prevalence, without_label,
    labels_without_image, repeated_labels, specificity, differences: auc,
    average_precision, sensitivity_at_specificity, each with a, b and
    difference of value and ci95), agreement (both_positive, only_a_positive,
    only_b_positive, both_negative, share, kappa), shift (mean_a, mean_b,
    quantiles, ks_distance, rank_correlation, changed, largest_change) and
    disagreements (key, a, b, positive_a, positive_b, positive). reference is
    null without --labels, and agreement if the calls are not known.

    Ends with 0, whatever the difference is, with 2 if what was given cannot be
    used, and with 1 if the files cannot be written.
    """
    with errors_reported():
        from cxr.bundles import load
        from cxr.evaluation.comparison import compare as compared
        from cxr.evaluation.comparison import pair
        from cxr.evaluation.labels import ABNORMAL, read_labels
        from cxr.evaluation.results import find_results

        check_options(labels, at_specificity, thresholds, top, out)
        models = {folder: load(folder) for folder in {bundle_a, bundle_b}}
        primary = next(iter(models[bundle_a].thresholds), ABNORMAL)
        results_a = find_results(a, label, stack=stack, primary=primary)
        try:
            results_b = find_results(b, results_a.label, stack=stack)
        except NoSuchLabel as error:
            if label:
                raise
            raise InputError(
                f"A has scores of {results_a.label}, B has not: {error}; choose a label that both have with "
                "--label"
            ) from None
        of_a, of_b = thresholds or (None, None)
        side_a = describe(a, results_a, models[bundle_a], bundle_a, "--bundle-a", of_a)
        side_b = describe(b, results_b, models[bundle_b], bundle_b, "--bundle-b", of_b)
        with console.status("Comparing"):
            pairs = pair(results_a, results_b, read_labels(labels, results_a.label) if labels else None)
            found = compared(side_a, side_b, pairs, specificity=at_specificity, most=top)
            text = found.to_json()
            if out:
                from cxr.evaluation.plots import write_comparison

                write_comparison(out, found, pairs, text)
        if as_json:
            typer.echo(text)
            return
        print_comparison(found)
        if out:
            console.print(f"\nWrote plots and comparison.json to {shown(str(out))}")
        console.print(f"[bold]{RESEARCH_ONLY}[/]")


def check_options(
    labels: Path | None,
    at_specificity: float | None,
    thresholds: tuple[float, float] | None,
    top: int,
    out: Path | None,
) -> None:
    """Raise InputError for a value that an option cannot have."""
    if at_specificity is not None and not labels:
        raise InputError("--at-specificity: expected together with --labels")
    if at_specificity is not None and not 0 <= at_specificity <= 1:
        raise InputError(f"--at-specificity {at_specificity:g}: expected a share from 0 to 1")
    for threshold in thresholds or ():
        if not 0 <= threshold <= 1:
            raise InputError(f"--thresholds {threshold:g}: expected scores from 0 to 1")
    if not 0 <= top <= MAX_LISTED:
        raise InputError(f"--top {top}: expected a whole number from 0 to {MAX_LISTED:,}")
    expect_folder(out)


def describe(
    name: str,
    results: Results,
    model: Model,
    bundle: Path | None,
    option: str,
    threshold: float | None,
) -> Source:
    """What is known of the results: the model that made them, its training set, its threshold.

    Raises InputError.
    """
    from cxr.bundles import SHIPPED
    from cxr.evaluation.cohort import TrainingSet
    from cxr.evaluation.comparison import Source

    # Two models may have the same threshold, so a CSV without a model's name does not tell which made it.
    named = bundle or results.model_sha256 or results.model
    made_by = scored_by_bundle(results, model, bundle, option) if named else None
    return Source(
        name=name,
        results=results,
        threshold=choose_threshold(name, results, made_by, threshold),
        model=made_by.name if made_by else results.model or None,
        training_set=TrainingSet.read(bundle or SHIPPED) if made_by else None,
    )


def choose_threshold(
    name: str, results: Results, model: Model | None, threshold: float | None
) -> Threshold | None:
    """The threshold that was given, or that of the results; None if it is not known. Raises InputError."""
    from cxr.evaluation.results import Threshold

    if threshold is not None:
        return Threshold(threshold, "as given")
    if not results.decided and not model:
        return None
    try:
        return results.decided_by(model)
    except InputError as error:
        raise InputError(f"{name}: {error}; choose the thresholds with --thresholds") from None


def print_comparison(found: Comparison) -> None:
    """Print what is compared, then the figures."""
    for name, side in (("A", found.a), ("B", found.b)):
        model = f", by {shown(side.model)}" if side.model else ""
        console.print(f"[bold]{name}[/]  {shown(side.name)}{model}. {_threshold(side)}")
    if found.reference:
        _print_training(found)
    positives = ""
    if found.reference:
        positives = f": {found.reference.positives:,} positive, prevalence {found.reference.prevalence:.3f}"
    console.print(f"\n[bold]{shown(found.label)}[/] on {found.sample} that both scored{positives}")
    if left_out := _left_out(found):
        console.print(f"Left out: {left_out}")
    if found.paired_by != "key":
        console.print(f"[yellow]Images are paired by {found.paired_by}.[/]")
    if found.reference:
        console.print(_differences_table(found.reference))
        console.print(f"[bold]{_verdict(found.label, found.reference)}[/]")
    if found.agreement:
        console.print(_agreement_table(found.agreement))
    else:
        console.print(
            "\n[yellow]It is not known which images both call positive. Give their thresholds with "
            "--thresholds.[/]"
        )
    if found.reference or found.agreement:
        console.print(f"[dim]Intervals: {found.intervals}[/]")
    console.print(_shift_table(found.shift), *_shift_lines(found), sep="\n")
    if found.disagreements:
        _print_disagreements(found.disagreements)


def _threshold(side: Side) -> str:
    if not side.threshold:
        return "Threshold not known"
    return f"Threshold {side.threshold.value:g}: {shown(side.threshold.source)}"


def _print_training(found: Comparison) -> None:
    """Say of each model whether it was trained on these images."""
    unknown = []
    for name, side in (("A", found.a), ("B", found.b)):
        if not side.training_overlap:
            unknown.append(name)
        elif side.training_overlap.any:
            console.print(
                f"[bold red]{name} was trained on {side.training_overlap.text}: the difference does not show "
                "which is better on other images.[/]"
            )
        else:
            console.print(f"{name} was trained on {side.training_overlap.text}.")
    if unknown:
        console.print(
            f"[yellow]It is not known whether {' and '.join(unknown)} {'were' if unknown[1:] else 'was'} "
            "trained on these images. Give the bundle with --bundle-a or --bundle-b. It knows images and "
            "patients by their names.[/]"
        )


def _left_out(found: Comparison) -> str:
    counts = {
        "FAILED images of A": found.a.failed,
        "FAILED images of B": found.b.failed,
        "images that only A scored": found.a.unpaired,
        "images that only B scored": found.b.unpaired,
    }
    if found.reference:
        counts |= {
            "images without a label": found.reference.without_label,
            "labels without an image": found.reference.labels_without_image,
            "labels given again": found.reference.repeated_labels,
        }
    return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def _verdict(label: str, reference: Reference) -> str:
    auc = reference.differences["auc"].difference
    if auc.value is None or auc.ci95 is None:
        return "These images cannot tell which of the two is better."
    low, high = auc.ci95
    interval = "the interval of the difference in AUC"
    if low <= 0 <= high:
        return f"These images do not show that one is better: {interval} includes 0."
    better, other = ("B", "A") if low > 0 else ("A", "B")
    return f"{better} separates {shown(label)} better than {other}: {interval} excludes 0."


def _differences_table(reference: Reference) -> Table:
    from cxr.evaluation.measures import MEASURES
    from cxr.evaluation.paired import SENSITIVITY

    table = _table("measure", "A", "B", "B - A", "95% interval")
    for name, found in reference.differences.items():
        text = MEASURES.get(name, "sensitivity at equal specificity")
        if name == SENSITIVITY and reference.specificity is not None:
            text = f"sensitivity at specificity {reference.specificity:.3f}"
        value, interval = found.difference.texts(3)
        change = value if found.difference.value is None else _signed(found.difference.value)
        table.add_row(text, found.a.texts(3)[0], found.b.texts(3)[0], change, interval)
    return table


def _agreement_table(found: Agreement) -> Table:
    table = _table("calls at the thresholds", "value", "95% interval")
    table.add_row("share of equal calls", *found.share.texts(3))
    table.add_row("Cohen's kappa", *found.kappa.texts(3))
    for name, number in {
        "positive in both": found.both_positive,
        "positive in A only": found.only_a_positive,
        "positive in B only": found.only_b_positive,
        "positive in neither": found.both_negative,
    }.items():
        table.add_row(name, f"{number:,}", "")
    return table


def _shift_table(found: Shift) -> Table:
    table = _table("scores", "A", "B", "B - A")
    rows = {"mean": (found.mean_a, found.mean_b)}
    rows |= {f"{float(share):.0%} quantile": both for share, both in found.quantiles.items()}
    for name, (of_a, of_b) in rows.items():
        table.add_row(name, f"{of_a:.3f}", f"{of_b:.3f}", _signed(of_b - of_a))
    return table


def _shift_lines(found: Comparison) -> list[str]:
    shift = found.shift
    correlation = "not defined" if shift.rank_correlation is None else f"{shift.rank_correlation:.3f}"
    lines = [
        f"Kolmogorov-Smirnov distance {shift.ks_distance:.3f}, Spearman's rank correlation {correlation}",
        f"Images with another score: {shift.changed:,} of {found.images:,}; "
        f"largest change {shift.largest_change:.6f}",
    ]
    if found.same_model and shift.changed:
        lines.append(
            "[yellow]One model made both. So these images changed, or the code or the processor that scored "
            "them did.[/]"
        )
    return lines


def _print_disagreements(found: list[Disagreement]) -> None:
    # What all keys begin with is printed once, because a terminal is narrow.
    folders = zip(*(one.key.split("/")[:-1] for one in found), strict=False)
    start = "".join(f"{same[0]}/" for same in takewhile(lambda names: len(set(names)) == 1, folders))
    below = f", below {shown(start)}" if start else ""
    console.print(f"\n[bold]They disagree most on {counted(len(found), 'image')}[/]{below}")
    columns = ["A", "B", "B - A"]
    if found[0].positive_a is not None:
        columns.append("positive in")
    if found[0].positive is not None:
        columns.append("label")
    table = _table("image", *columns)
    table.title = None
    names = {(True, True): "both", (True, False): "A", (False, True): "B", (False, False): "neither"}
    for one in found:
        row = [f"{one.a:.3f}", f"{one.b:.3f}", _signed(one.b - one.a)]
        if one.positive_a is not None and one.positive_b is not None:
            row.append(names[one.positive_a, one.positive_b])
        if one.positive is not None:
            row.append(str(int(one.positive)))
        table.add_row(shown(one.key.removeprefix(start)), *row)
    console.print(table)


def _signed(difference: float) -> str:
    return f"{round(difference, 3) + 0.0:+.3f}"  # + 0.0, because a rounded -0.0 would be printed as -0.000


def _table(first: str, *others: str) -> Table:
    table = Table(first, *others, header_style="bold", box=None, pad_edge=False, title=" ")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify = "right"
    return table
