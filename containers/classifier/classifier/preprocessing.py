"""From an image to the pixels that a model takes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from classifier import resampling

MAX_SIDE = 4096  # pixels of a side that an image is resized to: a larger one would need too much memory
Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # 0..255


@dataclass(frozen=True)
class Preprocessing:
    """How a model's pixels are made of an image, from its `model.json`."""

    channels: Literal[1, 3]
    resize: int  # the shorter side after resizing, in pixels
    crop: int  # the side of the centre crop, in pixels
    square: bool = False  # whether the longer side is cropped before resizing
    # bilinear: Pillow's, in whole grey values. gaussian: scikit-image's antialiased one, in fractions.
    resampling: Literal["bilinear", "gaussian"] = "bilinear"
    bit_depth: int = 16  # bits in use in 16-bit files; with 16, files that use 12 or fewer are refused

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Raises TypeError or ValueError for a missing or unknown field, and for a value out of range."""
        if not isinstance(fields, Mapping):
            raise TypeError(f"preprocessing: expected an object, found {fields!r}")
        if missing := [name for name in ("channels", "resize", "crop") if name not in fields]:
            raise TypeError(f"preprocessing: expected {', '.join(missing)}")
        if unknown := sorted(fields.keys() - cls.__dataclass_fields__.keys()):
            raise TypeError(
                f"preprocessing: expected {', '.join(cls.__dataclass_fields__)}, found {unknown[0]}"
            )
        spec = cls(**fields)
        sizes = (spec.channels, spec.resize, spec.crop, spec.bit_depth)
        if (
            not all(type(size) is int for size in sizes)
            or type(spec.square) is not bool
            or spec.channels not in (1, 3)
            or not 0 < spec.crop <= spec.resize <= MAX_SIDE
            or not 8 < spec.bit_depth <= 16
            or spec.resampling not in ("bilinear", "gaussian")
            or (spec.resampling == "gaussian" and not (spec.channels == 1 and spec.square))
        ):
            raise ValueError(
                f"preprocessing {dict(fields)}: channels is 1 or 3, crop at most resize, resize at most "
                f"{MAX_SIDE}, bit_depth 9 to 16, square true or false, "
                "resampling bilinear, or gaussian for one channel and square"
            )
        return spec

    def __call__(self, image: Image.Image) -> Pixels:
        """An "L" or "RGB" image as [channels, crop, crop]; uint8, or float32 if resampling is gaussian.

        Sizes and margins are those of torchvision's Resize and CenterCrop.
        """
        if self.channels == 1:
            image = image.convert("L")
        if self.square:  # as torchxrayvision's XRayCenterCrop rounds
            side = min(image.size)
            left, top = (length // 2 - side // 2 for length in image.size)
            image = image.crop((left, top, left + side, top + side))
        if self.resampling == "gaussian":
            resized = Image.fromarray(resampling.resize(np.asarray(image), self.resize))
            cropped = resized.crop(self._centre(resized.size))
        else:
            cropped = self._bilinear(image)
        planes = np.asarray(cropped).reshape(self.crop, self.crop, -1).transpose(2, 0, 1)
        # One grey plane, resized and repeated, equals three equal planes that are resized.
        return np.ascontiguousarray(np.broadcast_to(planes, (self.channels, self.crop, self.crop)))

    def _bilinear(self, image: Image.Image) -> Image.Image:
        """The centre of the resized image. The margins are resized only where rounding needs them."""
        short = min(image.size)
        size = (self.resize * image.width // short, self.resize * image.height // short)
        centre = self._centre(size)
        edges = [edge * image.size[i % 2] / size[i % 2] for i, edge in enumerate(centre)]
        if all(edge.is_integer() for edge in edges):  # otherwise Pillow rounds them, and pixels differ by one
            left, top, right, bottom = edges
            return image.resize(
                (self.crop, self.crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
            )
        return image.resize(size, Image.Resampling.BILINEAR).crop(centre)

    def _centre(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        left, top = (round((length - self.crop) / 2) for length in size)
        return left, top, left + self.crop, top + self.crop
