"""Measures a fitted model, for the fields `metrics` and `limitations` of model.json."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from training import measures
from training.data import Floats, Images, Ints, Texts
from training.features import ImageStatistics
from training.fitting import CrossCollectionTest, FittedModel
from training.splits import Split

FEWEST = 10  # a group with fewer images of a class is not measured


def measure(images: Images, split: Split, model: FittedModel, statistics: ImageStatistics) -> dict[str, Any]:
    """All metrics, each with the numbers of images and patients that it was measured on."""
    tested = np.flatnonzero(np.isfinite(model.scores).all(0))
    found: dict[str, Any] = {
        "interval": f"95%, {measures.draw_count(len(images))} bootstrap samples of patients",
        "scores": "out of fold, by models that saw no image of the patient; "
        f"mean over {len(split.folds)} split{'s' * (len(split.folds) > 1)}",
        "collections": {},
    }
    for collection in images.collections:
        members = np.intersect1d(tested, images.in_collection(collection))
        found["collections"][collection] = {
            **_measure_scores(images, members, model.scores),
            "by_view": dict(_measure_groups(images, members, model.scores, images.view)),
            "by_detector": dict(_measure_groups(images, members, model.scores, images.detector)),
            "nuisances": _measure_nuisances(images, members, statistics),
        }
    first = np.intersect1d(tested, images.in_collection(images.collections[0]))
    if model.starting_point is not None:
        found["starting_point"] = _compare_with_starting_point(
            images, first, model.scores, model.starting_point
        )
    found["across_collections"] = [
        _measure_across_collections(images, test) for test in model.cross_collection_tests
    ]
    found["calibration"] = _measure_calibration(images, first, split, model.scores)
    return found


def compare_with_fp32(
    images: Images, split: Split, fp32: FittedModel, int8: FittedModel
) -> list[dict[str, Any]]:
    """The changes of AUC and log-loss by 8 bits in each collection, paired by patient.

    Log-loss is that of calibrated probabilities.
    """
    found = []
    for collection in images.collections:
        members = images.in_collection(collection)
        labels, patients = images.abnormal[members], images.patient[members]
        weights = measures.bootstrap_weights(patients)
        auc, loss = [], []
        for scores in (fp32.scores[:, members], int8.scores[:, members]):
            folds = split.folds[:, members]
            probabilities, _ = measures.calibrate_across_folds(labels, scores, folds, patients)
            auc.append(measures.mean_over_repeats(measures.auc, labels, scores, weights))
            loss.append(measures.mean_over_repeats(measures.log_loss, labels, probabilities, weights))
        found.append(
            {
                **images.describe(members),
                "auc": measures.estimate(auc[1] - auc[0]),
                "log_loss": measures.estimate(loss[1] - loss[0]),
            }
        )
    return found


def fit_calibration(images: Images, model: FittedModel) -> tuple[float, float, float]:
    """Slope, offset and threshold for the bundle, fitted on every tested image of the first collection."""
    members = images.in_collection(images.collections[0])
    scores = model.scores[:, members]
    labels = np.tile(images.abnormal[members], len(scores))[np.isfinite(scores.ravel())]
    scores = scores.ravel()[np.isfinite(scores.ravel())]
    slope, offset = measures.fit_temperature(labels, scores)
    probabilities = 1 / (1 + np.exp(-(slope * scores + offset)))
    return slope, offset, measures.balanced_threshold(labels, probabilities)


def training_range(statistics: ImageStatistics) -> dict[str, list[float]]:
    """The least and the greatest brightness and contrast of the training images."""
    return {
        name: [float(values.min()), float(values.max())]
        for name, values in (("brightness", statistics.brightness), ("contrast", statistics.contrast))
    }


def list_limitations(images: Images, found: dict[str, Any], description: dict[str, Any]) -> list[str]:
    """Limitations that follow from the metrics `found` and from the images."""
    lines = []
    for collection in images.collections:
        members = images.in_collection(collection)
        _, images_each = np.unique(images.patient[members], return_counts=True)
        abnormal = members[images.abnormal[members] == 1]
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
                f"{collection}: {name} alone has AUC {value['value']:.2f} on its {len(members)} images; "
                "where it is far from 0.5, the classes were not collected alike and AUC tells little."
            )
        lines.append(
            f"{collection}: {len(images_each)} patients, of whom one has {images_each.max()} of the "
            f"{len(members)} images; intervals are wide."
        )
    groups = {name: images.in_collection(name) for name in images.collections}
    if len(groups) > 1:
        groups["all together"] = np.arange(len(images))
    for name, group in groups.items():
        views = {
            view: images.abnormal[group[images.view[group] == view]] for view in np.unique(images.view[group])
        }
        if len(views) > 1:
            shares = ", ".join(f"{labels.mean():.0%} of {view}" for view, labels in views.items())
            lines.append(f"{name}: {shares} images are abnormal: a score may read the view.")
    ages = [int(age) for age in images.age.tolist() if age.isdigit()]
    if ages:
        lines.append(f"{sum(age < 18 for age in ages)} of {len(ages)} images are of patients under 18.")
    if "recipes_in_the_inner_loop" in description:
        lines.append(
            f"The inner loop chose among {description['recipes_in_the_inner_loop']} recipes in every fold."
        )
    prevalence = images.abnormal[images.in_collection(images.collections[0])].mean()
    lines.append(
        f"Calibrated where {prevalence:.0%} of the images are abnormal. Where fewer are, scores are too high "
        "and more of the positives are false; `cxr evaluate --prevalence` says what becomes of PPV and NPV, "
        "and changes no score."
    )
    return lines


def _measure_scores(images: Images, members: Ints, scores: Floats) -> dict[str, Any]:
    labels, weights = images.abnormal[members], measures.bootstrap_weights(images.patient[members])
    values = {
        name: measures.mean_over_repeats(measure, labels, scores[:, members], weights)
        for name, measure in (("auc", measures.auc), ("average_precision", measures.average_precision))
    }
    return {
        **images.describe(members),
        **{name: measures.estimate(of_draws) for name, of_draws in values.items()},
    }


def _measure_groups(
    images: Images, members: Ints, scores: Floats, column: Texts
) -> Iterator[tuple[str, dict[str, Any]]]:
    for value in np.unique(column[members]).tolist():
        group = members[column[members] == value]
        abnormal = int(images.abnormal[group].sum())
        if not value:
            continue
        if min(abnormal, len(group) - abnormal) < FEWEST:
            yield value, {**images.describe(group), "auc": None, "average_precision": None}
        else:
            yield value, _measure_scores(images, group, scores)


def _measure_nuisances(images: Images, members: Ints, statistics: ImageStatistics) -> dict[str, Any]:
    """AUC of properties that no diagnosis should depend on; above 0.5, higher values are more abnormal."""
    values = {
        "file size": statistics.file_bytes,
        "brightness": statistics.brightness,
        "gradient energy": statistics.gradient_energy,
    }
    if all(patient.isdigit() for patient in images.patient.tolist()):
        values["patient number"] = images.patient.astype(float)
    weights = measures.bootstrap_weights(images.patient[members])
    return {
        name: measures.estimate(measures.auc(images.abnormal[members], value[members], weights))
        for name, value in values.items()
    }


def _compare_with_starting_point(
    images: Images, members: Ints, scores: Floats, start: Floats
) -> dict[str, Any]:
    labels, weights = images.abnormal[members], measures.bootstrap_weights(images.patient[members])
    model_auc, start_auc = (
        measures.mean_over_repeats(measures.auc, labels, each[:, members], weights)
        for each in (scores, start)
    )
    return {
        **images.describe(members),
        "auc": measures.estimate(model_auc),
        "starting_point_auc": measures.estimate(start_auc),
        "difference": measures.estimate(model_auc - start_auc),
    }


def _measure_across_collections(images: Images, test: CrossCollectionTest) -> dict[str, Any]:
    scores, start, coarse = (np.full((1, len(images)), np.nan) for _ in range(3))
    scores[0, test.tested_on], start[0, test.tested_on] = test.scores, test.starting_point
    coarse[0, test.tested_on] = test.coarse_starting_point
    return {
        "trained_on": images.describe(test.trained_on),
        **_compare_with_starting_point(images, test.tested_on, scores, start),
        "coarse_starting_point_auc": _measure_scores(images, test.tested_on, coarse)["auc"],
        "average_precision": _measure_scores(images, test.tested_on, scores)["average_precision"],
    }


def _measure_calibration(images: Images, members: Ints, split: Split, scores: Floats) -> dict[str, Any]:
    labels, patients = images.abnormal[members], images.patient[members]
    weights = measures.bootstrap_weights(patients)
    after, positive = measures.calibrate_across_folds(
        labels, scores[:, members], split.folds[:, members], patients
    )
    before = 1 / (1 + np.exp(-scores[:, members]))

    def estimate(measure: measures.Measure, values: Floats) -> dict[str, Any]:
        return measures.estimate(measures.mean_over_repeats(measure, labels, values, weights))

    return {
        **images.describe(members),
        "fitted": "temperature, offset and threshold on the other folds, measured on the fold left out",
        "sensitivity": estimate(measures.sensitivity, positive),
        "specificity": estimate(measures.specificity, positive),
        **{
            when: {
                "slope": estimate(measures.calibration_slope, values),
                "brier": estimate(measures.brier, values),
                "log_loss": estimate(measures.log_loss, values),
            }
            for when, values in (("before", before), ("after", after))
        },
    }
