"""The images that an evaluation is on: results joined with reference labels."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runs.predictions import Prediction

from cxr.errors import InputError
from cxr.evaluation.labels import Labels, Reference
from cxr.evaluation.results import Results


@dataclass(frozen=True)
class Cohort:
    """Scored images with their reference labels, and how many had to be left out."""

    label: str
    images: list[tuple[Prediction, Reference]]
    columns: tuple[str, ...]  # that the images are grouped by
    failed: int
    without_label: int  # scored images
    labels_without_image: int
    repeated_labels: int


@dataclass(frozen=True)
class TrainingSet:
    """What a model was trained on, as fingerprints: base names of images, and patients."""

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

    def overlap(self, cohort: Cohort) -> tuple[int, int]:
        """How many images, and how many patients, of the cohort the model was trained on."""
        names = [PurePosixPath(prediction.key).name for prediction, _ in cohort.images]
        patients = {reference.patient for _, reference in cohort.images if reference.patient is not None}
        return (
            sum(fingerprint(name) in self.images for name in names),
            sum(patient_fingerprint(patient) in self.patients for patient in patients),
        )


def patient_fingerprint(patient: str) -> str:
    """The fingerprint of a patient. Leading zeros do not count: NIH's file names have 00000398 for 398."""
    return fingerprint(str(int(patient)) if patient.isdecimal() else patient)


def fingerprint(text: str) -> str:
    """The first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def join(results: Results, labels: Labels) -> Cohort:
    """Find each image's label: the one that names the longest end of its key, else the one of its base name.

    Raises InputError if no scored image has a label, or if two labels or two images could be meant.
    """
    by_image = {reference.image: reference for reference in labels.references}
    by_name = defaultdict(list)
    for reference in by_image.values():
        by_name[PurePosixPath(reference.image).name].append(reference)

    def label_of(key: str) -> Reference | None:
        parts = PurePosixPath(key).parts
        for start in range(len(parts)):
            if named := by_image.get("/".join(parts[start:])):
                return named
        same_name = by_name[parts[-1]] if parts else []
        if len(same_name) > 1:
            lines = " and ".join(str(reference.line) for reference in same_name[:2])
            raise InputError(
                f"labels, lines {lines}: an image has the base name of both; expected labels by whole key"
            )
        return same_name[0] if same_name else None

    images: list[tuple[Prediction, Reference]] = []
    labelled: set[str] = set()
    failed = without_label = 0
    for prediction in results.predictions:
        label = label_of(prediction.key)
        if label:
            if label.image in labelled:
                raise InputError(
                    f"labels, line {label.line}: two images have its base name; expected labels by whole key"
                )
            labelled.add(label.image)
        if prediction.error:
            failed += 1
        elif label:
            images.append((prediction, label))
        else:
            without_label += 1
    if not images:
        raise InputError(
            f"no scored image has a label: {without_label} scored, {failed} FAILED, {len(by_image)} labels; "
            "expected labels by whole key or base name"
        )
    return Cohort(
        label=results.label,
        images=images,
        columns=labels.columns,
        failed=failed,
        without_label=without_label,
        labels_without_image=len(by_image) - len(labelled),
        repeated_labels=labels.repeated,
    )
