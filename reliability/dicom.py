"""DICOM: files from data elements; and all unusual and damaged DICOM files.

PS3.5, section 7.1, defines the encoding of an element; PS3.10, section 7.1, what comes before the first one.
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from runs.codes import ErrorCode

from reliability.bad_file import (
    CLOSE_SCORE,
    CORRUPT,
    FLAT,
    NOT_AN_IMAGE,
    SAME_SCORE,
    SCORED,
    BadFile,
    drawing,
    encode,
    plain_png,
)

LITTLE, IMPLICIT, BIG = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
DEFLATED, RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
JPEG, JPEG_12, JPEG_LOSSLESS = (f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 70))
JPEG_LS, J2K, MPEG2, HTJ2K = (f"1.2.840.10008.1.2.4.{number}" for number in (80, 90, 100, 201))
UNDEFINED = 0xFFFFFFFF
# Value representations with a length of four bytes.
LONG_VRS = {"OB", "OW", "OF", "OD", "SQ", "UN", "UT", "UC"}
Tag = tuple[int, int]
Value = bytes | str | int | list[int]
Elements = dict[Tag, tuple[str, Value]]

ROWS, COLUMNS, SAMPLES, FRAMES = (0x28, 0x10), (0x28, 0x11), (0x28, 0x02), (0x28, 0x08)
PHOTOMETRIC, ALLOCATED, STORED, SIGNED = (0x28, 0x04), (0x28, 0x100), (0x28, 0x101), (0x28, 0x103)
CENTRE, WIDTH, INTERCEPT, SLOPE = (0x28, 0x1050), (0x28, 0x1051), (0x28, 0x1052), (0x28, 0x1053)
PADDING, TABLE, PIXELS = (0x28, 0x120), (0x28, 0x3010), (0x7FE0, 0x10)


def encode_element(tag: Tag, vr: str, value: Value, *, order: str = "<", implicit: bool = False) -> bytes:
    """A data element. Its value is padded to an even length."""
    body = value if isinstance(value, bytes) else b""
    if isinstance(value, str):
        body = value.encode() + (b"\0" if vr == "UI" else b" ") * (len(value) % 2)
    elif isinstance(value, int | list):
        numbers = value if isinstance(value, list) else [value]
        body = struct.pack(f"{order}{len(numbers)}{'L' if vr == 'UL' else 'H'}", *numbers)
    return encode_element_start(tag, vr, len(body), order=order, implicit=implicit) + body


def encode_element_start(
    tag: Tag, vr: str, length: int, *, order: str = "<", implicit: bool = False
) -> bytes:
    """The tag, the value representation (unless implicit) and the length of an element."""
    if implicit:
        return struct.pack(f"{order}HHL", *tag, length)
    size = "HL" if vr in LONG_VRS else "H"
    return struct.pack(f"{order}HH2s{size}", *tag, vr.encode(), *([0] if vr in LONG_VRS else []), length)


def encode_item(body: bytes, length: int | None = None) -> bytes:
    """An item of a sequence, or a fragment of pixel data. Its length is that of the body, or another one."""
    return struct.pack("<HHL", 0xFFFE, 0xE000, len(body) if length is None else length) + body


END_OF_ITEM, END_OF_SEQUENCE = struct.pack("<HHL", 0xFFFE, 0xE00D, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
# Starts of elements of undefined length.
SEQUENCE = encode_element_start((8, 0x1140), "SQ", UNDEFINED)
ENCAPSULATED = encode_element_start(PIXELS, "OB", UNDEFINED)
NESTED, NESTED_END = SEQUENCE + encode_item(b"", UNDEFINED), END_OF_ITEM + END_OF_SEQUENCE


def encapsulate(*frames: bytes, offsets: bytes = b"") -> bytes:
    """Encapsulated pixel data: an offset table and fragments (PS3.5, annex A.4)."""
    items = b"".join(encode_item(fragment + b"\0" * (len(fragment) % 2)) for fragment in frames)
    return ENCAPSULATED + encode_item(offsets) + items + END_OF_SEQUENCE


def encode_file(
    elements: Mapping[Tag, tuple[str, Value]],
    syntax: str = LITTLE,
    *,
    tail: bytes = b"",
    more: bytes = b"",
    preamble: bytes = bytes(128) + b"DICM",
) -> bytes:
    """A file of these elements, in the order of their tags. `more` goes before group 0028, `tail` last.

    Without a preamble, there is no file meta information either.
    """
    meta = encode_element((2, 0x10), "UI", syntax) if syntax else b""
    order, implicit = ">" if syntax == BIG else "<", syntax == IMPLICIT
    parts = [encode_element(tag, *elements[tag], order=order, implicit=implicit) for tag in sorted(elements)]
    before = sum(tag < (0x28, 0) for tag in elements)
    body = b"".join([*parts[:before], more, *parts[before:], tail])
    if not preamble:
        return body
    if syntax == DEFLATED and elements:
        deflating = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = deflating.compress(body) + deflating.flush()
    return preamble + encode_element((2, 0), "UL", len(meta)) + meta + body


def x_ray_elements(pixels: npt.NDArray[Any], bits: int = 8, order: str = "<") -> Elements:
    """The elements of a digital X-ray with these pixels [rows, columns]."""
    size, signed = 8 if bits <= 8 else 16, bool(pixels.min() < 0)
    samples = pixels.astype(f"{order}{'i' if signed else 'u'}{size // 8}")
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
        SIGNED: ("US", int(signed)),
        PIXELS: ("OB" if size == 8 else "OW", samples.tobytes()),
    }


def without(elements: Elements, *tags: Tag) -> Elements:
    """The elements except those with these tags."""
    return {tag: value for tag, value in elements.items() if tag not in tags}


def encode_run_lengths(data: bytes) -> bytes:
    """Run-length encoding of one segment, all in literal runs (PS3.5, annex G)."""
    runs = (data[start : start + 128] for start in range(0, len(data), 128))
    coded = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<16L", 1, 64, *[0] * 14) + coded


# Bad files


def bad_file(
    description: str, outcome: ErrorCode, elements: Elements, syntax: str = LITTLE, **parts: bytes
) -> BadFile:
    """A DICOM file that gets an error code."""
    return BadFile("DICOM", description, encode_file(elements, syntax, **parts), outcome)


def unusual_files() -> Iterator[BadFile]:
    """Unusual DICOM files. They all decode."""
    grey = np.asarray(drawing())
    basis, twelve = x_ray_elements(grey), x_ray_elements(grey.astype(int) * 16, 12)
    header = without(basis, PIXELS)

    def same_score(
        description: str,
        elements: Elements = basis,
        syntax: str = LITTLE,
        tolerance: float = SAME_SCORE,
        **parts: bytes,
    ) -> BadFile:
        return BadFile(
            "DICOM", description, encode_file(elements, syntax, **parts), SCORED, tolerance=tolerance
        )

    def windowed(centre: str, width: str) -> Elements:
        return {CENTRE: ("DS", centre), WIDTH: ("DS", width)}

    yield same_score("explicit, little-endian")
    yield same_score("implicit", syntax=IMPLICIT)
    yield same_score("big-endian", syntax=BIG)
    yield same_score("big-endian, 16 bits", x_ray_elements(grey.astype(int) * 257, 16, ">"), BIG)
    yield same_score("MONOCHROME1", x_ray_elements(255 - grey) | {PHOTOMETRIC: ("CS", "MONOCHROME1")})
    yield same_score("12 bits in 16", twelve, tolerance=CLOSE_SCORE)
    yield same_score("12 bits, windowed", twelve | windowed("2040.5", "4081"), tolerance=CLOSE_SCORE)
    yield same_score("signed", x_ray_elements(grey.astype(int) - 128))
    yield same_score("rescaled", basis | {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024")})
    yield same_score("several windows", basis | windowed("128\\9", "256\\9"), tolerance=CLOSE_SCORE)
    yield same_score("padding value that does not occur", basis | {PADDING: ("US", 65_535)})
    two = basis | {PADDING: ("US", 255), (0x28, 0x121): ("US", 254)}
    yield same_score("padding of two values", two, tolerance=CLOSE_SCORE)
    private = encode_element((9, 0x10), "LO", "VENDOR") + encode_element((9, 0x1001), "UN", bytes(5000))
    yield same_score("private elements", more=private)
    yield same_score("unknown representation", more=encode_element((0x11, 0x1001), "ZZ", b"ab"))
    none: Elements = {(8, 0x20): ("DA", "yesterday"), (0x10, 0x1020): ("DS", "one\\two")}
    yield same_score("dates and numbers that are not valid", basis | none)
    yield same_score("sequences in sequences", more=NESTED * 20 + NESTED_END * 20)
    yield same_score("preamble of a TIFF", preamble=b"II*\0" + bytes(124) + b"DICM")
    whole, length = encode_file(basis), len(encode_element((2, 0), "UL", 0))
    yield BadFile(
        "DICOM", "no group length", whole[:132] + whole[132 + length :], SCORED, tolerance=SAME_SCORE
    )
    yield same_score("pixel data too long", basis | {PIXELS: ("OB", grey.tobytes() + bytes(50))})
    runs = encode_run_lengths(grey.tobytes())
    padded = runs[:64] + b"\x80" * 100 + runs[64:] + b"\x80\x80"
    jpeg = encode(drawing(), "JPEG", quality=95)
    j2k, jp2 = encode(drawing(), "JPEG2000", no_jp2=True), encode(drawing(), "JPEG2000")
    beyond = struct.pack("<2L", 0, 2**31)
    for what, syntax, tail in (
        ("run-length encoding", RLE, encapsulate(runs)),
        ("run-length encoding with nothing between runs", RLE, encapsulate(padded)),
        ("JPEG", JPEG, encapsulate(jpeg)),
        ("JPEG in fragments", JPEG, encapsulate(jpeg[:1000], jpeg[1000:])),
        ("JPEG with an offset table", JPEG, encapsulate(jpeg, offsets=bytes(4))),
        ("JPEG with an offset table beyond the file", JPEG, encapsulate(jpeg, offsets=beyond)),
        ("JPEG 2000", J2K, encapsulate(j2k)),
        ("JPEG 2000 with empty fragments", J2K, encapsulate(b"", j2k, b"")),
        ("JPEG 2000 as a whole JP2 file", J2K, encapsulate(jp2)),
    ):
        yield same_score(what, header, syntax, CLOSE_SCORE if syntax == JPEG else SAME_SCORE, tail=tail)
    yield same_score("no preamble", preamble=b"")
    yield same_score("no transfer syntax", syntax="")
    yield same_score("number of frames that is not a number", basis | {FRAMES: ("IS", "many")})
    yield same_score("minus one frame", basis | {FRAMES: ("IS", "-1")})
    yield same_score("two numbers of rows", basis | {ROWS: ("US", [128, 128])})
    for name, tag, other in (
        ("rescale slope", SLOPE, {INTERCEPT: ("DS", "0")}),
        ("rescale intercept", INTERCEPT, {SLOPE: ("DS", "1")}),
        ("window centre", CENTRE, {WIDTH: ("DS", "256")}),
        ("window width", WIDTH, {CENTRE: ("DS", "128")}),
    ):
        for value in ("NaN", "inf", "1e999", "many"):
            yield same_score(f"{name} {value}", basis | other | {tag: ("DS", value)})
    yield same_score("rescale slope 0", basis | {SLOPE: ("DS", "0"), INTERCEPT: ("DS", "5")})
    yield same_score("rescale slope 1e308", basis | {SLOPE: ("DS", "1e308"), INTERCEPT: ("DS", "0")})
    for width in ("0", "0.5", "-256"):
        yield same_score(f"window width {width}", basis | {CENTRE: ("DS", "128"), WIDTH: ("DS", width)})
    yield same_score("padding that is not a number", basis | {PADDING: ("LO", "none")})
    yield same_score("table of no values", basis | {TABLE: ("SQ", encode_item(b""))})
    high = x_ray_elements(grey.astype(int) * 256, 16) | {STORED: ("US", 12)}
    yield same_score("high bit 15 of 12", high, tolerance=CLOSE_SCORE)
    rgb: Elements = {
        SAMPLES: ("US", 3),
        PHOTOMETRIC: ("CS", "RGB"),
        PIXELS: ("OB", np.repeat(grey, 3).tobytes()),
    }
    yield same_score("grey as RGB", basis | rgb)
    yield same_score("deflated", syntax=DEFLATED)
    yield BadFile("DICOM", "flat for its window", encode_file(basis | windowed("9000", "1")), SCORED, FLAT)


def damaged_files() -> Iterator[BadFile]:
    """DICOM files that are cut short, contradict themselves, or are of a kind that is not decoded."""
    grey = np.asarray(drawing())
    basis, pixels = x_ray_elements(grey), grey.tobytes()
    header = without(basis, PIXELS)
    whole = encode_file(basis)
    yield BadFile("DICOM", "preamble alone", whole[:132], CORRUPT)
    yield BadFile("DICOM", "half a preamble", whole[:100], NOT_AN_IMAGE)
    yield bad_file("no pixel data", ErrorCode.DICOM_NO_PIXELS, header)
    floats: Elements = {(0x7FE0, 8): ("OF", bytes(4 * 128 * 128))}
    yield bad_file("float pixel data", ErrorCode.DICOM_NO_PIXELS, header | floats)
    for size in (1, 12, 32, 64):
        yield bad_file(f"{size} bits allocated", ErrorCode.DICOM_NO_PIXELS, basis | {ALLOCATED: ("US", size)})
    yield bad_file("two frames", ErrorCode.DICOM_MULTI_FRAME, basis | {FRAMES: ("IS", "2")})
    for name in ("RGB", "YBR_FULL_422", "PALETTE COLOR", "HSV"):
        what = f"photometric interpretation {name}"
        yield bad_file(what, ErrorCode.DICOM_PHOTOMETRIC, basis | {PHOTOMETRIC: ("CS", name)})
    empty: Elements = {PHOTOMETRIC: ("CS", "")}
    yield bad_file("photometric interpretation empty", ErrorCode.DICOM_HEADER, basis | empty)
    for name, class_ in {
        "a report": "1.2.840.10008.5.1.4.1.1.88.11",
        "a directory (DICOMDIR)": "1.2.840.10008.1.3.10",
        "a PDF": "1.2.840.10008.5.1.4.1.1.104.1",
    }.items():
        yield bad_file(name, ErrorCode.DICOM_NOT_AN_IMAGE, {(8, 0x16): ("UI", class_)})
    dark = x_ray_elements(grey.astype(int) * 16, 16)
    yield bad_file("12 bits that declare 16", ErrorCode.BIT_DEPTH_UNKNOWN, dark)
    three: Elements = {SAMPLES: ("US", 3), PIXELS: ("OB", bytes(3 * 128 * 128))}
    yield bad_file("three samples a pixel, yet MONOCHROME2", ErrorCode.DICOM_HEADER, basis | three)
    coloured = np.repeat(grey, 3)
    coloured[0] ^= 1
    colour = three | {PHOTOMETRIC: ("CS", "RGB"), PIXELS: ("OB", coloured.tobytes())}
    yield bad_file("RGB with colour", ErrorCode.DICOM_PHOTOMETRIC, basis | colour)
    for name, syntax in {
        "MPEG-2": MPEG2,
        "unknown": "1.2.3.4",
    }.items():
        yield bad_file(f"transfer syntax {name}", ErrorCode.DICOM_TRANSFER_SYNTAX, basis, syntax)
    for name, tag in {
        "rows": ROWS,
        "columns": COLUMNS,
        "bits allocated": ALLOCATED,
        "bits stored": STORED,
        "photometric interpretation": PHOTOMETRIC,
        "pixel representation": SIGNED,
    }.items():
        yield bad_file(f"no {name}", ErrorCode.DICOM_HEADER, without(basis, tag))
    for stored in (0, 9, 16, 65_535):
        yield bad_file(f"{stored} bits stored in 8", ErrorCode.DICOM_HEADER, basis | {STORED: ("US", stored)})
    sizes: list[tuple[int, int, ErrorCode]] = [
        (0, 128, ErrorCode.IMAGE_TOO_SMALL),
        (128, 0, ErrorCode.IMAGE_TOO_SMALL),
        (65_535, 65_535, ErrorCode.IMAGE_TOO_LARGE),
        (7000, 7000, CORRUPT),
        (128, 129, CORRUPT),
        (1000, 100, ErrorCode.IMAGE_TOO_NARROW),
    ]
    for rows, columns, code in sizes:
        yield bad_file(
            f"says {columns} x {rows}", code, basis | {ROWS: ("US", rows), COLUMNS: ("US", columns)}
        )
    yield bad_file("pixel data of no bytes", CORRUPT, basis | {PIXELS: ("OB", b"")})
    yield bad_file("pixel data too short", CORRUPT, basis | {PIXELS: ("OB", pixels[:-2])})
    long = encode_element_start(PIXELS, "OB", 2**31) + pixels[:-2]
    yield bad_file("pixel data longer than the file", CORRUPT, header, tail=long)
    yield BadFile("DICOM", "cut in the group length", whole[: 132 + 6], CORRUPT)
    yield BadFile("DICOM", "cut in the transfer syntax", whole[: 132 + 26], ErrorCode.DICOM_TRANSFER_SYNTAX)
    for tag, name in {(8, 0x16): "the first element", ROWS: "rows", SIGNED: "pixel representation"}.items():
        place = whole.index(struct.pack("<HH", *tag))
        code = CORRUPT if tag == (8, 0x16) else ErrorCode.DICOM_NO_PIXELS
        yield BadFile("DICOM", f"cut before {name}", whole[:place], code)
        yield BadFile("DICOM", f"cut in {name}", whole[: place + 5], code)
    yield BadFile("DICOM", "cut in the pixel data", whole[:-5000], CORRUPT)


def damaged_pixel_data() -> Iterator[BadFile]:
    """DICOM files with bad compressed pixel data."""
    basis = x_ray_elements(np.asarray(drawing()))
    header = without(basis, PIXELS)
    colours = drawing().convert("RGB")
    jpeg, jp2 = encode(drawing(), "JPEG"), encode(drawing(), "JPEG2000")
    for name, tail in {
        "no fragment": encapsulate(),
        "an empty fragment": encapsulate(b""),
        "fragment cut short": encapsulate(jpeg[:2000]),
        "fragment of an odd length": ENCAPSULATED
        + encode_item(b"")
        + encode_item(jpeg[:2001])
        + END_OF_SEQUENCE,
        "no offset table": ENCAPSULATED + END_OF_SEQUENCE,
        "a PNG": encapsulate(plain_png()),
        "another size": encapsulate(encode(drawing().resize((64, 128)), "JPEG")),
        "in colour": encapsulate(encode(colours, "JPEG")),
    }.items():
        yield bad_file(f"JPEG: {name}", CORRUPT, header, JPEG, tail=tail)
    for name, tail in {
        "end of the fragments is missing": encapsulate(jpeg)[:-8],
        "fragment longer than the file": ENCAPSULATED + encode_item(b"") + encode_item(jpeg, 2**31),
    }.items():
        yield bad_file(f"JPEG: {name}", CORRUPT, header, JPEG, tail=tail)
    for name, syntax in {
        "JPEG": JPEG,
        "JPEG of 12 bits": JPEG_12,
        "JPEG Lossless": JPEG_LOSSLESS,
        "JPEG-LS": JPEG_LS,
    }.items():
        yield bad_file(f"{name}: not encapsulated", CORRUPT, basis, syntax)
    zeros = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = zeros.compress(bytes(80 * 2**20)) + zeros.flush()
    yield bad_file("deflated, of 80 MiB", ErrorCode.IMAGE_TOO_LARGE, {}, DEFLATED, tail=bomb)
    for name, frame in {
        "of 12,000 x 12,000 for 128 x 128": encode(Image.new("L", (12_000, 12_000)), "JPEG2000", no_jp2=True),
        "cut short": encode(drawing(), "JPEG2000", no_jp2=True)[:100],
        "in colour": encode(colours, "JPEG2000", no_jp2=True),
        "in a JP2 box of no length": jp2.replace(jp2[12:20], bytes(4) + jp2[16:20], 1),
    }.items():
        yield bad_file(f"JPEG 2000 {name}", CORRUPT, header, J2K, tail=encapsulate(frame))
    runs = encode_run_lengths(np.asarray(drawing()).tobytes())
    for name, frame in {
        "cut short": runs[:5000],
        "no header": runs[:10],
        "a hundred segments": struct.pack("<L", 100) + runs[4:],
        "that expands to 512 MB": runs[:64] + b"\x81\0" * 4_000_000,
        "eleven million runs of nothing": runs[:64] + b"\x80" * 11_000_000,
    }.items():
        yield bad_file(f"run-length encoding: {name}", CORRUPT, header, RLE, tail=encapsulate(frame))


def excessive_files() -> Iterator[BadFile]:
    """DICOM files with an excessive number of elements, items or fragments."""
    basis = x_ray_elements(np.asarray(drawing()))
    header = without(basis, PIXELS)
    half_a_million = encode_item(b"") * 500_000
    for name, more in {
        "half a million elements": b"".join(
            encode_element((0x11, number & 0xFFFF), "LO", b"") for number in range(500_000)
        ),
        "sequences nested ten thousand deep": NESTED * 10_000 + NESTED_END * 10_000,
        "sequence without an end": NESTED,
        "sequence of half a million items": SEQUENCE + half_a_million + END_OF_SEQUENCE,
    }.items():
        yield bad_file(name, CORRUPT, basis, more=more)
    million: Elements = {PIXELS: ("OB", half_a_million * 2)}
    yield bad_file("a million fragments, of defined length", CORRUPT, header | million, JPEG)
    fragments = encapsulate(*[b""] * 500_000)
    yield bad_file("half a million fragments", CORRUPT, header, JPEG, tail=fragments)
    yield bad_file("table of half a million items", CORRUPT, basis | {TABLE: ("SQ", half_a_million)})
