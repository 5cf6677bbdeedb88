"""JPEG: a file as segments (ITU-T T.81, annex B); and all unusual and damaged JPEG files."""

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops
from runs.codes import ErrorCode, WarningCode

from reliability.bad_file import CLOSE_SCORE, CORRUPT, FLAT, NOT_AN_IMAGE, SCORED, BadFile, drawing, encode

DHT, SOS = 0xC4, 0xDA
NAMES = {0xD8: "SOI", 0xE0: "APP0", 0xDB: "DQT", 0xC0: "SOF", DHT: "DHT", 0xDD: "DRI", SOS: "SOS"}


def split_segments(data: bytes) -> list[bytes]:
    """The segments of a JPEG with their markers. The last one is everything from SOS on: the scan."""
    segments, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place + 1] != SOS:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append(data[place:end])
        place = end
    return [*segments, data[place:]]


def encode_segment(marker: int, body: bytes) -> bytes:
    """A segment with its marker and its length."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif_block(orientation: int) -> bytes:
    """An EXIF block with only the orientation (TIFF 6.0, section 8)."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def encode_ycck(image: Image.Image) -> bytes:
    """The image as Adobe's YCCK: YCbCr of the inverted C, M and Y, and no black (K)."""
    y, blue, red = (255 - np.asarray(band) for band in ImageChops.invert(image).convert("YCbCr").split())
    bands = [Image.fromarray(band) for band in (y, blue, red, np.zeros_like(y))]
    start, adobe, *rest = split_segments(encode(Image.merge("CMYK", bands), "JPEG", quality=95))
    return b"".join([start, adobe[:-1] + b"\2", *rest])


def use_arithmetic_coding(data: bytes) -> bytes:
    """The JPEG with arithmetic coding; its scan is that of an image of one grey value."""
    *parts, scan = split_segments(data)
    kept = [part.replace(b"\xff\xc0", b"\xff\xc9") for part in parts if part[1] != DHT]
    return b"".join(kept) + scan[: 2 + int.from_bytes(scan[2:4], "big")] + b"\0\0\xff\xd9"


def encode_lossless(pixels: npt.NDArray[np.integer], bits: int) -> bytes:
    """Grey pixels [rows, columns] as JPEG Lossless, predicted from the left (ITU-T T.81, annex H).

    Each category of differences has a code of 5 bits, its own number.
    """
    values = pixels.astype(np.int64)
    predicted = np.empty_like(values)
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    coded = []
    for difference in (values - predicted).ravel().tolist():
        size = abs(difference).bit_length()
        extra = difference if difference >= 0 else difference + (1 << size) - 1
        coded.append(f"{size:05b}" + (f"{extra:0{size}b}" if size else ""))
    stream = "".join(coded)
    stream += "1" * (-len(stream) % 8)
    scan = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    frame = struct.pack(">BHHBBBB", bits, *pixels.shape, 1, 1, 0x11, 0)
    return b"".join(
        [
            b"\xff\xd8",
            encode_segment(0xC3, frame),
            encode_segment(DHT, table),
            encode_segment(SOS, bytes([1, 1, 0, 1, 0, 0])),
            scan,
            b"\xff\xd9",
        ]
    )


# Bad files

bad_file = partial(BadFile, "JPEG")
close_score = partial(BadFile, "JPEG", outcome=SCORED, tolerance=CLOSE_SCORE)
corrupt = partial(BadFile, "JPEG", outcome=CORRUPT)


def unusual_files() -> Iterator[BadFile]:
    """Unusual JPEG files. They all decode."""
    image = drawing()
    blue = Image.merge("RGB", (image, image, image.point(lambda value: min(255, value + 40))))
    turned = image.transpose(Image.Transpose.ROTATE_90)

    def jpeg(picture: Image.Image = image, **options: Any) -> bytes:
        return encode(picture, "JPEG", quality=95, **options)

    yield close_score("grey", jpeg())
    yield close_score("RGB of equal channels", jpeg(image.convert("RGB")))
    yield close_score("progressive", jpeg(progressive=True))
    yield close_score("restart markers", jpeg(restart_marker_rows=1))
    yield close_score("EXIF says turned by a quarter", jpeg(turned, exif=b"Exif\0\0" + exif_block(6)))
    yield close_score("EXIF of noise", jpeg(exif=b"Exif\0\0MM\0*" + bytes(range(200))))
    yield close_score("XMP says turned by a quarter", jpeg(turned, xmp=b'<x tiff:Orientation="6"/>'))
    yield close_score("colour profile", jpeg(icc_profile=bytes(200)))
    yield close_score("comment of 60,000 bytes", jpeg(comment=b"c" * 60_000))
    yield close_score(
        "two pictures (MPO)", encode(image, "MPO", quality=95, save_all=True, append_images=[image])
    )
    yield close_score("trailing garbage", jpeg() + b"garbage" * 100)
    yield close_score("fill bytes before a marker", jpeg()[:2] + b"\xff" * 100 + jpeg()[2:])
    yield bad_file("in colour", jpeg(blue), SCORED, (WarningCode.COLOUR,))
    yield bad_file("CMYK", jpeg(blue.convert("CMYK")), SCORED, (WarningCode.COLOUR,))
    yield bad_file("YCCK", encode_ycck(blue), SCORED, (WarningCode.COLOUR,))
    even: tuple[WarningCode, ...] = (WarningCode.NOT_A_FRONTAL_CHEST, WarningCode.OUT_OF_TRAINING_RANGE)
    yield bad_file("arithmetic coding of almost no data", use_arithmetic_coding(jpeg()), SCORED, even)
    yield bad_file("quality 1", encode(image, "JPEG", quality=1), SCORED)


def damaged_files() -> Iterator[BadFile]:
    """JPEG files that are cut short, contradict themselves or are excessive."""
    image = drawing()
    whole = encode(image, "JPEG", quality=95, restart_marker_rows=4)
    parts = split_segments(whole)
    start, *rest = parts
    yield corrupt("signature alone", whole[:3])
    place = 0
    for number, part in enumerate(parts[:-1]):
        place += len(part)
        name = f"segment {number}, {NAMES[part[1]]}"
        yield bad_file(f"cut after {name}", whole[:place], CORRUPT if number else NOT_AN_IMAGE)
        if len(part) > 2:
            yield corrupt(f"cut in {name}", whole[: place - len(part) // 2])
    yield corrupt("cut after SOS", whole[: place + 10])
    yield corrupt("cut in the scan", whole[: (place + len(whole)) // 2])
    yield corrupt("EOI is missing", whole[:-2])
    for marker in (DHT, 0xDB, 0xC0, SOS):
        # Without DHT, the decoder uses the tables of ITU-T T.81, annex K.3.
        make = close_score if marker == DHT else corrupt
        yield make(f"{NAMES[marker]} is missing", b"".join(part for part in parts if part[1] != marker))

    def sized(width: int, height: int, depth: int = 8) -> bytes:
        said = struct.pack(">BHH", depth, height, width)
        return b"".join(part[:4] + said + part[9:] if part[1] == 0xC0 else part for part in parts)

    yield corrupt("says 0 x 128", sized(0, 128))
    yield corrupt("says 128 x 0", sized(128, 0))
    yield bad_file("says 65,535 x 65,535", sized(65_535, 65_535), ErrorCode.IMAGE_TOO_LARGE)
    yield bad_file("says 7,000 x 7,000", sized(7000, 7000), SCORED, FLAT)
    yield bad_file("says 16 x 16", sized(16, 16), ErrorCode.IMAGE_TOO_SMALL)
    yield corrupt("12 bits", sized(128, 128, 12))
    yield corrupt("lossless", whole.replace(b"\xff\xc0", b"\xff\xc3"))
    yield bad_file("a restart marker out of turn", whole.replace(b"\xff\xd1", b"\xff\xd5", 1), SCORED)
    yield bad_file("zeros in the scan", whole[: place + 200] + bytes(60) + whole[place + 260 :], SCORED)
    *heads, scan = split_segments(encode(image, "JPEG", progressive=True))
    last = scan[scan.rindex(b"\xff\xda") : -2]
    scans = scan[:-2] * 10 + last * 10_000 + b"\xff\xd9"
    yield corrupt("progressive, of ten thousand scans", b"".join(heads) + scans)
    for name, much in {
        "ten thousand EXIF segments": encode_segment(0xE1, b"Exif\0\0" + bytes(1000)) * 10_000,
        "a million empty segments": encode_segment(0xEF, b"") * 1_000_000,
        "two million fill bytes": b"\xff" * 2_000_000,
    }.items():
        yield corrupt(name, start + much + b"".join(rest))
