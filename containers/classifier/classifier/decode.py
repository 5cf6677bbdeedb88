"""From the bytes of a PNG, JPEG or DICOM file to an 8-bit image."""

import re
import struct
import warnings
import zlib
from itertools import groupby

import numpy as np
import numpy.typing as npt
from kornia_rs.io import decode_image_png_u8, decode_image_png_u16
from PIL import Image, ImageOps
from runs.codes import ErrorCode

from classifier.bounds import MAX_BYTES, MAX_READS, BoundedFile, ImageError, bits_in_use, check_size

# Bounds on what no camera or viewer writes, but would cost a decoder minutes or gigabytes.
MAX_SCANS, MAX_EXIF = 100, 64  # in a JPEG; usual are about 10 and 1

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# How DICOM without a preamble begins: with group 0002 or 0008, and a value representation or a short length.
_DICOM = re.compile(
    rb"[\2\x08]\0.\0(AE|CS|DA|DT|IS|LO|OB|SH|SQ|TM|UI|UL|UN)|\x08\0.\0[\0-\x40]\0\0\0|\0\x08\0.(CS|DA|SH|SQ|UI|UL)",
    re.DOTALL,
)
# Chunks that change no pixel. A palette, a transparent colour, EXIF or frames would.
_PLAIN = {b"IHDR", b"IDAT", b"IEND", b"tIME", b"pHYs", b"sRGB", b"gAMA", b"cHRM", b"sBIT", b"bKGD"}
_MODES = {0: "mono", 2: "rgb", 6: "rgba"}  # the colour type of a PNG -> its name in kornia-rs
_ORIENTATION = 0x0112  # in EXIF
# What Pillow's PNG and JPEG readers raise on damaged files.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error)

# Their warnings quote header values. The filter is global: threads share the list of filters.
warnings.filterwarnings("ignore", module=r"(PIL|pydicom|classifier)\.")


def decode(data: bytes, bit_depth: int = 16) -> Image.Image:
    """A PNG, JPEG or DICOM file as an 8-bit image: "L" if it holds no colour, else "RGB".

    Turned upright by its EXIF tag. Raises ImageError; the size is checked in the header, before decoding.
    """
    if not data:
        raise ImageError(ErrorCode.IMAGE_EMPTY)
    if len(data) > MAX_BYTES:
        raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    if data[128:132] == b"DICM" or _DICOM.match(data):  # PS3.10, section 7.1
        from classifier import dicom  # here: a cold start without DICOM is quicker without it

        return dicom.decode(data, bit_depth)
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
            image = _eight_bits(image, data, bit_depth)
            ImageOps.exif_transpose(image, in_place=True)
        return _colour_if_any(image)
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


def _open(data: bytes) -> Image.Image:
    return Image.open(BoundedFile(data), formats=("PNG", "JPEG"))


def _eight_bits(image: Image.Image, data: bytes, bit_depth: int) -> Image.Image:
    """A PNG of 16 bits as "L" or "RGB", without alpha. Every other image as it is.

    Pillow's `convert("L")` would clip every value over 255 to white, and in colour it keeps the upper 8 bits.
    """
    if not data.startswith(_PNG) or data[24] != 16:  # the bit depth in IHDR
        return image
    values: npt.NDArray[np.integer]
    if image.mode.startswith("I"):
        values = np.asarray(image)
    elif data[25] == 4:  # grey with alpha: to a PNG's filters, it is RGBA of 8 bits
        values = np.asarray(_open(_as_rgba(data))).view(">u2")[..., 0]
    else:
        shape = (image.height, image.width)
        try:
            values = decode_image_png_u16(data, shape, _MODES[data[25]])[..., :3]
        except Exception as error:  # kornia-rs raises nothing more exact
            raise ImageError(ErrorCode.IMAGE_CORRUPT) from error
    bits = bits_in_use(16, int(values.max()), bit_depth)
    scaled = (values * np.float32(255 / (2**bits - 1))).round().clip(0, 255).astype(np.uint8)
    eight = Image.fromarray(scaled)
    eight.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return eight


def _as_rgba(data: bytes) -> bytes:
    """The PNG with the colour type and the bit depth of 8-bit RGBA in its header."""
    header = b"IHDR" + data[16:24] + b"\x08\x06" + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:]


def _colour_if_any(image: Image.Image) -> Image.Image:
    if image.mode in ("1", "L", "LA"):
        return image.convert("L")
    # Alpha is dropped, not blended: the X-ray lies under it.
    planes = (image if image.mode in ("RGB", "RGBA") else image.convert("RGB")).split()[:3]
    red, green, blue = (plane.tobytes() for plane in planes)
    return planes[0] if red == green == blue else Image.merge("RGB", planes)
