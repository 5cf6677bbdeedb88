"""One evaluation from end to end: whose scores, on which images, at which threshold, how good."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from classifier.model import Model

from cxr.errors import InputError
from cxr.evaluation.cohort import Cohort, Result, TrainingSet
from cxr.evaluation.measures import (
    RESAMPLES,
    AtPrevalence,
    Evaluation,
    LabelledScores,
    at_prevalence,
    evaluate,
    threshold_at_sensitivity,
)

MAXIMUM_GROUPS = 20  # in one column


@dataclass(frozen=True)
class Threshold:
    """Scores from this value on are called positive."""

    value: float
    source: str  # where it is from, as a person reads it


@dataclass(frozen=True)
class TrainingOverlap:
    """How many of the evaluated images and patients the bundle was trained on."""

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
class Report:
    """What `cxr evaluate` tells."""

    label: str
    model: str | None  # of the bundle; None if no bundle is known for these scores
    probability: bool
    training_overlap: TrainingOverlap | None  # None if that cannot be known
    failed: int
    without_label: int
    labels_without_image: int
    threshold: Threshold
    intervals: str
    overall: Evaluation
    groups: dict[str, dict[str, Evaluation]]  # column -> value -> its images
    at_prevalence: AtPrevalence | None


def report(
    cohort: Cohort,
    label: str,
    *,
    model: Model | None,
    training_set: TrainingSet | None,
    threshold: float | None = None,
    sensitivity: float | None = None,
    prevalence: float | None = None,
    columns: Sequence[str] = (),
) -> Report:
    """Evaluate a cohort, as a whole and by the columns that its references have groups of.

    The threshold is the one given, or the highest that reaches a sensitivity, or the one by which the results
    were decided, or the model's. Raises InputError.
    """
    data = labelled_scores(cohort)
    probability = model is not None and model.card.get("score", "probability") == "probability"
    chosen = choose_threshold(cohort, data, label, model, threshold, sensitivity)
    overall = evaluate(data, chosen.value, probability=probability)
    groups: dict[str, dict[str, Evaluation]] = {}
    for number, column in enumerate(columns):
        values = np.array([reference.groups[number] for _, reference in cohort.images])
        if len(distinct := np.unique(values)) > MAXIMUM_GROUPS:
            raise InputError(
                f"--group {column}: {len(distinct)} different values; expected at most {MAXIMUM_GROUPS}"
            )
        groups[column] = {
            str(value): evaluate(data[values == value], chosen.value, probability=probability)
            for value in distinct
        }
    sampled = "images" if data.patients is None else "patients"
    return Report(
        label=label,
        model=model.name if model else None,
        probability=probability,
        training_overlap=_training_overlap(cohort, data, training_set),
        failed=cohort.failed,
        without_label=cohort.without_label,
        labels_without_image=cohort.labels_without_image,
        threshold=chosen,
        intervals=(
            f"95%, by {sampled}: {RESAMPLES:,} bootstrap samples; for proportions Wilson's"
            f"{', widened as images of one patient are alike' if sampled == 'patients' else ''}"
        ),
        overall=overall,
        groups=groups,
        at_prevalence=None if prevalence is None else at_prevalence(overall, prevalence),
    )


def labelled_scores(cohort: Cohort) -> LabelledScores:
    """The cohort as arrays."""
    patients = [reference.patient for _, reference in cohort.images if reference.patient is not None]
    return LabelledScores(
        scores=np.array([result.score for result, _ in cohort.images], dtype=np.float64),
        positive=np.array([reference.positive for _, reference in cohort.images], dtype=bool),
        patients=np.unique(patients, return_inverse=True)[1] if patients else None,
    )


def choose_threshold(
    cohort: Cohort,
    data: LabelledScores,
    label: str,
    model: Model | None,
    threshold: float | None,
    sensitivity: float | None,
) -> Threshold:
    """The threshold, and why this one. Raises InputError."""
    if threshold is not None:
        return Threshold(threshold, "as given")
    if sensitivity is not None:
        if not data.positive.any():
            raise InputError("--at-sensitivity: no image is positive; expected at least one")
        return Threshold(
            threshold_at_sensitivity(data, sensitivity),
            f"the highest with sensitivity {sensitivity:g} or more, chosen on these same images: "
            "expect less on others",
        )
    of_model = float(model.thresholds[label]) if model and label in model.thresholds else None
    decided = [result for result, _ in cohort.images if result.positive is not None]
    if not decided:
        if model is None or of_model is None:
            raise InputError(f"the results do not say which images are {label}; expected --threshold")
        return Threshold(of_model, f"of {model.name}")
    highest_negative, lowest_positive = _decisions(decided)
    if model and of_model is not None and highest_negative < of_model <= lowest_positive:
        return Threshold(of_model, f"of {model.name}, and the results were decided by it")
    doubt = (
        f" ({model.name} has {of_model:g}: did it score them? --bundle tells)" if model and of_model else ""
    )
    if math.isinf(lowest_positive):
        above = highest_negative + 1e-6  # scores have six decimals
        return Threshold(above, f"above every score: the results call no image positive{doubt}")
    return Threshold(lowest_positive, f"the lowest score that the results call positive{doubt}")


def _decisions(decided: Sequence[Result]) -> tuple[float, float]:
    """The highest score called negative and the lowest called positive, infinite if there is none."""
    negative = [result.score for result in decided if result.score is not None and not result.positive]
    positive = [result.score for result in decided if result.score is not None and result.positive]
    limits = max(negative, default=-math.inf), min(positive, default=math.inf)
    if limits[0] >= limits[1]:
        raise InputError(
            f"the results call a score of {limits[0]:g} negative and one of {limits[1]:g} positive; "
            "expected one threshold, or --threshold"
        )
    return limits


def _training_overlap(
    cohort: Cohort, data: LabelledScores, training_set: TrainingSet | None
) -> TrainingOverlap | None:
    if training_set is None:
        return None
    images, patients = training_set.among(cohort)
    of_patients = data.patient_count
    return TrainingOverlap(images, None if of_patients is None else patients, len(data), of_patients)
