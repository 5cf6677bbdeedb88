"""Reference labels from a CSV file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxr.errors import InputError
from cxr.evaluation.csv_table import CsvTable

# Names with capitals are those of NIH's Data_Entry_2017.csv.
IMAGE_COLUMNS = ("file", "key", "image", "Image Index")
PATIENT_COLUMNS = ("patient_id", "Patient ID")
FINDINGS_COLUMNS = ("Finding Labels", "findings")  # separated by |
ABNORMAL, NO_FINDING = "abnormal", "No Finding"
AGE_BANDS = {"0-17": 17, "18-39": 39, "40-59": 59, "60-79": 79, "80+": 120}  # band -> highest age, years
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Reference:
    """What the labels CSV says of one image."""

    image: str  # its key, the end of its key, or its base name
    positive: bool
    patient: str | None
    groups: tuple[str, ...]  # its value in each of Labels.columns
    line: int = field(compare=False)  # in the file


@dataclass(frozen=True)
class Labels:
    """The reference labels of a CSV file, one for each image."""

    references: Sequence[Reference]
    columns: tuple[str, ...] = ()  # that images are grouped by
    repeated: int = 0  # rows that repeat an earlier row


def read_labels(path: Path, label: str, columns: Sequence[str] = ()) -> Labels:
    """The reference labels for `label`, and the groups by `columns`.

    One of IMAGE_COLUMNS names the image, and one of PATIENT_COLUMNS, if there is one, the patient. The label
    is 0 or 1 in a column of its name, or a finding in one of FINDINGS_COLUMNS.

    Raises InputError, also if two rows for one image differ.
    """
    table = CsvTable(path)
    table.require(*columns)
    image_column = table.first(IMAGE_COLUMNS)
    patient_column = table.first(PATIENT_COLUMNS)
    label_column = label if label in table.columns else table.first(FINDINGS_COLUMNS)
    if image_column is None:
        raise InputError(
            f"{path}: expected a column that names the image, one of {', '.join(IMAGE_COLUMNS)}; "
            f"{table.found}"
        )
    if label_column is None:
        raise InputError(f"{path}: expected a column {label} of 0 and 1; {table.found}")
    found: dict[str, Reference] = {}
    repeated = 0
    for line, row in table:
        for column in filter(None, (image_column, patient_column)):
            if not row[column]:
                raise InputError(f"{path}, line {line}: column {column} is empty")
        reference = Reference(
            image=row[image_column].lstrip("/"),
            positive=_positive(row[label_column], label, label_column, f"{path}, line {line}"),
            patient=row[patient_column] if patient_column else None,
            groups=tuple(_group(column, row[column]) for column in columns),
            line=line,
        )
        first = found.setdefault(reference.image, reference)
        if first != reference:
            raise InputError(
                f"{path}, line {line}: the same image as in line {first.line}, but another label, patient "
                "or group; expected each image once"
            )
        repeated += first is not reference
    references = list(found.values())
    if label_column != label and label != ABNORMAL and not any(item.positive for item in references):
        raise InputError(f"{path}: no image has {label} in column {label_column}")
    return Labels(references, tuple(columns), repeated)


def _positive(text: str, label: str, column: str, where: str) -> bool:
    if column == label:
        if text not in ("0", "1"):
            raise InputError(f"{where}: column {column} is {text!r}; expected 0 or 1")
        return text == "1"
    findings = set(filter(None, text.split("|")))
    if not findings:
        raise InputError(f"{where}: column {column} is empty; expected findings, or {NO_FINDING}")
    return findings != {NO_FINDING} if label == ABNORMAL else label in findings


def _group(column: str, text: str) -> str:
    """The group of an image: the value of the column, or the band of an age."""
    if re.search(r"\bage\b", column.replace("_", " "), re.IGNORECASE):
        years = re.fullmatch(r"0*(\d+)(\.\d+)?Y?", text)  # NIH wrote 058Y once
        return next((band for band, top in AGE_BANDS.items() if years and int(years[1]) <= top), NOT_GIVEN)
    return text or NOT_GIVEN
