"""PNG: files from chunks, with correct checksums; and all unusual and damaged PNG files."""

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from runs.codes import ErrorCode, WarningCode

from reliability.bad_file import (
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
from reliability.jpeg import exif_block

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type, body


def split_chunks(data: bytes) -> list[Chunk]:
    """The complete chunks of a PNG."""
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def encode_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk with its length and its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def join_chunks(*chunks: Chunk) -> bytes:
    """A PNG of these chunks."""
    return SIGNATURE + b"".join(encode_chunk(*chunk) for chunk in chunks)


def header_chunk(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def encode_pixels(pixels: npt.NDArray[Any], depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    """Pixels [height, width] or [height, width, samples] as a PNG of any depth, interlaced (Adam7) or not."""
    lines = b"".join(scanlines(part, depth) for part in (adam7_passes(pixels) if interlaced else [pixels]))
    height, width = pixels.shape[:2]
    first = header_chunk(width, height, depth, colour, interlaced)
    return join_chunks(first, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


def scanlines(pixels: npt.NDArray[Any], depth: int) -> bytes:
    """The rows, each after a filter byte of 0. Samples have 16 bits big-endian, 8 bits, or are packed."""
    rows = pixels.reshape(len(pixels), -1)
    if depth == 16:
        packed = rows.astype(">u2").view(np.uint8)
    elif depth == 8:
        packed = rows.astype(np.uint8)
    else:
        bits = np.unpackbits(rows.astype(np.uint8)[..., np.newaxis], axis=2)[..., 8 - depth :]
        packed = np.packbits(bits.reshape(len(rows), -1), axis=1)
    return np.hstack([np.zeros((len(rows), 1), np.uint8), packed]).tobytes()


def adam7_passes(pixels: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The seven passes of an interlaced PNG (PNG specification, section 8.2)."""
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


# Bad files

bad_file = partial(BadFile, "PNG")
same_score = partial(BadFile, "PNG", outcome=SCORED, tolerance=SAME_SCORE)
corrupt = partial(BadFile, "PNG", outcome=CORRUPT)


def unusual_files() -> Iterator[BadFile]:
    """Unusual PNG files. Nearly all of them decode."""
    image, grey = drawing(), np.asarray(drawing())
    colours, alpha = np.dstack([grey] * 3), np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    rgba, grey_alpha = np.dstack([colours, alpha]), np.dstack([grey, alpha])
    mark = np.where(alpha[..., np.newaxis] < 4, [200, 0, 0], colours)
    wide = grey.astype(int)
    two_colours = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [Image.new("L", (128, 128))]}
    head, *rest = chunks = split_chunks(plain_png())

    def added(name: bytes, body: bytes) -> bytes:
        return join_chunks(head, (name, body), *rest)

    yield same_score("plain", plain_png())
    yield same_score("interlaced", encode_pixels(grey, interlaced=1))
    yield same_score("RGB of equal channels", encode_pixels(colours, colour=2))
    yield same_score("RGBA, transparent here and there", encode_pixels(rgba, colour=6))
    yield same_score("RGBA, interlaced", encode_pixels(rgba, colour=6, interlaced=1))
    yield same_score("grey with alpha", encode_pixels(grey_alpha, colour=4))
    yield same_score("grey palette", encode(image.convert("P"), "PNG"))
    yield same_score("16 bits, full range", encode_pixels(wide * 257, 16))
    yield same_score("16 bits, RGB", encode_pixels(colours.astype(int) * 257, 16, 2))
    yield same_score("16 bits, interlaced", encode_pixels(wide * 257, 16, interlaced=1))
    yield same_score("16 bits, grey with alpha", encode_pixels(grey_alpha.astype(int) * 257, 16, 4))
    yield bad_file("12 bits in 16", encode_pixels(wide * 16, 16), ErrorCode.BIT_DEPTH_UNKNOWN)
    yield same_score("4 bits", encode_pixels(grey >> 4, 4), tolerance=0.05)
    yield same_score("2 bits", encode_pixels(grey >> 6, 2), tolerance=0.1)
    yield bad_file("1 bit", encode_pixels(grey >> 7, 1), SCORED, (WarningCode.OUT_OF_TRAINING_RANGE,))
    yield bad_file("palette of 1 bit", encode(two_colours, "PNG", bits=1), SCORED)
    yield bad_file("coloured mark", encode_pixels(mark, colour=2), SCORED, (WarningCode.COLOUR,))
    yield bad_file("black", encode_pixels(np.zeros_like(grey)), SCORED, FLAT)
    yield bad_file("inverted", encode_pixels(255 - grey), SCORED, (WarningCode.LOOKS_INVERTED,))
    yield bad_file("on its side", encode_pixels(np.rot90(grey)), SCORED, (WarningCode.LOOKS_SIDEWAYS,))
    yield same_score("EXIF says turned by a quarter", encode(turned, "PNG", exif=exif_block(6)))
    yield same_score("EXIF says mirrored", encode(mirrored, "PNG", exif=exif_block(2)))
    yield same_score("EXIF of a wrong orientation", encode(image, "PNG", exif=exif_block(99)))
    yield same_score("EXIF of noise", added(b"eXIf", b"MM\0*" + bytes(range(200))))
    yield same_score(
        "EXIF behind the pixels", join_chunks(*chunks[:-1], (b"eXIf", exif_block(1)), chunks[-1])
    )
    yield same_score("colour profile", encode(image, "PNG", icc_profile=srgb))
    yield same_score("colour profile that does not inflate", added(b"iCCP", b"x\0\0nothing of zlib"))
    yield same_score("gamma", added(b"gAMA", struct.pack(">I", 45455)))
    yield same_score("transparent grey value", added(b"tRNS", b"\0\7"))
    yield corrupt("transparency of the wrong length", added(b"tRNS", b""))
    yield same_score("palette in a grey image", added(b"PLTE", bytes(range(30))))
    text = (b"tEXt", b"a\0b"), (b"zTXt", b"a\0\0" + zlib.compress(b"b")), (b"iTXt", b"a\0\0\0\0\0b")
    yield same_score("text in every form", join_chunks(head, *text, *rest))
    yield same_score("unknown ancillary chunk", added(b"xxXx", b"?"))
    yield same_score("animated, the first frame", encode(image, "PNG", **frames))
    yield same_score("animated, the image is no frame", encode(image, "PNG", default_image=True, **frames))
    yield same_score("trailing garbage", plain_png() + b"garbage" * 100)
    yield same_score("another PNG behind it", plain_png() + encode_pixels(255 - grey))
    yield same_score("pixels in chunks of 100 bytes", join_chunks(*split_pixel_data(chunks, 100)))
    empty_before = ([(b"IDAT", b""), chunk] if chunk[0] == b"IDAT" else [chunk] for chunk in chunks)
    yield same_score(
        "pixels and empty chunks", join_chunks(*(chunk for some in empty_before for chunk in some))
    )


def split_pixel_data(chunks: list[Chunk], size: int) -> Iterator[Chunk]:
    """The same chunks, with at most `size` bytes in each IDAT."""
    for name, body in chunks:
        if name != b"IDAT":
            yield name, body
        else:
            yield from ((name, body[start : start + size]) for start in range(0, len(body), size))


def damaged_files() -> Iterator[BadFile]:
    """PNG files that are cut short, contradict themselves or are excessive."""
    pieces = list(split_pixel_data(split_chunks(plain_png()), 5000))
    head, first, second, end = pieces
    rest = (first, second, end)
    whole = join_chunks(*pieces)
    place = len(SIGNATURE)
    yield bad_file("one byte", whole[:1], NOT_AN_IMAGE)
    yield bad_file("half a signature", whole[:4], NOT_AN_IMAGE)
    yield corrupt("signature alone", whole[:place])
    names = ("IHDR", "the first IDAT", "the second IDAT", "IEND")
    for name, (_, body) in zip(names, pieces, strict=True):
        outcome = SCORED if name == "IEND" else CORRUPT  # all pixels come before it
        parts = {"length": 2, "type": 6, "body": 8 + len(body) // 2, "checksum": len(body) + 10}
        for part, offset in parts.items():
            if body or part != "body":
                cut = whole[: place + offset]
                yield bad_file(
                    f"cut in the {part} of {name}", cut, outcome if part == "checksum" else CORRUPT
                )
        wrong = bytearray(whole)
        wrong[place + 8 + len(body)] ^= 1
        yield bad_file(f"wrong checksum of {name}", bytes(wrong), outcome)
        long = whole[:place] + struct.pack(">I", 2**31 - 1) + whole[place + 4 :]
        yield bad_file(f"{name} longer than the file", long, outcome)
        place += 12 + len(body)
        if name != "IEND":
            yield corrupt(f"cut after {name}", whole[:place])
    yield corrupt("no IHDR", join_chunks(*rest))
    yield same_score("two IHDR", join_chunks(head, *pieces))
    yield same_score("two IHDR that differ", join_chunks(header_chunk(64, 64), *pieces))
    yield corrupt("IHDR too short", join_chunks((b"IHDR", head[1][:8]), *rest))
    yield corrupt("no IDAT", join_chunks(head, end))
    yield corrupt("one IDAT is missing", join_chunks(head, first, end))
    yield corrupt("IDATs in the wrong order", join_chunks(head, second, first, end))
    yield corrupt("text between the IDATs", join_chunks(head, first, (b"tEXt", b"a\0b"), second, end))
    yield bad_file("unknown critical chunk", join_chunks(head, (b"XXXX", b"?"), *rest), SCORED)
    sizes: list[tuple[int, int, ErrorCode]] = [
        (0, 128, CORRUPT),
        (128, 0, CORRUPT),
        (63, 128, ErrorCode.IMAGE_TOO_SMALL),
        (1, 1, ErrorCode.IMAGE_TOO_SMALL),
        (400, 90, ErrorCode.IMAGE_TOO_NARROW),
        (60_000, 60_000, ErrorCode.IMAGE_TOO_LARGE),
        (2**31 - 1, 2**31 - 1, ErrorCode.IMAGE_TOO_LARGE),
        (2**32 - 1, 2**32 - 1, ErrorCode.IMAGE_TOO_LARGE),
        (129, 128, CORRUPT),
        (7000, 7000, CORRUPT),
    ]
    for width, height, code in sizes:
        yield bad_file(f"says {width} x {height}", join_chunks(header_chunk(width, height), *rest), code)
    for depth, colour in ((8, 1), (8, 7), (3, 0), (32, 0), (4, 2)):
        wrong_head = header_chunk(128, 128, depth, colour)
        yield corrupt(f"says {depth} bits of colour type {colour}", join_chunks(wrong_head, *rest))
    palette = header_chunk(128, 128, 8, 3)
    yield corrupt("palette is missing", join_chunks(palette, *rest))
    three = join_chunks(palette, (b"PLTE", bytes(9)), *rest)
    yield bad_file("palette of 3 colours, and more in use", three, SCORED, FLAT)
    unknown_filter = zlib.compress(b"\x09" * 129 * 128)
    yield corrupt("filter that does not exist", join_chunks(head, (b"IDAT", unknown_filter), end))
    bomb = zlib.compress(bytes(300_000_000), 9)
    yield bad_file("128 x 128 that inflate to 300 MB", join_chunks(head, (b"IDAT", bomb), end), SCORED, FLAT)
    for name, body in {"iCCP": b"x\0\0", "zTXt": b"x\0\0", "iTXt": b"x\0\1\0\0\0"}.items():
        yield corrupt(
            f"{name} that inflates to 300 MB", join_chunks(head, (name.encode(), body + bomb), *rest)
        )
    text = (b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    yield corrupt("a thousand zTXt of 1 MB", join_chunks(head, *[text] * 1000, *rest))
    million = encode_chunk(b"tEXt", b"") * 1_000_000
    yield corrupt("a million chunks", SIGNATURE + encode_chunk(*head) + million + whole[-12:])
    yield corrupt(
        "5,000 bytes of 7,000 x 7,000 in RGBA", join_chunks(header_chunk(7000, 7000, 8, 6), first, end)
    )
