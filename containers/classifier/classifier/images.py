"""From the bytes of a file to the pixels a model takes."""

import io
import struct
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from kornia_rs.io import decode_image_png_u8
from PIL import Image, ImageOps
from runs.codes import ErrorCode

from classifier import resampling

MIN_SIDE = 64
MAX_PIXELS = 50_000_000
MAX_ASPECT = 4
MAX_BYTES = 64 * 2**20
# Of what no camera or viewer writes, and what takes a decoder minutes, or gigabytes, in a file of 64 MiB.
MAX_READS = 200_000  # of a header's parts: chunks, segments, elements; each takes one to four
MAX_SCANS, MAX_EXIF = 100, 64  # of a JPEG; some 10 and 1 are usual

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Chunks of a plain PNG: none of them changes a pixel, as a palette, a transparent colour, EXIF, or frames do.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD"}
_MODES = {0: "mono", 2: "rgb", 6: "rgba"}  # a PNG's colour type, and what kornia-rs calls it
# What Pillow's PNG and JPEG readers raise on damaged files, beside OSError.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

# They quote header values. Here and not around each decoding: threads share the list of filters.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom|classifier)\.")


class ImageError(Exception):
    """An image that can never be scored. `code` says why."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.float32]  # 0..255


@dataclass(frozen=True)
class Preprocessing:
    """How a model wants its pixels, as its `model.json` says."""

    channels: Literal[1, 3]
    resize: int  # the shorter side after resizing, in pixels
    crop: int  # the side of the centre crop, in pixels
    square: bool = False  # whether the longer side is cropped before resizing
    # Pillow's, in whole grey values, or scikit-image's with a Gaussian against aliasing, in fractions of them
    resampling: Literal["bilinear", "gaussian"] = "bilinear"
    bit_depth: int = 16  # of 16-bit files; 16 leaves files that use 12 bits or fewer refused

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """Raises TypeError for a missing or unknown field and ValueError for a value out of range."""
        spec = cls(**fields)
        if (
            spec.channels not in (1, 3)
            or not 0 < spec.crop <= spec.resize
            or not 8 < spec.bit_depth <= 16
            or spec.resampling not in ("bilinear", "gaussian")
            or (spec.resampling == "gaussian" and not (spec.channels == 1 and spec.square))
        ):
            raise ValueError(
                f"preprocessing {dict(fields)}: channels is 1 or 3, crop at most resize, bit_depth 9 to 16, "
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
        # Resizing one grey plane and repeating it gives the pixels that resizing three equal planes gives.
        return np.ascontiguousarray(np.broadcast_to(planes, (self.channels, self.crop, self.crop)))

    def _bilinear(self, image: Image.Image) -> Image.Image:
        """The centre of the resized image, for which the margins are resized only where they must be."""
        short = min(image.size)
        size = (self.resize * image.width // short, self.resize * image.height // short)
        centre = self._centre(size)
        edges = [edge * image.size[i % 2] / size[i % 2] for i, edge in enumerate(centre)]
        if all(edge.is_integer() for edge in edges):  # else Pillow rounds them, and pixels differ by one
            left, top, right, bottom = edges
            return image.resize(
                (self.crop, self.crop), Image.Resampling.BILINEAR, box=(left, top, right, bottom)
            )
        return image.resize(size, Image.Resampling.BILINEAR).crop(centre)

    def _centre(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        left, top = (round((length - self.crop) / 2) for length in size)
        return left, top, left + self.crop, top + self.crop


def decode(data: bytes, bit_depth: int = 16) -> Image.Image:
    """A PNG, JPEG or DICOM file as an 8-bit image, "L" where it holds no colour, else "RGB".

    Upright by its EXIF tag. Raises ImageError: sizes are judged from the header, before a pixel is decoded.
    """
    if not data:
        raise ImageError(ErrorCode.IMAGE_EMPTY)
    if len(data) > MAX_BYTES:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    if data[128:132] == b"DICM":  # PS3.10, section 7.1
        from classifier import dicom  # here, because a cold start without DICOM does without it

        return dicom.decode(data)
    if not data.startswith((_PNG, _JPEG)):
        raise ImageError(ErrorCode.NOT_AN_IMAGE)
    # Pillow goes over all pixels in every scan, and over all EXIF so far in every part of it.
    if data.startswith(_JPEG) and (data.count(b"\xff\xda") > MAX_SCANS or data.count(b"Exif\0\0") > MAX_EXIF):
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    try:
        image = _decode_plain_png(data) if data.startswith(_PNG) else None
        if image is None:
            check_size(_open(data).size)
            # Decoding alone passes over the checksums of a PNG, and so over a flipped bit.
            _open(data).verify()
            image = _open(data)
            if image.mode == "P" and image.palette is None:
                raise ImageError(ErrorCode.IMAGE_CORRUPT)  # Pillow makes it black
            ImageOps.exif_transpose(image, in_place=True)
        return _eight_bits(image, bit_depth) if image.mode.startswith("I") else _colour_if_any(image)
    except Image.DecompressionBombError:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE) from None
    except _DAMAGED as error:
        raise ImageError(ErrorCode.IMAGE_CORRUPT) from error


def _decode_plain_png(data: bytes) -> Image.Image | None:
    """A whole PNG of 8 bits in grey or colour, in less than half of Pillow's time; None if it is any other.

    None for all that is odd or damaged too: what is wrong with a file is Pillow's to judge.
    """
    chunks = []
    view, place = memoryview(data), len(_PNG)
    try:
        while place < len(data):
            length, chunk = struct.unpack_from(">I4s", data, place)
            end = place + 8 + length
            (checksum,) = struct.unpack_from(">I", data, end)
            if chunk != b"IDAT" and zlib.crc32(view[place + 4 : end]) != checksum:
                return None  # those of the pixels kornia-rs looks at
            chunks.append(chunk)
            place = end + 4
            if len(chunks) > MAX_READS:
                return None
        width, height, depth, colour, *_, interlaced = struct.unpack_from(">IIBBBBB", data, len(_PNG) + 8)
        check_size((width, height))
    except (struct.error, ImageError):
        return None
    in_order = [chunk for chunk, _ in groupby(chunks)]
    if (
        not set(in_order) <= _PLAIN
        or len(set(in_order)) < len(in_order)
        or (in_order[0], in_order[-1], chunks.count(b"IHDR")) != (b"IHDR", b"IEND", 1)
        or (depth, interlaced) != (8, 0)
        or colour not in _MODES
    ):
        return None
    try:
        pixels = decode_image_png_u8(data, (height, width), _MODES[colour])
    except Exception:  # noqa: BLE001 - kornia-rs raises nothing more exact
        return None
    return Image.fromarray(pixels[..., 0] if colour == 0 else pixels)


class BoundedFile(io.BytesIO):
    """A file in memory that is read at most so often as a file of a sane number of parts has to be.

    Raises ImageError.
    """

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
        return super().read(size)


def _open(data: bytes) -> Image.Image:
    return Image.open(BoundedFile(data), formats=("PNG", "JPEG"))


def check_size(size: tuple[int, int]) -> None:
    """Raises ImageError for sides, in pixels, that are not scored."""
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    if short < MIN_SIDE:
        raise ImageError(ErrorCode.IMAGE_TOO_SMALL)
    if long > MAX_ASPECT * short:
        raise ImageError(ErrorCode.IMAGE_TOO_NARROW)


def _eight_bits(image: Image.Image, bit_depth: int) -> Image.Image:
    """16-bit grey as "L". Not by `convert("L")`, which clips every value over 255 to white."""
    grey = np.asarray(image)
    if bit_depth == 16 and grey.max() < 2**12:
        raise ImageError(ErrorCode.BIT_DEPTH_UNKNOWN)
    scaled = grey * np.float32(255 / (2**bit_depth - 1))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _colour_if_any(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    # Alpha is dropped, never blended: what lies under it is the X-ray.
    planes = (image if image.mode in ("RGB", "RGBA") else image.convert("RGB")).split()[:3]
    red, green, blue = (plane.tobytes() for plane in planes)
    return planes[0] if red == green == blue else Image.merge("RGB", planes)
