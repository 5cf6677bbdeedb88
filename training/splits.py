"""Splits images into those to fit on and those to test on. All images of a patient are on one side."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from cxr.errors import InputError
from cxr.evaluation.csv_table import CsvTable
from cxr.files import whole_file
from training.data import Images, Ints

PARTS = ("test", "validation", "train")


@dataclass(frozen=True, eq=False)
class Split:
    """Images in folds, in one or several repeats."""

    folds: Ints  # [repeats, images]: the fold in which an image is tested
    parts: bool = False  # whether it was given as PARTS: fold 0 is for testing, fold 1 for early stopping

    def fits(self) -> Iterator[tuple[int, int, Ints, Ints]]:
        """For every fit: repeat, fold, indices of the images to fit on and of those to test on."""
        for repeat, folds in enumerate(self.folds):
            for fold in (0,) if self.parts else range(folds.max() + 1):
                yield repeat, fold, np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)

    def validation(self, repeat: int, fold: int) -> Ints:
        """Indices of the images to fit on whose loss decides when to stop."""
        folds = self.folds[repeat]
        return np.flatnonzero(folds == (fold + 1) % (folds.max() + 1))


def make(images: Images, folds: int, repeats: int, seed: int) -> Split:
    """Folds of patients, with about equally many abnormal images of each collection in every fold.

    Raises InputError.
    """
    made = np.zeros((repeats, len(images)), dtype=np.int64)
    for repeat in range(repeats):
        for collection in images.collections:
            own = images.in_collection(collection)
            if len(np.unique(images.patient[own])) < folds:
                raise InputError(f"--folds {folds}: {collection} has fewer patients; expected fewer folds")
            grouped = StratifiedGroupKFold(folds, shuffle=True, random_state=seed + repeat)
            for fold, (_, test) in enumerate(grouped.split(own, images.abnormal[own], images.patient[own])):
                made[repeat, own[test]] = fold
    return _check(Split(made), images, "the labels")


def read(path: Path, images: Images) -> Split:
    """Read a CSV with one row for each image: columns image and part, or image, split_1, split_2 and so on.

    Raises InputError, also if the images of a patient are in several folds or parts.
    """
    table = CsvTable(path)
    repeats = [name for name in table.columns if name.startswith("split_")]
    if "image" not in table.columns or not ("part" in table.columns or repeats):
        raise InputError(f"{path}: expected columns image and part, or image and split_1; {table.found}")
    by_name = {row["image"]: row for _, row in table}
    missing = [name for name in images.name.tolist() if name not in by_name]
    if missing:
        raise InputError(
            f"{path}: column image lacks {missing[0]}, {len(missing)} in all; expected every image"
        )
    parts = "part" in table.columns
    given = [[by_name[name][column] for name in images.name.tolist()] for column in repeats or ["part"]]
    if parts and set(given[0]) != set(PARTS):
        raise InputError(f"{path}: column part holds {sorted(set(given[0]))}; expected {', '.join(PARTS)}")
    if not parts and not all(text.isdigit() for texts in given for text in texts):
        raise InputError(f"{path}: column {repeats[0]}: expected the number of a fold, from 0, in every row")
    folds = np.array([[PARTS.index(text) if parts else int(text) for text in texts] for texts in given])
    for name, row in zip(repeats, folds, strict=False):
        if len(np.unique(row)) != row.max() + 1 or row.max() == 0:
            raise InputError(
                f"{path}: column {name}: expected two or more folds, numbered from 0 without gaps"
            )
    return _check(Split(folds, parts), images, str(path))


def write(split: Split, images: Images, path: Path) -> None:
    """Write a CSV that `read` can read. Raises OSError."""
    columns = ["part"] if split.parts else [f"split_{i + 1}" for i in range(len(split.folds))]
    with whole_file(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "patient", *columns])
        for name, patient, folds in zip(images.name, images.patient, split.folds.T, strict=True):
            writer.writerow([name, patient, *([PARTS[folds[0]]] if split.parts else folds)])


def _check(split: Split, images: Images, source: str) -> Split:
    for folds in split.folds:
        pairs = np.unique(np.stack([images.patient, folds.astype(str)]), axis=1)
        patients, count = np.unique(pairs[0], return_counts=True)
        if count.max() > 1:
            raise InputError(
                f"{source}: patient {patients[count.argmax()]} is in {count.max()} folds or parts: "
                "expected all images of a patient on one side"
            )
    return split
