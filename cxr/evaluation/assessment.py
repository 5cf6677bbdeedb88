"""How good a cohort's scores are at one threshold, and on which images that was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from classifier.model import Model

from cxr import RESEARCH_ONLY
from cxr.errors import InputError
from cxr.evaluation.cohort import Cohort, TrainingSet
from cxr.evaluation.measures import (
    RESAMPLES,
    AtPrevalence,
    LabelledScores,
    Performance,
    at_prevalence,
    measure,
    threshold_at_sensitivity,
)
from cxr.evaluation.results import Threshold

MAX_GROUPS = 20  # in one column


@dataclass(frozen=True)
class TrainingOverlap:
    """How many of the evaluated images and patients the model was trained on."""

    images: int
    patients: int | None  # None if the labels name no patients
    of_images: int
    of_patients: int | None

    @property
    def any(self) -> bool:
        """Whether it was trained on one of them."""
        return bool(self.images or self.patients)

    @property
    def text(self) -> str:
        """In words."""
        images = f"{self.images:,} of these {self.of_images:,} images"
        patients = "" if self.patients is None else f", {self.patients:,} of {self.of_patients:,} patients"
        return images + patients


@dataclass(frozen=True)
class Assessment:
    """What `cxr evaluate` prints, and writes as evaluation.json."""

    label: str
    model: str | None  # name:version; None if it is not known which model made the scores
    probability: bool  # whether the scores are meant as probabilities
    training_overlap: TrainingOverlap | None  # None if it cannot be known
    failed: int
    without_label: int
    labels_without_image: int
    repeated_labels: int
    unknown_labels: int
    threshold: Threshold
    intervals: str
    overall: Performance
    groups: dict[str, dict[str, Performance]]  # column -> value -> its images
    at_prevalence: AtPrevalence | None

    @property
    def left_out(self) -> str:
        """In words, what is not part of the figures."""
        counts = {
            "FAILED images": self.failed,
            "images without a label": self.without_label,
            "labels without an image": self.labels_without_image,
            "labels given again": self.repeated_labels,
            "labels that are blank or uncertain": self.unknown_labels,
        }
        return ", ".join(f"{number:,} {what}" for what, number in counts.items() if number)


def to_json(found: Sequence[Assessment], not_evaluated: Mapping[str, str], **sources: str) -> str:
    """Assessments of one or several labels as JSON. The fields of the first are also at the top.

    `not_evaluated` has the reason for each label without an assessment. `sources` names what the assessments
    were made from.
    """
    of_labels = {one.label: asdict(one) for one in found}
    return json.dumps(
        {
            "note": RESEARCH_ONLY,
            **sources,
            **of_labels[found[0].label],
            "by_label": of_labels,
            "not_evaluated": dict(not_evaluated),
        },
        indent=2,
    )


def none_evaluated(reasons: Mapping[str, str]) -> str:
    """Why no label could be evaluated, in one line: for the first label, and which others there are."""
    first, *others = reasons
    return reasons[first] + (f"; nor can {', '.join(others)} be evaluated" if others else "")


def assess(
    cohort: Cohort,
    threshold: Threshold,
    *,
    model: Model | None = None,
    training_set: TrainingSet | None = None,
    prevalence: float | None = None,
) -> Assessment:
    """Measure a cohort, as a whole and by the columns that it is grouped by.

    `model` is the one that made the scores and `training_set` its own, both None if not known. With
    `prevalence`, the assessment has predictive values for it too. Raises InputError.
    """
    data = labelled_scores(cohort)
    probability = model is not None and model.card.get("score", "probability") == "probability"
    overall = measure(data, threshold.value, probability=probability)
    groups: dict[str, dict[str, Performance]] = {}
    for number, column in enumerate(cohort.columns):
        values = np.array([reference.groups[number] for _, reference in cohort.images])
        if len(distinct := np.unique(values)) > MAX_GROUPS:
            raise InputError(
                f"column {column} has {len(distinct)} different values; expected at most {MAX_GROUPS} groups"
            )
        groups[column] = {
            str(value): measure(data[values == value], threshold.value, probability=probability)
            for value in distinct
        }
    sampled = "images" if data.patients is None else "patients"
    return Assessment(
        label=cohort.label,
        model=model.name if model else None,
        probability=probability,
        training_overlap=training_overlap(cohort, data, training_set),
        failed=cohort.failed,
        without_label=cohort.without_label,
        labels_without_image=cohort.labels_without_image,
        repeated_labels=cohort.repeated_labels,
        unknown_labels=cohort.unknown_labels,
        threshold=threshold,
        intervals=(
            f"95%, by {sampled}: {RESAMPLES:,} bootstrap samples; for proportions Wilson's"
            f"{', widened because images of one patient are alike' if sampled == 'patients' else ''}"
        ),
        overall=overall,
        groups=groups,
        at_prevalence=None if prevalence is None else at_prevalence(overall, prevalence),
    )


def threshold_at(cohort: Cohort, sensitivity: float) -> Threshold:
    """The highest threshold with this sensitivity (over 0, at most 1).

    Raises NotMeasurable if no image is positive.
    """
    return Threshold(
        threshold_at_sensitivity(labelled_scores(cohort), sensitivity),
        f"the highest with a sensitivity of at least {sensitivity:g}, chosen on these same images: expect a "
        "lower sensitivity on others",
    )


def labelled_scores(cohort: Cohort) -> LabelledScores:
    """The cohort as arrays."""
    patients = [reference.patient for _, reference in cohort.images if reference.patient is not None]
    return LabelledScores(
        scores=np.array([float(found.scores[cohort.label]) for found, _ in cohort.images], dtype=np.float64),
        positive=np.array([reference.positive for _, reference in cohort.images], dtype=bool),
        patients=np.unique(patients, return_inverse=True)[1] if patients else None,
    )


def training_overlap(
    cohort: Cohort, data: LabelledScores, training_set: TrainingSet | None
) -> TrainingOverlap | None:
    """How much of the cohort is in the training set; None if that is not known. `data` is the cohort.

    If nothing of it is found, it is not known: the images may have other names in the training set.
    """
    if training_set is None:
        return None
    images, patients = training_set.overlap(cohort)
    if training_set.images and not images and not patients:
        return None
    of_patients = data.patient_count
    return TrainingOverlap(images, None if of_patients is None else patients, len(data), of_patients)
