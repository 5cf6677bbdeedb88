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
from reliability.bad_file import NOT_AN_IMAGE, SAME_SCORE, BadFile, drawing, encode, plain_png

PAGE = Path(__file__).parents[1] / "docs" / "bad-images.md"


def bad_files() -> Iterator[BadFile]:
    """All files, format by format."""
    for make_files in (
        png.unusual_files,
        png.damaged_files,
        jpeg.unusual_files,
        jpeg.damaged_files,
        other_formats,
        dicom.unusual_files,
        dicom.damaged_files,
        dicom.damaged_pixel_data,
        dicom.excessive_files,
    ):
        yield from make_files()


def other_formats() -> Iterator[BadFile]:
    """Files that are neither PNG, JPEG nor DICOM."""
    image = drawing()
    yield BadFile("Other formats", "nothing", b"", ErrorCode.IMAGE_EMPTY)
    for description, data in {
        "GIF": encode(image, "GIF"),
        "BMP": encode(image, "BMP"),
        "TIFF": encode(image, "TIFF"),
        "WebP": encode(image, "WEBP"),
        "JPEG 2000": encode(image, "JPEG2000"),
        "ICO": encode(image, "ICO"),
        "PDF": encode(image, "PDF"),
        "PPM": encode(image, "PPM"),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="128" height="128"/>',
        "HTML": b"<!DOCTYPE html><title>403 Forbidden</title>",
        "XML of an S3 error": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
        "gzip of a PNG": gzip.compress(plain_png(), mtime=0),
        "zip of a PNG": zip_file(plain_png()),
        "NIfTI": struct.pack("<i", 348) + bytes(340) + b"n+1\0" + bytes(1000),
        "PSD": b"8BPS\0\1" + bytes(100),
        "Windows program": b"MZ" + bytes(500),
        "text": b"patient,finding\n1,none\n",
        "UTF-16": "\ufeffan image".encode("utf-16-le"),
        "one byte": b"\0",
        "zeros": bytes(10_000),
        "a PNG behind a line feed": b"\n" + plain_png(),
        "a PNG as Windows text": plain_png().replace(b"\r\n", b"\n"),
        "a PNG in base64": b"iVBORw0KGgoAAAANSUhEUgAAAIAAAACACAAAAADmVT4X",
    }.items():
        yield BadFile("Other formats", description, data, NOT_AN_IMAGE)


def zip_file(data: bytes) -> bytes:
    """A zip archive with one file."""
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


def render_page(files: list[BadFile]) -> str:
    """The text of docs/bad-images.md."""
    lines = [ABOUT]
    for format_ in dict.fromkeys(file.format for file in files):
        lines.append(f"## {format_}\n\n| file | becomes | score |\n|---|---|---|")
        for file in files:
            if file.format == format_:
                warnings = "".join(f", `{warning}`" for warning in file.warnings)
                score = {None: "", SAME_SCORE: "same"}.get(file.tolerance, file.tolerance)
                lines.append(f"| {file.description} | `{file.outcome}`{warnings} | {score} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    with whole_file(PAGE) as part:
        part.write_text(render_page(list(bad_files())))
