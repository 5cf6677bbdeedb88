"""PNG, chunk by chunk: files of any chunks, with right checksums; and every odd and damaged kind."""

import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageCms
from runs.codes import ErrorCode, WarningCode

from reliability.bad_file import CORRUPT, FLAT, NO_IMAGE, SAME, SCORED, Kind, original, plain, saved
from reliability.jpeg import exif

SIGNATURE = b"\x89PNG\r\n\x1a\n"
Chunk = tuple[bytes, bytes]  # type, body


def chunks_of(data: bytes) -> list[Chunk]:
    """Each whole chunk of a PNG."""
    chunks, place = [], len(SIGNATURE)
    while place + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    return chunks


def coded(kind: bytes, body: bytes) -> bytes:
    """One chunk, whose length and checksum are right."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def file_of(*chunks: Chunk) -> bytes:
    return SIGNATURE + b"".join(coded(*chunk) for chunk in chunks)


def header(width: int, height: int, depth: int = 8, colour: int = 0, interlaced: int = 0) -> Chunk:
    return b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)


def drawn(pixels: npt.NDArray[Any], depth: int = 8, colour: int = 0, interlaced: int = 0) -> bytes:
    """Samples [height, width] or [height, width, samples] as a PNG of any depth, also interlaced (Adam7)."""
    lines = b"".join(scanlines(part, depth) for part in (adam7(pixels) if interlaced else [pixels]))
    height, width = pixels.shape[:2]
    first = header(width, height, depth, colour, interlaced)
    return file_of(first, (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


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


# --- kinds

kind = partial(Kind, "PNG")
same = partial(Kind, "PNG", outcome=SCORED, within=SAME)
corrupt = partial(Kind, "PNG", outcome=CORRUPT)


def odd() -> Iterator[Kind]:
    image, grey = original(), np.asarray(original())
    colours, alpha = np.dstack([grey] * 3), np.tile(np.arange(128, dtype=np.uint8), (128, 1))
    rgba, grey_alpha = np.dstack([colours, alpha]), np.dstack([grey, alpha])
    mark = np.where(alpha[..., np.newaxis] < 4, [200, 0, 0], colours)
    wide = grey.astype(int)
    two_colours = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=2)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    frames = {"save_all": True, "append_images": [Image.new("L", (128, 128))]}
    head, *rest = chunks = chunks_of(plain())

    def added(name: bytes, body: bytes) -> bytes:
        return file_of(head, (name, body), *rest)

    yield same("plain", plain())
    yield same("interlaced", drawn(grey, interlaced=1))
    yield same("RGB of equal channels", drawn(colours, colour=2))
    yield same("RGBA, transparent here and there", drawn(rgba, colour=6))
    yield same("RGBA, interlaced", drawn(rgba, colour=6, interlaced=1))
    yield same("grey with alpha", drawn(grey_alpha, colour=4))
    yield same("grey palette", saved(image.convert("P"), "PNG"))
    yield same("16 bits, full range", drawn(wide * 257, 16))
    yield same("16 bits, RGB", drawn(colours.astype(int) * 257, 16, 2))
    yield same("16 bits, interlaced", drawn(wide * 257, 16, interlaced=1))
    yield same("16 bits, grey with alpha", drawn(grey_alpha.astype(int) * 257, 16, 4))
    yield kind("12 bits in 16", drawn(wide * 16, 16), ErrorCode.BIT_DEPTH_UNKNOWN)
    yield same("4 bits", drawn(grey >> 4, 4), within=0.05)
    yield same("2 bits", drawn(grey >> 6, 2), within=0.1)
    yield kind("1 bit", drawn(grey >> 7, 1), SCORED, (WarningCode.OUT_OF_TRAINING_RANGE,))
    yield kind("palette of 1 bit", saved(two_colours, "PNG", bits=1), SCORED)
    yield kind("coloured mark", drawn(mark, colour=2), SCORED, (WarningCode.COLOUR,))
    yield kind("black", drawn(np.zeros_like(grey)), SCORED, FLAT)
    yield kind("inverted", drawn(255 - grey), SCORED, (WarningCode.LOOKS_INVERTED,))
    yield kind("on its side", drawn(np.rot90(grey)), SCORED, (WarningCode.LOOKS_SIDEWAYS,))
    yield same("EXIF says turned by a quarter", saved(turned, "PNG", exif=exif(6)))
    yield same("EXIF says mirrored", saved(mirrored, "PNG", exif=exif(2)))
    yield same("EXIF of a wrong orientation", saved(image, "PNG", exif=exif(99)))
    yield same("EXIF of noise", added(b"eXIf", b"MM\0*" + bytes(range(200))))
    yield same("EXIF behind the pixels", file_of(*chunks[:-1], (b"eXIf", exif(1)), chunks[-1]))
    yield same("colour profile", saved(image, "PNG", icc_profile=srgb))
    yield same("colour profile that does not inflate", added(b"iCCP", b"x\0\0nothing of zlib"))
    yield same("gamma", added(b"gAMA", struct.pack(">I", 45455)))
    yield same("transparent grey value", added(b"tRNS", b"\0\7"))
    yield corrupt("transparency of the wrong length", added(b"tRNS", b""))
    yield same("palette in a grey image", added(b"PLTE", bytes(range(30))))
    text = (b"tEXt", b"a\0b"), (b"zTXt", b"a\0\0" + zlib.compress(b"b")), (b"iTXt", b"a\0\0\0\0\0b")
    yield same("text in every form", file_of(head, *text, *rest))
    yield same("unknown ancillary chunk", added(b"xxXx", b"?"))
    yield same("animated, the first frame", saved(image, "PNG", **frames))
    yield same("animated, the image is no frame", saved(image, "PNG", default_image=True, **frames))
    yield same("trailing garbage", plain() + b"garbage" * 100)
    yield same("another PNG behind it", plain() + drawn(255 - grey))
    yield same("pixels in chunks of 100 bytes", file_of(*in_pieces(chunks, 100)))
    empty_before = ([(b"IDAT", b""), chunk] if chunk[0] == b"IDAT" else [chunk] for chunk in chunks)
    yield same("pixels and empty chunks", file_of(*(chunk for some in empty_before for chunk in some)))


def in_pieces(chunks: list[Chunk], size: int) -> Iterator[Chunk]:
    """The same with IDATs of at most `size` bytes."""
    for name, body in chunks:
        if name != b"IDAT":
            yield name, body
        else:
            yield from ((name, body[start : start + size]) for start in range(0, len(body), size))


def damaged() -> Iterator[Kind]:
    pieces = list(in_pieces(chunks_of(plain()), 5000))
    head, first, second, end = pieces
    rest = (first, second, end)
    whole = file_of(*pieces)
    place = len(SIGNATURE)
    yield kind("one byte", whole[:1], NO_IMAGE)
    yield kind("half a signature", whole[:4], NO_IMAGE)
    yield corrupt("signature alone", whole[:place])
    names = ("IHDR", "the first IDAT", "the second IDAT", "IEND")
    for name, (_, body) in zip(names, pieces, strict=True):
        outcome = SCORED if name == "IEND" else CORRUPT  # the pixels are there
        parts = {"length": 2, "type": 6, "body": 8 + len(body) // 2, "checksum": len(body) + 10}
        for part, offset in parts.items():
            if body or part != "body":
                cut = whole[: place + offset]
                yield kind(f"cut in the {part} of {name}", cut, outcome if part == "checksum" else CORRUPT)
        wrong = bytearray(whole)
        wrong[place + 8 + len(body)] ^= 1
        yield kind(f"wrong checksum of {name}", bytes(wrong), outcome)
        long = whole[:place] + struct.pack(">I", 2**31 - 1) + whole[place + 4 :]
        yield kind(f"{name} longer than the file", long, outcome)
        place += 12 + len(body)
        if name != "IEND":
            yield corrupt(f"cut after {name}", whole[:place])
    yield corrupt("no IHDR", file_of(*rest))
    yield same("two IHDR", file_of(head, *pieces))
    yield same("two IHDR that differ", file_of(header(64, 64), *pieces))
    yield corrupt("IHDR too short", file_of((b"IHDR", head[1][:8]), *rest))
    yield corrupt("no IDAT", file_of(head, end))
    yield corrupt("one IDAT is missing", file_of(head, first, end))
    yield corrupt("IDATs in the wrong order", file_of(head, second, first, end))
    yield corrupt("text between the IDATs", file_of(head, first, (b"tEXt", b"a\0b"), second, end))
    yield kind("unknown critical chunk", file_of(head, (b"XXXX", b"?"), *rest), SCORED)
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
        yield kind(f"says {width} x {height}", file_of(header(width, height), *rest), code)
    for depth, colour in ((8, 1), (8, 7), (3, 0), (32, 0), (4, 2)):
        wrong_head = header(128, 128, depth, colour)
        yield corrupt(f"says {depth} bits of colour type {colour}", file_of(wrong_head, *rest))
    palette = header(128, 128, 8, 3)
    yield corrupt("palette is missing", file_of(palette, *rest))
    three = file_of(palette, (b"PLTE", bytes(9)), *rest)
    yield kind("palette of 3 colours, and more in use", three, SCORED, FLAT)
    unknown_filter = zlib.compress(b"\x09" * 129 * 128)
    yield corrupt("filter that does not exist", file_of(head, (b"IDAT", unknown_filter), end))
    bomb = zlib.compress(bytes(300_000_000), 9)
    yield kind("128 x 128 that inflate to 300 MB", file_of(head, (b"IDAT", bomb), end), SCORED, FLAT)
    for name, body in {"iCCP": b"x\0\0", "zTXt": b"x\0\0", "iTXt": b"x\0\1\0\0\0"}.items():
        yield corrupt(f"{name} that inflates to 300 MB", file_of(head, (name.encode(), body + bomb), *rest))
    text = (b"zTXt", b"x\0\0" + zlib.compress(bytes(1_000_000), 9))
    yield corrupt("a thousand zTXt of 1 MB", file_of(head, *[text] * 1000, *rest))
    million = coded(b"tEXt", b"") * 1_000_000
    yield corrupt("a million chunks", SIGNATURE + coded(*head) + million + whole[-12:])
    yield corrupt("5,000 bytes of 7,000 x 7,000 in RGBA", file_of(header(7000, 7000, 8, 6), first, end))
