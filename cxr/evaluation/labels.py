"""Reference labels from a CSV file."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cxr.errors import InputError, NotMeasurable
from cxr.evaluation.csv_table import CsvTable

# Names of NIH's, CheXpert's, VinDr-CXR's and RSNA's files. In RSNA's, a patient has one image.
IMAGE_COLUMNS = ("file", "key", "image", "Image Index", "Path", "image_id", "patientId")
PATIENT_COLUMNS = ("patient_id", "Patient ID")
READER_COLUMNS = ("rad_id",)  # VinDr: several radiologists read an image
FINDINGS_COLUMNS = ("Finding Labels", "findings")  # separated by |
FINDING_COLUMNS = ("class_name", "class")  # one finding; an image has a row for each
NO_FINDING_COLUMNS = ("No Finding",)
TARGET_COLUMNS = ("Target",)  # RSNA: 1 for lung opacity
TARGETS = ("abnormal", "pneumonia", "lung opacity")
# CheXpert leaves No Finding blank if there may be one. These columns then say whether there is.
PATHOLOGIES = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
)
ABNORMAL, NO_FINDING = "abnormal", "No Finding"
NORMAL = {"no finding", "normal"}
YES, NO = {"true", "t", "yes", "y"}, {"false", "f", "no", "n"}
UNKNOWN = {"", "nan", "na", "n/a", "none", "null", "uncertain"}
AGE_BANDS = {"0-17": 17, "18-39": 39, "40-59": 59, "60-79": 79, "80+": 120}  # band -> highest age, years
UNITS = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}  # of an age -> how many are a year
NOT_GIVEN = "not given"

Row = Mapping[str, str]
Decide = Callable[
    [Row, str], bool | None
]  # the label of a row, given where the row is; None if it is unknown


@dataclass(frozen=True)
class Reference:
    """What the labels CSV says of one image."""

    image: str  # its key, the end of its key, or its base name
    positive: bool | None  # None if the label is blank or uncertain
    patient: str | None
    groups: tuple[str, ...]  # its value in each of Labels.columns
    line: int = field(compare=False)  # in the file


@dataclass(frozen=True)
class Labels:
    """The reference labels of a CSV file, one for each image."""

    references: Sequence[Reference]
    columns: tuple[str, ...] = ()  # that images are grouped by
    repeated: int = 0  # rows that repeat an earlier row
    file: str = "labels"  # for messages


def read_labels(path: Path, label: str, columns: Sequence[str] = ()) -> Labels:
    """The reference labels for `label`, and the groups by `columns`.

    One of IMAGE_COLUMNS names the image, and one of PATIENT_COLUMNS, if there is one, the patient. The label
    is in a column of its name, or as NIH, CheXpert, VinDr and RSNA write it: see docs/evaluation.md. If
    several readers read an image, the label is that of the majority.

    Raises NotMeasurable if the file says nothing of `label`, and InputError for all else, also if two rows
    for one image differ.
    """
    table = CsvTable(path)
    table.require(*columns)
    image_column, patient_column = table.first(IMAGE_COLUMNS), table.first(PATIENT_COLUMNS)
    if image_column is None:
        raise InputError(
            f"{path}: expected a column that names the image, one of {', '.join(IMAGE_COLUMNS)}; "
            f"{table.found}"
        )
    decide, of_findings = _decision(table, label)
    reader_column = table.first(READER_COLUMNS)
    finding_a_row = of_findings in FINDING_COLUMNS
    found: dict[str, Reference] = {}
    opinions: dict[str, dict[str, bool | None]] = {}  # image -> reader -> label
    repeated = 0
    for line, row in table:
        where = f"{path}, line {line}"
        for column in filter(None, (image_column, patient_column)):
            if not row[column]:
                raise InputError(f"{where}: column {column} is empty")
        positive = decide(row, where)
        reference = Reference(
            image=row[image_column].replace("\\", "/").lstrip("/"),
            positive=None,
            patient=plain_number(row[patient_column]) if patient_column else None,
            groups=tuple(_group(column, row[column]) for column in columns),
            line=line,
        )
        first = found.setdefault(reference.image, reference)
        of_image = opinions.setdefault(reference.image, {})
        reader = row[reader_column] if reader_column else ""
        before = of_image.setdefault(reader, positive)
        if first != reference or (before != positive and not finding_a_row):
            raise InputError(
                f"{where}: the same image as in line {first.line}, but another label, patient "
                "or group; expected each image once"
            )
        # An image with several findings has a row for each.
        of_image[reader] = positive if before is None else before or bool(positive)
        repeated += first is not reference and not finding_a_row and not reader_column
    if of_findings and label != ABNORMAL and not any(True in each.values() for each in opinions.values()):
        raise NotMeasurable(f"{path}: no image has {label} in column {of_findings}")
    references = [
        replace(reference, positive=_majority(opinions[image].values())) for image, reference in found.items()
    ]
    return Labels(references, tuple(columns), repeated, str(path))


def _decision(table: CsvTable, label: str) -> tuple[Decide, str | None]:
    """How a row tells the label, and the column of findings if one does. Raises NotMeasurable."""
    if column := table.first([label]):
        return lambda row, where: _flag(row[column], column, where), None
    if findings := table.first(FINDINGS_COLUMNS):
        return lambda row, _: _found(row[findings].split("|"), label), findings
    if finding := table.first(FINDING_COLUMNS):
        return lambda row, _: _found([row[finding]], label), finding
    if label == ABNORMAL and (none := table.first(NO_FINDING_COLUMNS)):
        pathologies = [name for name in PATHOLOGIES if name in table.columns]

        def is_abnormal(row: Row, where: str) -> bool | None:
            normal = _flag(row[none], none, where)
            if normal is not None:
                return not normal
            return any(_flag(row[name], name, where) for name in pathologies) or None

        return is_abnormal, None
    if label.casefold() in TARGETS and (target := table.first(TARGET_COLUMNS)):
        return lambda row, where: _flag(row[target], target, where), None
    raise NotMeasurable(f"{table.path}: expected a column {label} of 0 and 1; {table.found}")


def _flag(text: str, column: str, where: str) -> bool | None:
    """What a cell says in one of the usual forms; None if it is blank or uncertain. Raises InputError."""
    word = text.casefold()
    if word in UNKNOWN:
        return None
    if word in YES or word in NO:
        return word in YES
    number = re.fullmatch(r"(-?[01])([.,]0*)?", word)
    if not number:
        raise InputError(
            f"{where}: column {column} is {text!r}; expected 0 or 1, or blank or -1 if it is not known"
        )
    return None if number[1].startswith("-") else number[1] == "1"


def _found(findings: Collection[str], label: str) -> bool | None:
    """Whether the label is among the findings; None if there is nothing, not even that there is none."""
    names = {name.strip().casefold() for name in findings} - {""}
    if not names:
        return None
    return bool(names - NORMAL) if label == ABNORMAL else label.casefold() in names


def _majority(opinions: Collection[bool | None]) -> bool | None:
    """What most readers say; None if that is nothing, or as many say one as the other."""
    known = [opinion for opinion in opinions if opinion is not None]
    return None if 2 * sum(known) == len(known) else 2 * sum(known) > len(known)


def plain_number(text: str) -> str:
    """A whole number without leading zeros and decimals, as 150 of 00000150 and 150.0; else the text."""
    number = re.fullmatch(r"0*(\d+)([.,]0*)?", text, re.ASCII)
    return number[1] if number else text


def _group(column: str, text: str) -> str:
    """The group of an image: the value of the column, or the band of an age."""
    if re.search(r"\bage\b", column.replace("_", " "), re.IGNORECASE):
        age = re.fullmatch(
            r"0*(\d+)([.,]\d+)?([YMWD]?)", text.upper(), re.ASCII
        )  # NIH wrote 058Y, 013M, 003D
        years = int(age[1]) // UNITS[age[3]] if age else None
        return next(
            (band for band, top in AGE_BANDS.items() if years is not None and years <= top), NOT_GIVEN
        )
    return text or NOT_GIVEN
