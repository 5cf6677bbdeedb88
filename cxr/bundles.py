"""Model bundles on this machine: load one, test it, and score files with it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from classifier.bounds import MAX_BYTES, ImageError
from classifier.bundle import BundleError
from classifier.model import Model
from runs.predictions import Prediction

from cxr import PROJECT
from cxr.errors import InputError
from cxr.phantoms import draw_phantom

SHIPPED = PROJECT / "containers" / "classifier" / "model"


def load(folder: Path | None = None, *, trial: bool = False) -> Model:
    """The bundle in a folder, by default the one that ships. With `trial` it must also score test images.

    Raises InputError.
    """
    try:
        return Model(folder or SHIPPED, trial=trial)
    except BundleError as error:
        raise InputError(str(error)) from None


def write(graph: bytes, card: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write a bundle to a new folder, complete or not at all. Returns what its model.json holds.

    That is `card` with the `sha256` of the graph and the `self_test`. Raises InputError for a bundle that the
    classifier would refuse, and for a folder that exists; and OSError.
    """
    expect_new(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        part = Path(unfinished) / "bundle"  # a temporary folder has other permissions
        part.mkdir()
        try:
            written = fill(graph, card, part)
        except InputError as error:
            raise InputError(str(error).replace(str(part), str(folder))) from None
        part.rename(folder)
    return written


def expect_new(folder: Path) -> None:
    """Raises InputError for a folder that exists: no bundle is overwritten."""
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: exists, and no bundle is overwritten: expected a new folder")


def fill(graph: bytes, card: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Write the two files of a bundle to a folder. Returns and raises what `write` does."""
    (folder / "model.onnx").write_bytes(graph)
    sha256 = hashlib.sha256(graph).hexdigest()
    full = {"name": card["name"], "version": card["version"], "sha256": sha256, **card}
    _write_json(full, folder / "model.json")
    scores = _drawing_scores(load(folder, trial=True))
    full["self_test"] = {label: float(score) for label, score in scores.items()}
    _write_json(full, folder / "model.json")
    return full


def find_images(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The files among these paths and in folders among them, each once, and what is wrong with the others.

    Left out are hidden files of a folder, and those that are no images by their names, as in a run.
    """
    from job_creator.sources import images  # here: it loads boto3

    files: dict[Path, None] = {}
    wrong: list[str] = []
    for path in paths:
        found = [path]
        if _is_folder(path):
            visible = (file for file in _files_below(path, wrong) if not _is_hidden(file.relative_to(path)))
            found = [Path(name) for name in sorted(images(map(str, visible)))]
            if not found:
                wrong.append(f"{path}: expected a folder with PNG, JPEG or DICOM files, found none")
        files |= dict.fromkeys(found)
    return list(files), wrong


def _files_below(folder: Path, wrong: list[str]) -> Iterator[Path]:
    """All files of the folder and its sub-folders. A folder that cannot be read is noted in `wrong`."""

    def note(error: OSError) -> None:
        wrong.append(f"{error.filename}: {error.strerror}; this folder cannot be read")

    for path, _, names in os.walk(folder, onerror=note):
        yield from (Path(path, name) for name in names)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long, for example: `read_image` says so
        return False


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def score_file(model: Model, file: Path) -> Prediction:
    """The prediction for a file as the classifier makes it, with its path as the key. Raises InputError."""
    # A spreadsheet takes a cell that begins with one of these for a formula. The path leads to the same file.
    key = f"./{file}" if str(file).startswith(("=", "+", "-", "@")) else str(file)
    try:
        pixels, warnings = model.prepare(read_image(file))
    except ImageError as error:
        return Prediction(key, error=error.code)
    scores = model.score([pixels])[0]
    return Prediction(key, scores, model.positive(scores), warnings)


def read_image(file: Path) -> bytes:
    """A file's bytes; of a file that is too large for an image only the first. Raises InputError."""
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise InputError(f"{file}: expected a file, found a device or a pipe")
        with file.open("rb") as opened:
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}; expected a PNG, JPEG or DICOM file") from None


def self_test(model: Model) -> dict[str, tuple[float, float]]:
    """Label -> score of a drawing here, and the score of it that model.json gives. Raises InputError."""
    expected = model.card.get("self_test")
    if not expected:
        raise InputError(f"{model.name}: model.json has no self_test, so the model cannot be checked here")
    scores = _drawing_scores(model)
    return {label: (float(scores[label]), value) for label, value in expected.items()}


def _drawing_scores(model: Model) -> dict[str, Decimal]:
    drawing = io.BytesIO()
    draw_phantom(0, opacity=True).save(drawing, "PNG")
    pixels, _ = model.prepare(drawing.getvalue())
    return model.score([pixels])[0]


def _write_json(content: Mapping[str, Any], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
