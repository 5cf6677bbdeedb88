"""A file that is not a plain X-ray, and the drawing that all such files are made from."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from runs.codes import ErrorCode, WarningCode

from cxr.phantoms import draw_phantom

SCORED: Literal["SCORED"] = "SCORED"
CORRUPT = ErrorCode.IMAGE_CORRUPT
NOT_AN_IMAGE = ErrorCode.NOT_AN_IMAGE
FLAT: tuple[WarningCode, ...] = (WarningCode.NOT_A_FRONTAL_CHEST, WarningCode.OUT_OF_TRAINING_RANGE)
SAME_SCORE = 0.0
CLOSE_SCORE = 0.02  # after lossy compression


@dataclass(frozen=True)
class BadFile:
    """A file and its outcome: an error code, or SCORED with `warnings`."""

    format: str  # its heading on the page
    description: str
    data: bytes
    outcome: ErrorCode | Literal["SCORED"]
    warnings: tuple[WarningCode, ...] = ()
    tolerance: float | None = None  # how far its score may be from the plain PNG's; None: not compared

    @property
    def name(self) -> str:
        """The format and the description."""
        return f"{self.format}, {self.description}"


def drawing() -> Image.Image:
    """The drawing, mode "L", 128 x 128."""
    return draw_phantom(1, opacity=False).resize((128, 128), Image.Resampling.BOX)


def encode(image: Image.Image, format_: str, **options: Any) -> bytes:
    """The image in a format of Pillow, with Pillow's options."""
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def plain_png() -> bytes:
    """The PNG that harmless files must score like."""
    return encode(drawing(), "PNG")
