"""Where in an image a score comes from: a class activation map laid over what the model saw."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from classifier.images import Pixels
from PIL import Image, ImageDraw, ImageFont

from cxr import RESEARCH_ONLY

SIDE = 672  # of the overlay, in pixels; models see 56 to 224
MORE, LESS = (230, 97, 1), (94, 60, 153)  # orange and violet, which the colour-blind tell apart
STRONGEST = 0.6  # opacity of the place that counts most
CAPTION = f"A map is not evidence of localisation. {RESEARCH_ONLY}"


def overlay(pixels: Pixels, cam: npt.NDArray[np.float32], title: str) -> Image.Image:
    """What the model saw, with what speaks for the label in orange and what speaks against it in violet.

    `pixels` is [channels, crop, crop], `cam` [rows, columns]: what each place adds to the label's logit.
    """
    seen = Image.fromarray(np.asarray(pixels.mean(axis=0)).round().astype(np.uint8)).resize((SIDE, SIDE))
    strength = np.asarray(Image.fromarray(cam).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    opacity = STRONGEST * np.abs(strength) / max(float(np.abs(strength).max()), 1e-9)
    colour = np.where(strength[..., np.newaxis] > 0, MORE, LESS)
    mixed = (
        np.asarray(seen)[..., np.newaxis] * (1 - opacity[..., np.newaxis]) + colour * opacity[..., np.newaxis]
    )
    return _captioned(Image.fromarray(mixed.round().clip(0, 255).astype(np.uint8)), title)


def _captioned(image: Image.Image, title: str) -> Image.Image:
    lines = (title, "Orange speaks for it, violet against it.", CAPTION)
    font = ImageFont.load_default(14)
    canvas = Image.new("RGB", (image.width, image.height + 20 * len(lines) + 8), "white")
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((8, image.height + 4 + 20 * number), line, fill="black", font=font)
    return canvas
