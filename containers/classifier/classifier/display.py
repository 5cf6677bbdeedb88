"""From stored values to grey, by DICOM PS3.3. The functions are in the order of the pipeline (PS3.4, N.2).

All is done for each word that a pixel can be, and not for each pixel: for at most 65,536 words. Attributes
that are empty or senseless are as if absent.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from runs.codes import ErrorCode

from classifier.attributes import items, number, numbers, text, value_bytes, whole_number
from classifier.bounds import ImageError, bits_in_use

Floats = npt.NDArray[np.float64]
Words = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

_ROWS = 256  # which are looked up at once, because numpy makes 8 bytes of each pixel for that


@dataclass(frozen=True)
class Cell:
    """How a value lies in a word (PS3.3, C.7.6.3.1; PS3.5, section 8.1.1)."""

    allocated: int  # Bits Allocated, 8 or 16
    stored: int  # Bits Stored
    high: int  # High Bit
    signed: bool  # Pixel Representation

    @classmethod
    def of(cls, dataset: Dataset) -> "Cell":
        """Raises ImageError."""
        allocated, stored, high, signed = (
            whole_number(dataset, name)
            for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
        )
        if allocated is None or stored is None or signed not in (0, 1) or not 1 <= stored <= allocated:
            raise ImageError(ErrorCode.DICOM_HEADER)
        if high is None or not stored <= high + 1 <= allocated:
            high = stored - 1
        return cls(allocated, stored, high, signed == 1)

    def values(self) -> npt.NDArray[np.int32]:
        """The stored value in each word. Other bits, as those of overlays, are masked."""
        words = np.arange(2**self.allocated, dtype=np.int32)
        values: npt.NDArray[np.int32] = (words >> (self.high + 1 - self.stored)) & (2**self.stored - 1)
        if self.signed:
            values -= (values >> (self.stored - 1)) << self.stored
        return values


def to_grey(dataset: Dataset, words: Words, cell: Cell, bit_depth: int) -> npt.NDArray[np.uint8]:
    """The grey values of the pixels [rows, columns]: 0 is black and 255 is white. Raises ImageError."""
    values = cell.values()
    padding = _padding(dataset, values, cell)
    output = _modality(dataset, values.astype(np.float64))
    shown = _voi(dataset, output, signed=bool(output.min() < 0))
    if shown is None:
        shown = _whole_range(dataset, words, values, padding, cell, bit_depth)
    if _is_inverse(dataset):
        shown = 1 - shown
    table = (shown * 255).round().astype(np.uint8)
    table[padding] = 0
    grey = np.empty(words.shape, np.uint8)
    for start in range(0, len(words), _ROWS):
        grey[start : start + _ROWS] = table[words[start : start + _ROWS]]
    return grey


def _padding(dataset: Dataset, values: npt.NDArray[np.int32], cell: Cell) -> npt.NDArray[np.bool_]:
    """Which words are padding around the image, from one limit to the other (C.7.5.1.1.2). It is black.

    Their bits mean what those of a pixel mean, whatever their value representation is.
    """
    first = whole_number(dataset, "PixelPaddingValue")
    last = whole_number(dataset, "PixelPaddingRangeLimit")
    if first is None:
        return np.zeros(len(values), np.bool_)
    limits = []
    for limit in (first, first if last is None else last):
        limit &= 2**16 - 1
        limits.append(limit - 2**16 if cell.signed and limit >= 2**15 else limit)
    return (min(limits) <= values) & (values <= max(limits))


def _modality(dataset: Dataset, values: Floats) -> Floats:
    """The output of the modality LUT, or of slope and intercept if both are there (C.11.1)."""
    if table := _first_table(dataset, "ModalityLUTSequence", signed=bool(values.min() < 0)):
        return table.look_up(values)
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if not slope or intercept is None:
        return values
    with np.errstate(over="ignore"):
        rescaled = values * slope + intercept
    # A slope that is lost beside the intercept, or overflows, is senseless.
    return rescaled if np.isfinite(rescaled).all() and rescaled.min() < rescaled.max() else values


def _voi(dataset: Dataset, values: Floats, *, signed: bool) -> Floats | None:
    """The output of the VOI LUT or of the first window, 0 to 1 (C.11.2). None without either."""
    if table := _first_table(dataset, "VOILUTSequence", signed=signed):
        return table.look_up(values) / table.top
    function = text(dataset, "VOILUTFunction")
    for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False):
        if centre is None or width is None or width <= 0:
            continue
        with np.errstate(over="ignore"):
            if function == "SIGMOID":  # C.11.2.1.3.1
                return 1 / (1 + np.exp(-4 * (values - centre) / width))
            if function == "LINEAR_EXACT":  # C.11.2.1.3.2
                return ((values - centre) / width + 0.5).clip(0, 1)
            if width == 1:
                return (values > centre - 0.5).astype(np.float64)
            if width > 1:  # C.11.2.1.2.1
                return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    return None


def _whole_range(
    dataset: Dataset,
    words: Words,
    values: npt.NDArray[np.int32],
    padding: npt.NDArray[np.bool_],
    cell: Cell,
    bit_depth: int,
) -> Floats:
    """The whole range of the output of the modality LUT as 0 to 1. Raises ImageError."""
    if table := _first_table(dataset, "ModalityLUTSequence", signed=cell.signed):
        return table.look_up(values.astype(np.float64)) / table.top
    limits = np.array([values.min(), values.max()], np.float64)
    if cell.stored > min(bit_depth, 12):
        limits = _range_in_use(words, values, padding, cell, bit_depth)
    low, high = sorted(_modality(dataset, limits))
    shown: Floats = (_modality(dataset, values.astype(np.float64)) - low) / (high - low)
    return shown.clip(0, 1)


def _range_in_use(
    words: Words,
    values: npt.NDArray[np.int32],
    padding: npt.NDArray[np.bool_],
    cell: Cell,
    bit_depth: int,
) -> Floats:
    """The least and the greatest value of the bits that the pixels use. Raises ImageError."""
    used = np.zeros(len(values), np.bool_)
    for start in range(0, len(words), _ROWS):
        used[words[start : start + _ROWS]] = True
    found = values[used & ~padding]
    low, high = (int(found.min()), int(found.max())) if len(found) else (0, 0)
    top = 2 * max(high, -low - 1) + 1 if low < 0 else high  # with the bit for the sign
    bits = bits_in_use(cell.stored, top, bit_depth)
    if bits == cell.stored:
        return np.array([values.min(), values.max()], np.float64)
    return np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if low < 0 else [0, 2**bits - 1], np.float64)


def _is_inverse(dataset: Dataset) -> bool:
    """Whether the least value is white: by Presentation LUT Shape (C.8.11.3), or else by C.7.6.3.1.2."""
    shape = text(dataset, "PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return text(dataset, "PhotometricInterpretation") == "MONOCHROME1"


@dataclass(frozen=True)
class _Table:
    """A lookup table (C.11.1.1, C.11.2.1.1)."""

    first: int  # the value that the first entry is for
    entries: Floats
    top: int  # the greatest value of the bits that the entries use: many tables declare others

    def look_up(self, values: Floats) -> Floats:
        """The entry of each value; the first or the last one for values outside the table."""
        with np.errstate(invalid="ignore"):
            places = (values.round() - self.first).clip(0, len(self.entries) - 1)
        return self.entries[places.astype(np.intp)]


def _first_table(dataset: Dataset, keyword: str, *, signed: bool) -> _Table | None:
    """The table in the first item of a sequence. `signed` is whether its input may be negative."""
    for item in items(dataset, keyword)[:1]:
        descriptor = numbers(item, "LUTDescriptor")
        data = value_bytes(item, "LUTData")
        if len(descriptor) < 2 or descriptor[0] is None or descriptor[1] is None or len(data) < 2:
            continue
        count, first = int(descriptor[0]) & 0xFFFF or 2**16, int(descriptor[1]) & 0xFFFF
        element = item.get_item("LUTData")
        little = getattr(element, "is_little_endian", True)
        entries = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little else ">u2").astype("<u2")
        if len(entries) < count <= 2 * len(entries):  # entries of 8 bits, two in a word
            entries = entries.view(np.uint8)
        entries = entries[:count]
        if entries.min() == entries.max():
            continue
        top = 2 ** int(entries.max()).bit_length() - 1
        return _Table(first - 2**16 if signed and first >= 2**15 else first, entries.astype(np.float64), top)
    return None
