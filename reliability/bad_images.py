"""Files that are not plain X-rays, each with its outcome, and the page docs/bad-images.md that lists them.

Code makes all of them from one drawing. `python -m reliability.bad_images` writes the page.
"""

import gzip
import io
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

from runs.codes import ErrorCode

from cxr.files import whole_file
from reliability import dicom, jpeg, png
from reliability.bad_file import NO_IMAGE, SAME, Kind, original, plain, saved

PAGE = Path(__file__).parents[1] / "docs" / "bad-images.md"


def kinds() -> Iterator[Kind]:
    """Every kind, by format."""
    for makers in (
        png.odd,
        png.damaged,
        jpeg.odd,
        jpeg.damaged,
        other_formats,
        dicom.odd,
        dicom.damaged,
        dicom.damaged_frames,
        dicom.hostile,
    ):
        yield from makers()


def other_formats() -> Iterator[Kind]:
    image = original()
    yield Kind("Other formats", "nothing", b"", ErrorCode.IMAGE_EMPTY)
    for what, data in {
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
        yield Kind("Other formats", what, data, NO_IMAGE)


def zipped(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo("chest.png"), data)
    return file.getvalue()


ABOUT = """# Bad images

This page says what becomes of files that are not plain X-rays. An image with an error never stops
another one.

`reliability/bad_images.py` makes each file from one drawing, and writes this page (`python -m
reliability.bad_images`). `tests/test_bad_images.py` scores each file within little memory and time, and
compares the outcome with this page. [results.md](results.md#error-codes) explains the codes.

The column *score* compares with the score of the plain PNG. *same*: it is equal. A number: it differs by
at most that.

- The classifier judges a file by its header before it decodes a pixel. It also limits what compressed
  data may grow to.
- A PNG has a checksum for each chunk, and the classifier checks all of them except that of IEND, which
  follows the pixels.
- A JPEG has no checksums. Its decoder skips damage within the scan: the pixels change, and there is no
  error code.
- The orientation in EXIF or XMP is applied.
- Colour profiles and gamma are ignored, as they were in training.
- Of an animated PNG, the first image is scored.
"""


def page(found: list[Kind]) -> str:
    """docs/bad-images.md."""
    lines = [ABOUT]
    for group in dict.fromkeys(kind.group for kind in found):
        lines.append(f"## {group}\n\n| file | becomes | score |\n|---|---|---|")
        for kind in found:
            if kind.group == group:
                warnings = "".join(f", `{warning}`" for warning in kind.warnings)
                score = {None: "", SAME: "same"}.get(kind.within, kind.within)
                lines.append(f"| {kind.what} | `{kind.outcome}`{warnings} | {score} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    with whole_file(PAGE) as part:
        part.write_text(page(list(kinds())))
