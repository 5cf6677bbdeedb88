"""Damaged files for fuzzing: `mutate` damages one file of a pool, at random.

Half of the damage is anywhere in the file. The other half is within the parts of its format: a part is
changed, removed, repeated, moved or taken from another file, and lengths and checksums are made correct
again. So damage also reaches the code that runs after those checks.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator

import imagecodecs
import jpeg_ls
import numpy as np
from PIL import Image

from cxr.phantoms import draw_phantom
from reliability import dicom, jpeg, png
from reliability.bad_file import encode

MAX_BYTES = 256 * 1024  # of a damaged file
SIDE = 64  # width and height of the undamaged files, in pixels


def undamaged_files() -> list[bytes]:
    """The undamaged files: small ones, in each variant of each format that decodes."""
    drawing = draw_phantom(1, opacity=False).resize((SIDE, SIDE), Image.Resampling.BOX)
    grey = np.asarray(drawing)
    colours, alpha = np.dstack([grey, grey, grey // 2]), np.full_like(grey, 200)
    grey_jpeg = encode(drawing, "JPEG")
    basis = dicom.x_ray_elements(grey)
    deep = dicom.x_ray_elements(grey.astype(int) * 16, 12)
    no_pixels, no_deep_pixels = dicom.without(basis, dicom.PIXELS), dicom.without(deep, dicom.PIXELS)
    twelve_bits = grey.astype(np.uint16) * 16
    table = dicom.encode_element((0x28, 0x3002), "US", [256, 0, 8]) + dicom.encode_element(
        (0x28, 0x3006), "OW", bytes(512)
    )
    window: dicom.Elements = {dicom.CENTRE: ("DS", "2000"), dicom.WIDTH: ("DS", "4000")}
    rescale: dicom.Elements = {dicom.SLOPE: ("DS", "2.5"), dicom.INTERCEPT: ("DS", "-1024")}
    private = dicom.encode_element_start((9, 0x1001), "SQ", dicom.UNDEFINED) + dicom.encode_item(
        dicom.encode_element((9, 0x10), "LO", "VENDOR"), dicom.UNDEFINED
    )
    return [
        png.encode_pixels(grey),
        png.encode_pixels(grey, interlaced=1),
        png.encode_pixels(colours, colour=2),
        png.encode_pixels(np.dstack([colours, alpha]), colour=6),
        png.encode_pixels(np.dstack([grey, alpha]), colour=4),
        png.encode_pixels(grey >> 6, 2),
        png.encode_pixels(grey.astype(int) * 257, 16),
        encode(drawing.convert("P"), "PNG", transparency=3),
        encode(drawing, "PNG", exif=jpeg.exif_block(6), icc_profile=bytes(200), dpi=(72, 72)),
        encode(drawing, "PNG", save_all=True, append_images=[Image.new("L", (SIDE, SIDE))]),
        grey_jpeg,
        encode(drawing.convert("RGB"), "JPEG", exif=b"Exif\0\0" + jpeg.exif_block(3), icc_profile=bytes(200)),
        encode(drawing, "JPEG", progressive=True, restart_marker_rows=2),
        encode(drawing.convert("CMYK"), "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        jpeg.use_arithmetic_coding(grey_jpeg),
        encode(drawing, "MPO", save_all=True, append_images=[drawing]),
        dicom.encode_file(basis),
        dicom.encode_file(basis | rescale | {dicom.PHOTOMETRIC: ("CS", "MONOCHROME1")}, dicom.IMPLICIT),
        dicom.encode_file(basis, dicom.BIG),
        dicom.encode_file(
            dicom.x_ray_elements(grey.astype(int) * 16, 12) | window | {dicom.PADDING: ("US", 9)}
        ),
        dicom.encode_file(dicom.x_ray_elements(grey.astype(int) - 128) | rescale),
        dicom.encode_file(basis | {dicom.TABLE: ("SQ", dicom.encode_item(table))}),
        dicom.encode_file(basis, more=private + dicom.END_OF_ITEM + dicom.END_OF_SEQUENCE),
        dicom.encode_file(
            no_pixels, dicom.RLE, tail=dicom.encapsulate(dicom.encode_run_lengths(grey.tobytes()))
        ),
        dicom.encode_file(no_pixels, dicom.JPEG, tail=dicom.encapsulate(grey_jpeg[:500], grey_jpeg[500:])),
        dicom.encode_file(
            no_pixels, dicom.J2K, tail=dicom.encapsulate(encode(drawing, "JPEG2000", no_jp2=True))
        ),
        dicom.encode_file(
            no_pixels, dicom.J2K, tail=dicom.encapsulate(encode(drawing, "JPEG2000"), offsets=bytes(4))
        ),
        dicom.encode_file(
            no_pixels, dicom.JPEG_LOSSLESS, tail=dicom.encapsulate(jpeg.encode_lossless(grey, 8))
        ),
        *(
            dicom.encode_file(no_deep_pixels, syntax, tail=dicom.encapsulate(bytes(frame)))
            for syntax, frame in [
                (dicom.JPEG_LOSSLESS, jpeg.encode_lossless(twelve_bits, 12)),
                (dicom.JPEG_LS, jpeg_ls.encode_array(twelve_bits)),
                (dicom.JPEG_12, imagecodecs.jpeg_encode(twelve_bits, bitspersample=12)),
                (dicom.HTJ2K, imagecodecs.htj2k_encode(twelve_bits, reversible=True)),
            ]
        ),
        dicom.encode_file(basis, dicom.DEFLATED),
        dicom.encode_file(basis, preamble=b""),
    ]


EXTREMES = (
    0,
    1,
    2,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
    7000,
    32767,
    32768,
    65535,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
)
VALUES = [b"NaN ", b"inf ", b"-1", b"0 ", b"1e308 ", b"9" * 16, b"1\\2 ", b"", b"\xff\xff", b"\0\0", b"RGB "]
VRS = [b"SQ", b"UN", b"OB", b"OW", b"US", b"SS", b"UL", b"DS", b"IS", b"CS", b"FD", b"AT", b"UI", b"ZZ"]


def mutate(pool: list[bytes], rng: random.Random) -> bytes:
    """A file of the pool, damaged one to six times."""
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if rng.random() < 0.5:
            data = damage_anywhere(data, pool, rng)
        elif data.startswith(png.SIGNATURE):
            data = damage_png(data, pool, rng)
        elif data.startswith(b"\xff\xd8"):
            data = damage_jpeg(data, pool, rng)
        elif data[128:132] == b"DICM":
            data = damage_dicom(data, pool, rng)
        else:
            data = damage_anywhere(data, pool, rng)
        data = data[:MAX_BYTES]  # after each damage: repeated parts could grow to gigabytes
    return data


def damage_anywhere(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """The data with damage anywhere, whatever its format."""
    size = len(data)
    place, length = rng.randrange(size + 1), min(rng.choice((1, 2, 4, 8, 32, 200)), size)
    what = rng.randrange(9)
    if what == 0 and place < size:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if what == 1:
        return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
    if what == 2:
        return data[:place] + data[place + length :]
    if what == 3:
        return data[:place] + rng.randbytes(length) + data[place:]
    if what == 4:
        start = rng.randrange(size + 1)
        return data[:place] + data[start : start + length] + data[place + length :]
    if what == 5:
        return data[:place] + data[place : place + length] * rng.choice((2, 3, 50)) + data[place + length :]
    if what == 6:
        return data[:place]
    if what == 7:
        number = rng.choice(EXTREMES)
        form = rng.choice((">H", "<H", ">I", "<I"))
        coded = struct.pack(form, number & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
        return data[:place] + coded + data[place + len(coded) :]
    other = rng.choice(pool)
    return data[:place] + other[rng.randrange(len(other) + 1) :]


def damage_parts(
    parts: list[bytes], others: list[bytes], damage: Callable[[bytes], bytes], rng: random.Random
) -> None:
    """Damage one part, remove or repeat it, swap two parts, or insert a part of another file."""
    place = rng.randrange(len(parts))
    what = rng.randrange(8)
    if what < 4:
        parts[place] = damage(parts[place])
    elif what == 4:
        del parts[place]
    elif what == 5:
        parts[place:place] = [parts[place]] * rng.choice((1, 1, 300))
    elif what == 6:
        other = rng.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
    elif others:
        parts.insert(place, rng.choice(others))


def damage_png(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """The PNG with a damaged, moved or foreign chunk. All lengths and checksums are correct."""

    def parts_of(file: bytes) -> list[bytes]:
        return [name + body for name, body in png.split_chunks(file)]

    def damage(part: bytes) -> bytes:
        name, body = part[:4], part[4:]
        if name == b"IDAT" and rng.random() < 0.5:
            try:
                lines = zlib.decompressobj().decompress(body, MAX_BYTES)
            except zlib.error:
                lines = b""
            return name + zlib.compress(damage_anywhere(lines or b"\0", pool, rng), 1)
        if name == b"IHDR" and len(body) == 13:
            fields = list(struct.unpack(">IIBBBBB", body))
            field = rng.randrange(7)
            fields[field] = rng.choice(EXTREMES) if field < 2 else rng.choice((0, 1, 2, 3, 4, 6, 8, 16, 255))
            return name + struct.pack(">IIBBBBB", *fields)
        return name + damage_anywhere(body, pool, rng)[:MAX_BYTES]

    parts = parts_of(data)
    if not parts:
        return damage_anywhere(data, pool, rng)
    other = rng.choice(pool)
    damage_parts(parts, parts_of(other) if other.startswith(png.SIGNATURE) else [], damage, rng)
    return png.join_chunks(*((part[:4], part[4:]) for part in parts))


def damage_jpeg(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """The JPEG with a damaged, moved or foreign segment. The lengths are correct."""

    def damage(part: bytes) -> bytes:
        if len(part) < 4 or part[1] == 0xDA:
            return damage_anywhere(part, pool, rng)
        return jpeg.encode_segment(part[1], damage_anywhere(part[4:], pool, rng)[:65_533])

    start, *parts = jpeg.split_segments(data)
    other = rng.choice(pool)
    damage_parts(parts, jpeg.split_segments(other)[1:] if other.startswith(b"\xff\xd8") else [], damage, rng)
    return start + b"".join(parts)


def damage_dicom(data: bytes, pool: list[bytes], rng: random.Random) -> bytes:
    """The DICOM file with a damaged, moved or foreign element. The lengths are correct.

    This reads the elements as explicit little-endian, which most of the files are.
    """

    def damage(part: bytes) -> bytes:
        tag, vr = part[:4], part[4:6]
        long = vr.decode("latin-1") in dicom.LONG_VRS
        body = part[12 if long else 8 :]
        what = rng.randrange(6)
        if what == 0:
            body = rng.choice(VALUES)
        elif what == 1:
            body = struct.pack("<H", rng.choice(EXTREMES) & 0xFFFF)
        elif what == 2:
            vr = rng.choice(VRS)
        elif what == 3:
            vr, body = b"SQ", dicom.encode_item(part) * rng.choice((1, 2, 50))
        elif vr == b"OB" and body.startswith(b"\xfe\xff\x00\xe0"):
            # Fragments: damage the compressed data in them, and no lengths.
            place = rng.randrange(len(body))
            body = body[:place] + damage_anywhere(body[place : place + 200], pool, rng) + body[place + 200 :]
            return part[:12] + body
        else:
            body = damage_anywhere(body, pool, rng)
        if vr.decode("latin-1") in dicom.LONG_VRS:
            return tag + vr + struct.pack("<HI", 0, len(body)) + body
        return tag + vr + struct.pack("<H", len(body) & 0xFFFF) + body

    parts = list(split_elements(data))
    if not parts:
        return damage_anywhere(data, pool, rng)
    other = rng.choice(pool)
    damage_parts(parts, list(split_elements(other)) if other[128:132] == b"DICM" else [], damage, rng)
    return data[:132] + b"".join(parts)


def split_elements(data: bytes) -> Iterator[bytes]:
    """The top-level elements of an explicit little-endian file. One of undefined length takes the rest."""
    place = 132
    while place + 8 <= len(data):
        (length,), size = struct.unpack_from("<H", data, place + 6), 8
        if data[place + 4 : place + 6].decode("latin-1") in dicom.LONG_VRS and place + 12 <= len(data):
            (length,), size = struct.unpack_from("<I", data, place + 8), 12
        yield data[place : place + size + length]
        place += size + length
