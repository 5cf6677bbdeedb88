"""The pictures of a report: which images are shown, what the model saw, and what the score is based on."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, zip_longest
from pathlib import Path
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
from runs.predictions import Prediction

from cxr.bundles import read_image
from cxr.errors import InputError
from cxr.evaluation.results import Results
from cxr.explanation import map_layer
from cxr.stack import Stack, client

MILLION = 1_000_000  # scores have six decimals, and are whole numbers in the page
FAILED = -1  # in place of a score
GALLERY_SIZE = 12  # images in each part of the gallery
PICTURES = 5 * GALLERY_SIZE  # in a file; a gallery has at most five parts
THUMBNAIL, MAP = 320, 64  # sides in pixels; the browser enlarges a map smoothly
FETCHES = 8  # images at once
_GONE = {"NoSuchKey", "404"}  # error codes of S3
_DENIED = {"AccessDenied", "403"}  # also of a missing key, if the caller may not list the bucket

Fetch = Callable[[str], bytes | str | None]
Gallery = list[dict[str, Any]]  # parts, each with title, note and rows


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


def fetch_here(predictions: Sequence[Prediction]) -> Fetch | None:
    """A function that gives an image's bytes if its key is the path of a file here; None if no key is one."""
    if not any(Path(one.key).is_file() for one in predictions):
        return None

    def fetch(key: str) -> bytes | str | None:
        try:
            return read_image(Path(key))
        except InputError:
            return "not on this machine"

    return fetch


def gallery(
    results: Results,
    scores: npt.NDArray[np.int32],
    threshold: float | None,
    reference: npt.NDArray[np.int8] | None,
) -> Gallery:
    """The gallery of one label: parts of a dozen images each, by row.

    `scores` and `reference` have a value for each prediction: millionths or FAILED, and 1, 0 or -1 for not
    known.
    """
    label = results.label
    scored = np.flatnonzero(scores != FAILED)
    scores = scores[scored]
    called = scores >= math.inf if threshold is None else scores >= np.ceil(threshold * MILLION - 1e-6)
    parts: Gallery = []

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
    return parts


def pictures(
    galleries: Mapping[str, Gallery], keys: Sequence[str], model: Model | None, fetch: Fetch
) -> dict[int, dict[str, Any]]:
    """A picture of each row that the file has one of, for the galleries of all labels."""
    labels_of: dict[int, list[str]] = {row: [] for row in pictured_rows(galleries.values())}
    for label, parts in galleries.items():
        for row in labels_of.keys() & {row for part in parts for row in part["rows"]}:
            labels_of[row].append(label)
    with ThreadPoolExecutor(FETCHES) as pool:
        found = pool.map(lambda row: picture(fetch(keys[row]), labels_of[row], model), labels_of)
        return dict(zip(labels_of, found, strict=True))


def pictured_rows(galleries: Iterable[Gallery]) -> list[int]:
    """The rows that the file has a picture of: at most PICTURES, whatever the number of labels.

    The parts of all labels take turns, and each turn adds the part's next image.
    """
    parts = [part["rows"] for of_labels in zip_longest(*galleries) for part in of_labels if part]
    rows = dict.fromkeys(row for turn in zip_longest(*parts) for row in turn if row is not None)
    return sorted(islice(rows, PICTURES))


def picture(data: bytes | str | None, labels: Iterable[str], model: Model | None) -> dict[str, Any]:
    """What the page shows of an image, or why nothing.

    It is what the model sees, and a map of what the score of each of these labels is based on, as data URLs.
    """
    if not isinstance(data, bytes):
        return {"missing": data or "not in the bucket"}
    geometry = Preprocessing.from_json(model.card["preprocessing"]) if model else None
    try:
        image = decode(data, geometry.bit_depth) if geometry else decode(data)
    except ImageError as error:
        return {"missing": error.code}
    shown: dict[str, Any] = {"image": _data_url(thumbnail(image, geometry), "JPEG", quality=82), "maps": {}}
    if model and model.card.get("cam"):
        pixels, _ = model.prepare(data)
        maps = model.explain(pixels)
        shown["maps"] = {
            label: _data_url(map_layer(maps[label], MAP), "PNG", optimize=True)
            for label in labels
            if label in maps
        }
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
