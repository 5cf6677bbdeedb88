"""`cxr report`: a run as one HTML file that opens offline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from botocore.exceptions import ClientError

from cxr import RESEARCH_ONLY
from cxr.commands.model import SHIPPED, load
from cxr.commands.options import RunName, StackName
from cxr.commands.terminal import console, errors_reported, notes, shown
from cxr.errors import InputError
from cxr.stack import NAME, Stack, client

if TYPE_CHECKING:
    from classifier.model import Model

    from cxr.report_page.gallery import Fetch
    from stacks.config import Config

_MISSING = {"NoSuchKey", "404"}


def report(
    run: RunName,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="HTML file to write, over one that is there. Default: RUN.html."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV of reference labels, as `cxr evaluate` reads it: adds curves, confusion and mistakes.",
        ),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Also by the values of this column of the labels. Repeatable."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Label to report on. Default: the primary one.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Leave the pictures out: the file then holds keys and scores.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Bundle that scored the run, for its card and maps. Default: what ships."
        ),
    ] = None,
    stack: StackName = NAME,
) -> None:
    """Write a run as one HTML file: figures, charts, gallery, every prediction.

    The page needs no network and no other file. It holds some sixty pictures
    of patients, with maps of what the model went by, unless --no-images is
    given; and the key of every image in any case.

    If the bundle at hand is not the one that scored the run, the page has no
    maps and no model card, and says so. Cost is as `cxr plan` reckons it, for
    the settings that are deployed now.

    Ends with 0, with 2 if what was given cannot be used, and with 1 if AWS or
    the file system fails.
    """
    with errors_reported():
        from cxr.evaluation.cohort import ABNORMAL, TrainingSet, read_labels
        from cxr.report_page import document as page
        from cxr.report_page.template import Template
        from cxr.results import labels_of
        from cxr.runs import run_status, run_table

        if group and not labels:
            raise InputError("--group: expected together with --labels")
        path = out or Path(f"{run}.html")
        Template.read()  # what is not installed is said before AWS is asked
        found = Stack.find(stack)
        table = run_table(found)
        status = run_status(table, run)
        about = next(iter(labels_of(table, status, label)), label or ABNORMAL)
        model: Model | None = load(bundle or SHIPPED)
        if model and model.sha256 != status.model_sha256:
            if bundle:
                raise InputError(
                    f"--bundle {bundle}: {model.name} with SHA-256 {model.sha256[:12]}; expected what scored "
                    f"the run, {status.model} with {status.model_sha256[:12]}"
                )
            model = None
        references = None
        if labels:
            references = page.Labels(*read_labels(labels, about, group or ()), columns=tuple(group or ()))
        with notes.status("Writing the report"):
            page.write(
                path,
                run=status,
                predictions=table.predictions(run),
                label=about,
                model=model,
                training_set=TrainingSet.read(bundle or SHIPPED) if model else None,
                labels=references,
                config=settings(found),
                fetch=None if no_images else fetch(found),
            )
        pictures = "" if no_images else " It holds patients' images."
        console.print(f"Wrote {shown(str(path))}.{pictures} [bold]{RESEARCH_ONLY}[/]", soft_wrap=True)


def fetch(stack: Stack) -> Fetch:
    """Gives an image's bytes by its key, None if it is not there any more."""
    s3 = client("s3")

    def get(key: str) -> bytes | None:
        try:
            return bytes(s3.get_object(Bucket=stack.images_bucket, Key=key)["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in _MISSING:
                return None
            raise

    return get


def settings(stack: Stack) -> Config:
    """The deployed settings as far as a report shows them; the others are at their defaults."""
    from stacks.config import Config

    functions = client("lambda")
    stream = client("kinesis").describe_stream_summary(StreamName=stack.stream)["StreamDescriptionSummary"]
    mapping = functions.get_event_source_mapping(UUID=stack.mapping)
    classifier = functions.get_function_configuration(FunctionName=stack.classifier)
    creator = functions.get_function_configuration(FunctionName=stack.job_creator)
    return Config(
        prefix=stack.prefix,
        shards=stream["OpenShardCount"],
        stream_retention=stream["RetentionPeriodHours"],
        parallelization_factor=mapping["ParallelizationFactor"],
        batch_size=mapping["BatchSize"],
        batch_window=mapping.get("MaximumBatchingWindowInSeconds", 0),
        retries=mapping["MaximumRetryAttempts"],
        record_age=mapping["MaximumRecordAgeInSeconds"] // 3600,
        memory=classifier["MemorySize"],
        timeout=classifier["Timeout"],
        architecture=classifier["Architectures"][0],
        images_per_job=int(creator["Environment"]["Variables"]["IMAGES_PER_JOB"]),
    )
