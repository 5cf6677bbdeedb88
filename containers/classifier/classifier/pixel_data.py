"""The pixels of a DICOM file: from Pixel Data to the words that hold the stored values (PS3.5, section 8).

Compressed data are decoded by what they say they are, because some files name another transfer syntax.
"""

import io
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset
from pydicom.dataelem import RawDataElement
from pydicom.encaps import get_frame
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)
from runs.codes import ErrorCode

from classifier import decoder
from classifier.attributes import text, whole_number
from classifier.bounds import ImageError
from classifier.display import Cell, Words

_NATIVE = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
}
# Of JPEG: Baseline, Extended, Lossless, JPEG-LS, JPEG 2000, HTJ2K.
_JPEG = {f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203)}
TRANSFER_SYNTAXES = _NATIVE | {RLELossless} | _JPEG

# The frames of JPEG that are decoded in another way than JPEG's usual one.
_NAMES: dict[int, decoder.Format] = {0xC3: "JPEG lossless", 0xCB: "JPEG lossless", 0xF7: "JPEG-LS"}
_UNDEFINED = 0xFFFFFFFF
_MAX_RUNS = 10_000_000  # in a run-length encoded segment: they take two seconds


@dataclass(frozen=True)
class Shape:
    """What the header says of the pixels."""

    rows: int
    columns: int
    samples: int  # Samples per Pixel, 1 or 3
    size: int  # of a word, in bytes: 1 or 2

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the words, little-endian."""
        return np.dtype(f"<u{self.size}")

    def of(self, flat: npt.NDArray[np.generic], *, planes: bool) -> Words:
        """The words [rows, columns] or [rows, columns, samples]. Raises ValueError for another number."""
        if self.samples == 1:
            return flat.reshape(self.rows, self.columns)  # type: ignore[return-value]
        if planes:
            return flat.reshape(self.samples, self.rows, self.columns).transpose(1, 2, 0)  # type: ignore[return-value]
        return flat.reshape(self.rows, self.columns, self.samples)  # type: ignore[return-value]


def decode(dataset: Dataset, shape: Shape, cell: Cell) -> tuple[Words, Cell]:
    """The words [rows, columns] or [rows, columns, samples], and how values lie in them. Raises ImageError.

    Also raises what the decoders raise on damaged data.
    """
    pixels = dataset.get_item("PixelData")
    syntax = text(dataset.file_meta, "TransferSyntaxUID")
    if not isinstance(pixels, RawDataElement) or not pixels.value:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    if pixels.length != _UNDEFINED:
        if syntax and syntax not in _NATIVE:  # no fragments (PS3.5, annex A.4)
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
        return _native(dataset, pixels, shape), cell
    frame = get_frame(pixels.value, 0, number_of_frames=1)
    if syntax == RLELossless:
        return _run_lengths(frame, shape), cell
    if frame.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")):
        return _jpeg_2000(_codestream(frame), shape, cell)
    if not frame.startswith(b"\xff\xd8"):
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    return _jpeg(frame, shape, cell)


def _native(dataset: Dataset, pixels: RawDataElement, shape: Shape) -> Words:
    if text(dataset, "PhotometricInterpretation") == "YBR_FULL_422":  # two pixels share their colour
        raise ImageError(ErrorCode.DICOM_PHOTOMETRIC)
    count = shape.rows * shape.columns * shape.samples
    order = "<" if pixels.is_little_endian else ">"
    value = pixels.value or b""
    if order == ">" and shape.size == 1 and pixels.VR == "OW":  # two pixels in each word (PS3.5, annex D)
        value = np.frombuffer(value[: len(value) // 2 * 2], ">u2").astype("<u2").tobytes()
    flat = np.frombuffer(value, f"{order}u{shape.size}", count)
    return shape.of(flat, planes=whole_number(dataset, "PlanarConfiguration") == 1)


def _run_lengths(frame: bytes, shape: Shape) -> Words:
    """PS3.5, annex G: a segment for each byte of each sample, the most significant byte first."""
    segments, *starts = struct.unpack_from("<16L", frame)
    count, pixels = shape.samples * shape.size, shape.rows * shape.columns
    if segments != count:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    planes = np.empty((shape.samples, pixels, shape.size), np.uint8)
    for number, (start, end) in enumerate(pairwise([*starts[:count], len(frame)])):
        sample, byte = divmod(number, shape.size)
        segment = np.frombuffer(_unpack_runs(frame[start:end], pixels), np.uint8, pixels)
        planes[sample, :, shape.size - 1 - byte] = segment
    return shape.of(planes.view(shape.dtype).ravel(), planes=True)


def _unpack_runs(segment: bytes, pixels: int) -> bytearray:
    """The bytes of a segment. Raises ImageError for too many bytes or too many runs.

    PS3.5, annex G.3.1: a byte n under 128 precedes n + 1 literal bytes; a byte n over 128 precedes one byte
    that is repeated 257 - n times; 128 means nothing.
    """
    found = bytearray()
    place = runs = 0
    while place < len(segment):
        n = segment[place]
        if n < 128:
            found += segment[place + 1 : place + n + 2]
            place += n + 2
        else:
            if n > 128:
                found += segment[place + 1 : place + 2] * (257 - n)
            place += 2 if n > 128 else 1
        runs += 1
        if runs > _MAX_RUNS or len(found) > 2 * pixels:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
    return found


def _codestream(frame: bytes) -> bytes:
    """The codestream of JPEG 2000: some files wrap it into the boxes of a JP2 file (ISO 15444-1, annex I)."""
    place = 0
    while frame[place : place + 4] != b"\xff\x4f\xff\x51":
        length = int.from_bytes(frame[place : place + 4], "big")
        if frame[place + 4 : place + 8] == b"jp2c":
            length = 8  # the codestream follows
        if length < 8 or place + length > len(frame):
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
        place += length
    return frame[place:]


def _jpeg_2000(frame: bytes, shape: Shape, cell: Cell) -> tuple[Words, Cell]:
    """ISO 15444-1, annex A.5.1: Ssiz has the sign and the bits, and in HTJ2K, Rsiz has the bit of part 15."""
    part_15, depth = frame[6] & 0x40, frame[42]
    signed, bits = bool(depth & 0x80), (depth & 0x7F) + 1
    if part_15:
        decoded = decoder.decode(frame, "JPEG2000")
        samples, flat = decoded.samples, np.frombuffer(decoded.pixels, f"<u{decoded.size}")
        size = (decoded.columns, decoded.rows)
    else:
        image = Image.open(io.BytesIO(frame), formats=("JPEG2000",))
        size, samples = image.size, len(image.getbands())
        _check(size, samples, shape)
        flat = np.asarray(image).ravel()
    _check(size, samples, shape)
    # Pillow makes 8 or 16 bits of them, and adds half of the range to signed ones.
    values = flat >> (8 * flat.itemsize - bits)
    if signed:
        values = values ^ values.dtype.type(1 << (bits - 1))
    return shape.of(values, planes=False), _of_codestream(cell, bits, signed=signed)


def _jpeg(frame: bytes, shape: Shape, cell: Cell) -> tuple[Words, Cell]:
    """JPEG and JPEG-LS, by the marker of their frame (ISO 10918-1, table B.1; ISO 14495-1, annex C.1.1)."""
    place = 2
    while frame[place : place + 1] == b"\xff" and not _is_start_of_frame(frame[place + 1 : place + 2]):
        filling = frame[place + 1 : place + 2] == b"\xff"
        place += 1 if filling else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    marker, bits = frame[place + 1], frame[place + 4]
    if marker in (0xC0, 0xC1, 0xC2) and bits == 8:
        image = Image.open(io.BytesIO(frame), formats=("JPEG",))
        _check(image.size, len(image.getbands()), shape)
        return shape.of(np.asarray(image).ravel(), planes=False), _of_codestream(cell, 8)
    name = _NAMES.get(marker, "JPEG")
    if name == "JPEG" and b"\xff\xd9" not in frame[-64:]:  # cut short: its decoder would make up the rest
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    decoded = decoder.decode(frame, name)
    _check((decoded.columns, decoded.rows), decoded.samples, shape)
    flat = np.frombuffer(decoded.pixels, f"<u{decoded.size}")
    return shape.of(flat, planes=decoded.planes), _of_codestream(cell, bits)


def _is_start_of_frame(marker: bytes) -> bool:
    return marker in (b"\xf7", b"\xda", b"\xd9", b"") or (
        0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC)
    )


def _check(size: tuple[int, int], samples: int, shape: Shape) -> None:
    if size != (shape.columns, shape.rows) or samples != shape.samples:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)


def _of_codestream(cell: Cell, bits: int, *, signed: bool | None = None) -> Cell:
    """How values lie in words whose lowest bits are those of a codestream. It knows its depth better."""
    stored, high = (cell.stored, cell.high) if bits > cell.stored else (bits, bits - 1)
    return Cell(
        8 if bits <= 8 else 16, stored, min(high, bits - 1), cell.signed if signed is None else signed
    )
