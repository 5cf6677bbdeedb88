"""JPEG, segment by segment (ITU-T T.81, annex B): taken apart, and every odd and damaged kind."""

import struct
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, ImageChops
from runs.codes import ErrorCode, WarningCode

from reliability.bad_file import CORRUPT, FLAT, NEARLY, NO_IMAGE, SCORED, Kind, original, saved

DHT, SOS = 0xC4, 0xDA
NAMES = {0xD8: "SOI", 0xE0: "APP0", 0xDB: "DQT", 0xC0: "SOF", DHT: "DHT", 0xDD: "DRI", SOS: "SOS"}


def segments_of(data: bytes) -> list[bytes]:
    """A JPEG's segments, markers included; the last is the scan, from its SOS on."""
    segments, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place + 1] != SOS:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append(data[place:end])
        place = end
    return [*segments, data[place:]]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif(orientation: int) -> bytes:
    """An EXIF block that holds nothing but the orientation (TIFF 6.0, section 8)."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def ycck(image: Image.Image) -> bytes:
    """Adobe's YCCK: YCbCr of C, M and Y as they are stored, which is inverted, and no black (K)."""
    y, blue, red = (255 - np.asarray(band) for band in ImageChops.invert(image).convert("YCbCr").split())
    bands = [Image.fromarray(band) for band in (y, blue, red, np.zeros_like(y))]
    start, adobe, *rest = segments_of(saved(Image.merge("CMYK", bands), "JPEG", quality=95))
    return b"".join([start, adobe[:-1] + b"\2", *rest])


def arithmetic(data: bytes) -> bytes:
    """The JPEG as one of arithmetic coding, with no more in its scan than an even image needs."""
    *parts, scan = segments_of(data)
    kept = [part.replace(b"\xff\xc0", b"\xff\xc9") for part in parts if part[1] != DHT]
    return b"".join(kept) + scan[: 2 + int.from_bytes(scan[2:4], "big")] + b"\0\0\xff\xd9"


# --- kinds

kind = partial(Kind, "JPEG")
near = partial(Kind, "JPEG", outcome=SCORED, within=NEARLY)
corrupt = partial(Kind, "JPEG", outcome=CORRUPT)


def odd() -> Iterator[Kind]:
    image = original()
    blue = Image.merge("RGB", (image, image, image.point(lambda value: min(255, value + 40))))
    turned = image.transpose(Image.Transpose.ROTATE_90)

    def jpeg(picture: Image.Image = image, **options: Any) -> bytes:
        return saved(picture, "JPEG", quality=95, **options)

    yield near("grey", jpeg())
    yield near("RGB of equal channels", jpeg(image.convert("RGB")))
    yield near("progressive", jpeg(progressive=True))
    yield near("restart markers", jpeg(restart_marker_rows=1))
    yield near("EXIF says turned by a quarter", jpeg(turned, exif=b"Exif\0\0" + exif(6)))
    yield near("EXIF of noise", jpeg(exif=b"Exif\0\0MM\0*" + bytes(range(200))))
    yield near("XMP says turned by a quarter", jpeg(turned, xmp=b'<x tiff:Orientation="6"/>'))
    yield near("colour profile", jpeg(icc_profile=bytes(200)))
    yield near("comment of 60,000 bytes", jpeg(comment=b"c" * 60_000))
    yield near("two pictures (MPO)", saved(image, "MPO", quality=95, save_all=True, append_images=[image]))
    yield near("trailing garbage", jpeg() + b"garbage" * 100)
    yield near("fill bytes before a marker", jpeg()[:2] + b"\xff" * 100 + jpeg()[2:])
    yield kind("in colour", jpeg(blue), SCORED, (WarningCode.COLOUR,))
    yield kind("CMYK", jpeg(blue.convert("CMYK")), SCORED, (WarningCode.COLOUR,))
    yield kind("YCCK", ycck(blue), SCORED, (WarningCode.COLOUR,))
    even: tuple[WarningCode, ...] = (WarningCode.LOOKS_INVERTED, WarningCode.OUT_OF_TRAINING_RANGE)
    yield kind("arithmetic coding of almost no data", arithmetic(jpeg()), SCORED, even)
    yield kind("quality 1", saved(image, "JPEG", quality=1), SCORED)


def damaged() -> Iterator[Kind]:
    image = original()
    whole = saved(image, "JPEG", quality=95, restart_marker_rows=4)
    parts = segments_of(whole)
    start, *rest = parts
    yield corrupt("signature alone", whole[:3])
    place = 0
    for number, part in enumerate(parts[:-1]):
        place += len(part)
        name = f"segment {number}, {NAMES[part[1]]}"
        yield kind(f"cut after {name}", whole[:place], CORRUPT if number else NO_IMAGE)
        if len(part) > 2:
            yield corrupt(f"cut in {name}", whole[: place - len(part) // 2])
    yield corrupt("cut after SOS", whole[: place + 10])
    yield corrupt("cut in the scan", whole[: (place + len(whole)) // 2])
    yield corrupt("EOI is missing", whole[:-2])
    for marker in (DHT, 0xDB, 0xC0, SOS):
        makes = near if marker == DHT else corrupt  # usual tables are in ITU-T T.81, annex K.3
        yield makes(f"{NAMES[marker]} is missing", b"".join(part for part in parts if part[1] != marker))

    def sized(width: int, height: int, depth: int = 8) -> bytes:
        said = struct.pack(">BHH", depth, height, width)
        return b"".join(part[:4] + said + part[9:] if part[1] == 0xC0 else part for part in parts)

    yield corrupt("says 0 x 128", sized(0, 128))
    yield corrupt("says 128 x 0", sized(128, 0))
    yield kind("says 65,535 x 65,535", sized(65_535, 65_535), ErrorCode.IMAGE_TOO_LARGE)
    yield kind("says 7,000 x 7,000", sized(7000, 7000), SCORED, FLAT)
    yield kind("says 16 x 16", sized(16, 16), ErrorCode.IMAGE_TOO_SMALL)
    yield corrupt("12 bits", sized(128, 128, 12))
    yield corrupt("lossless", whole.replace(b"\xff\xc0", b"\xff\xc3"))
    yield kind("a restart marker out of turn", whole.replace(b"\xff\xd1", b"\xff\xd5", 1), SCORED)
    yield kind("zeros in the scan", whole[: place + 200] + bytes(60) + whole[place + 260 :], SCORED)
    *heads, scan = segments_of(saved(image, "JPEG", progressive=True))
    last = scan[scan.rindex(b"\xff\xda") : -2]
    scans = scan[:-2] * 10 + last * 10_000 + b"\xff\xd9"
    yield corrupt("progressive, of ten thousand scans", b"".join(heads) + scans)
    for name, much in {
        "ten thousand EXIF segments": segment(0xE1, b"Exif\0\0" + bytes(1000)) * 10_000,
        "a million empty segments": segment(0xEF, b"") * 1_000_000,
        "two million fill bytes": b"\xff" * 2_000_000,
    }.items():
        yield corrupt(name, start + much + b"".join(rest))
