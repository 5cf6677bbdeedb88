"""The images that an evaluation is on: results joined with reference labels."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from runs.predictions import Prediction

from cxr.errors import InputError, NotMeasurable
from cxr.evaluation.labels import Labels, Reference, plain_number
from cxr.evaluation.results import Results

# Only these: the last number of a DICOM UID looks like a suffix too.
SUFFIXES = ("png", "jpg", "jpeg", "dcm", "dicom")


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
    unknown_labels: int = 0  # blank or uncertain


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
        """How many images, and how many patients, of the cohort the model was trained on.

        An image counts under its name with any suffix, and a patient also if one of their images does.
        """
        trained = [reference for prediction, reference in cohort.images if self._has(prediction.key)]
        patients = {reference.patient for _, reference in cohort.images if reference.patient is not None}
        with_image = {reference.patient for reference in trained}
        known = (one in with_image or patient_fingerprint(one) in self.patients for one in patients)
        return len(trained), sum(known)

    def _has(self, key: str) -> bool:
        """Whether an image of this base name, with or without one of the SUFFIXES, is in the set."""
        name = PurePosixPath(key).name
        stem = without_suffix(name)
        names = {name, stem, *(f"{stem}.{suffix}" for suffix in SUFFIXES)}
        return any(fingerprint(each) in self.images for each in names)


def patient_fingerprint(patient: str) -> str:
    """The fingerprint of a patient. Leading zeros do not count: NIH's file names have 00000398 for 398."""
    return fingerprint(plain_number(patient))


def fingerprint(text: str) -> str:
    """The first 16 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def join(results: Results, labels: Labels) -> Cohort:
    """Find each image's label: the one that names the longest end of its key.

    If there is none, it is the one with the longest common end, at least the base name; first with the
    suffix, then without. Raises NotMeasurable if no scored image has a label, and InputError if two labels or
    two images could be meant.
    """
    by_image = {reference.image: reference for reference in labels.references}
    by_end: dict[Callable[[str], str], _Ends] = {}  # made if needed: labels of datasets are many

    def label_of(key: str) -> Reference | None:
        key = key.replace("\\", "/")  # as in labels
        if named := next((by_image[end] for end in _ends(key) if end in by_image), None):
            return named
        for form in (str, without_suffix):
            if form not in by_end:
                by_end[form] = _Ends(labels.file, by_image.values(), form)
            if named := by_end[form].find(key):
                return named
        return None

    images: list[tuple[Prediction, Reference]] = []
    labelled: set[str] = set()
    failed = without_label = 0
    unknown = sum(reference.positive is None for reference in by_image.values())
    for prediction in results.predictions:
        label = label_of(prediction.key)
        if label:
            if label.image in labelled:
                raise InputError(
                    f"{labels.file}, line {label.line}: two images have its base name; expected labels by "
                    "whole key"
                )
            labelled.add(label.image)
        if prediction.error:
            failed += 1
        elif label:
            if label.positive is not None:
                images.append((prediction, label))
        else:
            without_label += 1
    if not images:
        raise NotMeasurable(
            f"no scored image has a label: {without_label} scored, {failed} FAILED, {len(by_image)} labels, "
            f"{unknown} of them blank or uncertain; expected labels by whole key or base name, with or "
            "without the suffix"
        )
    return Cohort(
        label=results.label,
        images=images,
        columns=labels.columns,
        failed=failed,
        without_label=without_label,
        labels_without_image=sum(
            reference.positive is not None and image not in labelled for image, reference in by_image.items()
        ),
        repeated_labels=labels.repeated,
        unknown_labels=unknown,
    )


class _Ends:
    """References by every end of their path, as `form` brings it: a/b/1.png, b/1.png and 1.png."""

    def __init__(self, file: str, references: Iterable[Reference], form: Callable[[str], str]) -> None:
        self._file, self._form = file, form
        self._first: dict[str, Reference] = {}
        self._second: dict[str, Reference] = {}  # those ends that two references have
        for reference in references:
            for end in _ends(form(reference.image)):
                if self._first.setdefault(end, reference) is not reference:
                    self._second.setdefault(end, reference)

    def find(self, key: str) -> Reference | None:
        """The reference with the longest common end. Raises InputError if there are two."""
        end = next((end for end in _ends(self._form(key)) if end in self._first), "")
        if end in self._second:
            raise InputError(
                f"{self._file}, lines {self._first[end].line} and {self._second[end].line}: an image has the "
                "base name of both; expected labels by whole key"
            )
        return self._first.get(end)


def _ends(path: str) -> Iterator[str]:
    """Every end of a path, from the whole path to the base name."""
    parts = PurePosixPath(path).parts
    return ("/".join(parts[start:]) for start in range(len(parts)))


def without_suffix(path: str) -> str:
    """The path without one of the SUFFIXES; another ending is a part of the name."""
    # A spreadsheet with decimal commas may have written 1,png for 1.png.
    return re.sub(rf"[.,]({'|'.join(SUFFIXES)})$", "", path, flags=re.IGNORECASE)
