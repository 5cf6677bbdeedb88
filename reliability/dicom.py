"""DICOM, element by element: files of any elements, and every odd and damaged kind.

PS3.5, section 7.1, says how an element is coded; PS3.10, section 7.1, what stands before the first.
"""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from runs.codes import ErrorCode

from reliability.bad_file import CORRUPT, FLAT, NEARLY, NO_IMAGE, SAME, SCORED, Kind, original, plain, saved

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
PADDING, TABLE, PIXELS = (0x28, 0x120), (0x28, 0x3010), (0x7FE0, 0x10)


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
# Each of these starts has an undefined length.
SEQUENCE = start_of_element((8, 0x1140), "SQ", UNDEFINED)
ENCAPSULATED = start_of_element(PIXELS, "OB", UNDEFINED)
NESTED, NESTED_END = SEQUENCE + item(b"", UNDEFINED), END_OF_ITEM + END_OF_SEQUENCE


def encapsulated(*frames: bytes, offsets: bytes = b"") -> bytes:
    """Pixel data of undefined length: an offset table and fragments (PS3.5, annex A.4)."""
    items = b"".join(item(fragment + b"\0" * (len(fragment) % 2)) for fragment in frames)
    return ENCAPSULATED + item(offsets) + items + END_OF_SEQUENCE


def file_of(
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
    return {tag: value for tag, value in elements.items() if tag not in tags}


def run_lengths(data: bytes) -> bytes:
    """One segment of PS3.5, annex G, in literal runs."""
    runs = (data[start : start + 128] for start in range(0, len(data), 128))
    coded = b"".join(bytes([len(run) - 1]) + run for run in runs)
    return struct.pack("<16L", 1, 64, *[0] * 14) + coded


# --- kinds


def kind(what: str, outcome: ErrorCode, elements: Elements, syntax: str = LITTLE, **parts: bytes) -> Kind:
    """A file_of these, which comes to an error."""
    return Kind("DICOM", what, file_of(elements, syntax, **parts), outcome)


def odd() -> Iterator[Kind]:
    grey = np.asarray(original())
    basis, twelve = x_ray(grey), x_ray(grey.astype(int) * 16, 12)
    header = without(basis, PIXELS)

    def same(
        what: str, elements: Elements = basis, syntax: str = LITTLE, within: float = SAME, **parts: bytes
    ) -> Kind:
        return Kind("DICOM", what, file_of(elements, syntax, **parts), SCORED, within=within)

    def windowed(centre: str, width: str) -> Elements:
        return {CENTRE: ("DS", centre), WIDTH: ("DS", width)}

    yield same("explicit, little-endian")
    yield same("implicit", syntax=IMPLICIT)
    yield same("big-endian", syntax=BIG)
    yield same("big-endian, 16 bits", x_ray(grey.astype(int) * 257, 16, ">"), BIG)
    yield same("MONOCHROME1", x_ray(255 - grey) | {PHOTOMETRIC: ("CS", "MONOCHROME1")})
    yield same("12 bits in 16", twelve, within=NEARLY)
    yield same("12 bits, windowed", twelve | windowed("2040.5", "4081"), within=NEARLY)
    yield same("signed", x_ray(grey.astype(int) - 128))
    yield same("rescaled", basis | {SLOPE: ("DS", "2"), INTERCEPT: ("DS", "-1024")})
    yield same("several windows", basis | windowed("128\\9", "256\\9"), within=NEARLY)
    yield same("padding value that does not occur", basis | {PADDING: ("US", 65_535)})
    two = basis | {PADDING: ("US", 255), (0x28, 0x121): ("US", 254)}
    yield same("padding of two values", two, within=NEARLY)
    private = element((9, 0x10), "LO", "VENDOR") + element((9, 0x1001), "UN", bytes(5000))
    yield same("private elements", more=private)
    yield same("unknown representation", more=element((0x11, 0x1001), "ZZ", b"ab"))
    none: Elements = {(8, 0x20): ("DA", "yesterday"), (0x10, 0x1020): ("DS", "one\\two")}
    yield same("dates and numbers that are not valid", basis | none)
    yield same("sequences in sequences", more=NESTED * 20 + NESTED_END * 20)
    yield same("preamble of a TIFF", preamble=b"II*\0" + bytes(124) + b"DICM")
    whole, length = file_of(basis), len(element((2, 0), "UL", 0))
    yield Kind("DICOM", "no group length", whole[:132] + whole[132 + length :], SCORED, within=SAME)
    yield same("pixel data too long", basis | {PIXELS: ("OB", grey.tobytes() + bytes(50))})
    runs = run_lengths(grey.tobytes())
    padded = runs[:64] + b"\x80" * 100 + runs[64:] + b"\x80\x80"
    jpeg = saved(original(), "JPEG", quality=95)
    j2k, jp2 = saved(original(), "JPEG2000", no_jp2=True), saved(original(), "JPEG2000")
    beyond = struct.pack("<2L", 0, 2**31)
    for what, syntax, tail in (
        ("run-length encoding", RLE, encapsulated(runs)),
        ("run-length encoding with nothing between runs", RLE, encapsulated(padded)),
        ("JPEG", JPEG, encapsulated(jpeg)),
        ("JPEG in fragments", JPEG, encapsulated(jpeg[:1000], jpeg[1000:])),
        ("JPEG with an offset table", JPEG, encapsulated(jpeg, offsets=bytes(4))),
        ("JPEG with an offset table beyond the file", JPEG, encapsulated(jpeg, offsets=beyond)),
        ("JPEG 2000", J2K, encapsulated(j2k)),
        ("JPEG 2000 with empty fragments", J2K, encapsulated(b"", j2k, b"")),
        ("JPEG 2000 as a whole JP2 file", J2K, encapsulated(jp2)),
    ):
        yield same(what, header, syntax, NEARLY if syntax == JPEG else SAME, tail=tail)
    yield Kind("DICOM", "flat for its window", file_of(basis | windowed("9000", "1")), SCORED, FLAT)


def damaged() -> Iterator[Kind]:
    grey = np.asarray(original())
    basis, pixels = x_ray(grey), grey.tobytes()
    header = without(basis, PIXELS)
    whole = file_of(basis)
    yield kind("no preamble", NO_IMAGE, basis, preamble=b"")
    yield Kind("DICOM", "preamble alone", whole[:132], CORRUPT)
    yield Kind("DICOM", "half a preamble", whole[:100], NO_IMAGE)
    yield kind("no pixel data", ErrorCode.DICOM_NO_PIXELS, header)
    floats: Elements = {(0x7FE0, 8): ("OF", bytes(4 * 128 * 128))}
    yield kind("float pixel data", ErrorCode.DICOM_NO_PIXELS, header | floats)
    for size in (1, 12, 32, 64):
        yield kind(f"{size} bits allocated", ErrorCode.DICOM_NO_PIXELS, basis | {ALLOCATED: ("US", size)})
    yield kind("two frames", ErrorCode.DICOM_MULTI_FRAME, basis | {FRAMES: ("IS", "2")})
    yield kind("number of frames that is not a number", CORRUPT, basis | {FRAMES: ("IS", "many")})
    yield kind("minus one frame", CORRUPT, basis | {FRAMES: ("IS", "-1")})
    for name in ("RGB", "YBR_FULL_422", "PALETTE COLOR", "HSV", ""):
        what = f"photometric interpretation {name or 'empty'}"
        yield kind(what, ErrorCode.DICOM_PHOTOMETRIC, basis | {PHOTOMETRIC: ("CS", name)})
    three: Elements = {SAMPLES: ("US", 3), PIXELS: ("OB", bytes(3 * 128 * 128))}
    yield kind("three samples a pixel, yet MONOCHROME2", CORRUPT, basis | three)
    for name, syntax in {
        "deflated": DEFLATED,
        "JPEG of 12 bits": JPEG_12,
        "JPEG Lossless": JPEG_LOSSLESS,
        "JPEG-LS": JPEG_LS,
        "MPEG-2": MPEG2,
        "unknown": "1.2.3.4",
        "empty": "",
    }.items():
        yield kind(f"transfer syntax {name}", ErrorCode.DICOM_TRANSFER_SYNTAX, basis, syntax)
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
        (0, 128, ErrorCode.IMAGE_TOO_SMALL),
        (128, 0, ErrorCode.IMAGE_TOO_SMALL),
        (65_535, 65_535, ErrorCode.IMAGE_TOO_LARGE),
        (7000, 7000, CORRUPT),
        (128, 129, CORRUPT),
        (1000, 100, ErrorCode.IMAGE_TOO_NARROW),
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
    yield kind("padding that is not a number", CORRUPT, basis | {PADDING: ("LO", "none")})
    yield kind("pixel data of no bytes", CORRUPT, basis | {PIXELS: ("OB", b"")})
    yield kind("pixel data too short", CORRUPT, basis | {PIXELS: ("OB", pixels[:-2])})
    long = start_of_element(PIXELS, "OB", 2**31) + pixels[:-2]
    yield kind("pixel data longer than the file", CORRUPT, header, tail=long)
    yield Kind("DICOM", "cut in the group length", whole[: 132 + 6], CORRUPT)
    yield Kind("DICOM", "cut in the transfer syntax", whole[: 132 + 26], ErrorCode.DICOM_TRANSFER_SYNTAX)
    for tag, name in {(8, 0x16): "the first element", ROWS: "rows", SIGNED: "pixel representation"}.items():
        place = whole.index(struct.pack("<HH", *tag))
        yield Kind("DICOM", f"cut before {name}", whole[:place], ErrorCode.DICOM_NO_PIXELS)
        yield Kind("DICOM", f"cut in {name}", whole[: place + 5], ErrorCode.DICOM_NO_PIXELS)
    yield Kind("DICOM", "cut in the pixel data", whole[:-5000], CORRUPT)


def damaged_frames() -> Iterator[Kind]:
    """Compressed pixel data."""
    basis = x_ray(np.asarray(original()))
    header = without(basis, PIXELS)
    colours = original().convert("RGB")
    jpeg, jp2 = saved(original(), "JPEG"), saved(original(), "JPEG2000")
    for name, tail in {
        "no fragment": encapsulated(),
        "an empty fragment": encapsulated(b""),
        "fragment cut short": encapsulated(jpeg[:2000]),
        "fragment of an odd length": ENCAPSULATED + item(b"") + item(jpeg[:2001]) + END_OF_SEQUENCE,
        "no offset table": ENCAPSULATED + END_OF_SEQUENCE,
        "a PNG": encapsulated(plain()),
        "another size": encapsulated(saved(original().resize((64, 128)), "JPEG")),
        "in colour": encapsulated(saved(colours, "JPEG")),
    }.items():
        yield kind(f"JPEG: {name}", CORRUPT, header, JPEG, tail=tail)
    for name, tail in {
        "end of the fragments is missing": encapsulated(jpeg)[:-8],
        "fragment longer than the file": ENCAPSULATED + item(b"") + item(jpeg, 2**31),
    }.items():
        yield kind(f"JPEG: {name}", ErrorCode.DICOM_NO_PIXELS, header, JPEG, tail=tail)
    yield kind("JPEG: not encapsulated", CORRUPT, basis, JPEG)
    for name, frame in {
        "of 12,000 x 12,000 for 128 x 128": saved(Image.new("L", (12_000, 12_000)), "JPEG2000", no_jp2=True),
        "cut short": saved(original(), "JPEG2000", no_jp2=True)[:100],
        "in colour": saved(colours, "JPEG2000", no_jp2=True),
        "in a JP2 box of no length": jp2.replace(jp2[12:20], bytes(4) + jp2[16:20], 1),
    }.items():
        yield kind(f"JPEG 2000 {name}", CORRUPT, header, J2K, tail=encapsulated(frame))
    runs = run_lengths(np.asarray(original()).tobytes())
    for name, frame in {
        "cut short": runs[:5000],
        "no header": runs[:10],
        "a hundred segments": struct.pack("<L", 100) + runs[4:],
        "that expands to 512 MB": runs[:64] + b"\x81\0" * 4_000_000,
        "eleven million runs of nothing": runs[:64] + b"\x80" * 11_000_000,
    }.items():
        yield kind(f"run-length encoding: {name}", CORRUPT, header, RLE, tail=encapsulated(frame))


def hostile() -> Iterator[Kind]:
    """More elements, items and fragments than anybody needs."""
    basis = x_ray(np.asarray(original()))
    header = without(basis, PIXELS)
    half_a_million = item(b"") * 500_000
    for name, more in {
        "half a million elements": b"".join(
            element((0x11, number & 0xFFFF), "LO", b"") for number in range(500_000)
        ),
        "sequences nested ten thousand deep": NESTED * 10_000 + NESTED_END * 10_000,
        "sequence without an end": NESTED,
        "sequence of half a million items": SEQUENCE + half_a_million + END_OF_SEQUENCE,
    }.items():
        yield kind(name, CORRUPT, basis, more=more)
    million: Elements = {PIXELS: ("OB", half_a_million * 2)}
    yield kind("a million fragments, of defined length", CORRUPT, header | million, JPEG)
    fragments = encapsulated(*[b""] * 500_000)
    yield kind("half a million fragments", CORRUPT, header, JPEG, tail=fragments)
    yield kind("table of half a million items", CORRUPT, basis | {TABLE: ("SQ", half_a_million)})
    yield kind("table of no values", CORRUPT, basis | {TABLE: ("SQ", item(b""))})
