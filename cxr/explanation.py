"""What the score of an image is based on: a class activation map over what the model saw."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import numpy.typing as npt
from classifier.bundle import BundleError
from classifier.model import Model
from classifier.preprocessing import Pixels
from PIL import Image, ImageDraw, ImageFont

from cxr import RESEARCH_ONLY
from cxr.errors import InputError

SIDE = 672  # of the overlay, in pixels; models see 56 to 224
MORE, LESS = (230, 97, 1), (94, 60, 153)  # orange and violet: colour-blind readers can tell them apart
MAX_OPACITY = 0.6  # of the map, at the place that adds or subtracts most
CAPTION = f"A heatmap is not evidence of where a finding is. {RESEARCH_ONLY}"


def explain(model: Model, data: bytes, label: str | None = None) -> tuple[str, Decimal, Image.Image]:
    """The label (by default the primary one), its score, and its heatmap over the image.

    Raises ImageError, and InputError if the model has no heatmap or no such label.
    """
    pixels, _ = model.prepare(data)
    try:
        maps = model.explain(pixels)
    except BundleError as error:
        raise InputError(str(error)) from None
    label = label or next(iter(maps))
    if label not in maps:
        raise InputError(f"{model.name} has no label {label}; expected one of {', '.join(maps)}")
    score = model.score([pixels])[0][label]
    return label, score, overlay(pixels, maps[label], f"{label} {score:.3f} by {model.name}")


def overlay(pixels: Pixels, cam: npt.NDArray[np.float32], title: str) -> Image.Image:
    """What the model saw, in orange where it adds to the score and in violet where it subtracts.

    `pixels` is [channels, crop, crop], `cam` [rows, columns]: what each place adds to the label's logit.
    """
    seen = Image.fromarray(np.asarray(pixels.mean(axis=0)).round().astype(np.uint8)).resize((SIDE, SIDE))
    layer = map_layer(cam, SIDE)
    return _captioned(Image.alpha_composite(seen.convert("RGBA"), layer).convert("RGB"), title)


def map_layer(cam: npt.NDArray[np.float32], side: int) -> Image.Image:
    """A class activation map [rows, columns] as an RGBA layer of side x side pixels to lay over an image."""
    strength = np.asarray(Image.fromarray(cam).resize((side, side), Image.Resampling.BICUBIC))
    opacity = MAX_OPACITY * np.abs(strength) / max(float(np.abs(strength).max()), 1e-9)
    colour = np.where(strength[..., np.newaxis] > 0, MORE, LESS)
    layer = np.concatenate([colour, 255 * opacity[..., np.newaxis]], axis=-1)
    return Image.fromarray(layer.round().astype(np.uint8), "RGBA")


def _captioned(image: Image.Image, title: str) -> Image.Image:
    lines = (title, "Orange adds to the score, violet subtracts from it.", CAPTION)
    font = ImageFont.load_default(14)
    canvas = Image.new("RGB", (image.width, image.height + 20 * len(lines) + 8), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((8, image.height + 4 + 20 * number), line, fill="black", font=font)
    return canvas
