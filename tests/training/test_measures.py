"""Measures against scikit-learn's, and what their intervals and their calibration are of."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from training import measures

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 200)
SCORES = (LABELS + RANDOM.normal(size=200)).round(1)  # with ties
PATIENTS = RANDOM.integers(0, 60, 200).astype(str)
WEIGHTS = measures.draws(PATIENTS, 5)
PROBABILITIES = 1 / (1 + np.exp(-SCORES))


@pytest.mark.parametrize(
    ("ours", "theirs", "scores"),
    [
        (measures.auc, roc_auc_score, SCORES),
        (measures.average_precision, average_precision_score, SCORES),
        (measures.brier, brier_score_loss, PROBABILITIES),
        (measures.log_loss, log_loss, PROBABILITIES),
    ],
)
def test_a_measure_is_scikit_learn_s_in_every_draw(ours, theirs, scores) -> None:  # type: ignore[no-untyped-def]
    expected = [theirs(LABELS, scores, sample_weight=weights) for weights in WEIGHTS]
    np.testing.assert_allclose(ours(LABELS, scores, WEIGHTS), expected, rtol=1e-9)


def test_the_calibration_slope_is_a_logistic_regression_s() -> None:
    expected = [
        LogisticRegression(C=np.inf).fit(SCORES[:, None], LABELS, sample_weight=weights).coef_[0, 0]
        for weights in WEIGHTS
    ]
    np.testing.assert_allclose(
        measures.calibration_slope(LABELS, PROBABILITIES, WEIGHTS), expected, rtol=1e-2
    )


def test_copies_of_a_patient_s_images_say_nothing_new() -> None:
    once, copied = (
        measures.estimate(
            measures.auc(LABELS.repeat(n), SCORES.repeat(n), measures.draws(PATIENTS.repeat(n), 200))
        )
        for n in (1, 20)
    )
    assert once == copied


def test_sensitivity_and_specificity_are_alike_at_the_threshold() -> None:
    threshold = measures.balanced_threshold(LABELS, PROBABILITIES)
    called = (threshold <= PROBABILITIES).astype(float)
    rates = [m(LABELS, called, WEIGHTS)[0] for m in (measures.sensitivity, measures.specificity)]
    assert abs(rates[0] - rates[1]) < 0.05


@pytest.mark.parametrize("folds", [np.arange(200) % 5, np.zeros(200, dtype=np.int64)])
def test_calibration_mends_scores_that_are_too_sure(folds) -> None:  # type: ignore[no-untyped-def]
    after, called = measures.calibrated(LABELS, 5 * SCORES[None], folds[None], PATIENTS)
    before = 1 / (1 + np.exp(-5 * SCORES))
    assert measures.log_loss(LABELS, after[0], WEIGHTS)[0] < measures.log_loss(LABELS, before, WEIGHTS)[0]
    assert set(called.ravel().tolist()) == {0, 1}
