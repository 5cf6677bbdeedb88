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
# Bounds on what no camera or viewer writes, but would cost a decoder minutes or gigabytes.
MAX_READS = 200_000  # reads of a header: each chunk, segment or element takes one to four
MAX_SCANS, MAX_EXIF = 100, 64  # in a JPEG; usual are about 10 and 1

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Chunks that change no pixel. A palette, a transparent colour, EXIF or frames would.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD"}
_MODES = {0: "mono", 2: "rgb", 6: "rgba"}  # the colour type of a PNG -> its name in kornia-rs
# What Pillow's PNG and JPEG readers raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

# Their warnings quote header values. The filter is global: threads share the list of filters.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom|classifier)\.")


class ImageError(Exception):
    """An image that can never be scored; `code` says why."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


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


def decode(data: bytes, bit_depth: int = 16) -> Image.Image:
    """A PNG, JPEG or DICOM file as an 8-bit image: "L" if it holds no colour, else "RGB".

    Turned upright by its EXIF tag. Raises ImageError; the size is checked in the header, before decoding.
    """
    if not data:
        raise ImageError(ErrorCode.IMAGE_EMPTY)
    if len(data) > MAX_BYTES:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    if data[128:132] == b"DICM":  # PS3.10, section 7.1
        from classifier import dicom  # here: a cold start without DICOM is quicker without it

        return dicom.decode(data)
    if not data.startswith((_PNG, _JPEG)):
        raise ImageError(ErrorCode.NOT_AN_IMAGE)
    # Pillow walks over all pixels for every scan, and over all EXIF so far for every part of it.
    if data.startswith(_JPEG) and (data.count(b"\xff\xda") > MAX_SCANS or data.count(b"Exif\0\0") > MAX_EXIF):
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    try:
        image = _decode_plain_png(data) if data.startswith(_PNG) else None
        if image is None:
            check_size(_open(data).size)
            # Decoding alone ignores the checksums of a PNG, and so a flipped bit.
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
    """A plain 8-bit PNG, decoded in less than half of Pillow's time; None for every other file.

    None also for odd or damaged files: Pillow then finds out what is wrong.
    """
    chunks = []
    view, place = memoryview(data), len(_PNG)
    try:
        while place < len(data):
            length, chunk = struct.unpack_from(">I4s", data, place)
            end = place + 8 + length
            (checksum,) = struct.unpack_from(">I", data, end)
            if chunk != b"IDAT" and zlib.crc32(view[place + 4 : end]) != checksum:
                return None  # kornia-rs checks those of IDAT
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
    """A file in memory that can be read at most MAX_READS times. Then it raises ImageError."""

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
    """16-bit grey as "L". `convert("L")` would clip every value over 255 to white."""
    grey = np.asarray(image)
    if bit_depth == 16 and grey.max() < 2**12:
        raise ImageError(ErrorCode.BIT_DEPTH_UNKNOWN)
    scaled = grey * np.float32(255 / (2**bit_depth - 1))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _colour_if_any(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    # Alpha is dropped, not blended: the X-ray lies under it.
    planes = (image if image.mode in ("RGB", "RGBA") else image.convert("RGB")).split()[:3]
    red, green, blue = (plane.tobytes() for plane in planes)
    return planes[0] if red == green == blue else Image.merge("RGB", planes)
