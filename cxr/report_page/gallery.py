"""The pictures of a report: which images are shown, what the model saw, and what the score is based on."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from botocore.exceptions import ClientError
from classifier.bounds import ImageError
from classifier.decode import decode
from classifier.model import Model
from classifier.preprocessing import Preprocessing
from PIL import Image, ImageOps
from runs.codes import REFUSED_BY_S3

from cxr.evaluation.results import Results
from cxr.explanation import map_layer
from cxr.stack import Stack, client

MILLION = 1_000_000  # scores have six decimals, and are whole numbers in the page
FAILED = -1  # in place of a score
GALLERY_SIZE = 12  # images in each part of the gallery
THUMBNAIL, MAP = 320, 64  # sides in pixels; the browser enlarges a map smoothly
FETCHES = 8  # images at once
_GONE = {"NoSuchKey", "404"}  # error codes of S3
_DENIED = {"AccessDenied", "403"}  # also of a missing key, if the caller may not list the bucket

Fetch = Callable[[str], bytes | str | None]


def fetch_from(stack: Stack) -> Fetch:
    """A function that gives an image's bytes by its key.

    It gives None for an image that is not in the bucket any more, and a word why for one that S3 does not
    give out.
    """
    s3 = client("s3")

    def fetch(key: str) -> bytes | str | None:
        try:
            return bytes(s3.get_object(Bucket=stack.images_bucket, Key=key)["Body"].read())
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _GONE:
                return None
            if code in _DENIED or code in REFUSED_BY_S3:
                return REFUSED_BY_S3.get(code, code)
            raise

    return fetch


def gallery(
    results: Results,
    scores: npt.NDArray[np.int32],
    threshold: float | None,
    reference: npt.NDArray[np.int8] | None,
    model: Model | None,
    fetch: Fetch | None,
) -> dict[str, Any]:
    """Parts of a dozen images each, by row, and a picture of each image: thumbnail and map as data URLs.

    `scores` and `reference` have a value for each prediction: millionths or FAILED, and 1, 0 or -1 for not
    known.
    """
    label = results.label
    scored = np.flatnonzero(scores != FAILED)
    scores = scores[scored]
    called = scores >= math.inf if threshold is None else scores >= np.ceil(threshold * MILLION - 1e-6)
    parts = []

    def part(title: str, note: str, among: npt.NDArray[np.int64], by: npt.NDArray[Any]) -> None:
        """The first of `among` by a measure of every scored image."""
        order = among[np.argsort(by[among], kind="stable")][:GALLERY_SIZE]
        parts.append({"title": title, "note": note, "rows": scored[order].tolist()})

    every = np.arange(len(scored))
    if reference is not None:
        truth = reference[scored]
        part(
            "False positives",
            f"called {label}, but not {label} by reference; highest scores first",
            every[called & (truth == 0)],
            -scores,
        )
        part(
            "False negatives",
            f"not called {label}, but {label} by reference; lowest scores first",
            every[~called & (truth == 1)],
            scores,
        )
    part("Highest scores", f"most likely {label} by the model", every, -scores)
    if threshold is not None:
        part(
            "Nearest to the threshold",
            f"closest to {threshold:g}, where the model is least certain",
            every,
            np.abs(scores - threshold * MILLION),
        )
    part("Lowest scores", f"least likely {label} by the model", every, scores)
    pictures: dict[int, dict[str, str]] = {}
    if fetch:
        shown = sorted({row for one in parts for row in one["rows"]})
        with ThreadPoolExecutor(FETCHES) as pool:
            keys = (results.predictions[row].key for row in shown)
            found = pool.map(lambda key: picture(fetch(key), label, model), keys)
            pictures = dict(zip(shown, found, strict=True))
    return {
        "parts": parts,
        "pictures": pictures if fetch else None,
        "maps": any("map" in one for one in pictures.values()),
        "cut": model is not None,
    }


def picture(data: bytes | str | None, label: str, model: Model | None) -> dict[str, str]:
    """What the page shows of an image: what the model sees and what the score is based on, or why nothing."""
    if not isinstance(data, bytes):
        return {"missing": data or "not in the bucket"}
    geometry = Preprocessing.from_json(model.card["preprocessing"]) if model else None
    try:
        image = decode(data, geometry.bit_depth) if geometry else decode(data)
    except ImageError as error:
        return {"missing": error.code}
    shown = {"image": _data_url(thumbnail(image, geometry), "JPEG", quality=82)}
    if model and model.card.get("cam") and label in model.thresholds:
        pixels, _ = model.prepare(data)
        shown["map"] = _data_url(map_layer(model.explain(pixels)[label], MAP), "PNG", optimize=True)
    return shown


def thumbnail(image: Image.Image, geometry: Preprocessing | None) -> Image.Image:
    """The square that a model with this geometry sees, or without a geometry the whole image on black."""
    if geometry is None:
        return ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    half = min(image.size) * geometry.crop / geometry.resize / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, box, reducing_gap=2)


def _data_url(image: Image.Image, file_format: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
