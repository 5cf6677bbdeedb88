"""Measures of scores, with 95% intervals from a bootstrap of patients.

Every measure takes labels [images], 0 or 1, scores [images] and weights [draws, images], and returns a value
for each draw. A weight is how often an image was drawn. The first draw is the original sample: every image
once.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from training.data import Floats, Ints, Texts

DRAWS = 4000  # with another seed, the ends of an interval then move by at most 0.002
Measure = Callable[[Ints, Floats, Floats], Floats]


def draw_count(images: int) -> int:
    """DRAWS, or as many as fit into a gigabyte where there are more than 25,000 images."""
    return min(DRAWS, 10**8 // images)


def bootstrap_weights(patients: Texts, count: int | None = None, seed: int = 0) -> Floats:
    """Weights [1 + count, images]. All images of a patient are drawn together."""
    count = count or draw_count(len(patients))
    unique, patient = np.unique(patients, return_inverse=True)
    times = np.random.default_rng(seed).multinomial(len(unique), np.full(len(unique), 1 / len(unique)), count)
    return np.concatenate([np.ones((1, len(patients))), times[:, patient]])


def estimate(values: Floats) -> dict[str, Any]:
    """A measure's value and 95% interval from its values [draws], rounded to 3 decimals."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return {"value": round(float(values[0]), 3), "ci95": [round(float(low), 3), round(float(high), 3)]}


def mean_over_repeats(measure: Measure, labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Values [draws] of a measure, averaged over the rows of scores [repeats, images]."""
    mean: Floats = np.mean([measure(labels, row, weights) for row in scores], axis=0)
    return mean


def auc(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Area under the ROC curve; a tie counts half."""
    true, false = _cumulative_positives(labels, scores, weights)
    steps = np.diff(false, axis=1, prepend=0)
    area = (steps * (true - np.diff(true, axis=1, prepend=0) / 2)).sum(1)
    return _ratio(area, true[:, -1] * false[:, -1])


def average_precision(labels: Ints, scores: Floats, weights: Floats) -> Floats:
    """Precision averaged over the abnormal images, as scikit-learn defines it."""
    true, false = _cumulative_positives(labels, scores, weights)
    precision = _ratio(true, true + false)
    return _ratio((np.diff(true, axis=1, prepend=0) * np.nan_to_num(precision)).sum(1), true[:, -1])


def _cumulative_positives(labels: Ints, scores: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """True and false positives [draws, scores] with each distinct score as threshold, highest first."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.flatnonzero(np.diff(scores[order], append=-np.inf))
    drawn, abnormal = weights[:, order], labels[order] == 1
    true = np.cumsum(drawn * abnormal, axis=1)[:, last_of_ties]
    false = np.cumsum(drawn * ~abnormal, axis=1)[:, last_of_ties]
    return true, false


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def sensitivity(labels: Ints, positive: Floats, weights: Floats) -> Floats:
    """Share of the abnormal images that are `positive` [images], 0 or 1."""
    return _ratio(weights @ (labels * positive), weights @ labels.astype(float))


def specificity(labels: Ints, positive: Floats, weights: Floats) -> Floats:
    """Share of the normal images that are not `positive` [images], 0 or 1."""
    return sensitivity(1 - labels, 1 - positive, weights)


def brier(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """Brier score: the mean squared difference of probability and label."""
    mean: Floats = weights @ (probabilities - labels) ** 2 / weights.sum(1)
    return mean


def log_loss(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """Mean negative logarithm of the probability given to the true class."""
    p = np.clip(np.where(labels == 1, probabilities, 1 - probabilities), 1e-12, 1)
    mean: Floats = weights @ -np.log(p) / weights.sum(1)
    return mean


def calibration_slope(labels: Ints, probabilities: Floats, weights: Floats) -> Floats:
    """Slope of a logistic regression of the labels on the logits. Below 1, probabilities are too extreme."""
    p = np.clip(probabilities, 1e-6, 1 - 1e-6)
    return fit_logistic(labels, np.log(p / (1 - p)), weights)[0]


def fit_logistic(labels: Ints | Floats, x: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """Slope and offset, each [draws], of a logistic regression on one variable, by Newton's method."""
    slope, offset = np.zeros(len(weights)), np.zeros(len(weights))
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(slope[:, None] * x + offset[:, None], -30, 30)))
        error, spread = weights * (labels - p), weights * p * (1 - p)
        a, b, c = spread @ x**2 + 1e-6, spread @ x, spread.sum(1) + 1e-6
        g, h = error @ x, error.sum(1)
        determinant = a * c - b * b
        slope = slope + np.clip((c * g - b * h) / determinant, -2, 2)
        offset = offset + np.clip((a * h - b * g) / determinant, -2, 2)
    return slope, offset


def fit_temperature(labels: Ints, scores: Floats) -> tuple[float, float]:
    """Slope (1 / temperature) and offset that turn scores into logits of probabilities.

    Labels are moved slightly towards each other, so that no probability becomes 0 or 1: Platt, "Probabilistic
    outputs for support vector machines", 1999.
    """
    abnormal, normal = (labels == 1).sum(), (labels == 0).sum()
    targets = np.where(labels == 1, (abnormal + 1) / (abnormal + 2), 1 / (normal + 2))
    slope, offset = fit_logistic(targets, scores, np.ones((1, len(scores))))
    return float(slope[0]), float(offset[0])


def balanced_threshold(labels: Ints, probabilities: Floats) -> float:
    """The threshold, to 3 decimals, at which sensitivity and specificity differ least."""
    candidates = np.unique(probabilities.round(3))
    abnormal, normal = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])
    missed = np.searchsorted(abnormal, candidates) / len(abnormal)
    passed = np.searchsorted(normal, candidates) / len(normal)
    return float(candidates[np.abs(1 - missed - passed).argmin()])


def calibrate_across_folds(
    labels: Ints, scores: Floats, folds: Ints, patients: Texts
) -> tuple[Floats, Floats]:
    """Probabilities and decisions (1 is positive), each [repeats, images], of images in each fold.

    Temperature and threshold are fitted on the other folds. `scores` and `folds` are [repeats, images]. If
    all images are in one fold, the patients are split into five.
    """
    probabilities, positive = np.zeros_like(scores), np.zeros_like(scores)
    for repeat, (row, given) in enumerate(zip(scores, folds, strict=True)):
        fold_of = given
        if len(np.unique(given)) == 1:
            fold_of = np.zeros_like(given)
            grouped = StratifiedGroupKFold(min(5, len(np.unique(patients))), shuffle=True, random_state=0)
            for fold, (_, test) in enumerate(grouped.split(row, labels, patients)):
                fold_of[test] = fold
        for fold in np.unique(fold_of):
            fit_on, test = fold_of != fold, fold_of == fold
            slope, offset = fit_temperature(labels[fit_on], row[fit_on])
            p = 1 / (1 + np.exp(-(slope * row + offset)))
            probabilities[repeat, test] = p[test]
            positive[repeat, test] = p[test] >= balanced_threshold(labels[fit_on], p[fit_on])
    return probabilities, positive
