"""Splits patients into those to train on, those to make choices on and those to test on."""

import csv
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from cxr.errors import InputError
from cxr.evaluation.csv_table import CsvTable
from cxr.files import whole_file
from training.data import Images, Ints

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTS = (TRAIN, VALIDATION, TEST)
BLOCK, TESTED, VALIDATED = 50, 9, 5  # of every 50 patients, 9 are for testing and 5 for validation


def make(images: Images, seed: int) -> dict[str, str]:
    """The part of each patient.

    Patients are ordered by how many of their images radiologists read and by how many images they have. Each
    part then gets its share of every 50 patients in that order, so that the parts are alike. Raises
    InputError if there are too few patients.
    """
    generator = np.random.default_rng(seed)
    read = Counter(images.patient[images.radiologist != ""].tolist())
    count = Counter(images.patient.tolist())
    patients = generator.permutation(sorted(count)).tolist()
    patients.sort(key=lambda patient: (read[patient], count[patient]))
    parts: dict[str, str] = {}
    for start in range(0, len(patients), BLOCK):
        block = generator.permutation(patients[start : start + BLOCK]).tolist()
        for place, patient in enumerate(block):
            share = place * BLOCK / len(block)
            parts[patient] = TEST if share < TESTED else VALIDATION if share < TESTED + VALIDATED else TRAIN
    if set(parts.values()) != set(PARTS):
        raise InputError(f"{len(parts)} patients: expected enough for train, validation and test")
    return parts


def read(path: Path) -> dict[str, str]:
    """The part of each patient, from a CSV with the columns patient and part. Raises InputError."""
    table = CsvTable(path)
    table.require("patient", "part")
    parts: dict[str, str] = {}
    for line, row in table:
        if row["part"] not in PARTS:
            raise InputError(f"{path}, line {line}: part is {row['part']!r}; expected {', '.join(PARTS)}")
        if row["patient"] in parts:
            raise InputError(f"{path}, line {line}: patient {row['patient']} is repeated; expected each once")
        parts[row["patient"]] = row["part"]
    return parts


def write(parts: Mapping[str, str], path: Path) -> None:
    """Write a CSV that `read` can read. Raises OSError."""
    with whole_file(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([("patient", "part"), *sorted(parts.items())])


def indices(parts: Mapping[str, str], images: Images, part: str) -> Ints:
    """Indices of the images whose patients are in a part. Raises InputError if a patient has no part."""
    missing = sorted(set(images.patient.tolist()) - parts.keys())
    if missing:
        raise InputError(
            f"the split lacks patient {missing[0]}, {len(missing)} in all; expected every patient"
        )
    return np.flatnonzero([parts[patient] == part for patient in images.patient.tolist()])
