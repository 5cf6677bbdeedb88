"""A DICOM file as an 8-bit grey image. No header value is logged, stored or put into an error.

pydicom only splits the file into elements. `attributes.py` reads their values, `pixel_data.py` decodes the
pixels and `display.py` makes them grey.
"""

import io
import logging
import struct
import zlib

import numpy as np
from PIL import Image
from pydicom import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.filereader import read_dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)
from runs.codes import ErrorCode

from classifier import pixel_data
from classifier.attributes import text, whole_number
from classifier.bounds import MAX_BYTES, BoundedFile, ImageError, check_size
from classifier.display import Cell, Words, to_grey

# What pydicom and the decoders raise on damaged files.
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
    zlib.error,
)
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
# What only objects of other kinds have: a directory, a report, a document, a waveform.
_OTHER_KINDS = ("DirectoryRecordSequence", "ContentSequence", "EncapsulatedDocument", "WaveformSequence")

logging.getLogger("pydicom").propagate = False  # it and the loggers below it quote header values


def decode(data: bytes, bit_depth: int) -> Image.Image:
    """The one frame of the file as an "L" image, windowed as the file says. Raises ImageError."""
    try:
        return _image(_read(data), bit_depth)
    except _DAMAGED as error:
        raise ImageError(ErrorCode.IMAGE_CORRUPT) from error


def _read(data: bytes) -> Dataset:
    """The file's elements. Files without preamble, and without a transfer syntax, are read too."""
    file = BoundedFile(data)
    file.seek(132 if data[128:132] == b"DICM" else 0)
    meta = read_dataset(
        file,
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=lambda tag, _vr, _length: tag.group != 2,
    )
    syntax = text(meta, "TransferSyntaxUID")
    if syntax and syntax not in pixel_data.TRANSFER_SYNTAXES:
        _refuse_other_kinds(meta, meta)
        raise ImageError(ErrorCode.DICOM_TRANSFER_SYNTAX)
    if syntax == DeflatedExplicitVRLittleEndian:
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)  # PS3.5, annex A.5
        file = BoundedFile(inflating.decompress(data[file.tell() :], MAX_BYTES))
        if inflating.unconsumed_tail:
            raise ImageError(ErrorCode.IMAGE_TOO_LARGE)
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    if not syntax:
        start = file.read(6)
        file.seek(-len(start), io.SEEK_CUR)
        implicit, little = not start[4:6].isalpha(), start[:1] != b"\0"  # big-endian: 0008 begins with 00
    dataset = read_dataset(file, implicit, little)
    dataset.file_meta = meta  # type: ignore[assignment]
    return dataset


def _image(dataset: Dataset, bit_depth: int) -> Image.Image:
    if not dataset:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    if "PixelData" not in dataset:
        _refuse_other_kinds(dataset, dataset.file_meta)
        raise ImageError(ErrorCode.DICOM_NO_PIXELS)
    if whole_number(dataset, "BitsAllocated") not in (8, 16, None):
        raise ImageError(ErrorCode.DICOM_NO_PIXELS)
    if (whole_number(dataset, "NumberOfFrames") or 1) > 1:
        raise ImageError(ErrorCode.DICOM_MULTI_FRAME)
    photometric = text(dataset, "PhotometricInterpretation")
    samples = whole_number(dataset, "SamplesPerPixel") or 1
    rows, columns = whole_number(dataset, "Rows"), whole_number(dataset, "Columns")
    if not photometric or rows is None or columns is None:
        raise ImageError(ErrorCode.DICOM_HEADER)
    if photometric not in _GREY + _COLOUR:
        raise ImageError(ErrorCode.DICOM_PHOTOMETRIC)
    check_size((columns, rows))
    cell = Cell.of(dataset)
    if samples != (1 if photometric in _GREY else 3):
        raise ImageError(ErrorCode.DICOM_HEADER if photometric in _GREY else ErrorCode.DICOM_PHOTOMETRIC)
    shape = pixel_data.Shape(rows, columns, samples, cell.allocated // 8)
    words, cell = pixel_data.decode(dataset, shape, cell)
    if samples == 1:
        return Image.fromarray(to_grey(dataset, words, cell, bit_depth))
    return Image.fromarray(_grey_of_colour(words, photometric))


def _grey_of_colour(planes: Words, photometric: str) -> Words:
    """The grey [rows, columns] that is stored as colour [rows, columns, 3]. Raises ImageError."""
    first, second, third = (planes[..., sample] for sample in range(3))
    if planes.dtype != np.uint8:
        raise ImageError(ErrorCode.DICOM_PHOTOMETRIC)
    chroma = first if photometric == "RGB" else np.uint8(128)
    if not ((second == chroma).all() and (third == chroma).all()):
        raise ImageError(ErrorCode.DICOM_PHOTOMETRIC)
    return first


def _refuse_other_kinds(dataset: Dataset, meta: Dataset) -> None:
    """Raise ImageError for a report, a document, a directory and the like."""
    class_ = text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")
    name = UID(class_).name
    if any(keyword in dataset for keyword in _OTHER_KINDS) or (name != class_ and "Image" not in name):
        raise ImageError(ErrorCode.DICOM_NOT_AN_IMAGE)
