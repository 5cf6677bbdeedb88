"""`cxr score`, `cxr explain` and `cxr model check`: a model bundle on this machine, without AWS."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cxr import RESEARCH_ONLY
from cxr.commands.options import Bundle, Json
from cxr.commands.terminal import console, errors_reported, shown
from cxr.errors import Failed, InputError
from cxr.files import whole_file

if TYPE_CHECKING:
    from classifier.model import Model
    from runs.predictions import Prediction

SELF_TEST_TOLERANCE = 1e-3  # processors differ in the last bits of a float, which is less


class Activation(StrEnum):
    """The activations that `pack` adds."""

    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"
    NONE = "none"


model = typer.Typer(no_args_is_help=True, help="Model bundles: what a model is, and whether it works here.")


def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG, JPEG or DICOM files.")],
    bundle: Bundle = None,
    as_json: Json = False,
) -> None:
    """Score image files on this machine as the classifier does, without AWS.

    The JSON is one object a line: file, scores, positive and warnings, or file
    and error.

    Ends with 0 if every file was scored, with 1 if one was not, and with 2 if
    no file can be read or the bundle is wrong.
    """
    with errors_reported():
        from cxr.bundles import load, score_file

        loaded = load(bundle)
        predictions, unread = [], []
        for file in files:
            try:
                predictions.append(score_file(loaded, file))
            except InputError as error:
                unread.append(error)
        if not predictions:
            raise InputError("\n".join(map(str, unread)))
        if as_json:
            for prediction in predictions:
                typer.echo(json.dumps(document(prediction)))
        else:
            _print_predictions(loaded, predictions)
        if unread:
            raise Failed("\n".join(map(str, unread)))
        if any(prediction.error for prediction in predictions):
            raise typer.Exit(1)


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or DICOM file.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PNG to write. Default: IMAGE's name with .cam.png, here."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(metavar="NAME", help="Label to explain. Default: the primary one.")
    ] = None,
    bundle: Bundle = None,
) -> None:
    """Write a heatmap of what an image's score is based on.

    The heatmap is a class activation map, drawn over what the model saw: what
    each place adds to the score, before the score is brought into 0 to 1. It is
    not evidence of where a finding is. Only models whose head is linear on
    average pooling have one.
    """
    with errors_reported():
        from classifier.bounds import ImageError

        from cxr import bundles, explanation

        loaded = bundles.load(bundle)
        try:
            explained, value, picture = explanation.explain(loaded, bundles.read_image(image), label)
        except ImageError as error:
            raise InputError(f"{image}: {error.code}") from None
        path = out or Path(f"{image.stem}.cam.png")
        with whole_file(path) as part:
            picture.save(part, "PNG")
        console.print(f"{shown(explained)} {value:.3f}. Wrote {shown(str(path))}. [bold]{RESEARCH_ONLY}[/]")


@model.command()
def check(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE", help="Folder of model.onnx and model.json. Default: the bundle that ships."
        ),
    ] = None,
) -> None:
    """Print what a model is, and check that it works here: it must score a drawing as model.json says.

    Ends with 1 if the score of the drawing is another one, and with 2 if the
    parts of the bundle do not fit together.
    """
    with errors_reported():
        from cxr.bundles import load, self_test

        loaded = load(bundle, trial=True)
        _print_card(loaded)
        scores = self_test(loaded)
        off = {label: abs(score - expected) for label, (score, expected) in scores.items()}
        worst = max(off, key=lambda label: off[label])
        if off[worst] > SELF_TEST_TOLERANCE:
            score, expected = scores[worst]
            console.print(f"\n[red]✗[/] self-test: {shown(worst)} is {score:g}, expected {expected:g}")
            raise typer.Exit(1)
        console.print(f"\n[green]✓[/] self-test: a drawing scores as expected, to {off[worst]:.1e}")


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
) -> None:
    """Make a model bundle of an image classifier in ONNX.

    FILE takes floats [images, channels, height, width] with 1 or 3 channels, and
    gives a number for each label. The command adds normalisation and activation,
    and checks that the bundle scores drawings of chests as FILE does.

    Ends with 2 if FILE cannot be packed, and writes nothing then.
    """
    with errors_reported():
        from cxr.packing import Recipe
        from cxr.packing import pack as pack_file

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
        folder = shown(str(out))
        console.print(
            f"[green]✓[/] scores of drawings are those of {shown(str(file))}, to "
            f"{packed.greatest_difference:.0e}\n"
            f"Wrote {folder}: {shown(packed.model.name)}, {shown(', '.join(packed.model.thresholds))}\n\n"
            f"  cxr model check {folder}\n  cxr local demo --bundle {folder}\n"
            f"  npx cdk deploy -c model={folder}",
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
