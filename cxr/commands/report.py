"""`cxr report`: a run as one HTML file that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cxr import RESEARCH_ONLY
from cxr.commands.options import RunName, StackName
from cxr.commands.terminal import console, errors_reported, notes, shown
from cxr.errors import InputError
from cxr.result_rows import labels_of
from cxr.runs import run_status, run_table
from cxr.stack import Stack
from stacks.config import DEFAULT_NAME


def report(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML file to write or overwrite. Default: RUN.html."),
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
) -> None:
    """Write a run as one HTML file: figures, charts, gallery, every prediction.

    If the run has scores of several labels, a list on the page chooses which one
    it shows. With --labels, the page says why a label cannot be measured.

    The page needs no network and no other file. It holds at most sixty pictures
    of patients with heatmaps of what their scores are based on, unless you give
    --no-images. In either case it holds the key of every image.

    If the bundle is not the one that scored the run, the page has no heatmaps
    and no model card, and says so. The cost is an estimate, as `cxr plan` gives
    it for the settings that the stack had when the run was created.

    Ends with 0, with 2 if what was given cannot be used, and with 1 if AWS or
    the file system fails.
    """
    with errors_reported():
        from cxr.bundles import SHIPPED, load
        from cxr.evaluation.cohort import TrainingSet
        from cxr.evaluation.csv_table import CsvTable
        from cxr.evaluation.labels import ABNORMAL, read_labels
        from cxr.report_page.document import write
        from cxr.report_page.gallery import fetch_from
        from cxr.report_page.template import Template

        if group and not labels:
            raise InputError("--group: expected together with --labels")
        if labels:
            CsvTable(labels).require(*(group or ()))  # fails early, before the run is read
        path = out or Path(f"{run}.html")
        Template.read()  # fails early if a library of the page is not installed
        found = Stack.find(stack)
        table = run_table(found)
        status = run_status(table, run)
        names = labels_of(table, status, label) or [label or ABNORMAL]
        model = load(bundle)
        scored_by_it = model.sha256 == status.model_sha256
        if bundle and not scored_by_it:
            raise InputError(
                f"--bundle {bundle}: {model.name} with SHA-256 {model.sha256[:12]}; expected the bundle that "
                f"scored the run, {status.model} with {status.model_sha256[:12]}"
            )
        with notes.status("Writing the report"):
            write(
                path,
                run=status,
                predictions=table.predictions(run),
                labels=names[:1] if label else names,
                model=model if scored_by_it else None,
                training_set=TrainingSet.read(bundle or SHIPPED) if scored_by_it else None,
                references=(lambda name: read_labels(labels, name, group or ())) if labels else None,
                settings=found.settings,
                fetch=None if no_images else fetch_from(found),
            )
        pictures = "" if no_images else " It holds patients' images."
        console.print(f"Wrote {shown(str(path))}.{pictures} [bold]{RESEARCH_ONLY}[/]", soft_wrap=True)
