"""Attributes of a DICOM data set, read from their bytes. What is empty or senseless is as if absent.

pydicom's own conversion raises errors for values that do not follow the standard, or quotes them in warnings.
"""

import struct
from math import isfinite

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from runs.codes import ErrorCode

from classifier.bounds import ImageError

# The value representations of numbers in binary form (PS3.5, section 6.2).
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "US or SS": "H"}
# Largest sequence of tables, in bytes. One table has 128 KiB; pydicom reads all there are.
_MAX_SEQUENCE = 2**20


def value_bytes(dataset: Dataset, keyword: str) -> bytes:
    """The bytes of an attribute. Empty if it is absent."""
    found = _raw(dataset, keyword)
    return found.value or b"" if found else b""


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute of text. Empty if it is absent."""
    return value_bytes(dataset, keyword).partition(b"\\")[0].decode("latin-1").strip(" \0")


def numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """The values of an attribute. None stands for each value that is no finite number."""
    found = _raw(dataset, keyword)
    if found is None or not found.value:
        return []
    standard = dictionary_VR(found.tag)
    vr = standard if found.VR in (None, "UN", "OB") else found.VR
    if code := _BINARY.get(vr):
        code = ("<" if found.is_little_endian else ">") + code
        whole = len(found.value) // struct.calcsize(code) * struct.calcsize(code)
        return [_finite(value) for (value,) in struct.iter_unpack(code, found.value[:whole])]
    return [_finite(part.decode("latin-1")) for part in found.value.split(b"\\")[:1000]]


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of an attribute, or None."""
    return next(iter(numbers(dataset, keyword)), None)


def whole_number(dataset: Dataset, keyword: str) -> int | None:
    """The first value of an attribute if it is a whole number, or None."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """The items of a sequence. Raises ImageError for a sequence that is too long to be read."""
    found = dataset.get_item(keyword)
    if found is None:
        return []
    if isinstance(found.value, bytes) and len(found.value) > _MAX_SEQUENCE:
        raise ImageError(ErrorCode.IMAGE_CORRUPT)
    value = dataset[keyword].value
    return [item for item in value if isinstance(item, Dataset)] if hasattr(value, "__iter__") else []


def _raw(dataset: Dataset, keyword: str) -> RawDataElement | None:
    found = dataset.get_item(keyword)
    return found if isinstance(found, RawDataElement) else None


def _finite(value: float | str) -> float | None:
    """The number, which may have a decimal comma. None for anything else."""
    try:
        found = float(value.strip(" \0").replace(",", ".") if isinstance(value, str) else value)
    except ValueError:
        return None
    return found if isfinite(found) else None
