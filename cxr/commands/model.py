"""`cxr score`, `cxr explain` and `cxr model check`: a model bundle on this machine, without AWS."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from classifier.images import MAX_BYTES, ImageError
from classifier.model import BundleError, Model
from rich.table import Table

from cxr import PROJECT, RESEARCH_ONLY
from cxr.commands.options import Bundle, Json
from cxr.commands.terminal import console, errors_reported, shown
from cxr.errors import InputError
from cxr.explanation import overlay
from cxr.files import whole_file
from cxr.phantoms import draw_phantom

SHIPPED = PROJECT / "containers" / "classifier" / "model"
SELF_TEST_TOLERANCE = 1e-3  # processors differ in the last bits of a float, not here


model = typer.Typer(no_args_is_help=True, help="Model bundles: what a model is, and whether it works here.")


def score(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG, JPEG or DICOM files.")],
    bundle: Bundle = SHIPPED,
    as_json: Json = False,
) -> None:
    """Score image files here, without AWS, exactly as the classifier does.

    Ends with 0 if every file was scored, with 1 if one was not, and with 2 if a file or the bundle cannot be
    read. The JSON is one object a line: file, scores, positive, warnings, or file and error.
    """
    with errors_reported():
        loaded = load(bundle)
        results = [_score(loaded, file) for file in files]
        if as_json:
            for result in results:
                typer.echo(json.dumps(result))
        else:
            _print_scores(loaded, results)
        if any("error" in result for result in results):
            raise typer.Exit(1)


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A PNG, JPEG or DICOM file.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PNG to write. Default: IMAGE's name with .cam.png, here."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Which label to explain. Default: the primary one.")
    ] = None,
    bundle: Bundle = SHIPPED,
) -> None:
    """Write where in an image its score comes from: a class activation map over what the model saw.

    The map shows what each place adds to the score before it is squeezed into 0 to 1. It is not evidence of
    where a finding is. Models whose head is not linear on average pooling have no such map, and are refused.
    """
    with errors_reported():
        loaded = load(bundle)
        try:
            pixels, _ = loaded.prepare(read(image))
            maps = loaded.explain(pixels)
        except ImageError as error:
            raise InputError(f"{image}: {error.code}") from None
        except BundleError as error:
            raise InputError(str(error)) from None
        chosen = label or next(iter(maps))
        if chosen not in maps:
            raise InputError(f"--label {chosen}: expected one of {', '.join(maps)}")
        scored = loaded.score([pixels])[0][chosen]
        path = out or Path(f"{image.stem}.cam.png")
        picture = overlay(pixels, maps[chosen], f"{chosen} {scored:.3f} by {loaded.name}")
        with whole_file(path) as part:
            picture.save(part, "PNG")
        console.print(f"{shown(chosen)} {scored:.3f}. Wrote {shown(str(path))}. [bold]{RESEARCH_ONLY}[/]")


@model.command()
def check(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="Folder of model.onnx and model.json.")
    ] = SHIPPED,
) -> None:
    """Print what a model is and is worth, and score a drawing to see whether it works here as it did there.

    Ends with 1 if the drawing's score is not the one in model.json, with 2 if the bundle's parts disagree.
    """
    with errors_reported():
        loaded = load(bundle)
        card = loaded.card
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        kind = "" if card.get("score") == "operating point" else ", a probability"
        for name, value in {
            "model": f"{loaded.name}, {card.get('architecture', 'not said')}",
            "SHA-256": loaded.sha256,
            "input": json.dumps(card["preprocessing"]),
            "labels": ", ".join(f"{label} from {limit}" for label, limit in loaded.thresholds.items()),
            "score": f"{card.get('score', 'probability')}{kind and ' as far as it is calibrated'}",
            "map": "class activation map" if card.get("cam") else "none",
            "intended use": card.get("intended_use", "not said"),
            "licence": card.get("licence", "not said"),
            "attribution": card.get("attribution", "not said"),
        }.items():
            table.add_row(name, shown(value))
        console.print(table)
        _self_test(loaded)


def load(bundle: Path) -> Model:
    """The bundle in a folder. Raises InputError."""
    try:
        return Model(bundle)
    except BundleError as error:
        raise InputError(str(error)) from None


def read(file: Path) -> bytes:
    """A file's bytes, and of one that is too large for an image the first. Raises InputError."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise InputError(f"{file}: expected a file, and that is a device or a pipe")
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; expected a PNG, JPEG or DICOM file") from None


def _score(loaded: Model, file: Path) -> dict[str, Any]:
    try:
        pixels, warnings = loaded.prepare(read(file))
    except ImageError as error:
        return {"file": str(file), "error": error.code}
    scores = loaded.score([pixels])[0]
    return {
        "file": str(file),
        "scores": {label: float(score) for label, score in scores.items()},
        "positive": list(loaded.positive(scores)),
        "warnings": list(warnings),
    }


def _print_scores(loaded: Model, results: list[dict[str, Any]]) -> None:
    labels = map(shown, loaded.thresholds)
    table = Table("file", *labels, "positive", "warnings", box=None, pad_edge=False, header_style="bold")
    table.columns[0].overflow = "fold"
    for result in results:
        file = shown(result["file"])
        if "error" in result:
            table.add_row(file, *[""] * len(loaded.thresholds), "", f"[red]{result['error']}[/]")
        else:
            scores = (f"{score:.3f}" for score in result["scores"].values())
            positive = shown(", ".join(result["positive"]))
            table.add_row(file, *scores, positive, ", ".join(result["warnings"]))
    console.print(table)
    console.print(f"\nScored by {shown(loaded.name)}. [bold]{RESEARCH_ONLY}[/]")


def _self_test(loaded: Model) -> None:
    expected = loaded.card.get("self_test")
    if not expected:
        raise InputError(f"{loaded.name}: model.json has no self_test, so whether it works here is not known")
    drawing = io.BytesIO()
    draw_phantom(0, opacity=True).save(drawing, "PNG")
    pixels, _ = loaded.prepare(drawing.getvalue())
    scores = loaded.score([pixels])[0]
    off = {label: abs(float(scores[label]) - value) for label, value in expected.items()}
    if max(off.values()) > SELF_TEST_TOLERANCE:
        worst = max(off, key=lambda label: off[label])
        console.print(f"\n[red]✗[/] self-test: {shown(worst)} is {scores[worst]}, expected {expected[worst]}")
        raise typer.Exit(1)
    console.print(f"\n[green]✓[/] self-test: a drawing scores as expected, to {max(off.values()):.1e}")
