"""Two results of the same images side by side: paired, with reference labels or without, and compared."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath

import numpy as np
from runs.predictions import Prediction

from cxr import RESEARCH_ONLY
from cxr.errors import InputError
from cxr.evaluation.assessment import TrainingOverlap, labelled_scores, training_overlap
from cxr.evaluation.cohort import Cohort, TrainingSet, join
from cxr.evaluation.labels import Labels
from cxr.evaluation.measures import RESAMPLES, Booleans, Floats, Integers, LabelledScores
from cxr.evaluation.paired import Agreement, Difference, Shift, agreement, paired_differences, shift
from cxr.evaluation.results import Results, Threshold
from cxr.words import counted


@dataclass(frozen=True)
class Source:
    """What is known of one of the two results."""

    name: str  # the file or the run
    results: Results
    threshold: Threshold | None  # None if it is not known which images it calls positive
    model: str | None = None  # name:version; None if not known
    training_set: TrainingSet | None = None  # None if not known


@dataclass(frozen=True, eq=False)
class Pairs:
    """The images that both scored; with reference labels, those that also have a label. Arrays: [images]."""

    keys: Sequence[str]  # in A
    a: Floats  # scores, 0..1
    b: Floats
    by_base_name: bool  # that is how the images were paired, because the two have no key in common
    cohort: Cohort | None  # A's predictions with their labels, in the same order
    labelled: tuple[LabelledScores, LabelledScores] | None  # of A and B

    @property
    def clusters(self) -> Integers:
        """The patient of each image as a number, or the image if patients are not known."""
        return self.labelled[0].clusters if self.labelled else np.arange(len(self.keys))


@dataclass(frozen=True)
class Side:
    """One of the two results, as the comparison tells of it."""

    name: str
    model: str | None
    threshold: Threshold | None
    failed: int
    unpaired: int  # images that it scored and the other did not
    training_overlap: TrainingOverlap | None  # None if it cannot be known


@dataclass(frozen=True)
class Reference:
    """What the reference labels say of the compared images."""

    positives: int
    prevalence: float
    without_label: int  # images that both scored; they are left out
    labels_without_image: int
    repeated_labels: int
    specificity: float | None  # at which sensitivities are compared
    differences: dict[str, Difference]  # keys as in paired.DIFFERENCES


@dataclass(frozen=True)
class Disagreement:
    """An image that the two score differently."""

    key: str  # in A
    a: float
    b: float
    positive_a: bool | None  # None if it is not known which images are called positive
    positive_b: bool | None
    positive: bool | None  # by the reference label; None without labels


@dataclass(frozen=True)
class Comparison:
    """What `cxr compare` prints, and writes as comparison.json."""

    label: str
    a: Side
    b: Side
    same_model: bool | None  # None if it is not known
    images: int
    patients: int | None  # None if not known
    paired_by: str
    intervals: str
    reference: Reference | None  # None without labels
    agreement: Agreement | None  # None if it is not known which images one of the two calls positive
    shift: Shift
    disagreements: list[Disagreement]

    @property
    def sample(self) -> str:
        """The images and their patients in words."""
        patients = "" if self.patients is None else f" of {counted(self.patients, 'patient')}"
        return counted(self.images, "image") + patients

    def to_json(self) -> str:
        """As JSON."""
        return json.dumps({"note": RESEARCH_ONLY, **asdict(self)}, indent=2)


def pair(a: Results, b: Results, labels: Labels | None = None) -> Pairs:
    """Pair the images that both scored by their keys, or, if no key is in both, by their base names.

    Raises InputError if no image is scored in both or has a label, or if two images could be meant.
    """
    pairs, by_base_name = _paired(a, b)
    scored = {one.key: (one, other) for one, other in pairs if not one.error and not other.error}
    if not scored:
        raise InputError(
            f"no image is scored in both: A has {counted(len(a.predictions), 'image')} and B "
            f"{counted(len(b.predictions), 'image')}, {len(pairs):,} in common; expected results of the same "
            "images"
        )
    # Sorted, so that the order of a file changes no figure.
    predictions = [scored[key][0] for key in sorted(scored)]
    cohort = join(replace(a, predictions=predictions), labels) if labels else None
    if cohort:
        predictions = [prediction for prediction, _ in cohort.images]
    scores_b = np.array([float(scored[one.key][1].scores[b.label]) for one in predictions])
    of_a = labelled_scores(cohort) if cohort else None
    return Pairs(
        keys=[one.key for one in predictions],
        a=np.array([float(one.scores[a.label]) for one in predictions]),
        b=scores_b,
        by_base_name=by_base_name,
        cohort=cohort,
        labelled=(of_a, replace(of_a, scores=scores_b)) if of_a else None,
    )


def compare(
    a: Source, b: Source, pairs: Pairs, *, specificity: float | None = None, most: int = 10
) -> Comparison:
    """Compare the two results of these pairs. The differences are B minus A.

    Sensitivity is compared at `specificity`, by default the one that A has at its threshold. `most` is how
    many of the disagreements to list.
    """
    patients = pairs.labelled[0].patient_count if pairs.labelled else None
    sampled = "images" if patients is None else "patients"
    called_a, called_b = (
        None if source.threshold is None else scores >= source.threshold.value
        for source, scores in ((a, pairs.a), (b, pairs.b))
    )
    known = (called_a, called_b) if called_a is not None and called_b is not None else None
    digests = {one.results.model_sha256 for one in (a, b)}
    return Comparison(
        label=a.results.label,
        a=_side(a, pairs),
        b=_side(b, pairs),
        same_model=None if "" in digests else len(digests) == 1,
        images=len(pairs.keys),
        patients=patients,
        paired_by="base name, because no key is in both" if pairs.by_base_name else "key",
        intervals=(
            f"95%, by {sampled}: {RESAMPLES:,} bootstrap samples, the same for A and B; for the share of "
            "equal calls Wilson's"
        ),
        reference=_reference(pairs, called_a, specificity),
        agreement=agreement(*known, pairs.clusters) if known else None,
        shift=shift(pairs.a, pairs.b),
        disagreements=_disagreements(pairs, known, most),
    )


def _paired(a: Results, b: Results) -> tuple[list[tuple[Prediction, Prediction]], bool]:
    """The predictions of both for the same images, and whether base names paired them. Raises InputError."""
    of_key = {prediction.key: prediction for prediction in b.predictions}
    pairs = [(one, of_key[one.key]) for one in a.predictions if one.key in of_key]
    if pairs:
        return pairs, False
    names_a, names_b = (
        Counter(PurePosixPath(prediction.key).name for prediction in results.predictions)
        for results in (a, b)
    )
    if any(names_a[name] * names_b[name] > 1 for name in names_a):
        raise InputError(
            "no key is in both A and B, and several images have one base name; expected the same keys in both"
        )
    of_name = {PurePosixPath(prediction.key).name: prediction for prediction in b.predictions}
    named = ((one, of_name.get(PurePosixPath(one.key).name)) for one in a.predictions)
    return [(one, other) for one, other in named if other], True


def _side(source: Source, pairs: Pairs) -> Side:
    predictions = source.results.predictions
    failed = sum(prediction.error is not None for prediction in predictions)
    scored_by_both = len(pairs.keys) + (pairs.cohort.without_label if pairs.cohort else 0)
    return Side(
        name=source.name,
        model=source.model,
        threshold=source.threshold,
        failed=failed,
        unpaired=len(predictions) - failed - scored_by_both,
        training_overlap=training_overlap(pairs.cohort, pairs.labelled[0], source.training_set)
        if pairs.cohort and pairs.labelled
        else None,
    )


def _reference(pairs: Pairs, called_a: Booleans | None, specificity: float | None) -> Reference | None:
    if not pairs.cohort or not pairs.labelled:
        return None
    of_a, of_b = pairs.labelled
    if specificity is None and called_a is not None and not of_a.positive.all():
        specificity = float((~called_a[~of_a.positive]).mean())
    return Reference(
        positives=int(of_a.positive.sum()),
        prevalence=of_a.prevalence,
        without_label=pairs.cohort.without_label,
        labels_without_image=pairs.cohort.labels_without_image,
        repeated_labels=pairs.cohort.repeated_labels,
        specificity=specificity,
        differences=paired_differences(of_a, of_b, specificity),
    )


def _disagreements(pairs: Pairs, called: tuple[Booleans, Booleans] | None, most: int) -> list[Disagreement]:
    """Images that only one calls positive, then the others, each by the difference of the scores."""
    differs = called[0] != called[1] if called else np.zeros(len(pairs.keys), dtype=bool)
    change = np.abs(pairs.b - pairs.a)
    order = np.lexsort((-change, ~differs))
    positive = pairs.labelled[0].positive if pairs.labelled else None
    return [
        Disagreement(
            key=pairs.keys[image],
            a=float(pairs.a[image]),
            b=float(pairs.b[image]),
            positive_a=bool(called[0][image]) if called else None,
            positive_b=bool(called[1][image]) if called else None,
            positive=None if positive is None else bool(positive[image]),
        )
        for image in order[:most]
        if differs[image] or change[image]
    ]
