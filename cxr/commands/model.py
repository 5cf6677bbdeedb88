"""`cxr score`, `cxr explain` and `cxr model check`: a model bundle on this machine, without AWS."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Bundle, Json
from cxr.commands.row_output import RowFormat, write_rows
from cxr.commands.terminal import (
    console,
    errors_reported,
    expect_one_answer,
    is_standard_output,
    out_file,
    print_written,
    shown,
)
from cxr.errors import Failed, InputError
from cxr.result_rows import row
from stacks.settings_file import line

if TYPE_CHECKING:
    from classifier.model import Model
    from runs.predictions import Prediction

MOST_NAMED = 20  # files that failed, on standard error
SELF_TEST_TOLERANCE = 1e-3  # processors differ in the last bits of a float, which is less


class Activation(StrEnum):
    """The activations that `pack` adds."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


model = typer.Typer(no_args_is_help=True, help="Model bundles: what a model is, and whether it works here.")


def score(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="PNG, JPEG or DICOM files, and folders with their sub-folders."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write the rows of `cxr results` to, - for standard output."
        ),
    ] = None,
    form: RowFormat = None,
    bundle: Bundle = None,
    as_json: Json = False,
) -> None:
    """Score image files on this machine as the classifier does, without AWS.

    Of a folder it scores all files but hidden ones and those that a run skips
    too, such as CSV and text files. A file that cannot be scored does not stop
    the others; it is named in the end.

    With --out or --format it writes rows with the columns of `cxr results`. The
    key is the path. `cxr evaluate`, `compare` and `report` read the CSV. A path
    that cannot be read has no row.

    The JSON is one object a line: file, scores, positive and warnings, or file
    and error.

    Ends with 0 if every file was scored, with 1 if one was not, and with 2 if
    no file can be read or the bundle is wrong.
    """
    with errors_reported():
        if as_json and (out or form):
            raise InputError("--json together with --out or --format: expected one of them")
        from cxr.bundles import find_images, load, score_file

        loaded = load(bundle)
        files, unread = find_images(paths)
        failed: list[str] = []

        def predictions() -> Iterator[Prediction]:
            """Raises InputError in the end if no file could be read."""
            read = 0
            for file in files:
                try:
                    prediction = score_file(loaded, file)
                except InputError as error:
                    unread.append(str(error))
                    continue
                read += 1
                if prediction.error:
                    failed.append(f"{prediction.key}: {prediction.error}")
                yield prediction
            if not read:
                raise InputError("\n".join(unread))

        found = predictions()
        if out or form:
            labels = list(loaded.thresholds)
            rows = (row(one, labels, loaded.name) for one in found)
            write_rows(rows, out, form, doing="Scoring", total=len(files))
            for _ in found:  # the exit code is about all files, also if the reader has left
                pass
        elif as_json:
            for prediction in found:
                typer.echo(json.dumps(document(prediction)))
        else:
            _print_predictions(loaded, list(found))
        if unread or (failed and (out or form)):
            raise Failed("\n".join([*unread, *named(failed)]))
        if failed:  # they are named above
            raise typer.Exit(1)


def named(failed: list[str]) -> list[str]:
    """The first of the lines, and how many more there are."""
    more = len(failed) - MOST_NAMED
    return failed[:MOST_NAMED] + ([f"{more:,} more are FAILED in the rows"] if more > 0 else [])


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or DICOM file.")],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PNG to write, - for standard output. Default: IMAGE's name with .cam.png, here.",
        ),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Label to explain. Default: the primary one.")
    ] = None,
    bundle: Bundle = None,
    as_json: Json = False,
) -> None:
    """Write a heatmap of what an image's score is based on.

    The heatmap is a class activation map, drawn over what the model saw: what
    each place adds to the score, before the score is brought into 0 to 1. It is
    not evidence of where a finding is. Only models whose head is linear on
    average pooling have one.

    The JSON is one object: file (the picture), label, score, model.
    """
    with errors_reported():
        path = out or Path(f"{image.stem}.cam.png")
        expect_one_answer(path, as_json)
        from classifier.bounds import ImageError

        from cxr import bundles, explanation

        loaded = bundles.load(bundle)
        try:
            explained, value, picture = explanation.explain(loaded, bundles.read_image(image), label)
        except ImageError as error:
            raise InputError(f"{image}: {error.code}") from None
        with out_file(path) as part:
            picture.save(part, "PNG")
        if as_json:
            found = {"file": str(path), "label": explained, "score": float(value), "model": loaded.name}
            typer.echo(json.dumps(found))
            return
        print_written(path, f"{shown(explained)} {value:.3f}.")


@model.command()
def check(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE", help="Folder of model.onnx and model.json. Default: the bundle that ships."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print what a model is, and check that it works here: it must score a drawing as model.json says.

    The JSON is one object: ok, model, sha256, architecture, preprocessing, labels
    (label: threshold), score, heatmap (whether it has one), intended_use,
    licence, attribution, self_test (label: score and expected).

    Ends with 1 if the score of the drawing is another one, and with 2 if the
    parts of the bundle do not fit together.
    """
    with errors_reported():
        from cxr.bundles import load, self_test

        loaded = load(bundle, trial=True)
        if not as_json:
            _print_card(loaded)
        scores = self_test(loaded)
        off = {label: abs(score - expected) for label, (score, expected) in scores.items()}
        worst = max(off, key=lambda label: off[label])
        ok = off[worst] <= SELF_TEST_TOLERANCE
        if as_json:
            typer.echo(json.dumps({"ok": ok, **card_document(loaded, scores)}, indent=2))
        elif ok:
            console.print(f"\n[green]✓[/] self-test: a drawing scores as expected, to {off[worst]:.1e}")
        else:
            score, expected = scores[worst]
            console.print(f"\n[red]✗[/] self-test: {shown(worst)} is {score:g}, expected {expected:g}")
        if not ok:
            raise typer.Exit(1)


@model.command()
def pack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An image classifier in ONNX.")],
    labels: Annotated[
        str,
        typer.Option(
            metavar="NAME,NAME,...",
            help="A name for each output, the primary label first; empty for one to leave out.",
        ),
    ],
    resize: Annotated[int, typer.Option(metavar="PIXELS", help="Resize the shorter side to this.")],
    crop: Annotated[int, typer.Option(metavar="PIXELS", help="Then take the centre square of this side.")],
    mean: Annotated[
        str,
        typer.Option(metavar="X,X,X", help="Mean of each channel, of grey values from 0 to 1, to subtract."),
    ],
    std: Annotated[
        str, typer.Option(metavar="X,X,X", help="Standard deviation of each channel, to divide by.")
    ],
    activation: Annotated[
        Activation, typer.Option(help="What turns outputs into scores; none if the file does it.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="New folder for the bundle.")],
    thresholds: Annotated[
        str | None,
        typer.Option(metavar="X,X,...", help="Of each label: positive from this score on. Default: 0.5."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="NAME", help="The output to use, of a file with several.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model's name. Default: FILE's, without .onnx.")
    ] = None,
    version: Annotated[str, typer.Option(metavar="TEXT", help="The model's version.")] = "1.0.0",
    as_json: Json = False,
) -> None:
    """Make a model bundle of an image classifier in ONNX.

    FILE takes floats [images, channels, height, width] with 1 or 3 channels, and
    gives a number for each label. The command adds normalisation and activation,
    and checks that the bundle scores drawings of chests as FILE does.

    The JSON is one object: bundle (the folder), model, labels,
    greatest_difference (between scores of drawings).

    Ends with 2 if FILE cannot be packed, and writes nothing then.
    """
    with errors_reported():
        from cxr.packing import Recipe
        from cxr.packing import pack as pack_file

        if is_standard_output(out):
            raise InputError("--out -: expected a new folder, because a bundle is two files")
        recipe = Recipe(
            labels=[label.strip() for label in labels.split(",")],
            mean=_numbers("--mean", mean),
            std=_numbers("--std", std),
            activation=activation.value,
            resize=resize,
            crop=crop,
            thresholds=None if thresholds is None else _numbers("--thresholds", thresholds),
            output=output,
        )
        packed = pack_file(file, recipe, out, **{"name": name or file.stem, "version": version})
        if as_json:
            found = {
                "bundle": str(out),
                "model": packed.model.name,
                "labels": list(packed.model.thresholds),
                "greatest_difference": float(packed.greatest_difference),
            }
            typer.echo(json.dumps(found))
            return
        folder = shown(str(out))
        console.print(
            f"[green]✓[/] scores of drawings are those of {shown(str(file))}, to "
            f"{packed.greatest_difference:.0e}\n"
            f"Wrote {folder}: {shown(packed.model.name)}, {shown(', '.join(packed.model.thresholds))}\n\n"
            f"  cxr model check {folder}\n  cxr local demo --bundle {folder}\n"
            f"  npx cdk deploy, after {shown(line('model', str(out)))} in settings.toml",
            soft_wrap=True,
        )


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text}: expected numbers with commas between them") from None


def document(prediction: Prediction) -> dict[str, Any]:
    """The prediction for a file as an object for JSON."""
    if prediction.error:
        return {"file": prediction.key, "error": prediction.error}
    return {
        "file": prediction.key,
        "scores": {label: float(score) for label, score in prediction.scores.items()},
        "positive": list(prediction.positive),
        "warnings": list(prediction.warnings),
    }


def card_document(loaded: Model, scores: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """What a model is and how it scored the drawing, as an object for JSON."""
    card = loaded.card
    return {
        "model": loaded.name,
        "sha256": loaded.sha256,
        "architecture": card.get("architecture"),
        "preprocessing": card["preprocessing"],
        "labels": {label: float(threshold) for label, threshold in loaded.thresholds.items()},
        "score": card.get("score", "probability"),
        "heatmap": bool(card.get("cam")),
        **{name: card.get(name) for name in ("intended_use", "licence", "attribution")},
        "self_test": {label: {"score": score, "expected": value} for label, (score, value) in scores.items()},
    }


def _print_predictions(loaded: Model, predictions: list[Prediction]) -> None:
    labels = map(shown, loaded.thresholds)
    table = Table("file", *labels, "positive", "warnings", box=None, pad_edge=False, header_style="bold")
    table.columns[0].overflow = "fold"
    for prediction in predictions:
        file = shown(prediction.key)
        if prediction.error:
            table.add_row(file, *[""] * len(loaded.thresholds), "", f"[red]{prediction.error}[/]")
        else:
            scores = (f"{score:.3f}" for score in prediction.scores.values())
            table.add_row(
                file, *scores, shown(", ".join(prediction.positive)), ", ".join(prediction.warnings)
            )
    console.print(table)
    console.print(f"\nScored by {shown(loaded.name)}. [bold]{RESEARCH_ONLY}[/]")


def _print_card(loaded: Model) -> None:
    card = loaded.card
    kind = card.get("score", "probability")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in {
        "model": f"{loaded.name}, {card.get('architecture', 'architecture not given')}",
        "SHA-256": loaded.sha256,
        "input": json.dumps(card["preprocessing"]),
        "labels": ", ".join(f"{label} from {limit}" for label, limit in loaded.thresholds.items()),
        "score": kind if kind == "operating point" else f"{kind}, as far as it is calibrated",
        "heatmap": "class activation map" if card.get("cam") else "none",
        "intended use": card.get("intended_use", "not given"),
        "licence": card.get("licence", "not given"),
        "attribution": card.get("attribution", "not given"),
    }.items():
        table.add_row(name, shown(value))
    console.print(table)
