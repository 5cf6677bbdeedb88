"""What a training run measured, as `metrics` and `limitations` of model.json."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from training import measures
from training.data import Floats, Images, Ints, Texts
from training.features import Statistics
from training.fitting import Across, Outcome
from training.splits import Split

FEWEST = 10  # images of each class that a group must have to be measured


def metrics(images: Images, split: Split, outcome: Outcome, plain: Statistics) -> dict[str, Any]:
    """Everything measured; each figure stands beside the images and patients that it is about."""
    tested = np.flatnonzero(np.isfinite(outcome.scores).all(0))
    found: dict[str, Any] = {
        "interval": f"95%, {measures.draw_count(len(images))} bootstrap samples of patients",
        "scores": "out of fold, by models that saw no image of the patient; "
        f"mean over {len(split.folds)} split{'s' * (len(split.folds) > 1)}",
        "collections": {},
    }
    for collection in images.collections:
        of = np.intersect1d(tested, images.of(collection))
        found["collections"][collection] = {
            **_worth(images, of, outcome.scores),
            "by_view": dict(_groups(images, of, outcome.scores, images.view)),
            "by_detector": dict(_groups(images, of, outcome.scores, images.detector)),
            "nuisances": _nuisances(images, of, plain),
        }
    first = np.intersect1d(tested, images.of(images.collections[0]))
    if outcome.starting_point is not None:
        found["starting_point"] = _beside(images, first, outcome.scores, outcome.starting_point)
    found["across_collections"] = [_across(images, across) for across in outcome.across]
    found["calibration"] = _calibration(images, first, split, outcome.scores)
    return found


def against_fp32(images: Images, split: Split, fp32: Outcome, int8: Outcome) -> list[dict[str, Any]]:
    """What 8 bits change in each collection, paired by patient; log-loss is after calibration."""
    found = []
    for collection in images.collections:
        of = images.of(collection)
        labels, weights = images.abnormal[of], measures.draws(images.patient[of])
        auc, loss = [], []
        for scores in (fp32.scores[:, of], int8.scores[:, of]):
            probabilities, _ = measures.calibrated(labels, scores, split.folds[:, of], images.patient[of])
            auc.append(measures.over_repeats(measures.auc, labels, scores, weights))
            loss.append(measures.over_repeats(measures.log_loss, labels, probabilities, weights))
        found.append(
            {
                **images.described(of),
                "auc": measures.estimate(auc[1] - auc[0]),
                "log_loss": measures.estimate(loss[1] - loss[0]),
            }
        )
    return found


def calibration(images: Images, outcome: Outcome) -> tuple[float, float, float]:
    """What ships: slope, offset and threshold fitted on every tested image of the first collection."""
    of = images.of(images.collections[0])
    scores = outcome.scores[:, of]
    labels = np.tile(images.abnormal[of], len(scores))[np.isfinite(scores.ravel())]
    scores = scores.ravel()[np.isfinite(scores.ravel())]
    slope, offset = measures.temperature(labels, scores)
    probabilities = 1 / (1 + np.exp(-(slope * scores + offset)))
    return slope, offset, measures.balanced_threshold(labels, probabilities)


def training_range(plain: Statistics) -> dict[str, list[float]]:
    """Least and greatest brightness and contrast of an image in training."""
    return {
        name: [float(values.min()), float(values.max())]
        for name, values in (("brightness", plain.brightness), ("contrast", plain.contrast))
    }


def limitations(images: Images, found: dict[str, Any], how: dict[str, Any]) -> list[str]:
    """What the figures themselves say against the model."""
    lines = []
    for collection in images.collections:
        of = images.of(collection)
        _, images_each = np.unique(images.patient[of], return_counts=True)
        abnormal = of[images.abnormal[of] == 1]
        findings = Counter(
            name for text in images.findings[abnormal].tolist() for name in set(text.split("|")) if name
        )
        if findings:
            name, count = findings.most_common(1)[0]
            lines.append(f"{collection}: {count / len(abnormal):.0%} of the abnormal images carry {name}.")
        nuisances = found["collections"][collection]["nuisances"]
        if nuisances:
            name, value = max(nuisances.items(), key=lambda item: abs(item[1]["value"] - 0.5))
            lines.append(
                f"{collection}: {name} alone has AUC {value['value']:.2f} on its {len(of)} images; "
                "where it is far from 0.5, the classes were not collected alike and AUC tells little."
            )
        lines.append(
            f"{collection}: {len(images_each)} patients, of whom one has {images_each.max()} of the "
            f"{len(of)} images; intervals are wide."
        )
    groups = {name: images.of(name) for name in images.collections}
    if len(groups) > 1:
        groups["all together"] = np.arange(len(images))
    for name, of in groups.items():
        views = {view: images.abnormal[of[images.view[of] == view]] for view in np.unique(images.view[of])}
        if len(views) > 1:
            shares = ", ".join(f"{labels.mean():.0%} of {view}" for view, labels in views.items())
            lines.append(f"{name}: {shares} images are abnormal: a score may read the view.")
    ages = [int(age) for age in images.age.tolist() if age.isdigit()]
    if ages:
        lines.append(f"{sum(age < 18 for age in ages)} of {len(ages)} images are of patients under 18.")
    if "recipes_in_the_inner_loop" in how:
        lines.append(f"The inner loop chose among {how['recipes_in_the_inner_loop']} recipes in every fold.")
    prevalence = images.abnormal[images.of(images.collections[0])].mean()
    lines.append(
        f"Calibrated where {prevalence:.0%} of the images are abnormal. Where fewer are, scores are too high "
        "and more of the positives are false; `cxr evaluate --prevalence` says what becomes of PPV and NPV, "
        "and changes no score."
    )
    return lines


def _worth(images: Images, of: Ints, scores: Floats) -> dict[str, Any]:
    labels, weights = images.abnormal[of], measures.draws(images.patient[of])
    return {
        **images.described(of),
        "auc": measures.estimate(measures.over_repeats(measures.auc, labels, scores[:, of], weights)),
        "average_precision": measures.estimate(
            measures.over_repeats(measures.average_precision, labels, scores[:, of], weights)
        ),
    }


def _groups(images: Images, of: Ints, scores: Floats, column: Texts) -> Iterator[tuple[str, dict[str, Any]]]:
    for value in np.unique(column[of]).tolist():
        group = of[column[of] == value]
        abnormal = int(images.abnormal[group].sum())
        if not value:
            continue
        if min(abnormal, len(group) - abnormal) < FEWEST:
            yield value, {**images.described(group), "auc": None, "average_precision": None}
        else:
            yield value, _worth(images, group, scores)


def _nuisances(images: Images, of: Ints, plain: Statistics) -> dict[str, Any]:
    """AUC of what no diagnosis should hang on, by collection: the higher, the more abnormal."""
    values = {
        "file size": plain.bytes,
        "brightness": plain.brightness,
        "gradient energy": plain.edges,
    }
    if all(patient.isdigit() for patient in images.patient.tolist()):
        values["patient number"] = images.patient.astype(float)
    weights = measures.draws(images.patient[of])
    return {
        name: measures.estimate(measures.auc(images.abnormal[of], value[of], weights))
        for name, value in values.items()
    }


def _beside(images: Images, of: Ints, scores: Floats, start: Floats) -> dict[str, Any]:
    labels, weights = images.abnormal[of], measures.draws(images.patient[of])
    ours, theirs = (
        measures.over_repeats(measures.auc, labels, each[:, of], weights) for each in (scores, start)
    )
    return {
        **images.described(of),
        "auc": measures.estimate(ours),
        "starting_point_auc": measures.estimate(theirs),
        "difference": measures.estimate(ours - theirs),
    }


def _across(images: Images, across: Across) -> dict[str, Any]:
    scores, start, coarse = (np.full((1, len(images)), np.nan) for _ in range(3))
    scores[0, across.tested_on], start[0, across.tested_on] = across.scores, across.starting_point
    coarse[0, across.tested_on] = across.coarse_starting_point
    return {
        "trained_on": images.described(across.trained_on),
        **_beside(images, across.tested_on, scores, start),
        "coarse_starting_point_auc": _worth(images, across.tested_on, coarse)["auc"],
        "average_precision": _worth(images, across.tested_on, scores)["average_precision"],
    }


def _calibration(images: Images, of: Ints, split: Split, scores: Floats) -> dict[str, Any]:
    labels, weights = images.abnormal[of], measures.draws(images.patient[of])
    after, called = measures.calibrated(labels, scores[:, of], split.folds[:, of], images.patient[of])
    before = 1 / (1 + np.exp(-scores[:, of]))

    def measured(measure: measures.Measure, values: Floats) -> dict[str, Any]:
        return measures.estimate(measures.over_repeats(measure, labels, values, weights))

    return {
        **images.described(of),
        "fitted": "temperature, offset and threshold on the other folds, measured on the fold left out",
        "sensitivity": measured(measures.sensitivity, called),
        "specificity": measured(measures.specificity, called),
        **{
            when: {
                "slope": measured(measures.calibration_slope, values),
                "brier": measured(measures.brier, values),
                "log_loss": measured(measures.log_loss, values),
            }
            for when, values in (("before", before), ("after", after))
        },
    }
