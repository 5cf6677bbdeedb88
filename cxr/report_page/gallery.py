"""The report's pictures: which images are shown, what the model saw of them, and what it went by."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.images import ImageError, Preprocessing, decode
from classifier.model import Model
from PIL import Image, ImageOps

from cxr.explanation import LESS, MORE, STRONGEST
from cxr.report_page.rows import MILLION, Rows

GALLERY_SIZE = 12  # images in each part of the gallery
THUMBNAIL, MAP = 320, 64  # sides in pixels; the browser enlarges a map smoothly
FETCHES = 8  # images at once

Fetch = Callable[[str], bytes | None]


def gallery(
    rows: Rows,
    threshold: float | None,
    reference: npt.NDArray[np.int8] | None,
    model: Model | None,
    fetch: Fetch | None,
) -> dict[str, Any]:
    """Parts of a dozen images each, by row, and a picture of each image: thumbnail and map as data URLs."""
    scored = np.flatnonzero(rows.scores >= 0)
    scores = rows.scores[scored]
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
            f"called {rows.label}, reference says not; the highest scores first",
            every[called & (truth == 0)],
            -scores,
        )
        part(
            "False negatives",
            f"not called {rows.label}, reference says {rows.label}; the lowest scores first",
            every[~called & (truth == 1)],
            scores,
        )
    part("Highest scores", f"most {rows.label} by the model", every, -scores)
    if threshold is not None:
        part(
            "Nearest to the threshold",
            f"where {threshold:g} decides, and the model is least sure",
            every,
            np.abs(scores - threshold * MILLION),
        )
    part("Lowest scores", f"least {rows.label} by the model", every, scores)
    pictures: dict[int, dict[str, str]] = {}
    if fetch:
        shown = sorted({row for one in parts for row in one["rows"]})
        with ThreadPoolExecutor(FETCHES) as pool:
            found = pool.map(lambda row: picture(fetch(rows.keys[row]), rows.label, model), shown)
            pictures = dict(zip(shown, found, strict=True))
    return {
        "parts": parts,
        "pictures": pictures if fetch else None,
        "maps": any("map" in one for one in pictures.values()),
        "cut": model is not None,
    }


def picture(data: bytes | None, label: str, model: Model | None) -> dict[str, str]:
    """An image as the page shows it: what the model sees of it and where the score comes from, or why not."""
    if data is None:
        return {"missing": "not in the bucket"}
    geometry = Preprocessing.from_json(model.card["preprocessing"]) if model else None
    try:
        image = decode(data, geometry.bit_depth) if geometry else decode(data)
    except ImageError as error:
        return {"missing": error.code}
    shown = {"image": _data_url(thumbnail(image, geometry), "JPEG", quality=82)}
    if model and model.card.get("cam") and label in model.thresholds:
        pixels, _ = model.prepare(data)
        shown["map"] = _data_url(map_layer(model.explain(pixels)[label]), "PNG", optimize=True)
    return shown


def thumbnail(image: Image.Image, geometry: Preprocessing | None) -> Image.Image:
    """The square that a model with this geometry sees; without one, the whole image on black."""
    if geometry is None:
        return ImageOps.pad(image, (THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    half = min(image.size) * geometry.crop / geometry.resize / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS, box, reducing_gap=2)


def map_layer(cam: npt.NDArray[np.float32]) -> Image.Image:
    """A class activation map [rows, columns] to lay over the image, in the colours of `cxr explain`."""
    strength = np.asarray(Image.fromarray(cam).resize((MAP, MAP), Image.Resampling.BICUBIC))
    opacity = STRONGEST * np.abs(strength) / max(float(np.abs(strength).max()), 1e-9)
    colour = np.where(strength[..., np.newaxis] > 0, MORE, LESS)
    layer = np.concatenate([colour, 255 * opacity[..., np.newaxis]], axis=-1)
    return Image.fromarray(layer.round().astype(np.uint8), "RGBA")


def _data_url(image: Image.Image, file_format: str, **options: Any) -> str:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
