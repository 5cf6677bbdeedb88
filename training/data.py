"""The images that a model is trained on, as a labels CSV names them."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.images import ImageError, Pixels, Preprocessing, decode

from cxr.errors import InputError
from cxr.evaluation.cohort import ABNORMAL, FINDINGS_COLUMNS, IMAGE_COLUMNS, NO_FINDING, PATIENT_COLUMNS

# The names of this project's labels and those of NIH's Data_Entry_2017.csv.
VIEW_COLUMNS = ("view", "View Position")
DETECTOR_COLUMNS = ("pixel_spacing_mm", "OriginalImagePixelSpacing[x")  # tells NIH's detectors apart
AGE_COLUMNS = ("age", "Patient Age")
EVERYTHING = "all images"

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images; each array is [images]. Texts are empty where the labels CSV has no such column."""

    file: Texts
    name: Texts  # as the labels CSV has it
    patient: Texts
    abnormal: Ints  # 0 or 1
    collection: Texts
    findings: Texts  # separated by |
    view: Texts
    detector: Texts
    age: Texts  # years

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, which: Ints) -> "Images":
        return Images(*(getattr(self, field.name)[which] for field in fields(self)))

    @property
    def collections(self) -> list[str]:
        """Distinct collections, in the order in which they were asked for."""
        return list(dict.fromkeys(self.collection.tolist()))

    @property
    def finding_count(self) -> Floats:
        """How many findings an image has; where findings are not known, 1 if abnormal."""
        counts = [len(set(text.split("|")) - {NO_FINDING, ""}) for text in self.findings.tolist()]
        return np.maximum(counts, self.abnormal).astype(float) * self.abnormal

    def of(self, collection: str) -> Ints:
        """Which images are of a collection."""
        return np.flatnonzero(self.collection == collection)

    def described(self, which: Ints) -> dict[str, Any]:
        """Whom a figure is about."""
        return {
            "collection": " and ".join(dict.fromkeys(self.collection[which].tolist())),
            "images": len(which),
            "patients": len(np.unique(self.patient[which])),
            "abnormal": int(self.abnormal[which].sum()),
        }


def read_labels(labels: Path, folder: Path, collections: Sequence[str] = ()) -> Images:
    """The images in `folder` that a labels CSV names, of the collections (its first folders) if any is given.

    Raises InputError, naming the file, the line and the column.
    """
    columns, rows = _table(labels)
    image = _column(labels, columns, IMAGE_COLUMNS)
    patient = _column(labels, columns, PATIENT_COLUMNS)
    findings = next((name for name in FINDINGS_COLUMNS if name in columns), None)
    label = ABNORMAL if ABNORMAL in columns or not findings else findings
    if label not in columns:
        raise InputError(f"{labels}: expected a column {ABNORMAL} of 0 and 1; its columns are {columns}")
    view, detector, age = (
        next((name for name in names if name in columns), None)
        for names in (VIEW_COLUMNS, DETECTOR_COLUMNS, AGE_COLUMNS)
    )
    found = _Folder(folder)
    seen: dict[str, int] = {}
    kept: list[tuple[str | int, ...]] = []
    for line, row in rows:
        where = f"{labels}, line {line}: column"
        name = row[image]
        if name in seen:
            raise InputError(f"{where} {image} repeats line {seen[name]}; expected each image once")
        seen[name] = line
        if not row[patient]:
            raise InputError(f"{where} {patient} is empty; expected whose image it is")
        collection = next((c for c in collections if name.startswith(f"{c}/")), EVERYTHING)
        if collections and collection == EVERYTHING:
            continue
        kept.append(
            (
                found.path(name, f"{where} {image}"),
                name,
                row[patient],
                _label(row[label], label, where),
                collection,
                *(row[column] if column else "" for column in (findings, view, detector, age)),
            )
        )
    for collection in collections or (EVERYTHING,):
        both = {row[3] for row in kept if row[4] == collection}
        if both != {0, 1}:
            raise InputError(
                f"{labels}: column {label} of {collection} holds {sorted(map(str, both)) or 'nothing'}: "
                "expected both 0 and 1"
            )
    kept.sort(key=lambda row: [*collections, EVERYTHING].index(str(row[4])))
    return Images(*(np.array(column) for column in zip(*kept, strict=True)))


def read_pixels(file: str, preprocessing: Preprocessing) -> Pixels:
    """A file's pixels [channels, crop, crop], exactly as in scoring. Raises InputError."""
    try:
        return preprocessing(decode(Path(file).read_bytes(), preprocessing.bit_depth))
    except ImageError as error:
        raise InputError(f"{file}: {error.code}; expected a PNG, JPEG or DICOM file") from None


def few(images: Images, count: int) -> Images:
    """At most `count` of the images: as many of each collection and class, each of another patient."""
    each = count // (2 * len(images.collections))
    chosen: list[int] = []
    for collection in images.collections:
        for label in (0, 1):
            of = images.of(collection)
            of = of[images.abnormal[of] == label]
            _, first = np.unique(images.patient[of], return_index=True)
            chosen += of[np.sort(first)[:each]].tolist()
    return images[np.array(sorted(chosen))]


class _Folder:
    """Files by their path in a folder or, as NIH's CSV names them, by their base name anywhere in it."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder}: expected the folder of the images")
        self._folder = folder
        self._by_name: dict[str, Path] = {}

    def path(self, name: str, where: str) -> str:
        path = self._folder / name
        if not path.is_file():
            if not self._by_name:
                self._by_name = {file.name: file for file in self._folder.rglob("*") if file.is_file()}
            if name not in self._by_name:
                raise InputError(f"{where}: {path} is not there; expected an image in {self._folder}")
            path = self._by_name[name]
        return str(path)


def _table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            rows = [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; expected a CSV file of labels") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: expected a CSV file in UTF-8 ({error})") from None
    if not rows:
        raise InputError(f"{path}: expected a header and at least one row")
    return list(reader.fieldnames or ()), rows


def _column(path: Path, columns: list[str], names: Iterable[str]) -> str:
    for name in names:
        if name in columns:
            return name
    raise InputError(f"{path}: expected a column {' or '.join(names)}; its columns are {', '.join(columns)}")


def _label(text: str, column: str, where: str) -> int:
    if column == ABNORMAL:
        if text not in ("0", "1"):
            raise InputError(f"{where} {column} is {text!r}; expected 0 or 1")
        return int(text)
    if not text:
        raise InputError(f"{where} {column} is empty; expected findings, or {NO_FINDING}")
    return int(text != NO_FINDING)
