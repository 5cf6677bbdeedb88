"""`cxr report`: a run as one HTML file that opens offline."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cxr.commands.options import Json, StackName, complete_run, scored_by_bundle
from cxr.commands.terminal import errors_reported, expect_one_answer, notes, out_file, print_written
from cxr.errors import InputError, NotMeasurable
from cxr.result_rows import labels_of
from cxr.runs import run_status, run_table
from cxr.stack import Stack
from stacks.config import DEFAULT_NAME

if TYPE_CHECKING:
    from runs.predictions import Prediction

    from cxr.report_page.gallery import Fetch


def report(
    results: Annotated[
        str,
        typer.Argument(
            metavar="RUN|RESULTS.csv",
            help="Name of the run, or results as a CSV file.",
            autocompletion=complete_run,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="HTML file to write or overwrite, - for standard output. Default: RUN.html.",
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of reference labels, as for `cxr evaluate`: adds curves, a confusion matrix and the "
            "worst mistakes.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also measure by this column of the labels. Repeatable."),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Report only this label. Default: all, on one page."),
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave out the pictures: only keys and scores are left.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Bundle that scored the run, for its model card and heatmaps. Default: the one that ships.",
        ),
    ] = None,
    stack: StackName = DEFAULT_NAME,
    as_json: Json = False,
) -> None:
    """Write a run as one HTML file: figures, charts, gallery, every prediction.

    Instead of a run it takes the CSV of `cxr results` or `cxr score`. Such a
    report has no times and no cost, and pictures only if the keys are paths of
    files here. Of a file by another model than the bundle's it shows the first
    label.

    If the run has scores of several labels, a list on the page chooses which one
    it shows. With --labels, the page says why a label cannot be measured.

    The page needs no network and no other file. It holds at most sixty pictures
    of patients with heatmaps of what their scores are based on, unless you give
    --no-images. In either case it holds the key of every image.

    If the bundle is not the one that scored the run, the page has no heatmaps
    and no model card, and says so. The cost is an estimate, as `cxr plan` gives
    it for the settings that the stack had when the run was created.

    The JSON is one object: file (the report), run, labels, pictures (whether it
    has any).

    Ends with 0, with 2 if what was given cannot be used, and with 1 if AWS or
    the file system fails.
    """
    with errors_reported():
        from cxr.bundles import SHIPPED, load
        from cxr.evaluation.cohort import TrainingSet
        from cxr.evaluation.csv_table import CsvTable
        from cxr.evaluation.labels import ABNORMAL, read_labels
        from cxr.evaluation.results import is_file, read_as_run, read_results
        from cxr.report_page.document import write
        from cxr.report_page.gallery import fetch_from, fetch_here
        from cxr.report_page.template import Template

        expect_one_answer(out, as_json)
        if group and not labels:
            raise InputError("--group: expected together with --labels")
        if labels:
            CsvTable(labels).require(*(group or ()))  # fails early, before the run is read
        Template.read()  # fails early if a library of the page is not installed
        model = load(bundle)
        predictions: Iterable[Prediction]
        settings: Mapping[str, Any] | None
        fetch: Fetch | None
        if is_file(results):
            path, primary = Path(results), next(iter(model.thresholds))
            scored_by = scored_by_bundle(read_results(path, label, primary), model, bundle)
            try:
                run, rows, names = read_as_run(path, scored_by, primary)
            except NotMeasurable as error:
                raise InputError(
                    f"{path}: {error}; give the bundle that made the scores with --bundle"
                ) from None
            if label and label not in names:
                raise InputError(
                    f"{path} does not say which images are {label}; give its bundle with --bundle"
                )
            names = [label] if label else names
            predictions, settings, fetch = rows, None, fetch_here(rows)
        else:
            found = Stack.find(stack)
            table = run_table(found)
            run = run_status(table, results)
            names = labels_of(table, run, label) or [label or ABNORMAL]
            names = names[:1] if label else names
            scored_by = model if model.sha256 == run.model_sha256 else None
            if bundle and not scored_by:
                raise InputError(
                    f"--bundle {bundle}: {model.name} with SHA-256 {model.sha256[:12]}; expected the bundle "
                    f"that scored the run, {run.model} with {run.model_sha256[:12]}"
                )
            predictions, settings = table.predictions(results), found.settings
            fetch = fetch_from(found)
        fetch = None if no_images else fetch
        out = out or Path(f"{run.run_id}.html")
        with notes.status("Writing the report"), out_file(out) as part:
            write(
                part,
                run=run,
                predictions=predictions,
                labels=names,
                model=scored_by,
                training_set=TrainingSet.read(bundle or SHIPPED) if scored_by else None,
                references=(lambda name: read_labels(labels, name, group or ())) if labels else None,
                settings=settings,
                fetch=fetch,
            )
        if as_json:
            document = {"file": str(out), "run": run.run_id, "labels": names, "pictures": fetch is not None}
            typer.echo(json.dumps(document))
        else:
            print_written(out, after="It holds patients' images." if fetch else "")
