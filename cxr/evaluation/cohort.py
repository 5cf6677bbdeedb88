"""The images that an evaluation is on: results joined with reference labels, both from CSV files."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from cxr.errors import InputError

IMAGE_COLUMNS = ("file", "key", "image", "Image Index")  # the last is NIH's own, as are those below
PATIENT_COLUMNS = ("patient_id", "Patient ID")
FINDINGS_COLUMNS = ("Finding Labels", "findings")  # separated by |
ABNORMAL, NO_FINDING = "abnormal", "No Finding"
AGE_BANDS = {"0-17": 17, "18-39": 39, "40-59": 59, "60-79": 79, "80+": 120}  # band -> highest age, years
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class Result:
    """One image's score for the label that is evaluated."""

    key: str
    score: float | None  # 0..1; None if FAILED
    positive: bool | None  # as decided when it was scored; None if not known


@dataclass(frozen=True)
class Reference:
    """What the labels CSV says of one image."""

    image: str  # its key, the end of its key, or its base name
    positive: bool
    patient: str | None
    groups: tuple[str, ...]  # one of each column of groups
    line: int = field(compare=False)  # in the file


@dataclass(frozen=True)
class Cohort:
    """Scored images with their reference labels, and what had to be left out."""

    images: list[tuple[Result, Reference]]
    failed: int
    without_label: int  # scored images
    labels_without_image: int


@dataclass(frozen=True)
class TrainingSet:
    """What a bundle was trained on, as fingerprints: base names of images, and patients."""

    images: frozenset[str]
    patients: frozenset[str]

    @classmethod
    def read(cls, bundle: Path) -> TrainingSet | None:
        """From the bundle's trained_on.json; None if it has none. Raises InputError."""
        path = bundle / "trained_on.json"
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text())
            return cls(frozenset(found["images"]), frozenset(found["patients"]))
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path}: expected {{"images": [...], "patients": [...]}}') from None

    def among(self, cohort: Cohort) -> tuple[int, int]:
        """How many images, and how many patients, of the cohort are of these."""
        names = [PurePosixPath(result.key).name for result, _ in cohort.images]
        patients = {reference.patient for _, reference in cohort.images if reference.patient is not None}
        return (
            sum(fingerprint(name) in self.images for name in names),
            sum(patient_fingerprint(patient) in self.patients for patient in patients),
        )


def patient_fingerprint(patient: str) -> str:
    """Of a number without its leading zeros: NIH's patient 398 is 00000398 in the names of files."""
    return fingerprint(str(int(patient)) if patient.isdecimal() else patient)


def fingerprint(text: str) -> str:
    """The first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_results(path: Path, label: str | None = None) -> tuple[str | None, list[Result]]:
    """A label's results from a CSV with the columns key, score, and if need be status, label, score_<label>.

    Without a label, those of the primary label; its name as far as the column `label` tells it.

    Raises InputError.
    """
    table = _Table(path)
    table.require("key", "score")
    primary: str | None = None
    results: dict[str, Result] = {}
    column = f"score_{label}" if f"score_{label}" in table.columns else "score"
    for line, row in table:
        if row["key"] in results:
            raise InputError(f"{path}, line {line}: column key repeats an image; expected each image once")
        failed = row["status"] == "FAILED" if "status" in table.columns else not row[column]
        score = None if failed else _score(row[column], f"{path}, line {line}: column {column}")
        decision = row.get("label", "")
        positive = None
        if decision:
            name = ABNORMAL if decision == "normal" else decision.removeprefix("no ")
            if name != (primary := primary or name):
                raise InputError(f"{path}, line {line}: column label is about {name}, before about {primary}")
            positive = decision == name
        results[row["key"]] = Result(row["key"], score, positive)
    if label in (None, primary):
        return primary, list(results.values())
    if column == "score" and primary:
        raise InputError(f"{path}: expected a column score_{label}; its results are about {primary}")
    return label, [Result(result.key, result.score, None) for result in results.values()]


def read_labels(path: Path, label: str, groups: Iterable[str] = ()) -> tuple[list[Reference], int]:
    """The reference labels, and how many rows said again what an earlier one had said.

    An image is named by one of IMAGE_COLUMNS, its patient by one of PATIENT_COLUMNS if any, the label is 0 or
    1 in a column of its name, else a finding in one of FINDINGS_COLUMNS.

    Raises InputError, also where two rows about one image differ.
    """
    table = _Table(path)
    groups = tuple(groups)
    table.require(*groups)
    image_column = table.first(IMAGE_COLUMNS)
    patient_column = table.first(PATIENT_COLUMNS)
    label_column = label if label in table.columns else table.first(FINDINGS_COLUMNS)
    if image_column is None:
        raise InputError(
            f"{path}: expected a column naming the image, one of {', '.join(IMAGE_COLUMNS)}; {table.found}"
        )
    if label_column is None:
        raise InputError(
            f"{path}: expected a column {label} of 0 and 1; {table.found}. --label chooses another"
        )
    found: dict[str, Reference] = {}
    repeated = 0
    for line, row in table:
        for column in filter(None, (image_column, patient_column)):
            if not row[column]:
                raise InputError(f"{path}, line {line}: column {column} is empty")
        reference = Reference(
            image=row[image_column].lstrip("/"),
            positive=_label(row[label_column], label, label_column, f"{path}, line {line}"),
            patient=row[patient_column] if patient_column else None,
            groups=tuple(_group(column, row[column]) for column in groups),
            line=line,
        )
        first = found.setdefault(reference.image, reference)
        if first != reference:
            raise InputError(
                f"{path}, line {line}: about the same image as line {first.line}, but another label, "
                "patient or group; expected each image once"
            )
        repeated += first is not reference
    references = list(found.values())
    if label_column != label and label != ABNORMAL and not any(item.positive for item in references):
        raise InputError(f"{path}: column {label_column} never has {label}; --label chooses another")
    return references, repeated


def join(results: Iterable[Result], references: Iterable[Reference]) -> Cohort:
    """Find each image's label: by the longest end of its key that a label names, else by base name.

    Raises InputError if nothing matches, or it cannot be told which label is an image's.
    """
    by_image = {reference.image: reference for reference in references}
    by_name = defaultdict(list)
    for reference in by_image.values():
        by_name[PurePosixPath(reference.image).name].append(reference)

    def label_of(key: str) -> Reference | None:
        parts = PurePosixPath(key).parts
        for start in range(len(parts)):
            if named := by_image.get("/".join(parts[start:])):
                return named
        namesakes = by_name[parts[-1]] if parts else []
        if len(namesakes) > 1:
            lines = " and ".join(str(namesake.line) for namesake in namesakes[:2])
            raise InputError(
                f"labels, lines {lines}: one image has the base name of both; expected them by whole key"
            )
        return namesakes[0] if namesakes else None

    images: list[tuple[Result, Reference]] = []
    labelled: set[str] = set()
    failed = without_label = 0
    for result in results:
        label = label_of(result.key)
        if label:
            if label.image in labelled:
                raise InputError(
                    f"labels, line {label.line}: two images have its base name; expected them by whole key"
                )
            labelled.add(label.image)
        if result.score is None:
            failed += 1
        elif label:
            images.append((result, label))
        else:
            without_label += 1
    if not images:
        raise InputError(
            f"no scored image has a label: {without_label} scored, {failed} FAILED, {len(by_image)} labels; "
            "expected images to be named by whole key or base name"
        )
    return Cohort(images, failed, without_label, len(by_image) - len(labelled))


class _Table:
    """A CSV file with a header, read row by row. Raises InputError."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                self.columns = [name.strip() for name in reader.fieldnames or ()]
                reader.fieldnames = self.columns
                self._rows = [(reader.line_num, row) for row in reader]
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except (UnicodeDecodeError, csv.Error) as error:
            raise InputError(f"{path}: expected a CSV file in UTF-8 ({error})") from None
        if not self._rows:
            raise InputError(f"{path}: expected a CSV file with a header and at least one row")

    def __iter__(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number in the file and columns, row by row."""
        for line, row in self._rows:
            if len(row) != len(self.columns) or None in row.values():
                raise InputError(f"{self._path}, line {line}: expected {len(self.columns)} columns")
            yield line, {name: value.strip() for name, value in row.items()}

    @property
    def found(self) -> str:
        return f"its columns are {', '.join(self.columns)}"

    def require(self, *columns: str) -> None:
        for column in columns:
            if column not in self.columns:
                raise InputError(f"{self._path}: expected a column {column}; {self.found}")

    def first(self, columns: Iterable[str]) -> str | None:
        return next((column for column in columns if column in self.columns), None)


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 1:
        raise InputError(f"{where} is {text!r}; expected a score from 0 to 1")
    return score


def _label(text: str, label: str, column: str, where: str) -> bool:
    if column == label:
        if text not in ("0", "1"):
            raise InputError(f"{where}: column {column} is {text!r}; expected 0 or 1")
        return text == "1"
    findings = set(filter(None, text.split("|")))
    if not findings:
        raise InputError(f"{where}: column {column} is empty; expected findings, or {NO_FINDING}")
    return findings != {NO_FINDING} if label == ABNORMAL else label in findings


def _group(column: str, text: str) -> str:
    """What the image belongs to: the column's value, of ages the band."""
    if re.search(r"\bage\b", column.replace("_", " "), re.IGNORECASE):
        years = re.fullmatch(r"0*(\d+)(\.\d+)?Y?", text)  # NIH wrote 058Y once
        return next((band for band, top in AGE_BANDS.items() if years and int(years[1]) <= top), NOT_GIVEN)
    return text or NOT_GIVEN
