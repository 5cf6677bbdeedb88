"""Files that are no plain X-ray, each with what becomes of it, and docs/bad-images.md that says so.

All are made by code, of one drawing. `python -m reliability.bad_images` writes the page.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from classifier.checks import WarningCode
from classifier.images import ErrorCode
from PIL import Image, ImageChops, ImageCms

from cxr.files import whole_file
from cxr.phantoms import draw_phantom

PAGE = Path(__file__).parents[1] / "docs" / "bad-images.md"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
Grey = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Kind:
    """A file and what becomes of it: an error, or SCORED with `warnings`."""

    name: str
    data: bytes
    outcome: ErrorCode | Literal["SCORED"]
    warnings: tuple[WarningCode, ...] = ()
    within: float | None = (
        None  # how far its score may be from that of the plain PNG; None says nothing of it
    )


# --- PNG


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """(type, body) of each whole chunk of a PNG."""
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_file(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A PNG of these chunks, whose checksums are right."""
    return SIGNATURE + b"".join(chunk(kind, body) for kind, body in chunks)


def header(
    width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0
) -> tuple[bytes, bytes]:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def drawn_png(pixels: npt.NDArray[Any], depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    """Samples [height, width] or [height, width, samples] as a PNG of any depth, also interlaced (Adam7)."""
    lines = b"".join(scanlines(part, depth) for part in (adam7(pixels) if interlaced else [pixels]))
    height, width = pixels.shape[:2]
    return png_file(
        [header(width, height, depth, colour, interlaced), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    )


def scanlines(pixels: npt.NDArray[Any], depth: int) -> bytes:
    """Each row behind a filter byte of 0; samples of 16 bits big-endian, of fewer than 8 packed."""
    rows = pixels.reshape(len(pixels), -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    elif depth == 8:
        packed = rows.astype(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., np.newaxis], axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(len(rows), -1), axis=1)
    return np.hstack([np.zeros((len(rows), 1), np.uint8), packed]).tobytes()


def adam7(pixels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The seven passes (PNG specification, section 8.2)."""
    for top, down, left, along in (
        (0, 8, 0, 8),
        (0, 8, 4, 8),
        (4, 8, 0, 4),
        (0, 4, 2, 4),
        (2, 4, 0, 2),
        (0, 2, 1, 2),
        (1, 2, 0, 1),
    ):
        yield pixels[top::down, left::along]


# --- JPEG


def jpeg_segments(data: bytes) -> list[bytes]:
    """A JPEG's segments, markers included; the last is the scan, from its SOS on."""
    segments, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        segments.append(data[place:end])
        place = end
    return [*segments, data[place:]]


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def exif(orientation: int) -> bytes:
    """An EXIF block that holds nothing but the orientation (TIFF 6.0, section 8)."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


# --- DICOM (PS3.5, section 7.1; PS3.10, section 7.1)

LITTLE, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_12, JPEG_LOSSLESS = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 70))
JPEG_LS, J2K, MPEG2 = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 90, 100))
UNDEFINED = 0xFFFFFFFF
LONG = {"OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC"}  # representations whose length has four bytes
Tag = tuple[int, int]
Value = bytes | str | int | list[int]
Elements = dict[Tag, tuple[str, Value]]

ROWS, COLUMNS, SAMPLES, FRAMES = (0x28, 0x10), (0x28, 0x11), (0x28, 0x02), (0x28, 0x08)
PHOTOMETRIC, ALLOCATED, STORED, SIGNED = (0x28, 0x04), (0x28, 0x100), (0x28, 0x101), (0x28, 0x103)
CENTRE, WIDTH, INTERCEPT, SLOPE = (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053)
PADDING, PIXELS = (0x28, 0x120), (0x7FE0, 0x10)


def element(tag: Tag, kind: str, value: Value, *, order: str = "<", implicit: bool = False) -> bytes:
    """One data element, its value padded to an even length."""
    body = value if isinstance(value, bytes) else b""
    if isinstance(value, str):
        body = value.encode() + (b"\0" if kind == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int | list):
        numbers = value if isinstance(value, list) else [value]
        body = struct.pack(f"{order}{len(numbers)}{'L' if kind == 'UL' else 'H'}", *numbers)
    return start_of_element(tag, kind, len(body), order=order, implicit=implicit) + body


def start_of_element(tag: Tag, kind: str, length: int, *, order: str = "<", implicit: bool = False) -> bytes:
    if implicit:
        return struct.pack(f"{order}HHL", *tag, length)
    size = "HL" if kind in LONG else "H"
    return struct.pack(f"{order}HH2s{size}", *tag, kind.encode(), *([0] if kind in LONG else []), length)


def item(body: bytes, length: int | None = None) -> bytes:
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body) if length is None else length) + body


END_OF_ITEM, END_OF_SEQUENCE = struct.pack("<HHL", 0xFFFE, 0xE00D, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def encapsulated(*frames: bytes, offsets: bytes = b"") -> bytes:
    """Pixel data of undefined length: an offset table and fragments (PS3.5, annex A.4)."""
    items = b"".join(item(fragment + b"\0" * (len(fragment) % 2)) for fragment in frames)
    return start_of_element(PIXELS, "OB", UNDEFINED) + item(offsets) + items + END_OF_SEQUENCE


def dicom_file(
    elements: Mapping[Tag, tuple[str, Value]],
    syntax: str = LITTLE,
    *,
    tail: bytes = b"",
    more: bytes = b"",
    preamble: bytes = bytes(128) + b"DICM",
) -> bytes:
    """A file of these elements in the order of their tags, then `tail`; `more` goes before group 0028."""
    meta = element((2, 0x10), "UI", syntax)
    order, implicit = ">" if syntax == BIG else "<", syntax == IMPLICIT
    parts = [element(tag, *elements[tag], order=order, implicit=implicit) for tag in sorted(elements)]
    before = sum(tag < (0x28, 0) for tag in elements)
    body = b"".join([*parts[:before], more, *parts[before:], tail])
    return preamble + element((2, 0), "UL", len(meta)) + meta + body


def x_ray(pixels: npt.NDArray[Any], bits: int = 8, order: str = "<") -> Elements:
    """The elements of a digital X-ray of these pixels [rows, columns]."""
    size = 8 if bits <= 8 else 16
    return {
        (8, 0x16): ("UI", "1.2.840.10008.5.1.4.1.1.1.1"),
        (8, 0x18): ("UI", "1.2.3"),
        (0x10, 0x10): ("PN", "Drawn^Phantom"),
        SAMPLES: ("US", 1),
        PHOTOMETRIC: ("CS", "MONOCHROME2"),
        ROWS: ("US", pixels.shape[0]),
        COLUMNS: ("US", pixels.shape[1]),
        ALLOCATED: ("US", size),
        STORED: ("US", bits),
        (0x28, 0x102): ("US", bits - 1),
        SIGNED: ("US", int(pixels.min() < 0)),
        PIXELS: (
            "OB" if size == 8 else "OW",
            pixels.astype(f"{order}{'i' if pixels.min() < 0 else 'u'}{size // 8}").tobytes(),
        ),
    }


def without(elements: Elements, *tags: Tag) -> Elements:
    return {tag: value for tag, value in elements.items() if tag not in tags}


def run_lengths(data: bytes) -> bytes:
    """One segment of PS3.5, annex G, in literal runs."""
    runs = (data[start : start + 128] for start in range(0, len(data), 128))
    coded = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<16L", 1, 64, *[0] * 14) + coded


# --- what there is


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def original() -> Image.Image:
    """The drawing, "L", 128 x 128."""
    return draw_phantom(1, opacity=False).resize((128, 128), Image.Resampling.BOX)


def plain() -> bytes:
    """The file whose score the harmless kinds have too."""
    return saved(original(), "PNG")


SCORED: Literal["SCORED"] = "SCORED"
CORRUPT: Literal["IMAGE_CORRUPT"] = "IMAGE_CORRUPT"
NO_IMAGE: Literal["NOT_AN_IMAGE"] = "NOT_AN_IMAGE"
FLAT: tuple[WarningCode, ...] = ("NOT_A_FRONTAL_CHEST", "OUT_OF_TRAINING_RANGE")
SAME = 0.0
NEARLY = 0.02  # of compression with loss


def kinds() -> Iterator[Kind]:
    """Every kind, by format."""
    for makers in (
        odd_pngs,
        damaged_pngs,
        odd_jpegs,
        damaged_jpegs,
        other_formats,
        odd_dicoms,
        damaged_dicoms,
    ):
        yield from makers()


def odd_pngs() -> Iterator[Kind]:
    image, grey = original(), np.asarray(original())
    colours, alpha = np.dstack([grey] * 3), np.tile(np.arange(128, dtype=np.uint8), (128, 1))

    def same(name: str, data: bytes, within: float = SAME) -> Kind:
        return Kind(f"PNG, {name}", data, SCORED, within=within)

    def added(*chunks: tuple[bytes, bytes]) -> bytes:
        head, *rest = png_chunks(plain())
        return png_file([head, *chunks, *rest])

    yield same("plain", plain())
    yield same("interlaced", drawn_png(grey, interlaced=1))
    yield same("RGB of equal channels", drawn_png(colours, colour=2))
    yield same("RGBA, transparent here and there", drawn_png(np.dstack([colours, alpha]), colour=6))
    yield same("RGBA, interlaced", drawn_png(np.dstack([colours, alpha]), colour=6, interlaced=1))
    yield same("grey with alpha", drawn_png(np.dstack([grey, alpha]), colour=4))
    yield same("grey palette", saved(image.convert("P"), "PNG"))
    yield same("16 bits, full range", drawn_png(grey.astype(int) * 257, 16))
    yield same("16 bits, RGB", drawn_png(colours.astype(int) * 257, 16, 2))
    yield same("16 bits, interlaced", drawn_png(grey.astype(int) * 257, 16, interlaced=1))
    yield same("16 bits, grey with alpha", drawn_png(np.dstack([grey, alpha]).astype(int) * 257, 16, 4))
    yield Kind("PNG, 12 bits in 16", drawn_png(grey.astype(int) * 16, 16), "BIT_DEPTH_UNKNOWN")
    yield same("4 bits", drawn_png(grey >> 4, 4), 0.05)
    yield same("2 bits", drawn_png(grey >> 6, 2), 0.1)
    yield Kind("PNG, 1 bit", drawn_png(grey >> 7, 1), SCORED, ("OUT_OF_TRAINING_RANGE",))
    yield Kind(
        "PNG, palette of 1 bit",
        saved(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=2), "PNG", bits=1),
        SCORED,
    )
    yield Kind(
        "PNG, coloured mark",
        drawn_png(np.where(alpha[..., np.newaxis] < 4, [200, 0, 0], colours), colour=2),
        SCORED,
        ("COLOUR",),
    )
    yield Kind("PNG, black", drawn_png(np.zeros_like(grey)), SCORED, FLAT)
    yield Kind("PNG, inverted", drawn_png(255 - grey), SCORED, ("LOOKS_INVERTED",))
    yield Kind("PNG, on its side", drawn_png(np.rot90(grey)), SCORED, ("LOOKS_SIDEWAYS",))
    yield same(
        "EXIF says turned by a quarter",
        saved(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif(6)),
    )
    yield same(
        "EXIF says mirrored", saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG", exif=exif(2))
    )
    yield same("EXIF of a wrong orientation", saved(image, "PNG", exif=exif(99)))
    yield same("EXIF of noise", added((b"eXIf", b"MM\0*" + bytes(range(200)))))
    yield same(
        "EXIF behind the pixels", png_file([*png_chunks(plain())[:-1], (b"eXIf", exif(1)), (b"IEND", b"")])
    )
    yield same(
        "colour profile",
        saved(image, "PNG", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
    )
    yield same("colour profile that does not inflate", added((b"iCCP", b"x\0\0nothing of zlib")))
    yield same("gamma", added((b"gAMA", struct.pack(">I", 45455))))
    yield same("transparent grey value", added((b"tRNS", b"\0\7")))
    yield Kind("PNG, transparency of the wrong length", added((b"tRNS", b"")), CORRUPT)
    yield same("palette in a grey image", added((b"PLTE", bytes(range(30)))))
    yield same(
        "text in every form",
        added((b"tEXt", b"a\0b"), (b"zTXt", b"a\0\0" + zlib.compress(b"b")), (b"iTXt", b"a\0\0\0\0\0b")),
    )
    yield same("unknown chunk that may be passed over", added((b"xxXx", b"?")))
    yield same(
        "animated, the first frame",
        saved(image, "PNG", save_all=True, append_images=[Image.new("L", (128, 128))]),
    )
    yield same(
        "animated, the image is no frame",
        saved(image, "PNG", save_all=True, default_image=True, append_images=[Image.new("L", (128, 128))]),
    )
    yield same("trailing garbage", plain() + b"garbage" * 100)
    yield same("another PNG behind it", plain() + drawn_png(255 - grey))
    yield same("pixels in chunks of 100 bytes", png_file(in_pieces(png_chunks(plain()), 100)))
    yield same(
        "pixels and empty chunks",
        png_file(
            [
                part
                for kept in png_chunks(plain())
                for part in ([(b"IDAT", b""), kept] if kept[0] == b"IDAT" else [kept])
            ]
        ),
    )


def in_pieces(chunks: Iterable[tuple[bytes, bytes]], size: int) -> Iterator[tuple[bytes, bytes]]:
    for kind, body in chunks:
        if kind != b"IDAT":
            yield kind, body
        else:
            yield from ((kind, body[start : start + size]) for start in range(0, len(body), size))


def damaged_pngs() -> Iterator[Kind]:
    pieces = list(in_pieces(png_chunks(plain()), 5000))
    head, first, second, end = pieces
    whole = png_file(pieces)
    place = len(SIGNATURE)
    yield Kind("PNG, one byte", whole[:1], NO_IMAGE)
    yield Kind("PNG, half a signature", whole[:4], NO_IMAGE)
    yield Kind("PNG, signature alone", whole[:place], CORRUPT)
    names = ("IHDR", "the first IDAT", "the second IDAT", "IEND")
    for name, (_, body) in zip(names, pieces, strict=True):
        parts = {"length": 2, "type": 6, "body": 8 + len(body) // 2, "checksum": len(body) + 10}
        for part, offset in parts.items():
            if body or part != "body":
                kept = (name, part) == ("IEND", "checksum")  # the pixels are there
                outcome = SCORED if kept else CORRUPT
                yield Kind(f"PNG, cut in the {part} of {name}", whole[: place + offset], outcome)
        wrong = bytearray(whole)
        wrong[place + 8 + len(body)] ^= 1
        outcome = SCORED if name == "IEND" else CORRUPT
        yield Kind(f"PNG, wrong checksum of {name}", bytes(wrong), outcome)
        long = bytearray(whole)
        long[place : place + 4] = struct.pack(">I", 2**31 - 1)
        yield Kind(f"PNG, {name} longer than the file", bytes(long), outcome)
        place += 12 + len(body)
        if name != "IEND":
            yield Kind(f"PNG, cut after {name}", whole[:place], CORRUPT)
    yield Kind("PNG, no IHDR", png_file([first, second, end]), CORRUPT)
    yield Kind("PNG, two IHDR", png_file([head, *pieces]), SCORED, within=SAME)
    yield Kind("PNG, two IHDR that differ", png_file([header(64, 64), *pieces]), SCORED, within=SAME)
    yield Kind("PNG, IHDR too short", png_file([(b"IHDR", head[1][:8]), first, second, end]), CORRUPT)
    yield Kind("PNG, no IDAT", png_file([head, end]), CORRUPT)
    yield Kind("PNG, one IDAT is missing", png_file([head, first, end]), CORRUPT)
    yield Kind("PNG, IDATs the wrong way round", png_file([head, second, first, end]), CORRUPT)
    yield Kind(
        "PNG, text between the IDATs", png_file([head, first, (b"tEXt", b"a\0b"), second, end]), CORRUPT
    )
    yield Kind(
        "PNG, unknown chunk that must be known", png_file([head, (b"XXXX", b"?"), first, second, end]), SCORED
    )
    sizes: list[tuple[int, int, ErrorCode]] = [
        (0, 128, CORRUPT),
        (128, 0, CORRUPT),
        (63, 128, "IMAGE_TOO_SMALL"),
        (1, 1, "IMAGE_TOO_SMALL"),
        (400, 90, "IMAGE_TOO_NARROW"),
        (60_000, 60_000, "IMAGE_TOO_LARGE"),
        (2**31 - 1, 2**31 - 1, "IMAGE_TOO_LARGE"),
        (2**32 - 1, 2**32 - 1, "IMAGE_TOO_LARGE"),
        (129, 128, CORRUPT),
        (7000, 7000, CORRUPT),
    ]
    for width, height, code in sizes:
        yield Kind(
            f"PNG, says {width} x {height}", png_file([header(width, height), first, second, end]), code
        )
    for depth, colour in ((8, 1), (8, 7), (3, 0), (32, 0), (4, 2)):
        yield Kind(
            f"PNG, says {depth} bits of colour type {colour}",
            png_file([header(128, 128, depth, colour), first, second, end]),
            CORRUPT,
        )
    yield Kind("PNG, palette is missing", png_file([header(128, 128, 8, 3), first, second, end]), CORRUPT)
    yield Kind(
        "PNG, palette of 3 colours, and more in use",
        png_file([header(128, 128, 8, 3), (b"PLTE", bytes(9)), first, second, end]),
        SCORED,
        FLAT,
    )
    yield Kind(
        "PNG, filter that there is not",
        png_file([head, (b"IDAT", zlib.compress(b"\x09" * 129 * 128)), end]),
        CORRUPT,
    )
    bomb = zlib.compress(bytes(300_000_000), 9)
    yield Kind("PNG, 128 x 128 that inflate to 300 MB", png_file([head, (b"IDAT", bomb), end]), SCORED, FLAT)
    for name, body in {"iCCP": b"x\0\0", "zTXt": b"x\0\0", "iTXt": b"x\0\1\0\0\0"}.items():
        yield Kind(
            f"PNG, {name} that inflates to 300 MB",
            png_file([head, (name.encode(), body + bomb), first, second, end]),
            CORRUPT,
        )
    small = zlib.compress(bytes(1_000_000), 9)
    yield Kind(
        "PNG, a thousand zTXt of 1 MB",
        png_file([head, *[(b"zTXt", b"x\0\0" + small)] * 1000, first, second, end]),
        CORRUPT,
    )
    yield Kind(
        "PNG, a million chunks",
        SIGNATURE + chunk(*head) + chunk(b"tEXt", b"") * 1_000_000 + whole[-12:],
        CORRUPT,
    )
    yield Kind(
        "PNG, 5,000 bytes of 7,000 x 7,000 in RGBA", png_file([header(7000, 7000, 8, 6), first, end]), CORRUPT
    )


def odd_jpegs() -> Iterator[Kind]:
    image = original()
    blue = Image.merge("RGB", (image, image, image.point(lambda value: min(255, value + 40))))

    def near(name: str, data: bytes, within: float = NEARLY) -> Kind:
        return Kind(f"JPEG, {name}", data, SCORED, within=within)

    def jpeg(picture: Image.Image = image, **options: Any) -> bytes:
        return saved(picture, "JPEG", quality=95, **options)

    yield near("grey", jpeg())
    yield near("RGB of equal channels", jpeg(image.convert("RGB")))
    yield near("progressive", jpeg(progressive=True))
    yield near("restart markers", jpeg(restart_marker_rows=1))
    yield near(
        "EXIF says turned by a quarter",
        jpeg(image.transpose(Image.Transpose.ROTATE_90), exif=b"Exif\0\0" + exif(6)),
    )
    yield near("EXIF of noise", jpeg(exif=b"Exif\0\0MM\0*" + bytes(range(200))))
    yield near(
        "XMP says turned by a quarter",
        jpeg(image.transpose(Image.Transpose.ROTATE_90), xmp=b'<x tiff:Orientation="6"/>'),
    )
    yield near("colour profile", jpeg(icc_profile=bytes(200)))
    yield near("comment of 60,000 bytes", jpeg(comment=b"c" * 60_000))
    yield near("two pictures (MPO)", saved(image, "MPO", quality=95, save_all=True, append_images=[image]))
    yield near("trailing garbage", jpeg() + b"garbage" * 100)
    yield near("fill bytes before a marker", jpeg()[:2] + b"\xff" * 100 + jpeg()[2:])
    yield Kind("JPEG, in colour", jpeg(blue), SCORED, ("COLOUR",))
    yield Kind("JPEG, CMYK", jpeg(blue.convert("CMYK")), SCORED, ("COLOUR",))
    yield Kind("JPEG, YCCK", ycck(blue), SCORED, ("COLOUR",))
    yield Kind(
        "JPEG, arithmetic coding, of next to nothing",
        b"".join(arithmetic(jpeg())),
        SCORED,
        ("LOOKS_INVERTED", "OUT_OF_TRAINING_RANGE"),
    )
    yield Kind("JPEG, quality 1", saved(image, "JPEG", quality=1), SCORED)


def ycck(image: Image.Image) -> bytes:
    """Adobe's YCCK: YCbCr of C, M and Y as they are stored, which is inverted, and no black (K)."""
    y, blue, red = (255 - np.asarray(band) for band in ImageChops.invert(image).convert("YCbCr").split())
    bands = [Image.fromarray(band) for band in (y, blue, red, np.zeros_like(y))]
    start, adobe, *rest = jpeg_segments(saved(Image.merge("CMYK", bands), "JPEG", quality=95))
    return b"".join([start, adobe[:-1] + b"\2", *rest])


def arithmetic(data: bytes) -> Iterator[bytes]:
    """The JPEG as one of arithmetic coding, with no more in its scan than an even image needs."""
    for part in jpeg_segments(data):
        if part[1] == 0xDA:
            yield part[: 2 + int.from_bytes(part[2:4], "big")] + b"\0\0\xff\xd9"
        elif part[1] != 0xC4:  # Huffman tables
            yield part.replace(b"\xff\xc0", b"\xff\xc9")


def damaged_jpegs() -> Iterator[Kind]:
    image = original()
    whole = saved(image, "JPEG", quality=95, restart_marker_rows=4)
    parts = jpeg_segments(whole)
    names = {0xD8: "SOI", 0xE0: "APP0", 0xDB: "DQT", 0xC0: "SOF", 0xC4: "DHT", 0xDD: "DRI", 0xDA: "SOS"}
    yield Kind("JPEG, signature alone", whole[:3], CORRUPT)
    place = 0
    for number, part in enumerate(parts[:-1]):
        place += len(part)
        outcome = CORRUPT if number else NO_IMAGE
        yield Kind(f"JPEG, cut after segment {number}, {names[part[1]]}", whole[:place], outcome)
        if len(part) > 2:
            yield Kind(
                f"JPEG, cut in segment {number}, {names[part[1]]}", whole[: place - len(part) // 2], CORRUPT
            )
    yield Kind("JPEG, cut after SOS", whole[: place + 10], CORRUPT)
    yield Kind("JPEG, cut in the scan", whole[: (place + len(whole)) // 2], CORRUPT)
    yield Kind("JPEG, EOI is missing", whole[:-2], CORRUPT)
    kept = [part for part in parts if part[1] != 0xC4]  # there are usual ones (ITU-T T.81, annex K.3)
    yield Kind("JPEG, DHT is missing", b"".join(kept), SCORED, within=NEARLY)
    for marker in (0xDB, 0xC0, 0xDA):
        kept = [part for part in parts if part[1] != marker]
        yield Kind(f"JPEG, {names[marker]} is missing", b"".join(kept), CORRUPT)

    def sized(width: int, height: int, depth: int = 8) -> bytes:
        return b"".join(
            part[:4] + struct.pack(">BHH", depth, height, width) + part[9:] if part[1] == 0xC0 else part
            for part in parts
        )

    yield Kind("JPEG, says 0 x 128", sized(0, 128), CORRUPT)
    yield Kind("JPEG, says 128 x 0", sized(128, 0), CORRUPT)
    yield Kind("JPEG, says 65,535 x 65,535", sized(65_535, 65_535), "IMAGE_TOO_LARGE")
    yield Kind("JPEG, says 7,000 x 7,000", sized(7000, 7000), SCORED, FLAT)
    yield Kind("JPEG, says 16 x 16", sized(16, 16), "IMAGE_TOO_SMALL")
    yield Kind("JPEG, 12 bits", sized(128, 128, 12), CORRUPT)
    yield Kind("JPEG, lossless", whole.replace(b"\xff\xc0", b"\xff\xc3"), CORRUPT)
    damaged = bytearray(whole)
    damaged[whole.index(b"\xff\xd1") + 1] = 0xD5
    yield Kind("JPEG, a restart marker out of turn", bytes(damaged), SCORED)
    damaged = bytearray(whole)
    damaged[place + 200 : place + 260] = bytes(60)
    yield Kind("JPEG, zeros in the scan", bytes(damaged), SCORED)
    progressive = jpeg_segments(saved(image, "JPEG", progressive=True))
    scan = progressive[-1]
    yield Kind(
        "JPEG, progressive, of ten thousand scans",
        b"".join(progressive[:-1])
        + scan[:-2] * 10
        + scan[scan.rindex(b"\xff\xda") : -2] * 10_000
        + b"\xff\xd9",
        CORRUPT,
    )
    yield Kind(
        "JPEG, ten thousand EXIF segments",
        parts[0] + segment(0xE1, b"Exif\0\0" + bytes(1000)) * 10_000 + b"".join(parts[1:]),
        CORRUPT,
    )
    yield Kind(
        "JPEG, a million empty segments",
        parts[0] + segment(0xEF, b"") * 1_000_000 + b"".join(parts[1:]),
        CORRUPT,
    )
    yield Kind("JPEG, two million fill bytes", parts[0] + b"\xff" * 2_000_000 + b"".join(parts[1:]), CORRUPT)


def other_formats() -> Iterator[Kind]:
    image = original()
    yield Kind("Other formats, nothing", b"", "IMAGE_EMPTY")
    for name, data in {
        "GIF": saved(image, "GIF"),
        "BMP": saved(image, "BMP"),
        "TIFF": saved(image, "TIFF"),
        "WebP": saved(image, "WEBP"),
        "JPEG 2000": saved(image, "JPEG2000"),
        "ICO": saved(image, "ICO"),
        "PDF": saved(image, "PDF"),
        "PPM": saved(image, "PPM"),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="128" height="128"/>',
        "HTML": b"<!DOCTYPE html><title>403 Forbidden</title>",
        "XML of an S3 error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "gzip of a PNG": gzip.compress(plain(), mtime=0),
        "zip of a PNG": zipped(plain()),
        "NIfTI": struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(1000),
        "PSD": b"8BPS\0\1" + bytes(100),
        "Windows program": b"MZ" + bytes(500),
        "text": b"patient,finding\n1,none\n",
        "UTF-16": "\ufeffan image".encode("utf-16-le"),
        "one byte": b"\0",
        "zeros": bytes(10_000),
        "a PNG behind a line feed": b"\n" + plain(),
        "a PNG as Windows text": plain().replace(b"\r\n", b"\n"),
        "a PNG in base64": b"iVBORw0KGgoAAAANSUhEUgAAAIAAAACACAAAAADmVT4X",
    }.items():
        yield Kind(f"Other formats, {name}", data, NO_IMAGE)


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("chest.png"), data)
    return file.getvalue()


def odd_dicoms() -> Iterator[Kind]:
    grey = np.asarray(original())
    twelve = grey.astype(int) * 16

    def same(
        name: str, elements: Elements, syntax: str = LITTLE, within: float = SAME, **parts: bytes
    ) -> Kind:
        return Kind(f"DICOM, {name}", dicom_file(elements, syntax, **parts), SCORED, within=within)

    basis = x_ray(grey)
    header_only = without(basis, PIXELS)
    yield same("explicit, little-endian", basis)
    yield same("implicit", basis, IMPLICIT)
    yield same("big-endian", basis, BIG)
    yield same("big-endian, 16 bits", x_ray(grey.astype(int) * 257, 16, ">"), BIG)
    yield same("MONOCHROME1", x_ray(255 - grey) | {PHOTOMETRIC: ("CS", "MONOCHROME1")})
    yield same("12 bits in 16", x_ray(twelve, 12), within=NEARLY)
    yield same(
        "12 bits, windowed",
        x_ray(twelve, 12) | {CENTRE: ("DS", "2040.5"), WIDTH: ("DS", "4081")},
        within=NEARLY,
    )
    yield same("signed", x_ray(grey.astype(int) - 128), within=SAME)
    yield same("rescaled", basis | {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024")})
    yield same("several windows", basis | {CENTRE: ("DS", "128\\9"), WIDTH: ("DS", "256\\9")}, within=NEARLY)
    yield same("padding that occurs nowhere", basis | {PADDING: ("US", 65_535)})
    yield same(
        "padding of two values", basis | {PADDING: ("US", 255), (0x28, 0x121): ("US", 254)}, within=NEARLY
    )
    yield same(
        "private elements",
        basis,
        more=element((9, 0x10), "LO", "VENDOR") + element((9, 0x1001), "UN", bytes(5000)),
    )
    yield same("unknown representation", basis, more=element((0x11, 0x1001), "ZZ", b"ab"))
    yield same(
        "dates and numbers that are none",
        basis | {(8, 0x20): ("DA", "yesterday"), (0x10, 0x1020): ("DS", "one\\two")},
    )
    nested = start_of_element((8, 0x1140), "SQ", UNDEFINED) + item(b"", UNDEFINED)
    yield same("sequences in sequences", basis, more=nested * 20 + (END_OF_ITEM + END_OF_SEQUENCE) * 20)
    yield same("preamble of a TIFF", basis, preamble=b"II*\0" + bytes(124) + b"DICM")
    yield same("no group length", basis, preamble=bytes(128) + b"DICM")
    yield same("pixel data too long", basis | {PIXELS: ("OB", grey.tobytes() + bytes(50))})
    yield same("run-length encoding", header_only, RLE, tail=encapsulated(run_lengths(grey.tobytes())))
    runs = run_lengths(grey.tobytes())
    padded = runs[:64] + b"\x80" * 100 + runs[64:] + b"\x80\x80"
    yield same("run-length encoding with nothing between runs", header_only, RLE, tail=encapsulated(padded))
    jpeg = saved(original(), "JPEG", quality=95)
    j2k = saved(original(), "JPEG2000", no_jp2=True)
    yield same("JPEG", header_only, JPEG, NEARLY, tail=encapsulated(jpeg))
    yield same("JPEG in fragments", header_only, JPEG, NEARLY, tail=encapsulated(jpeg[:1000], jpeg[1000:]))
    yield same(
        "JPEG with an offset table", header_only, JPEG, NEARLY, tail=encapsulated(jpeg, offsets=bytes(4))
    )
    yield same(
        "JPEG with an offset table beyond the file",
        header_only,
        JPEG,
        NEARLY,
        tail=encapsulated(jpeg, offsets=struct.pack("<2L", 0, 2**31)),
    )
    yield same("JPEG 2000", header_only, J2K, tail=encapsulated(j2k))
    yield same("JPEG 2000 with empty fragments", header_only, J2K, tail=encapsulated(b"", j2k, b""))
    yield same(
        "JPEG 2000 as a whole JP2 file", header_only, J2K, tail=encapsulated(saved(original(), "JPEG2000"))
    )
    yield Kind(
        "DICOM, flat for its window",
        dicom_file(basis | {CENTRE: ("DS", "9000"), WIDTH: ("DS", "1")}),
        SCORED,
        FLAT,
    )


def damaged_dicoms() -> Iterator[Kind]:
    grey = np.asarray(original())
    basis = x_ray(grey)
    header_only = without(basis, PIXELS)
    whole = dicom_file(basis)

    def kind(
        name: str, outcome: ErrorCode, elements: Elements = header_only, syntax: str = LITTLE, **parts: bytes
    ) -> Kind:
        return Kind(f"DICOM, {name}", dicom_file(elements, syntax, **parts), outcome)

    yield kind("no preamble", NO_IMAGE, basis, preamble=b"")
    yield Kind("DICOM, preamble alone", whole[:132], CORRUPT)
    yield Kind("DICOM, half a preamble", whole[:100], NO_IMAGE)
    yield kind("no pixel data", "DICOM_NO_PIXELS")
    yield kind(
        "float pixel data", "DICOM_NO_PIXELS", header_only | {(0x7FE0, 8): ("OF", bytes(4 * 128 * 128))}
    )
    for size in (1, 12, 32, 64):
        yield kind(f"{size} bits allocated", "DICOM_NO_PIXELS", basis | {ALLOCATED: ("US", size)})
    yield kind("two frames", "DICOM_MULTI_FRAME", basis | {FRAMES: ("IS", "2")})
    yield kind("frames that are no number", CORRUPT, basis | {FRAMES: ("IS", "many")})
    yield kind("minus one frame", CORRUPT, basis | {FRAMES: ("IS", "-1")})
    for name in ("RGB", "YBR_FULL_422", "PALETTE COLOR", "HSV", ""):
        yield kind(
            f"photometric interpretation {name or 'empty'}",
            "DICOM_PHOTOMETRIC",
            basis | {PHOTOMETRIC: ("CS", name)},
        )
    yield kind(
        "three samples a pixel, yet MONOCHROME2",
        CORRUPT,
        basis | {SAMPLES: ("US", 3), PIXELS: ("OB", bytes(3 * 128 * 128))},
    )
    for name, syntax in {
        "deflated": DEFLATED,
        "JPEG of 12 bits": JPEG_12,
        "JPEG Lossless": JPEG_LOSSLESS,
        "JPEG-LS": JPEG_LS,
        "MPEG-2": MPEG2,
        "unknown": "1.2.3.4",
        "empty": "",
    }.items():
        yield kind(f"transfer syntax {name}", "DICOM_TRANSFER_SYNTAX", basis, syntax)
    for name, tag in {
        "rows": ROWS,
        "columns": COLUMNS,
        "bits allocated": ALLOCATED,
        "bits stored": STORED,
        "photometric interpretation": PHOTOMETRIC,
        "pixel representation": SIGNED,
    }.items():
        yield kind(f"no {name}", CORRUPT, without(basis, tag))
    for stored in (0, 9, 16, 65_535):
        yield kind(f"{stored} bits stored in 8", CORRUPT, basis | {STORED: ("US", stored)})
    sizes: list[tuple[int, int, ErrorCode]] = [
        (0, 128, "IMAGE_TOO_SMALL"),
        (128, 0, "IMAGE_TOO_SMALL"),
        (65_535, 65_535, "IMAGE_TOO_LARGE"),
        (7000, 7000, CORRUPT),
        (128, 129, CORRUPT),
        (1000, 100, "IMAGE_TOO_NARROW"),
    ]
    for rows, columns, code in sizes:
        yield kind(f"says {columns} x {rows}", code, basis | {ROWS: ("US", rows), COLUMNS: ("US", columns)})
    yield kind("two numbers of rows", CORRUPT, basis | {ROWS: ("US", [128, 128])})
    for name, tag, other in (
        ("rescale slope", SLOPE, {INTERCEPT: ("DS", "0")}),
        ("rescale intercept", INTERCEPT, {SLOPE: ("DS", "1")}),
        ("window centre", CENTRE, {WIDTH: ("DS", "256")}),
        ("window width", WIDTH, {CENTRE: ("DS", "128")}),
    ):
        for value in ("NaN", "inf", "1e999", "many"):
            yield kind(f"{name} {value}", CORRUPT, basis | other | {tag: ("DS", value)})
    yield kind("rescale slope 0", CORRUPT, basis | {SLOPE: ("DS", "0"), INTERCEPT: ("DS", "5")})
    yield kind("rescale slope 1e308", CORRUPT, basis | {SLOPE: ("DS", "1e308"), INTERCEPT: ("DS", "0")})
    for width in ("0", "-256"):
        yield kind(f"window width {width}", CORRUPT, basis | {CENTRE: ("DS", "128"), WIDTH: ("DS", width)})
    yield kind("padding that is no number", CORRUPT, basis | {PADDING: ("LO", "none")})
    yield kind("pixel data of no bytes", CORRUPT, basis | {PIXELS: ("OB", b"")})
    yield kind("pixel data too short", CORRUPT, basis | {PIXELS: ("OB", grey.tobytes()[:-2])})
    yield kind(
        "pixel data longer than the file",
        CORRUPT,
        tail=start_of_element(PIXELS, "OB", 2**31) + grey.tobytes()[:-2],
    )
    place = 132
    yield Kind("DICOM, cut in the group length", whole[: place + 6], CORRUPT)
    yield Kind("DICOM, cut in the transfer syntax", whole[: place + 26], "DICOM_TRANSFER_SYNTAX")
    for tag, name in {(8, 0x16): "the first element", ROWS: "rows", SIGNED: "pixel representation"}.items():
        place = whole.index(struct.pack("<HH", *tag))
        yield Kind(f"DICOM, cut before {name}", whole[:place], "DICOM_NO_PIXELS")
        yield Kind(f"DICOM, cut in {name}", whole[: place + 5], "DICOM_NO_PIXELS")
    yield Kind("DICOM, cut in the pixel data", whole[:-5000], CORRUPT)
    jpeg, j2k = saved(original(), "JPEG"), saved(original(), "JPEG2000", no_jp2=True)
    for name, tail in {
        "no fragment": encapsulated(),
        "an empty fragment": encapsulated(b""),
        "fragment cut short": encapsulated(jpeg[:2000]),
        "fragment of an odd length": start_of_element(PIXELS, "OB", UNDEFINED)
        + item(b"")
        + item(jpeg[:2001])
        + END_OF_SEQUENCE,
        "no offset table": start_of_element(PIXELS, "OB", UNDEFINED) + END_OF_SEQUENCE,
        "a PNG": encapsulated(plain()),
        "another size": encapsulated(saved(original().resize((64, 128)), "JPEG")),
        "in colour": encapsulated(saved(original().convert("RGB"), "JPEG")),
    }.items():
        yield kind(f"JPEG: {name}", CORRUPT, syntax=JPEG, tail=tail)
    yield kind(
        "JPEG: end of the fragments is missing", "DICOM_NO_PIXELS", syntax=JPEG, tail=encapsulated(jpeg)[:-8]
    )
    long = start_of_element(PIXELS, "OB", UNDEFINED) + item(b"") + item(jpeg, 2**31)
    yield kind("JPEG: fragment longer than the file", "DICOM_NO_PIXELS", syntax=JPEG, tail=long)
    yield kind("JPEG: not encapsulated", CORRUPT, basis, JPEG)
    yield kind(
        "JPEG 2000 of 12,000 x 12,000 for 128 x 128",
        CORRUPT,
        syntax=J2K,
        tail=encapsulated(saved(Image.new("L", (12_000, 12_000)), "JPEG2000", no_jp2=True)),
    )
    yield kind("JPEG 2000 cut short", CORRUPT, syntax=J2K, tail=encapsulated(j2k[:100]))
    yield kind(
        "JPEG 2000 in colour",
        CORRUPT,
        syntax=J2K,
        tail=encapsulated(saved(original().convert("RGB"), "JPEG2000", no_jp2=True)),
    )
    jp2 = saved(original(), "JPEG2000")
    endless = jp2.replace(jp2[12:20], bytes(4) + jp2[16:20], 1)
    yield kind("JPEG 2000 in a JP2 box of no length", CORRUPT, syntax=J2K, tail=encapsulated(endless))
    runs = run_lengths(grey.tobytes())
    for name, frame in {
        "cut short": runs[:5000],
        "no header": runs[:10],
        "a hundred segments": struct.pack("<L", 100) + runs[4:],
        "that expands to 512 MB": runs[:64] + b"\x81\0" * 4_000_000,
        "eleven million runs of nothing": runs[:64] + b"\x80" * 11_000_000,
    }.items():
        yield kind(f"run-length encoding: {name}", CORRUPT, syntax=RLE, tail=encapsulated(frame))
    yield kind(
        "half a million elements",
        CORRUPT,
        basis,
        more=b"".join(element((0x11, number & 0xFFFF), "LO", b"") for number in range(500_000)),
    )
    opening = start_of_element((8, 0x1140), "SQ", UNDEFINED) + item(b"", UNDEFINED)
    yield kind(
        "sequences nested ten thousand deep",
        CORRUPT,
        basis,
        more=opening * 10_000 + (END_OF_ITEM + END_OF_SEQUENCE) * 10_000,
    )
    yield kind("sequence without an end", CORRUPT, basis, more=opening)
    yield kind(
        "sequence of half a million items",
        CORRUPT,
        basis,
        more=start_of_element((8, 0x1140), "SQ", UNDEFINED) + item(b"") * 500_000 + END_OF_SEQUENCE,
    )
    yield kind(
        "a million fragments, of defined length",
        CORRUPT,
        header_only | {PIXELS: ("OB", item(b"") * 1_000_000)},
        JPEG,
    )
    yield kind("half a million fragments", CORRUPT, syntax=JPEG, tail=encapsulated(*[b""] * 500_000))
    yield kind(
        "table of half a million items",
        CORRUPT,
        header_only | {(0x28, 0x3010): ("SQ", item(b"") * 500_000), PIXELS: basis[PIXELS]},
    )
    yield kind("table of no values", CORRUPT, basis | {(0x28, 0x3010): ("SQ", item(b""))})


ABOUT = """# Bad images

What becomes of files that are no plain X-ray. `reliability/bad_images.py` makes each of them of one drawing,
and writes this page (`python -m reliability.bad_images`); `tests/test_bad_images.py` scores each of them in
little memory and time, and holds this page against them. [README](../README.md) has the codes.

An image with an error never holds up another. *Same*: the score is that of the plain PNG; a number: it is
no further away than that. A JPEG has no checksums: damage within its scan, which its decoder passes over,
shows in the pixels and in no code. A PNG has them around every chunk, and none is passed over but IEND's,
which stands behind the pixels. EXIF's orientation, or XMP's, is undone. Colour profiles and gamma are
passed over, as they were in training. Of an animated PNG the first image counts. What a header names is
judged before a pixel is decoded, and so is what compressed data would grow to.
"""


def page(found: list[Kind]) -> str:
    """docs/bad-images.md."""
    lines = [ABOUT]
    for group in dict.fromkeys(kind.name.split(", ")[0] for kind in found):
        lines.append(f"## {group}\n\n| file | becomes | score |\n|---|---|---|")
        for kind in found:
            if kind.name.startswith(f"{group}, "):
                warnings = "".join(f", `{warning}`" for warning in kind.warnings)
                score = {None: "", SAME: "same"}.get(kind.within, kind.within)
                lines.append(
                    f"| {kind.name.removeprefix(f'{group}, ')} | `{kind.outcome}`{warnings} | {score} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    with whole_file(PAGE) as part:
        part.write_text(page(list(kinds())))
