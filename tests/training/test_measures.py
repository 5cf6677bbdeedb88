"""Measures against scikit-learn, their intervals, and calibration."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from training import measures

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 200)
SCORES = (LABELS + RANDOM.normal(size=200)).round(1)  # with ties
PATIENTS = RANDOM.integers(0, 60, 200).astype(str)
WEIGHTS = measures.bootstrap_weights(PATIENTS, 5)
PROBABILITIES = 1 / (1 + np.exp(-SCORES))


@pytest.mark.parametrize(
    ("measure", "reference", "scores"),
    [
        (measures.auc, roc_auc_score, SCORES),
        (measures.average_precision, average_precision_score, SCORES),
        (measures.brier, brier_score_loss, PROBABILITIES),
        (measures.log_loss, log_loss, PROBABILITIES),
    ],
)
def test_measures_equal_scikit_learn_in_every_draw(measure, reference, scores) -> None:  # type: ignore[no-untyped-def]
    expected = [reference(LABELS, scores, sample_weight=weights) for weights in WEIGHTS]
    np.testing.assert_allclose(measure(LABELS, scores, WEIGHTS), expected, rtol=1e-9)


def test_the_calibration_slope_equals_a_logistic_regression() -> None:
    expected = [
        LogisticRegression(C=np.inf).fit(SCORES[:, None], LABELS, sample_weight=weights).coef_[0, 0]
        for weights in WEIGHTS
    ]
    np.testing.assert_allclose(
        measures.calibration_slope(LABELS, PROBABILITIES, WEIGHTS), expected, rtol=1e-2
    )


def test_copies_of_images_do_not_narrow_an_interval() -> None:
    once, copied = (
        measures.estimate(
            measures.auc(
                LABELS.repeat(n), SCORES.repeat(n), measures.bootstrap_weights(PATIENTS.repeat(n), 200)
            )
        )
        for n in (1, 20)
    )
    assert once == copied


def test_sensitivity_and_specificity_are_about_equal_at_the_threshold() -> None:
    threshold = measures.balanced_threshold(LABELS, PROBABILITIES)
    positive = (threshold <= PROBABILITIES).astype(float)
    rates = [m(LABELS, positive, WEIGHTS)[0] for m in (measures.sensitivity, measures.specificity)]
    assert abs(rates[0] - rates[1]) < 0.05


@pytest.mark.parametrize("folds", [np.arange(200) % 5, np.zeros(200, dtype=np.int64)])
def test_calibration_improves_scores_that_are_too_extreme(folds) -> None:  # type: ignore[no-untyped-def]
    after, positive = measures.calibrate_across_folds(LABELS, 5 * SCORES[None], folds[None], PATIENTS)
    before = 1 / (1 + np.exp(-5 * SCORES))
    assert measures.log_loss(LABELS, after[0], WEIGHTS)[0] < measures.log_loss(LABELS, before, WEIGHTS)[0]
    assert set(positive.ravel().tolist()) == {0, 1}
