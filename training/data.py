"""The images that a labels CSV names, with their labels and pixels, to train a model on."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from classifier.bounds import ImageError
from classifier.decode import decode
from classifier.preprocessing import Pixels, Preprocessing

from cxr.errors import InputError
from cxr.evaluation.csv_table import CsvTable
from cxr.evaluation.labels import ABNORMAL, FINDINGS_COLUMNS, IMAGE_COLUMNS, NO_FINDING, PATIENT_COLUMNS

# Column names of this project's labels and of NIH's Data_Entry_2017.csv.
VIEW_COLUMNS = ("view", "View Position")
DETECTOR_COLUMNS = ("pixel_spacing_mm", "OriginalImagePixelSpacing[x")  # differs between NIH's detectors
AGE_COLUMNS = ("age", "Patient Age")
SEX_COLUMNS = ("sex", "Patient Gender")
RADIOLOGIST, NORMAL = "radiologist", "normal"  # what a radiologist read, and its value for a normal image
ALL_IMAGES = "all images"  # the collection of every image if none is given

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images. Each array is [images]; texts are empty where the labels CSV has no such column."""

    file: Texts
    name: Texts  # as in the labels CSV
    patient: Texts
    abnormal: Ints  # 0 or 1
    collection: Texts
    findings: Texts  # separated by |
    view: Texts
    detector: Texts
    age: Texts  # years
    sex: Texts
    radiologist: Texts  # what a radiologist read; empty for an image that none read

    def __len__(self) -> int:
        return len(self.file)

    def __getitem__(self, indices: Ints) -> "Images":
        return Images(*(getattr(self, field.name)[indices] for field in fields(self)))

    @property
    def collections(self) -> list[str]:
        """Distinct collections, in the order in which they were given to `read_labels`."""
        return list(dict.fromkeys(self.collection.tolist()))

    @property
    def read_abnormal(self) -> Floats:
        """Whether radiologists read something abnormal, 0 or 1; NaN for an image that none read."""
        return np.where(self.radiologist == "", np.nan, (self.radiologist != NORMAL).astype(float))

    def shows(self, finding: str) -> Floats:
        """Whether each image has this finding, 0 or 1."""
        return np.array([float(finding in text.split("|")) for text in self.findings.tolist()])

    def with_readings(self, read: "Images") -> "Images":
        """These images with what radiologists read in images of the same base name."""
        readings = {Path(name).name: text for name, text in zip(read.name, read.radiologist, strict=True)}
        texts = [readings.get(Path(name).name, "") for name in self.name.tolist()]
        return replace(self, radiologist=np.array(texts))

    def in_collection(self, collection: str) -> Ints:
        """Indices of the images of a collection."""
        return np.flatnonzero(self.collection == collection)

    def describe(self, indices: Ints) -> dict[str, Any]:
        """How many images and patients some images are, and how many are abnormal or were read."""
        return {
            "images": len(indices),
            "patients": len(np.unique(self.patient[indices])),
            "abnormal": int(self.abnormal[indices].sum()),
            "read_by_radiologists": int((self.radiologist[indices] != "").sum()),
        }


def read_labels(labels: Path, folder: Path, collections: Sequence[str] = ()) -> Images:
    """The images in `folder` that a labels CSV names.

    `collections` are names of the first folder in an image's path. If any is given, images of other folders
    are left out. Raises InputError, which names the file, the line and the column.
    """
    table = CsvTable(labels)
    image, patient = _required_column(table, IMAGE_COLUMNS), _required_column(table, PATIENT_COLUMNS)
    others = [
        table.first(names)
        for names in (
            FINDINGS_COLUMNS,
            VIEW_COLUMNS,
            DETECTOR_COLUMNS,
            AGE_COLUMNS,
            SEX_COLUMNS,
            (RADIOLOGIST,),
        )
    ]
    label = _required_column(table, (ABNORMAL, *FINDINGS_COLUMNS))
    files = _Folder(folder)
    seen: dict[str, int] = {}
    kept: list[tuple[str | int, ...]] = []
    for line, row in table:
        where = f"{labels}, line {line}: column"
        name = row[image]
        if name in seen:
            raise InputError(f"{where} {image} repeats line {seen[name]}; expected each image once")
        seen[name] = line
        if not row[patient]:
            raise InputError(f"{where} {patient} is empty; expected the patient of the image")
        collection = next((c for c in collections if name.startswith(f"{c}/")), ALL_IMAGES)
        if collections and collection == ALL_IMAGES:
            continue
        kept.append(
            (
                files.path(name, f"{where} {image}"),
                name,
                row[patient],
                _parse_label(row[label], label, where),
                collection,
                *(row[column] if column else "" for column in others),
            )
        )
    for collection in collections or (ALL_IMAGES,):
        classes = {row[3] for row in kept if row[4] == collection}
        if classes != {0, 1}:
            raise InputError(
                f"{labels}: column {label} of {collection} holds {sorted(map(str, classes)) or 'nothing'}: "
                "expected both 0 and 1"
            )
    kept.sort(key=lambda row: [*collections, ALL_IMAGES].index(str(row[4])))
    return Images(*(np.array(column) for column in zip(*kept, strict=True)))


def read_pixels(file: str, preprocessing: Preprocessing) -> Pixels:
    """The pixels [channels, crop, crop] of a file, exactly as in scoring. Raises InputError."""
    try:
        return preprocessing(decode(Path(file).read_bytes(), preprocessing.bit_depth))
    except ImageError as error:
        raise InputError(f"{file}: {error.code}; expected a PNG, JPEG or DICOM file") from None


class _Folder:
    """Finds files by their path in a folder or, for NIH's own CSV, by their base name anywhere in it."""

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
                raise InputError(f"{where}: {path} does not exist; expected an image in {self._folder}")
            path = self._by_name[name]
        return str(path)


def _required_column(table: CsvTable, names: Sequence[str]) -> str:
    column = table.first(names)
    if column is None:
        raise InputError(f"{table.path}: expected a column {' or '.join(names)}; {table.found}")
    return column


def _parse_label(text: str, column: str, where: str) -> int:
    if column == ABNORMAL:
        if text not in ("0", "1"):
            raise InputError(f"{where} {column} is {text!r}; expected 0 or 1")
        return int(text)
    if not text:
        raise InputError(f"{where} {column} is empty; expected findings, or {NO_FINDING}")
    return int(text != NO_FINDING)
