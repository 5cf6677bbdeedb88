"""A paired difference, calibration and the threshold."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from training import measures

RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(0, 2, 200)
LOGITS = (LABELS + RANDOM.normal(size=200)).round(1)  # with ties
PATIENTS = RANDOM.integers(0, 60, 200).astype(str)


def test_a_paired_difference_is_that_of_scikit_learn_and_narrower_than_an_unpaired_one() -> None:
    worse = LOGITS + RANDOM.normal(size=200) / 2
    value, (low, high) = measures.auc_difference(LABELS, LOGITS, worse, PATIENTS)
    assert value == pytest.approx(roc_auc_score(LABELS, LOGITS) - roc_auc_score(LABELS, worse))
    assert low < value < high
    assert measures.auc_difference(LABELS, LOGITS, LOGITS, PATIENTS) == (0, (0, 0))


def test_copies_of_images_do_not_narrow_an_interval() -> None:
    other = RANDOM.normal(size=200)
    once, copied = (
        measures.auc_difference(LABELS.repeat(n), LOGITS.repeat(n), other.repeat(n), PATIENTS.repeat(n))
        for n in (1, 20)
    )
    assert copied[1] == pytest.approx(once[1])


def test_sensitivity_and_specificity_are_about_equal_at_the_threshold() -> None:
    scores = 1 / (1 + np.exp(-LOGITS))
    positive = scores >= measures.balanced_threshold(LABELS, scores)
    assert abs(positive[LABELS == 1].mean() - (~positive[LABELS == 0]).mean()) < 0.05


def test_calibration_improves_logits_that_are_too_extreme() -> None:
    slope, offset = measures.fit_temperature(LABELS, 5 * LOGITS)
    before, after = (1 / (1 + np.exp(-x)) for x in (5 * LOGITS, 5 * LOGITS * slope + offset))
    assert log_loss(LABELS, after) < log_loss(LABELS, before)
