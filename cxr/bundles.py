"""Model bundles on this machine: load one, test it, and score files with it."""

from __future__ import annotations

import io
from pathlib import Path

from classifier.bounds import MAX_BYTES, ImageError
from classifier.model import BundleError, Model
from runs.predictions import Prediction

from cxr import PROJECT
from cxr.errors import InputError
from cxr.phantoms import draw_phantom

SHIPPED = PROJECT / "containers" / "classifier" / "model"


def load(folder: Path | None = None) -> Model:
    """The bundle in a folder, by default the one that ships. Raises InputError."""
    try:
        return Model(folder or SHIPPED)
    except BundleError as error:
        raise InputError(str(error)) from None


def score_file(model: Model, file: Path) -> Prediction:
    """The prediction for an image file, as the classifier makes it. Raises InputError."""
    try:
        pixels, warnings = model.prepare(read_image(file))
    except ImageError as error:
        return Prediction(str(file), error=error.code)
    scores = model.score([pixels])[0]
    return Prediction(str(file), scores, model.positive(scores), warnings)


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
    drawing = io.BytesIO()
    draw_phantom(0, opacity=True).save(drawing, "PNG")
    pixels, _ = model.prepare(drawing.getvalue())
    scores = model.score([pixels])[0]
    return {label: (float(scores[label]), value) for label, value in expected.items()}
