"""A DICOM file as an 8-bit grey image. No header value is logged, stored or put into an error."""

import io
import logging
import struct
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import get_frame
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.pixels.processing import apply_rescale, apply_voi, apply_windowing
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from runs.codes import ErrorCode

from classifier.bounds import BoundedFile, ImageError, check_size

# What pydicom and Pillow decode. Not deflated files: a small one may inflate to any size. Not JPEG Lossless
# and JPEG-LS: their open decoder (GDCM) ends the whole process on damaged files.
_TRANSFER_SYNTAXES = {
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEGBaseline8Bit,
    JPEG2000Lossless,
    JPEG2000,
}
# What pydicom and its decoders raise on damaged files.
_DAMAGED = (
    BytesLengthException,
    InvalidDicomError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)

# Largest table of grey values for modality or window. One table has 128 KiB; pydicom reads all there are.
_MAX_TABLES = 2**20
_MAX_RUNS = 10_000_000  # in a run-length encoded segment: pydicom takes two seconds for them

logging.getLogger("pydicom").propagate = False  # it and the loggers below it quote header values


def decode(data: bytes) -> Image.Image:
    """The one frame of the file as an "L" image, windowed as the file says. Raises ImageError."""
    file = BoundedFile(data)
    try:
        # Checked before pydicom reads the file: it would inflate a deflated file at once.
        if _transfer_syntax(file) not in _TRANSFER_SYNTAXES:
            raise ImageError(ErrorCode.DICOM_TRANSFER_SYNTAX)
        file.seek(0)
        return _frame(dcmread(file))
    except _DAMAGED as error:
        raise ImageError(ErrorCode.IMAGE_CORRUPT) from error


def _transfer_syntax(file: io.BytesIO) -> str:
    """(0002,0010) of the file meta information, as pydicom itself reads it (PS3.10, section 7.1)."""
    file.seek(132)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    return str(meta.TransferSyntaxUID)


def _frame(dataset: Dataset) -> Image.Image:
    if "PixelData" not in dataset or dataset.BitsAllocated not in (8, 16):
        raise ImageError(ErrorCode.DICOM_NO_PIXELS)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        raise ImageError(ErrorCode.DICOM_MULTI_FRAME)
    if dataset.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError(ErrorCode.DICOM_PHOTOMETRIC)
    check_size((int(dataset.Columns), int(dataset.Rows)))
    bits, signed = int(dataset.BitsStored), dataset.PixelRepresentation == 1
    if not 1 <= bits <= dataset.BitsAllocated or dataset.SamplesPerPixel != 1:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    _check_compressed(dataset)
    first = -(2 ** (bits - 1)) if signed else 0
    stored = np.arange(first, first + 2**bits, dtype=np.int32)
    # Rescale and window are applied to at most 65,536 values, not to every pixel.
    shown = _shown(dataset, stored)
    return Image.fromarray(shown[dataset.pixel_array.clip(stored[0], stored[-1]).astype(np.int32) - first])


def _check_compressed(dataset: Dataset) -> None:
    """Raise ImageError if decoding would give other or more pixels than the header says."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return
    if not dataset["PixelData"].is_undefined_length:  # no fragments (PS3.5, annex A.4)
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    for table in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
        dataset.pop(table, None)  # so that pydicom finds this frame
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == RLELossless:
        segments, *starts = struct.unpack_from("<16L", frame)
        edges = [*starts[:segments], len(frame)]
        for start, end in pairwise(edges):
            _check_runs(frame[start:end], dataset.Rows * dataset.Columns)
        return
    # pydicom walks the boxes of a JP2 file, and loops for ever at a box of length 0.
    place = 12 if frame.startswith(b"\0\0\0\x0cjP  ") else len(frame)
    while place < len(frame) and frame[place + 4 : place + 8] != b"jp2c":
        length = int.from_bytes(frame[place : place + 4], "big")
        if length < 8:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
        place += length
    image = Image.open(io.BytesIO(frame), formats=("JPEG", "JPEG2000"))
    if image.size != (dataset.Columns, dataset.Rows) or len(image.getbands()) != 1:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)


def _check_runs(segment: bytes, pixels: int) -> None:
    """Raise ImageError for a run-length encoded segment with too many bytes or too many runs.

    PS3.5, annex G.3.1: a byte n under 128 precedes n + 1 literal bytes; a byte n over 128 precedes one byte
    that is repeated 257 - n times; 128 means nothing.
    """
    place = length = runs = 0
    while place < len(segment):
        n = segment[place]
        if n < 128:
            place += n + 2
            length += n + 1
        else:
            place += 2 if n > 128 else 1
            length += 257 - n if n > 128 else 0
        runs += 1
        if length > 2 * pixels or runs > _MAX_RUNS:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)


def _shown(dataset: Dataset, stored: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """The grey value, 0 to 255, of each stored value.

    DICOM PS3.3: C.11.1 (modality LUT, rescale), C.11.2 (VOI LUT, window), C.7.6.3.1.2 (polarity). Without a
    window, the range of the stored bits is spread over 0 to 255: 8-bit files stay as they are.
    """
    for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"):
        value = dataset.get(name)
        if value is not None and not np.isfinite(np.array(value, dtype=np.float64)).all():
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        table = dataset.get_item(name) if name in dataset else None
        if table is not None and isinstance(table.value, bytes) and len(table.value) > _MAX_TABLES:
            raise ImageError(ErrorCode.IMAGE_CORRUPT)
    values = apply_rescale(stored, dataset)
    low, high = values[0], values[-1]  # the other way round for a negative slope, as apply_windowing has it
    if dataset.get("ModalityLUTSequence"):
        low, high = 0, 2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1
    if dataset.get("VOILUTSequence"):
        values = apply_voi(values.round().astype(np.int32), dataset)
        low, high = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        values = apply_windowing(values, dataset)
    else:
        low, high = min(low, high), max(low, high)
    if high == low or not np.isfinite(values).all():
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    grey: npt.NDArray[np.uint8] = (
        ((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8)
    )
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:  # padding surrounds the image (C.7.5.1.1.2): black
        limits = sorted((int(padding), int(dataset.get("PixelPaddingRangeLimit", padding))))
        grey[(stored >= limits[0]) & (stored <= limits[1])] = 0
    return grey
