"""A kind of file that is no plain X-ray; and the drawing that all such files are made of."""

import io
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image
from runs.codes import ErrorCode, WarningCode

from cxr.phantoms import draw_phantom

SCORED: Literal["SCORED"] = "SCORED"
CORRUPT = ErrorCode.IMAGE_CORRUPT
NO_IMAGE = ErrorCode.NOT_AN_IMAGE
FLAT: tuple[WarningCode, ...] = (WarningCode.NOT_A_FRONTAL_CHEST, WarningCode.OUT_OF_TRAINING_RANGE)
SAME = 0.0
NEARLY = 0.02  # of compression with loss


@dataclass(frozen=True)
class Kind:
    """A file and what becomes of it: an error, or SCORED with `warnings`."""

    group: str  # its heading on the page
    what: str
    data: bytes
    outcome: ErrorCode | Literal["SCORED"]
    warnings: tuple[WarningCode, ...] = ()
    within: float | None = None  # how far its score may be from the plain PNG's; None says nothing of it

    @property
    def name(self) -> str:
        return f"{self.group}, {self.what}"


def original() -> Image.Image:
    """The drawing, "L", 128 x 128."""
    return draw_phantom(1, opacity=False).resize((128, 128), Image.Resampling.BOX)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in a format of Pillow's, with Pillow's options."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain() -> bytes:
    """The PNG whose score the harmless kinds have too."""
    return saved(original(), "PNG")
